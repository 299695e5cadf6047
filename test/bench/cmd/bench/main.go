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

// Command bench measures the system on the lab. Without a subcommand it does all of
// it; the subcommands are the parts that must run inside a pod or on a node.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"mesh.io/clustermesh/pkg/agent/datapath"
	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/test/bench"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	command, args := all, os.Args[1:]
	if len(args) > 0 {
		switch args[0] {
		case "connect":
			command, args = connect, args[1:]
		case "propagate":
			command, args = propagate, args[1:]
		case "compare":
			command, args = compare, args[1:]
		case "client":
			command, args = client, args[1:]
		}
	}
	if err := command(ctx, args); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func all(ctx context.Context, args []string) error {
	var config bench.Config
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&config.Root, "root", ".", "the checkout")
	flags.StringVar(&config.BinDir, "bin-dir", "", "where the programs are (an absolute path)")
	flags.IntVar(&config.Changes, "changes", 200, "endpoint changes to measure")
	flags.IntVar(&config.Connects, "connects", 20000, "pairs of connects to measure")
	flags.IntVar(&config.Rounds, "rounds", 7, "rounds of the comparison with kube-proxy, at each number of services")
	flags.IntVar(&config.RoundConnects, "round-connects", 3000, "connects of each way in a round")
	sizes := flags.String("sizes", "1,100,1000,10000", "numbers of services at which we are compared with kube-proxy, in rising order")
	only := flags.String("only", "", "the parts to do, of: propagation,connects,throughput,proxies; all by default")
	output := flags.String("output", "_output/bench.json", "where the results go")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *only != "" {
		config.Only = strings.Split(*only, ",")
	}
	for text := range strings.SplitSeq(*sizes, ",") {
		size, err := strconv.Atoi(text)
		if err != nil || size < 1 {
			return fmt.Errorf("--sizes: %q is no number of services", text)
		}
		config.Sizes = append(config.Sizes, size)
	}
	results, err := bench.Run(ctx, config)
	if len(results) > 0 {
		bench.Print(os.Stdout, results)
		err = errors.Join(err, bench.Save(*output, results))
	}
	return err
}

func connect(_ context.Context, args []string) error {
	flags := flag.NewFlagSet("bench connect", flag.ContinueOnError)
	vip := flags.String("vip", "", "the virtual address:port")
	direct := flags.String("direct", "", "the pod's address:port")
	pairs := flags.Int("pairs", 20000, "pairs of connects")
	if err := flags.Parse(args); err != nil {
		return err
	}
	a, err := netip.ParseAddrPort(*vip)
	if err != nil {
		return err
	}
	b, err := netip.ParseAddrPort(*direct)
	if err != nil {
		return err
	}
	result, err := bench.MeasureConnects(a, b, *pairs)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func propagate(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench propagate", flag.ContinueOnError)
	from := flags.String("from", "", "kubeconfig of the cluster whose endpoints change")
	to := flags.String("to", "", "kubeconfig of the cluster that this node is in")
	vip := flags.String("vip", "", "the virtual address:port in that cluster")
	pins := flags.String("pins", datapath.DefaultPinDir, "where the agent's maps are pinned")
	changes := flags.Int("changes", 200, "endpoint changes")
	pause := flags.Duration("pause", 50*time.Millisecond, "rest before each change")
	if err := flags.Parse(args); err != nil {
		return err
	}
	frontend, err := netip.ParseAddrPort(*vip)
	if err != nil {
		return err
	}
	source, err := clientcmd.BuildConfigFromFlags("", *from)
	if err != nil {
		return err
	}
	target, err := clientcmd.BuildConfigFromFlags("", *to)
	if err != nil {
		return err
	}
	source.QPS, target.QPS = -1, -1
	reader, err := datapath.OpenReader(*pins)
	if err != nil {
		return err
	}
	defer reader.Close()
	backends := func() (int, error) {
		return reader.Slots(desired.Frontend{Addr: frontend.Addr(), Port: frontend.Port(), Protocol: desired.TCP})
	}
	result, err := bench.MeasurePropagation(ctx, source, target, backends, *changes, *pause)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// compare is the part of the comparison with kube-proxy that runs on a node.
func compare(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench compare", flag.ContinueOnError)
	file := flags.String("targets", "", "a file with the addresses to connect to")
	pod := flags.String("pod", "", "UID of a pod of this node, whose network the clients are in")
	rounds := flags.Int("rounds", 7, "rounds")
	connects := flags.Int("connects", 3000, "connects of each way in a round")
	if err := flags.Parse(args); err != nil {
		return err
	}
	content, err := os.ReadFile(*file)
	if err != nil {
		return err
	}
	var targets bench.Targets
	if err := json.Unmarshal(content, &targets); err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	result, err := bench.Compare(ctx, program, *pod, targets, *rounds, *connects)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// client does what compare asks it on its standard input.
func client(context.Context, []string) error { return bench.Client(os.Stdin, os.Stdout) }
