/*
Copyright The clustermesh Authors.

Licensed under the Apache License, Version 2.0 (the "License");
you may not use this file except in compliance with the License.
You may obtain a copy of the License at

    http://www.apache.org/licenses/LICENSE-2.0

Unless required by applicable law or agreed to in writing, software
distributed under the License is distributed on an "AS IS" BASIS,
WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
See the License for the specific language governing permissions and
limitations under the License.
*/

// Command lab starts and ends many Kubernetes clusters on this machine. See README.md
// in the folder above.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"mesh.io/clustermesh/test/lab/cluster"
)

const usage = `lab runs Kubernetes clusters on this machine, from real parts.

  lab up    [--clusters 2] [--nodes 2]   start, or complete, the lab
  lab down                               remove every trace of it
  lab ps                                 list its programs, with their logs
  lab kill NAME…                         kill -9 programs: a name of the list, or its first part,
                                         or of what runs somewhere: cluster2:mesh-*
  lab cut NAME…, lab mend NAME…          lose all packets between a cluster and the others, or of
                                         a node; and no longer
  lab exec --node NAME -- COMMAND…       run a program of the host on a node
                                         (or in the network of cluster1-control, fabric)

Flags:
`

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if err := dispatch(args); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "lab:", err)
		}
		return 1
	}
	return 0
}

func dispatch(args []string) error {
	var options cluster.Options
	var node string
	flags := flag.NewFlagSet("lab", flag.ContinueOnError)
	flags.IntVar(&options.Clusters, "clusters", 2, "number of clusters")
	flags.IntVar(&options.Nodes, "nodes", 2, "number of nodes of each cluster")
	flags.StringVar(&options.StateDir, "state-dir", "/run/mesh-lab", "everything that the lab writes; the last part names its cgroup")
	flags.StringVar(&options.BinDir, "bin-dir", "_output/bin", "the programs")
	flags.StringVar(&options.Kubeconfig, "kubeconfig", "_output/lab/kubeconfig", "a second place for the kubeconfig")
	flags.IntVar(&options.Port, "port", 17441, "loopback port of cluster1's API server; cluster2 has the next")
	flags.Func("kube-proxy", "NODE=MODE: kube-proxy's mode on a node, nftables (where none is said) or iptables; can be given more than once", func(value string) error {
		name, mode, ok := strings.Cut(value, "=")
		if !ok {
			return fmt.Errorf("%q is not NODE=MODE", value)
		}
		if options.Proxies == nil {
			options.Proxies = map[string]string{}
		}
		options.Proxies[name] = mode
		return nil
	})
	flags.StringVar(&node, "node", "", "where exec runs: a node, a control plane, or fabric")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	if len(args) == 0 || strings.HasPrefix(args[0], "-") || args[0] == "help" {
		flags.Usage()
		return flag.ErrHelp
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	lab, err := cluster.New(options, os.Stdout)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	switch args[0] {
	case "up":
		return lab.Up(ctx)
	case "down":
		return lab.Down()
	case "ps":
		return lab.Processes()
	case "kill":
		return lab.Kill(flags.Args())
	case "cut":
		return lab.Cut(flags.Args())
	case "mend":
		return lab.Mend(flags.Args())
	case "exec":
		if flags.NArg() == 0 {
			return errors.New("exec needs a command after --")
		}
		return lab.Exec(node, flags.Args())
	}
	flags.Usage()
	return fmt.Errorf("unknown command %q", args[0])
}
