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

package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The ways that a packet can take.
const (
	Straight          = "direct"             // no programs of ours, to a pod's address
	StraightAlongside = "direct beside ours" // our programs run, and find no Service
	ThroughMesh       = "ours"
	ThroughKubeProxy  = "kube-proxy"
)

var ways = []string{Straight, StraightAlongside, ThroughMesh, ThroughKubeProxy}

// The kinds of measurement.
const (
	kindConnect        = "connect"         // TCP connect()
	kindCRR            = "crr"             // TCP connect(), a byte, its answer, close()
	kindUDPConnected   = "udp-connected"   // a byte and its answer, by one connected socket
	kindUDPUnconnected = "udp-unconnected" // the same by one socket that is not connected
	kindUDPNew         = "udp-new"         // the same by a new socket each time, as resolvers do
)

// Targets are where to connect: to each of the backends, or to a virtual address that leads
// to all of them. The same backends answer datagrams, at the virtual address DatagramVIP.
type Targets struct {
	Direct      []netip.AddrPort `json:"direct"`
	VIPs        []netip.AddrPort `json:"vips"`
	DatagramVIP netip.AddrPort   `json:"datagramVIP"`
}

// Figures are what one way costs.
type Figures struct {
	P50  float64 `json:"p50"`  // in µs
	P99  float64 `json:"p99"`  // in µs
	Rate float64 `json:"rate"` // in 1/s, one after the other
}

// Outcome is one kind of measurement: what each way costs, and the median of the differences
// to the way Straight within the same turn, in µs.
type Outcome struct {
	Ways  map[string]Figures `json:"ways"`
	Diffs map[string]float64 `json:"diffs"`
}

// order is what a client is asked to do: to measure, or (without a kind) to count the
// addresses that don't answer.
type order struct {
	Kind string           `json:"kind"`
	To   []netip.AddrPort `json:"to"`   // virtual addresses
	Pods []netip.AddrPort `json:"pods"` // the backends
	// Turns is how often each way is gone.
	Turns int `json:"turns"`
}

type reply struct {
	Outcome
	Missing int    `json:"missing"`
	Error   string `json:"error,omitempty"`
}

// comparer measures all ways in the network of one pod, in one process, by turns of a single
// connect each: whatever else the machine does touches all ways alike.
//
// Whether our programs run for a socket hangs on the cgroup that it was made in. So two
// helpers make the sockets, and nothing else: one in the pod's cgroup, one in a cgroup at the
// same depth that no program is attached to. Process, CPU, network and code of what is
// measured are the same for all ways.
type comparer struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	makers  []*exec.Cmd
	plain   string // the cgroup that we have made
}

// place is where a pod is on this machine.
type place struct {
	pid    string // of a process in it
	cgroup string
}

func (p place) netns() string { return filepath.Join("/proc", p.pid, "ns", "net") }

// startComparer starts the client in the network of a pod. plain is the path of a cgroup to
// be made, outside of the node's.
func startComparer(ctx context.Context, program string, pod place, plain string) (_ *comparer, err error) {
	if err := os.MkdirAll(plain, 0o755); err != nil {
		return nil, fmt.Errorf("making a cgroup without programs: %w", err)
	}
	c := &comparer{plain: plain}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	var ends []*os.File
	defer func() {
		for _, end := range ends {
			_ = end.Close()
		}
	}()
	for _, cgroup := range []string{pod.cgroup, plain} {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, os.NewSyscallError("socketpair", err)
		}
		theirs := os.NewFile(uintptr(fds[0]), "sockets")
		ends = append(ends, os.NewFile(uintptr(fds[1]), "sockets"))
		maker := inNetwork(ctx, pod.netns(), program, "sockets")
		maker.ExtraFiles = []*os.File{theirs}
		err = begin(maker, cgroup)
		_ = theirs.Close()
		if err != nil {
			return nil, err
		}
		c.makers = append(c.makers, maker)
	}
	c.command = inNetwork(ctx, pod.netns(), program, "client")
	c.command.ExtraFiles = ends
	if c.in, err = c.command.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	return c, begin(c.command, plain)
}

// begin starts a command in a cgroup.
func begin(command *exec.Cmd, cgroup string) error {
	dir, err := os.Open(cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return command.Start()
}

// inNetwork is a command in a network namespace.
func inNetwork(ctx context.Context, netns, program string, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + netns, program}, args...)...)
	command.Stderr = os.Stderr
	// Signals of Go's runtime would interrupt the system calls that are measured.
	command.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	return command
}

func (c *comparer) stop() {
	if c.in != nil {
		_ = c.in.Close()
	}
	for _, command := range append(c.makers, c.command) {
		if command != nil && command.Process != nil {
			_ = command.Wait()
		}
	}
	// Its parents were made with it; those that others are in stay.
	for dir := c.plain; os.Remove(dir) == nil; dir = filepath.Dir(dir) {
	}
}

func (c *comparer) ask(o order) (reply, error) {
	var r reply
	if err := json.NewEncoder(c.in).Encode(o); err != nil {
		return r, err
	}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return r, fmt.Errorf("the client has ended: %w", err)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, err
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	return r, nil
}

// compare measures each kind in turn, and returns the medians over the rounds.
func (c *comparer) compare(targets Targets, rounds, turns int) (map[string]Outcome, error) {
	all := map[string][]Outcome{}
	for round := range rounds {
		for _, kind := range []string{kindConnect, kindCRR, kindUDPConnected, kindUDPUnconnected, kindUDPNew} {
			to := targets.VIPs
			if strings.HasPrefix(kind, "udp") {
				to = []netip.AddrPort{targets.DatagramVIP}
			}
			r, err := c.ask(order{Kind: kind, To: to, Pods: targets.Direct, Turns: turns})
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", kind, round+1, err)
			}
			all[kind] = append(all[kind], r.Outcome)
		}
	}
	outcomes := map[string]Outcome{}
	for kind, rounds := range all {
		outcomes[kind] = medians(rounds)
	}
	return outcomes, nil
}

// medians are those of each figure over the rounds.
func medians(rounds []Outcome) Outcome {
	median := func(of func(Outcome) float64) float64 {
		values := make([]float64, 0, len(rounds))
		for _, round := range rounds {
			values = append(values, of(round))
		}
		return Percentile(values, 50)
	}
	m := Outcome{Ways: map[string]Figures{}, Diffs: map[string]float64{}}
	for way := range maps.Keys(rounds[0].Ways) {
		m.Ways[way] = Figures{
			P50:  median(func(o Outcome) float64 { return o.Ways[way].P50 }),
			P99:  median(func(o Outcome) float64 { return o.Ways[way].P99 }),
			Rate: median(func(o Outcome) float64 { return o.Ways[way].Rate }),
		}
		m.Diffs[way] = median(func(o Outcome) float64 { return o.Diffs[way] })
	}
	return m
}
