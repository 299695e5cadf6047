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
	"io"
	"maps"
	"math"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
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
		case "client":
			command = func(context.Context, []string) error { return bench.Client(os.Stdin, os.Stdout) }
		case "sockets":
			command = func(context.Context, []string) error { return bench.MakeSockets() }
		case "serve":
			command = func(context.Context, []string) error { return bench.Serve(os.Stdin, os.Stdout) }
		case "dial":
			command, args = dial, args[1:]
		case "programmed":
			command, args = programmed, args[1:]
		case "metrics":
			command, args = metrics, args[1:]
		case "await-agent":
			command, args = awaitAgent, args[1:]
		case "tags":
			command = tags
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
	flags.StringVar(&config.StateDir, "state-dir", "/run/mesh-lab", "where the labs are, one after the other")
	flags.IntVar(&config.Port, "port", 17441, "loopback port of the labs' first API server")
	flags.IntVar(&config.Rounds, "rounds", 7, "rounds of the comparison with kube-proxy, at each number of services")
	flags.IntVar(&config.Turns, "turns", 1000, "connects of each way in a round, and questions of each kind")
	flags.IntVar(&config.Backends, "backends", 100, "backends that are replaced in a rolling update")
	flags.DurationVar(&config.Drain, "drain", time.Second, "how long a replaced backend goes on accepting; below zero it ends so long before it is replaced, and connects are lost")
	flags.IntVar(&config.Remote, "remote", 100_000, "endpoints of another cluster beside which the agent's memory and restart are measured")
	sizes := flags.String("sizes", "1,100,1000,10000", "numbers of services at which we are compared with kube-proxy, in rising order")
	only := flags.String("only", "", "the parts to do, of: "+strings.Join(bench.Parts(), ",")+"; all by default")
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

// dial connects until its standard input ends.
func dial(_ context.Context, args []string) error {
	flags := flag.NewFlagSet("bench dial", flag.ContinueOnError)
	to := flags.String("to", "", "the address:port")
	if err := flags.Parse(args); err != nil {
		return err
	}
	address, err := netip.ParseAddrPort(*to)
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	return json.NewEncoder(os.Stdout).Encode(bench.Dial(address, stop))
}

// programmed waits until this node's maps have backends of every service.
func programmed(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench programmed", flag.ContinueOnError)
	file := flags.String("vips", "", "a file with the services' addresses")
	backends := flags.Int("backends", 1, "how many each service has")
	most := flags.Duration("timeout", 10*time.Minute, "how long to wait")
	if err := flags.Parse(args); err != nil {
		return err
	}
	content, err := os.ReadFile(*file)
	if err != nil {
		return err
	}
	var vips []netip.AddrPort
	if err := json.Unmarshal(content, &vips); err != nil {
		return err
	}
	reader, err := datapath.OpenReader(datapath.DefaultPinDir)
	if err != nil {
		return err
	}
	defer reader.Close()
	ctx, cancel := context.WithTimeout(ctx, *most)
	defer cancel()
	for _, vip := range vips {
		for {
			slots, err := reader.Slots(desired.Frontend{Addr: vip.Addr(), Port: vip.Port(), Protocol: desired.TCP})
			if err != nil {
				return err
			}
			if slots >= *backends {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s has %d slots in the kernel, and not %d, in time", vip, slots, *backends)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return nil
}

// metrics prints a program's metrics as JSON.
func metrics(_ context.Context, args []string) error {
	flags := flag.NewFlagSet("bench metrics", flag.ContinueOnError)
	url := flags.String("url", "", "where they are")
	if err := flags.Parse(args); err != nil {
		return err
	}
	samples, err := bench.Metrics(*url)
	if err != nil {
		return err
	}
	// JSON has no such numbers, and nobody here asks for them.
	maps.DeleteFunc(samples, func(_ string, v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) })
	return json.NewEncoder(os.Stdout).Encode(samples)
}

// awaitAgent prints how long the next agent of this node takes to be ready.
func awaitAgent(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench await-agent", flag.ContinueOnError)
	after := flags.Float64("after", 0, "when the last one has started, in Unix seconds")
	most := flags.Duration("timeout", 5*time.Minute, "how long to wait")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *most)
	defer cancel()
	took, err := bench.AwaitAgent(ctx, *after)
	if err != nil {
		return err
	}
	fmt.Println(took)
	return nil
}

// tags prints the tags of the programs that are attached on this node: what the kernel makes
// of their instructions.
func tags(context.Context, []string) error {
	pins, err := filepath.Glob(filepath.Join(datapath.DefaultPinDir, "*", "links", "*"))
	if err != nil {
		return err
	}
	found := map[string]bool{}
	for _, pin := range pins {
		tag, err := tagOf(pin)
		if err != nil {
			return fmt.Errorf("reading %s: %w", pin, err)
		}
		found[tag] = true
	}
	if len(found) == 0 {
		return errors.New("no program is attached")
	}
	fmt.Println(strings.Join(slices.Sorted(maps.Keys(found)), " "))
	return nil
}

func tagOf(pin string) (string, error) {
	attached, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return "", err
	}
	defer attached.Close()
	info, err := attached.Info()
	if err != nil {
		return "", err
	}
	program, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return "", err
	}
	defer program.Close()
	about, err := program.Info()
	if err != nil {
		return "", err
	}
	return about.Tag, nil
}
