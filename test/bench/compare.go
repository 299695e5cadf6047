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
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/datapath"
	"mesh.io/clustermesh/pkg/agent/desired"
)

// The ways that a connect can take.
const (
	Straight         = "direct"
	ThroughMesh      = "ours"
	ThroughKubeProxy = "kube-proxy"
)

// Targets are where to connect: to each of the backends, or to a virtual address that leads
// to all of them.
type Targets struct {
	Direct []netip.AddrPort `json:"direct"`
	VIPs   []netip.AddrPort `json:"vips"`
}

// Figures are what one way costs.
type Figures struct {
	P50  float64 `json:"p50"`  // of connect(), in µs
	P99  float64 `json:"p99"`  // of connect(), in µs
	Rate float64 `json:"rate"` // connect, a question, its answer, close: in 1/s
}

// Comparison is the outcome on one node: medians over the rounds.
type Comparison struct {
	Ways     map[string]Figures `json:"ways"`
	Rounds   int                `json:"rounds"`
	Connects int                `json:"connects"` // of each round, way and kind
}

// Compare measures each way from the network of a pod of this node, in turn. The ways are
// chosen by the cgroup of the client: our programs are at the first-level cgroups, which the
// root is not in, so a client there is kube-proxy's. Every client makes sure that it goes the
// way that it is counted for.
func Compare(ctx context.Context, program, podUID string, targets Targets, rounds, connects int) (Comparison, error) {
	const root = "/sys/fs/cgroup"
	pod, err := filepath.Glob(filepath.Join(root, "kubepods", "pod"+podUID, "*"))
	if err != nil || len(pod) == 0 {
		return Comparison{}, errors.Join(fmt.Errorf("pod %s has no cgroup on this node", podUID), err)
	}
	pids, err := os.ReadFile(filepath.Join(pod[0], "cgroup.procs"))
	pid, _, _ := strings.Cut(string(pids), "\n")
	if err != nil || pid == "" {
		return Comparison{}, errors.Join(fmt.Errorf("pod %s has no process", podUID), err)
	}
	netns := filepath.Join("/proc", pid, "ns", "net")
	mesh, err := startClient(ctx, program, netns, pod[0])
	if err != nil {
		return Comparison{}, err
	}
	defer mesh.stop()
	plain, err := startClient(ctx, program, netns, root)
	if err != nil {
		return Comparison{}, err
	}
	defer plain.stop()
	if err := programmed(ctx, targets, plain); err != nil {
		return Comparison{}, err
	}
	ways := []struct {
		name   string
		client *client
		to     []netip.AddrPort
	}{{Straight, plain, targets.Direct}, {ThroughMesh, mesh, targets.VIPs}, {ThroughKubeProxy, plain, targets.VIPs}}
	p50, p99, rate := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for round := range rounds {
		for i := range ways {
			// Each way is the first, the second and the last as often.
			way := ways[(i+round)%len(ways)]
			f, err := way.client.ask(order{To: way.to, Connects: connects, Translated: way.name == ThroughMesh})
			if err != nil {
				return Comparison{}, fmt.Errorf("%s, round %d: %w", way.name, round+1, err)
			}
			p50[way.name], p99[way.name], rate[way.name] = append(p50[way.name], f.P50), append(p99[way.name], f.P99), append(rate[way.name], f.Rate)
		}
	}
	c := Comparison{Ways: map[string]Figures{}, Rounds: rounds, Connects: connects}
	for _, way := range ways {
		c.Ways[way.name] = Figures{P50: Percentile(p50[way.name], 50), P99: Percentile(p99[way.name], 50), Rate: Percentile(rate[way.name], 50)}
	}
	return c, nil
}

// programmed waits until both know all services.
func programmed(ctx context.Context, targets Targets, plain *client) error {
	limit, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	reader, err := datapath.OpenReader(datapath.DefaultPinDir)
	if err != nil {
		return err
	}
	defer reader.Close()
	for _, vip := range targets.VIPs {
		for {
			slots, err := reader.Slots(desired.Frontend{Addr: vip.Addr(), Port: vip.Port(), Protocol: desired.TCP})
			if err != nil {
				return err
			}
			if slots >= len(targets.Direct) {
				break
			}
			if !pause(limit) {
				return fmt.Errorf("%s has %d slots in the kernel, and not %d, in time", vip, slots, len(targets.Direct))
			}
		}
	}
	for {
		missing, err := plain.ask(order{To: targets.VIPs, Probe: true})
		if err == nil && missing.Rate == 0 {
			return nil
		}
		if !pause(limit) {
			return errors.Join(fmt.Errorf("kube-proxy does not know %.0f of %d services in time", missing.Rate, len(targets.VIPs)), err)
		}
	}
}

func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(200 * time.Millisecond):
		return true
	}
}

// order is what a client is asked to do: to measure, or to count the addresses that don't
// answer.
type order struct {
	To         []netip.AddrPort `json:"to"`
	Connects   int              `json:"connects"`
	Translated bool             `json:"translated"` // connect() itself goes to a backend
	Probe      bool             `json:"probe"`
}

// reply is what it answers. Of a probe, Rate is the number of addresses that don't answer.
type reply struct {
	Figures
	Error string `json:"error,omitempty"`
}

// client is a process in a pod's network and in a cgroup.
type client struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
}

func startClient(ctx context.Context, program, netns, cgroup string) (*client, error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	c := &client{command: exec.CommandContext(ctx, "nsenter", "--net="+netns, program, "client")}
	c.command.Stderr = os.Stderr
	c.command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if c.in, err = c.command.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	return c, c.command.Start()
}

func (c *client) stop() {
	_ = c.in.Close()
	_ = c.command.Wait()
}

func (c *client) ask(o order) (Figures, error) {
	if err := json.NewEncoder(c.in).Encode(o); err != nil {
		return Figures{}, err
	}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return Figures{}, fmt.Errorf("the client has ended: %w", err)
	}
	var r reply
	if err := json.Unmarshal(line, &r); err != nil {
		return Figures{}, err
	}
	if r.Error != "" {
		return r.Figures, errors.New(r.Error)
	}
	return r.Figures, nil
}

// Client does what it is asked on in, an order a line, until in ends.
func Client(in io.Reader, out io.Writer) error {
	decoder, encoder := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o order
		if err := decoder.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var r reply
		var err error
		if o.Probe {
			r.Rate = float64(probe(o.To))
		} else {
			r.Figures, err = measure(o)
		}
		if err != nil {
			r.Error = err.Error()
		}
		if err := encoder.Encode(r); err != nil {
			return err
		}
	}
}

// probe counts the addresses where nobody answers.
func probe(to []netip.AddrPort) (missing int) {
	for _, address := range to {
		conn, err := net.DialTimeout("tcp", address.String(), time.Second)
		if err != nil {
			// Where one is missing, most may be; each costs its second.
			if missing++; missing == 10 {
				return missing
			}
			continue
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
	return missing
}

func measure(o order) (Figures, error) {
	if err := checkWay(o.To[0], o.Translated); err != nil {
		return Figures{}, err
	}
	times := make([]float64, 0, o.Connects)
	for range o.Connects {
		took, err := timeConnect(o.To[rand.IntN(len(o.To))])
		if err != nil {
			return Figures{}, err
		}
		times = append(times, took)
	}
	began := time.Now()
	for range o.Connects {
		if err := question(o.To[rand.IntN(len(o.To))]); err != nil {
			return Figures{}, err
		}
	}
	rate := float64(o.Connects) / time.Since(began).Seconds()
	return Figures{P50: Percentile(times, 50), P99: Percentile(times, 99), Rate: rate}, nil
}

// question is one connection with a question of one byte and its answer.
func question(to netip.AddrPort) error {
	fd, err := dial(to)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte{'x'}); err != nil {
		return os.NewSyscallError("write", err)
	}
	var answer [4096]byte
	n, err := unix.Read(fd, answer[:])
	if err != nil || n == 0 {
		return fmt.Errorf("no answer from %s: %w", to, err)
	}
	return nil
}

// checkWay makes sure that connect() to an address is translated by our programs, or that
// it is not: the kernel's table of sockets shows the peer as packets see it.
func checkWay(to netip.AddrPort, translated bool) error {
	fd, err := dial(to)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	local, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	table, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		return err
	}
	port := fmt.Sprintf(":%04X", local.(*unix.SockaddrInet4).Port)
	a := to.Addr().As4()
	untouched := fmt.Sprintf("%02X%02X%02X%02X:%04X", a[3], a[2], a[1], a[0], to.Port())
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || !strings.HasSuffix(fields[1], port) {
			continue
		}
		if (fields[2] != untouched) == translated {
			return nil
		}
		return fmt.Errorf("a connect to %s has the peer %s: that is not the way to be measured (translated: %s)", to, fields[2], strconv.FormatBool(translated))
	}
	return fmt.Errorf("the socket with port %d is not in the table", local.(*unix.SockaddrInet4).Port)
}
