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

package datapath

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// benchServices returns n services of m backends each.
func benchServices(n, m int) []desired.Service {
	services := make([]desired.Service, n)
	for i := range services {
		services[i] = serviceAt(fmt.Sprintf("10.96.%d.%d:80/TCP", i/250, i%250), manyBackends(0, m)...)
	}
	return services
}

func benchNode(b *testing.B) *node {
	n := newNode(b)
	n.Sizes = Sizes{}
	return n
}

// One endpoint of a service of 4 comes or goes, among 10,000 services.
func BenchmarkPublishOne(b *testing.B) {
	n := benchNode(b)
	d := n.open(b)
	mustApply(b, d, benchServices(10_000, 4)...)
	with4, with3 := benchServices(1, 4), benchServices(1, 4)
	with3[0].Backends = with3[0].Backends[1:]
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		change := with3
		if i%2 == 1 {
			change = with4
		}
		if _, err := d.ApplyServices(context.Background(), change, nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// All endpoints of a service of 4 change their shares, so that it is rebuilt.
func BenchmarkRebuildOne(b *testing.B) { benchmarkRebuild(b, 4) }

func BenchmarkRebuildService10k(b *testing.B) { benchmarkRebuild(b, 10_000) }

func benchmarkRebuild(b *testing.B, backends int) {
	d := benchNode(b).open(b)
	var versions [2][]desired.Service
	for v := range versions {
		versions[v] = benchServices(1, backends)
		for i := range versions[v][0].Backends {
			versions[v][0].Backends[i].Slots = uint32(1 + (i+v)%2)
		}
	}
	mustApply(b, d, versions[1]...)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		report, err := d.ApplyServices(context.Background(), versions[i%2], nil, nil)
		if err != nil || len(report.Failed) > 0 || report.Rebuilt != 1 {
			b.Fatalf("%+v, %v", report, err)
		}
	}
}

// One endpoint of a service of 10,000 comes or goes.
func BenchmarkEditService10k(b *testing.B) {
	d := benchNode(b).open(b)
	versions := [2][]desired.Service{benchServices(1, 9_999), benchServices(1, 10_000)}
	mustApply(b, d, versions[1]...)
	for i := 0; b.Loop(); i++ {
		if _, err := d.ApplyServices(context.Background(), versions[i%2], nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// 10,000 services of 4 into empty maps.
func BenchmarkFullLoad10kx4(b *testing.B) {
	d := benchNode(b).open(b)
	table := tableOf(benchServices(10_000, 4)...)
	b.ReportAllocs()
	for b.Loop() {
		report, err := d.Apply(context.Background(), table)
		if err != nil || report.Added != 10_000 {
			b.Fatalf("%+v, %v", report, err)
		}
		b.StopTimer()
		mustApply(b, d)
		d.grave.drain()
		b.StartTimer()
	}
}

// The whole table again, with nothing changed.
func BenchmarkApplyUnchanged10kx4(b *testing.B) {
	d := benchNode(b).open(b)
	mustApply(b, d, benchServices(10_000, 4)...)
	table := tableOf(benchServices(10_000, 4)...)
	b.ReportAllocs()
	for b.Loop() {
		report, err := d.Apply(context.Background(), table)
		if err != nil || report.Unchanged != 10_000 {
			b.Fatalf("%+v, %v", report, err)
		}
	}
}

// Taking over maps of 10,000 services of 4.
func BenchmarkRestart10kx4(b *testing.B) {
	n := benchNode(b)
	d := n.open(b)
	mustApply(b, d, benchServices(10_000, 4)...)
	for b.Loop() {
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
		var err error
		if d, err = Open(n.Config); err != nil {
			b.Fatal(err)
		}
	}
	_ = d.Close()
}

// A UDP socket, connected: straight, through the hooks without a frontend (miss), and
// to a frontend, with 1 and with 10,000 services in the maps.
func BenchmarkConnect(b *testing.B) {
	run := func(name, to string) {
		address := sockaddr(unix.AF_INET, netip.MustParseAddrPort(to))
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					b.Fatal(err)
				}
				if err := unix.Connect(fd, address); err != nil {
					b.Fatal(err)
				}
				_ = unix.Close(fd)
			}
		})
	}
	requireRoot(b)
	run("straight", "10.1.0.1:80")
	d := benchNode(b).open(b)
	run("miss", "10.1.0.1:80")
	for _, services := range []int{1, 10_000} {
		table := benchServices(services, 4)
		for i := range table {
			table[i].Frontend.Protocol = desired.UDP
		}
		mustApply(b, d, table...)
		run(fmt.Sprintf("vip-of-%d", services), "10.96.0.0:80")
	}
}

// What connect4 takes by the kernel's own clock, which costs some tens of nanoseconds
// itself: with no pod that is left alone on the node, with another pod that is, whose
// level is known or not, and for that pod itself. The least of many small batches
// counts, as a machine that does other things disturbs the rest.
func BenchmarkOptOut(b *testing.B) {
	n := benchNode(b)
	d := n.open(b)
	table := benchServices(2, 4)
	table[1].Frontend.Protocol = desired.UDP
	mustApply(b, d, table...)
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	run := func(name string) {
		b.Run(name, func(b *testing.B) {
			least := math.Inf(1)
			for b.Loop() {
				before, err := d.programs["connect4"].Stats()
				if err != nil {
					b.Fatal(err)
				}
				for range 200 {
					if _, err := dial(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80")); err != nil {
						b.Fatal(err)
					}
				}
				after, err := d.programs["connect4"].Stats()
				if err != nil {
					b.Fatal(err)
				}
				least = min(least, float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount))
			}
			b.ReportMetric(least, "hook-ns")
		})
	}
	out := filepath.Join(n.cgroup, "left-alone")
	if err := os.Mkdir(out, 0o755); err != nil {
		b.Fatal(err)
	}
	defer os.Remove(out)
	levels := d.set.byName[connectMapOptoutLevels]
	run("none")
	if err := d.OptOut([]string{out}); err != nil {
		b.Fatal(err)
	}
	run("another")
	if err := levels.Put(uint32(0), uint64(0b1110)); err != nil {
		b.Fatal(err)
	}
	run("another-on-3-levels")
	if err := levels.Put(uint32(0), uint64(1<<optoutLevels-1)); err != nil {
		b.Fatal(err)
	}
	run("another-on-any-level")
	moveTo(b, out)
	run("itself")
	moveTo(b, n.cgroup)
}

// A datagram and its answer, on sockets that are not connected: straight, through the
// hooks without a frontend (miss), and to a frontend; by one socket, and by a new one each
// time.
func BenchmarkDatagram(b *testing.B) {
	requireRoot(b)
	const backend = "10.1.0.1:8181"
	server := newSocket(b, unix.AF_INET, unix.SOCK_DGRAM)
	must(b, unix.Bind(server, sockaddr(unix.AF_INET, netip.MustParseAddrPort(backend))))
	payload := make([]byte, 16)
	exchange := func(b *testing.B, fd int, to unix.Sockaddr) {
		err := unix.Sendto(fd, payload[:1], 0, to)
		_, from, received := unix.Recvfrom(server, payload, 0)
		if err := errors.Join(err, received); err != nil {
			b.Fatal(err)
		}
		err = unix.Sendto(server, payload[:1], 0, from)
		if _, _, received = unix.Recvfrom(fd, payload, 0); err != nil || received != nil {
			b.Fatal(err, received)
		}
	}
	run := func(name, to string) {
		address := sockaddr(unix.AF_INET, netip.MustParseAddrPort(to))
		b.Run(name+"/one-socket", func(b *testing.B) {
			fd := newSocket(b, unix.AF_INET, unix.SOCK_DGRAM)
			for b.Loop() {
				exchange(b, fd, address)
			}
		})
		b.Run(name+"/new-socket", func(b *testing.B) {
			for b.Loop() {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					b.Fatal(err)
				}
				exchange(b, fd, address)
				_ = unix.Close(fd)
			}
		})
	}
	run("straight", backend)
	d := benchNode(b).open(b)
	run("miss", backend)
	mustApply(b, d, serviceAt("10.96.0.1:80/UDP", backendAt(backend)))
	run("vip", "10.96.0.1:80")
}

// What each hook takes by the kernel's own statistics, which cost some tens of nanoseconds
// themselves, as "empty" shows: a program that does nothing. "hot" is one address over and
// over, "random" one of 10,000, whose entries are not in the caches, "miss" one that is no
// Service's.
func BenchmarkHook(b *testing.B) {
	requireRoot(b)
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	// The median of small batches counts, as a machine that does other things disturbs some.
	run := func(name string, program *ebpf.Program, once func() error) {
		b.Run(name, func(b *testing.B) {
			var batches []float64
			for b.Loop() {
				before, err := program.Stats()
				if err != nil {
					b.Fatal(err)
				}
				for range 200 {
					if err := once(); err != nil {
						b.Fatal(err)
					}
				}
				after, err := program.Stats()
				if err != nil {
					b.Fatal(err)
				}
				if after.RunCount == before.RunCount {
					b.Fatal("the program has not run")
				}
				batches = append(batches, float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount))
			}
			slices.Sort(batches)
			b.ReportMetric(batches[len(batches)/2], "hook-ns")
		})
	}
	n := benchNode(b)
	empty, detach := emptyHook(b, n.cgroup)
	run("empty", empty, func() error {
		_, err := dial(unix.AF_INET, netip.MustParseAddrPort("10.1.0.1:80"))
		return err
	})
	detach()

	d := n.open(b)
	table := benchServices(10_000, 4)
	addresses := make([]netip.AddrPort, len(table))
	for i := range table {
		table[i].Frontend.Protocol = desired.UDP
		addresses[i] = netip.AddrPortFrom(table[i].Frontend.Addr, table[i].Frontend.Port)
	}
	const backend, answering = "10.1.200.1:9191", "10.96.200.1:80"
	mustApply(b, d, append(table, serviceAt(answering+"/UDP", backendAt(backend)))...)
	hot, miss := addresses[0], netip.MustParseAddrPort("10.1.0.1:80")
	random := func() netip.AddrPort { return addresses[rand.IntN(len(addresses))] }
	mapped := netip.AddrPortFrom(netip.AddrFrom16(hot.Addr().As16()), hot.Port())

	connect := func(family int, to func() netip.AddrPort) func() error {
		return func() error {
			fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return errors.Join(unix.Connect(fd, sockaddr(family, to())), unix.Close(fd))
		}
	}
	always := func(to netip.AddrPort) func() netip.AddrPort { return func() netip.AddrPort { return to } }
	for _, c := range []struct {
		name, program string
		once          func() error
	}{
		{"connect4/hot", "connect4", connect(unix.AF_INET, always(hot))},
		{"connect4/random", "connect4", connect(unix.AF_INET, random)},
		{"connect4/miss", "connect4", connect(unix.AF_INET, always(miss))},
		{"connect6/mapped-hot", "connect6", connect(unix.AF_INET6, always(mapped))},
	} {
		run(c.name, d.programs[c.program], c.once)
	}

	// Nobody reads these datagrams: they find no room and are dropped.
	sink := newSocket(b, unix.AF_INET, unix.SOCK_DGRAM)
	must(b, unix.Bind(sink, sockaddr(unix.AF_INET, netip.MustParseAddrPort("0.0.0.0:8181"))))
	payload := []byte{'x'}
	one := newSocket(b, unix.AF_INET, unix.SOCK_DGRAM)
	sendNew := func(to func() netip.AddrPort) func() error {
		return func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return errors.Join(unix.Sendto(fd, payload, 0, sockaddr(unix.AF_INET, to())), unix.Close(fd))
		}
	}
	sendmsg := d.programs["sendmsg4"]
	run("sendmsg4/one-socket-hot", sendmsg, func() error { return unix.Sendto(one, payload, 0, sockaddr(unix.AF_INET, hot)) })
	run("sendmsg4/new-socket-hot", sendmsg, sendNew(always(hot)))
	run("sendmsg4/new-socket-random", sendmsg, sendNew(random))
	run("sendmsg4/miss", sendmsg, func() error { return unix.Sendto(one, payload, 0, sockaddr(unix.AF_INET, miss)) })

	server := newSocket(b, unix.AF_INET, unix.SOCK_DGRAM)
	must(b, unix.Bind(server, sockaddr(unix.AF_INET, netip.MustParseAddrPort(backend))))
	buffer := make([]byte, 16)
	exchange := func(fd int, to netip.AddrPort) func() error {
		return func() error {
			err := unix.Sendto(fd, payload, 0, sockaddr(unix.AF_INET, to))
			_, from, received := unix.Recvfrom(server, buffer, 0)
			if err := errors.Join(err, received); err != nil {
				return err
			}
			err = unix.Sendto(server, payload, 0, from)
			_, _, received = unix.Recvfrom(fd, buffer, 0)
			return errors.Join(err, received)
		}
	}
	// The server is in the cgroup too: half of the runs are its own, and hit nothing.
	run("recvmsg4/hit-and-miss", d.programs["recvmsg4"], exchange(newSocket(b, unix.AF_INET, unix.SOCK_DGRAM), netip.MustParseAddrPort(answering)))
	run("recvmsg4/miss", d.programs["recvmsg4"], exchange(newSocket(b, unix.AF_INET, unix.SOCK_DGRAM), netip.MustParseAddrPort(backend)))

	for _, c := range []struct {
		name string
		to   netip.AddrPort
	}{{"hit", hot}, {"miss", miss}} {
		fd := newSocket(b, unix.AF_INET, unix.SOCK_DGRAM)
		must(b, unix.Connect(fd, sockaddr(unix.AF_INET, c.to)))
		run("getpeername4/"+c.name, d.programs["getpeername4"], func() error {
			_, err := unix.Getpeername(fd)
			return err
		})
	}
}

// emptyHook attaches a program that does nothing to a cgroup.
func emptyHook(b *testing.B, cgroup string) (program *ebpf.Program, detach func()) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	must(b, err)
	attached, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: ebpf.AttachCGroupInet4Connect, Program: program})
	must(b, err)
	return program, func() { must(b, errors.Join(attached.Close(), program.Close())) }
}

// A TCP connection to the node itself, opened and closed, straight and to a frontend, in
// turns by a cgroup where it is counted and by one where it is not. The least of many
// small batches counts, as the machine does other things. hook-ns is what one call of
// sock_ops takes by the kernel's own clock, which costs some tens of nanoseconds itself, and
// is not running while connect() is timed; calls are those of both ends of a connection.
func BenchmarkCounting(b *testing.B) {
	const backend = "10.1.0.1:8181"
	n := benchNode(b)
	uncounted := n.cgroup + "-uncounted"
	must(b, os.Mkdir(uncounted, 0o755))
	b.Cleanup(func() { _ = os.Remove(uncounted) })
	n.Cgroups = append(n.Cgroups, uncounted)
	d := n.open(b)
	id, err := cgroupID(uncounted)
	must(b, err)
	must(b, removeLink(filepath.Join(n.PinDir, schemaDir, linksDir, hook{name: "sock_ops"}.pinName(id))))
	mustApply(b, d, serviceAt("10.96.0.1:80/TCP", backendAt(backend)))
	listener := newSocket(b, unix.AF_INET, unix.SOCK_STREAM)
	must(b, unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	must(b, unix.Bind(listener, sockaddr(unix.AF_INET, netip.MustParseAddrPort(backend))))
	must(b, unix.Listen(listener, 16))
	const batch = 100
	connect := func(b *testing.B, to unix.Sockaddr) (each time.Duration) {
		for range batch {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			must(b, err)
			start := time.Now()
			must(b, unix.Connect(fd, to))
			each += time.Since(start)
			server, _, err := unix.Accept(listener)
			must(b, err)
			must(b, reset(fd)) // leaves no TIME_WAIT behind
			must(b, unix.Close(server))
		}
		return each / batch
	}
	for name, at := range map[string]string{"straight": backend, "vip": "10.96.0.1:80"} {
		to := sockaddr(unix.AF_INET, netip.MustParseAddrPort(at))
		b.Run(name, func(b *testing.B) {
			with, without := time.Duration(math.MaxInt64), time.Duration(math.MaxInt64)
			hook, calls := math.Inf(1), 0.0
			for b.Loop() {
				moveTo(b, uncounted)
				without = min(without, connect(b, to))
				moveTo(b, n.cgroup)
				with = min(with, connect(b, to))

				stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
				must(b, err)
				before, err := d.programs["sock_ops"].Stats()
				must(b, err)
				connect(b, to)
				after, err := d.programs["sock_ops"].Stats()
				must(b, err)
				must(b, stats.Close())
				count := float64(after.RunCount - before.RunCount)
				hook, calls = min(hook, float64(after.Runtime-before.Runtime)/count), count/batch
			}
			b.ReportMetric(float64(without), "connect-ns")
			b.ReportMetric(float64(with), "counted-ns")
			b.ReportMetric(hook, "hook-ns")
			b.ReportMetric(calls, "calls/conn")
		})
	}
}

// Reading the counters of 100,000 backends, of which every tenth was connected to: updates
// wait for that.
func BenchmarkTraffic100k(b *testing.B) {
	d := benchNode(b).open(b)
	mustApply(b, d, benchServices(25_000, 4)...)
	for id := range d.set.traffic.items {
		if id%10 == 0 {
			d.set.traffic.items[id].Attempts = 1
		}
	}
	for b.Loop() {
		met := 0
		must(b, d.Traffic(func(*BackendTraffic) { met++ }))
		if met != 10_000 {
			b.Fatal(met)
		}
	}
}
