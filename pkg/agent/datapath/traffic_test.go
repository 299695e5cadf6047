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
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// deadWays are as ways, to backends that never answer, once deadNetwork was called.
var deadWays = map[string]struct {
	family            int
	frontend, backend string
}{
	"over IPv4":                   {unix.AF_INET, "10.96.0.2:80", "10.2.0.1:8181"},
	"over an IPv4-mapped address": {unix.AF_INET6, "10.96.0.2:80", "10.2.0.1:8181"},
	"over IPv6":                   {unix.AF_INET6, "[fd00:96::2]:80", "[fd00:2::1]:8181"},
}

// deadNetwork makes a network whose packets nobody takes: they go to a neighbour that
// does not exist.
func deadNetwork(t *testing.T) {
	t.Helper()
	pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "nobody"}
	pair.Name = "dead"
	must(t, netlink.LinkAdd(pair))
	t.Cleanup(func() { _ = netlink.LinkDel(pair) })
	for _, name := range []string{"dead", "nobody"} {
		l, err := netlink.LinkByName(name)
		must(t, err)
		must(t, netlink.LinkSetUp(l))
	}
	for own, address := range map[string]string{"10.2.255.254/16": "10.2.0.1", "fd00:2::ffff/64": "fd00:2::1"} {
		addr, err := netlink.ParseAddr(own)
		must(t, err)
		addr.Flags = unix.IFA_F_NODAD
		must(t, netlink.AddrAdd(pair, addr))
		must(t, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: pair.Attrs().Index, State: netlink.NUD_PERMANENT, IP: netip.MustParseAddr(address).AsSlice(),
			HardwareAddr: []byte{2, 0, 0, 0, 0, 1},
		}))
	}
}

// withBackends are the services of ways, and of deadWays.
func withBackends() []desired.Service {
	return []desired.Service{
		serviceAt("10.96.0.1:80/TCP", backendAt("10.1.0.1:8181")),
		serviceAt("[fd00:96::1]:80/TCP", backendAt("[fd00:1::1]:8181")),
		serviceAt("10.96.0.2:80/TCP", backendAt("10.2.0.1:8181")),
		serviceAt("[fd00:96::2]:80/TCP", backendAt("[fd00:2::1]:8181")),
	}
}

// trafficOf returns what the backend of the service has met, without the time of round
// trips, which is checked to be there.
func trafficOf(t *testing.T, n *node, frontend string) Traffic {
	t.Helper()
	for _, s := range read(t, n).Services {
		if netip.AddrPortFrom(s.Frontend.Addr, s.Frontend.Port).String() != frontend {
			continue
		}
		if len(s.Backends) != 1 || s.Backends[0].Traffic == nil {
			t.Fatalf("%s has no backend, or that no counters: %+v", frontend, s.Backends)
		}
		traffic := *s.Backends[0].Traffic
		if traffic.Measured != traffic.Established || (traffic.RTT > 0) != (traffic.Established > 0) || traffic.RTT > time.Minute {
			t.Errorf("of %d connections %d have round trips, of %s together", traffic.Established, traffic.Measured, traffic.RTT)
		}
		traffic.RTT, traffic.Measured = 0, 0
		return traffic
	}
	t.Fatalf("there is no frontend %s", frontend)
	return Traffic{}
}

// expectTraffic waits until the service's backend has met this: the kernel ends a
// connection by itself now and then.
func expectTraffic(t *testing.T, n *node, frontend string, want Traffic) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		got := trafficOf(t, n, frontend)
		if got == want {
			return
		}
		if time.Now().After(deadline) || t.Failed() {
			t.Errorf("%s (-want +got):\n%s", frontend, cmp.Diff(want, got))
			return
		}
	}
}

// acceptor listens, and gives the test what it accepts.
func acceptor(t *testing.T, at string) (accept func() int) {
	t.Helper()
	listener := listen(t, at)
	return func() int {
		t.Helper()
		fd, _, err := unix.Accept(listener)
		must(t, err)
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
}

// reset closes a connection by a RST.
func reset(fd int) error {
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	return unix.Close(fd)
}

func TestEstablishedConnectionsAreCounted(t *testing.T) {
	ends := map[string]func(client, server int) error{
		"closed by the client":       func(client, _ int) error { return unix.Close(client) },
		"closed by the server":       func(_, server int) error { return unix.Close(server) },
		"reset by the client":        func(client, _ int) error { return reset(client) },
		"reset by the server":        func(_, server int) error { return reset(server) },
		"closed in part":             func(client, _ int) error { return unix.Shutdown(client, unix.SHUT_WR) },
		"disconnected by AF_UNSPEC":  func(client, _ int) error { return disconnect(client) },
		"closed on both sides, once": func(client, server int) error { return errors.Join(unix.Close(client), unix.Close(server)) },
	}
	n := newNode(t)
	mustApply(t, n.open(t), withBackends()...)
	for name, way := range ways {
		for how, end := range ends {
			t.Run(name+", "+how, func(t *testing.T) {
				accept := acceptor(t, way.backend)
				want := trafficOf(t, n, way.frontend)
				client := newSocket(t, way.family, unix.SOCK_STREAM)
				must(t, unix.Connect(client, sockaddr(way.family, netip.MustParseAddrPort(way.frontend))))
				server := accept()
				want.Attempts++
				want.Established++
				want.Active++
				expectTraffic(t, n, way.frontend, want)
				must(t, end(client, server))
				want.Active--
				expectTraffic(t, n, way.frontend, want)
			})
		}
	}
}

func TestConnectionsThatFailAreCounted(t *testing.T) {
	n := newNode(t)
	mustApply(t, n.open(t), withBackends()...)
	deadNetwork(t)
	for name, way := range ways { // nobody listens
		before := trafficOf(t, n, way.frontend)
		fd := newSocket(t, way.family, unix.SOCK_STREAM)
		if err := unix.Connect(fd, sockaddr(way.family, netip.MustParseAddrPort(way.frontend))); !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatalf("%s: %v", name, err)
		}
		before.Attempts++
		before.Refused++
		expectTraffic(t, n, way.frontend, before)
		// The same socket may try again.
		if err := unix.Connect(fd, sockaddr(way.family, netip.MustParseAddrPort(way.frontend))); !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatalf("%s: %v", name, err)
		}
		before.Attempts++
		before.Refused++
		expectTraffic(t, n, way.frontend, before)
	}
	var given, waiting []int
	begin := func(t *testing.T, family int, frontend string) int {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		must(t, err)
		must(t, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1)) // one more, and the end
		if err := unix.Connect(fd, sockaddr(family, netip.MustParseAddrPort(frontend))); !errors.Is(err, unix.EINPROGRESS) {
			t.Fatal(err)
		}
		return fd
	}
	for name, way := range deadWays {
		before := trafficOf(t, n, way.frontend)
		fd := begin(t, way.family, way.frontend)
		before.Attempts++
		expectTraffic(t, n, way.frontend, before)
		must(t, unix.Close(fd))
		before.Aborted++
		expectTraffic(t, n, way.frontend, before)
		t.Log(name)
		// These go on together.
		given, waiting = append(given, begin(t, way.family, way.frontend)), append(waiting, begin(t, way.family, way.frontend))
	}
	for _, fd := range given {
		for info := (&unix.TCPInfo{}); info.Total_retrans == 0; {
			var err error
			info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			must(t, err)
			time.Sleep(time.Millisecond)
		}
		must(t, unix.Close(fd))
	}
	expectTraffic(t, n, "10.96.0.2:80", Traffic{Attempts: 6, Aborted: 2, TimedOut: 2})
	expectTraffic(t, n, "[fd00:96::2]:80", Traffic{Attempts: 3, Aborted: 1, TimedOut: 1})
	for _, fd := range waiting {
		events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		for count, err := unix.Poll(events, 30_000); count != 1; count, err = unix.Poll(events, 30_000) {
			if !errors.Is(err, unix.EINTR) {
				t.Fatal("the kernel does not give up", err)
			}
		}
		if code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || unix.Errno(code) != unix.ETIMEDOUT {
			t.Errorf("it ends with %v, %v", unix.Errno(code), err)
		}
		must(t, unix.Close(fd))
	}
	expectTraffic(t, n, "10.96.0.2:80", Traffic{Attempts: 6, Aborted: 2, TimedOut: 4})
	expectTraffic(t, n, "[fd00:96::2]:80", Traffic{Attempts: 3, Aborted: 1, TimedOut: 2})
}

func TestWhatIsNotForAFrontendIsNotCounted(t *testing.T) {
	n := newNode(t)
	mustApply(t, n.open(t), withBackends()...)
	accept := acceptor(t, "10.1.0.1:8181")
	fd := newSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	must(t, unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80"))))
	must(t, unix.Close(accept()))
	expectTraffic(t, n, "10.96.0.1:80", Traffic{Attempts: 1, Established: 1})
	// The pod itself, by the very socket, whose states are still told.
	must(t, disconnect(fd))
	must(t, unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.1.0.1:8181"))))
	must(t, unix.Close(accept()))
	must(t, unix.Close(fd))
	// Whatever would have been counted is by now.
	fd = newSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	must(t, unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80"))))
	expectTraffic(t, n, "10.96.0.1:80", Traffic{Attempts: 2, Established: 2, Active: 1})
}

func TestMultipathTCPIsCounted(t *testing.T) {
	n := newNode(t)
	mustApply(t, n.open(t), withBackends()...)
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			fd, err := unix.Socket(way.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
			if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
				t.Skip("the kernel has no MPTCP")
			}
			must(t, err)
			want := trafficOf(t, n, way.frontend)
			accept := acceptor(t, way.backend)
			must(t, unix.Connect(fd, sockaddr(way.family, netip.MustParseAddrPort(way.frontend))))
			server := accept()
			want.Attempts++
			want.Established++
			want.Active++
			expectTraffic(t, n, way.frontend, want)
			must(t, errors.Join(unix.Close(fd), unix.Close(server)))
			want.Active--
			expectTraffic(t, n, way.frontend, want)
		})
	}
}

func TestFlowsOfUDPAreCounted(t *testing.T) {
	n := newNode(t)
	mustApply(t, n.open(t), serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181")), serviceAt("[fd00:96::1]:80/UDP", backendAt("[fd00:1::1]:8181")))
	udpServer(t, 8181)
	for name, way := range ways {
		to := netip.MustParseAddrPort(way.frontend)
		before := trafficOf(t, n, way.frontend)
		for range 3 {
			if _, err := dial(way.family, to); err != nil {
				t.Fatal(name, err)
			}
		}
		before.Attempts += 3
		expectTraffic(t, n, way.frontend, before)
		fd := client(t, way.family)
		for range 5 {
			mustAsk(t, fd, way.family, way.frontend)
		}
		before.Attempts++ // one socket's datagrams are one flow
		expectTraffic(t, n, way.frontend, before)
	}
}

// foreignSockOps is someone else's program. With the SYN it asks for the callbacks
// `flags`, beside those that are asked for, and then keeps in the map: 0: what is asked for when it is
// called last; 1: how often it was told of a state. It wants SYNs to be repeated after `timeout` jiffies.
func foreignSockOps(t *testing.T, flags, timeout int32) (*ebpf.Program, *ebpf.Map) {
	t.Helper()
	const (
		op, reply, cbFlags = 0, 4, 84 // of struct bpf_sock_ops

		timeoutInit, connects, state = 1, 3, 10
	)
	seen, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 2})
	must(t, err)
	t.Cleanup(func() { _ = seen.Close() })
	entry := func(key int64) asm.Instructions {
		return asm.Instructions{
			asm.StoreImm(asm.RFP, -4, key, asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, seen.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "end"),
		}
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign_ops", Type: ebpf.SockOps, AttachType: ebpf.AttachCGroupSockOps, License: "GPL",
		Instructions: slices.Concat(asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R7, asm.R6, op, asm.Word),
			asm.JNE.Imm(asm.R7, timeoutInit, "not timeout"),
			asm.Mov.Imm(asm.R1, timeout),
			asm.StoreMem(asm.R6, reply, asm.R1, asm.Word),
			asm.LoadMem(asm.R8, asm.R6, cbFlags, asm.Word).WithSymbol("not timeout"),
			asm.JNE.Imm(asm.R7, connects, "keep"),
			asm.Or.Imm(asm.R8, flags),
			asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Reg(asm.R2, asm.R8),
			asm.FnSockOpsCbFlagsSet.Call(),
			asm.Mov.Imm(asm.R1, 0).WithSymbol("keep"),
		}, entry(0), asm.Instructions{
			asm.StoreMem(asm.R0, 0, asm.R8, asm.DWord),
			asm.JNE.Imm(asm.R7, state, "end"),
		}, entry(1), asm.Instructions{
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("end"),
			asm.Return(),
		}),
	})
	must(t, err)
	t.Cleanup(func() { _ = program.Close() })
	return program, seen
}

// What another program of the same cgroup asked for, and answered, stays as it is, in
// whatever order they run; and it does not take away what ours needs.
func TestForeignSockOpsKeepsItsCallbacks(t *testing.T) {
	const rto, rtt, state = 1, 8, 4
	attach := func(t *testing.T, n *node, program *ebpf.Program) {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: n.cgroup, Attach: ebpf.AttachCGroupSockOps, Program: program})
		must(t, err)
		t.Cleanup(func() { _ = l.Close() })
	}
	for _, first := range []bool{false, true} {
		for name, flags := range map[string]int32{"others": rto | rtt, "the same": state, "none": 0} {
			t.Run(fmt.Sprintf("%s, first %t", name, first), func(t *testing.T) {
				n := newNode(t)
				program, seen := foreignSockOps(t, flags, 20)
				if first {
					attach(t, n, program)
				}
				mustApply(t, n.open(t), withBackends()...)
				if !first {
					attach(t, n, program)
				}
				accept := acceptor(t, "10.1.0.1:8181")
				fd := newSocket(t, unix.AF_INET, unix.SOCK_STREAM)
				must(t, unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80"))))
				server := accept()
				expectTraffic(t, n, "10.96.0.1:80", Traffic{Attempts: 1, Established: 1, Active: 1})
				must(t, unix.Close(fd))
				must(t, unix.Close(server))
				expectTraffic(t, n, "10.96.0.1:80", Traffic{Attempts: 1, Established: 1})

				// SYN_SENT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE.
				var states, last uint64
				for deadline := time.Now().Add(10 * time.Second); states < 4 && time.Now().Before(deadline); runtime.Gosched() {
					must(t, seen.Lookup(uint32(1), &states))
				}
				must(t, seen.Lookup(uint32(0), &last))
				if want := uint64(flags) | state; states != 4 || last != want {
					t.Errorf("the other program hears of %d states; flags are %#x at the end, want %#x", states, last, want)
				}
				// Its answer counts.
				deadNetwork(t)
				fd = newSocket(t, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
				if err := unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.96.0.2:80"))); !errors.Is(err, unix.EINPROGRESS) {
					t.Fatal(err)
				}
				info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
				must(t, err)
				if rto := time.Duration(info.Rto) * time.Microsecond; rto >= 900*time.Millisecond {
					t.Errorf("SYNs are repeated after %s", rto)
				}
			})
		}
	}
}

// Connections that live through it are counted on by the next agent's programs, whatever
// the maps' sizes.
func TestRestartsDoNotDisturbCounters(t *testing.T) {
	for name, restart := range map[string]func(t *testing.T, n *node, connect func() int) *Datapath{
		"as it was": func(t *testing.T, n *node, connect func() int) *Datapath {
			return n.open(t)
		},
		"with other sizes": func(t *testing.T, n *node, connect func() int) *Datapath {
			n.Sizes.Backends *= 2
			return n.open(t)
		},
		// The programs of before count in the maps of before until they are replaced.
		"with other sizes, attached later": func(t *testing.T, n *node, connect func() int) *Datapath {
			n.Sizes.Backends += 5
			cgroups := n.Cgroups
			n.Cgroups = nil
			d := n.open(t)
			must(t, unix.Close(connect()))
			connect()
			must(t, d.Attach(cgroups))
			must(t, d.Attach(cgroups))
			n.Cgroups = cgroups
			return d
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			d := n.open(t)
			// The number of the backend in question is not 1.
			mustApply(t, d, append(withBackends(), serviceAt("10.96.0.9:80/TCP", backendAt("10.1.0.9:8181")))...)
			accept := acceptor(t, "10.1.0.9:8181")
			want := Traffic{}
			connect := func() int {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				must(t, err)
				must(t, unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.96.0.9:80"))))
				accept()
				want.Attempts++
				want.Established++
				return fd
			}
			old := []int{connect(), connect(), connect()}
			must(t, unix.Close(old[0]))
			must(t, d.Close())
			var during []int
			d = restart(t, n, func() int {
				fd := connect()
				during = append(during, fd)
				return fd
			})
			open := old[1:]
			if len(during) > 0 {
				open = append(open, during[1])
			}
			want.Active = uint64(len(open))
			expectTraffic(t, n, "10.96.0.9:80", want)
			for _, fd := range open {
				must(t, unix.Close(fd))
			}
			want.Active = 0
			expectTraffic(t, n, "10.96.0.9:80", want)
			fresh := connect()
			want.Active = 1
			expectTraffic(t, n, "10.96.0.9:80", want)
			must(t, unix.Close(fresh))
			must(t, d.Close())
		})
	}
}

// Whoever was connected to a backend that is gone counts for nobody: not for it, and not
// for who has its number.
func TestTrafficOfARemovedBackendCountsForNobody(t *testing.T) {
	n := newNode(t)
	n.Sizes.Backends = 2
	d := n.open(t)
	deadNetwork(t)
	accept := acceptor(t, "10.1.0.1:8181")
	acceptOther := acceptor(t, "10.1.0.2:8181")
	var retired []*BackendTraffic
	d.OnRetired(func(b *BackendTraffic) { retired = append(retired, b) })
	mustApply(t, d, serviceAt("10.96.0.1:80/TCP", backendAt("10.1.0.1:8181")), serviceAt("10.96.0.2:80/TCP", backendAt("10.2.0.1:8181")))
	before := read(t, n)
	connect := func(frontend string) int {
		fd := newSocket(t, unix.AF_INET, unix.SOCK_STREAM)
		must(t, unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort(frontend))))
		return fd
	}
	fd := connect("10.96.0.1:80")
	server := accept()
	second := connect("10.96.0.1:80")
	accept()
	waiting, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	if err := unix.Connect(waiting, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.96.0.2:80"))); !errors.Is(err, unix.EINPROGRESS) {
		t.Fatal(err)
	}
	expectTraffic(t, n, "10.96.0.1:80", Traffic{Attempts: 2, Established: 2, Active: 2})

	mustApply(t, d)
	// It goes on.
	_, err = unix.Write(server, []byte("still here"))
	must(t, err)
	expectAnswer(t, fd, "still here")
	if len(retired) != 2 || retired[0].Attempts+retired[1].Attempts != 3 || retired[0].Active+retired[1].Active != 2 {
		t.Errorf("what the removed ones had met: %+v", retired)
	}
	must(t, unix.Close(second))
	if line := d.set.traffic.items[before.Services[0].Backends[0].ID]; line.Closed != 0 {
		t.Errorf("its counters go on: %+v", line)
	}
	d.grave.drain()
	mustApply(t, d, serviceAt("10.96.0.3:80/TCP", backendAt("10.1.0.2:8181")), serviceAt("10.96.0.4:80/TCP", backendAt("10.1.0.3:8181")))
	after := read(t, n)
	if after.Services[0].Backends[0].ID+after.Services[1].Backends[0].ID != before.Services[0].Backends[0].ID+before.Services[1].Backends[0].ID {
		t.Fatalf("the numbers are not used again: %+v, %+v", before.Services, after.Services)
	}
	must(t, unix.Close(fd))
	must(t, unix.Close(waiting))
	// Whatever would have been counted is by now.
	connect("10.96.0.3:80")
	acceptOther()
	expectTraffic(t, n, "10.96.0.3:80", Traffic{Attempts: 1, Established: 1, Active: 1})
	expectTraffic(t, n, "10.96.0.4:80", Traffic{})
}

func TestTrafficNamesTheBackend(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	mustApply(t, d, withBackends()...)
	fd := newSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	if err := unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80"))); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatal(err)
	}
	var got []BackendTraffic
	must(t, d.Traffic(func(b *BackendTraffic) { got = append(got, *b) }))
	want := []BackendTraffic{{
		ID: 1, Generation: 1, Frontend: vip("10.96.0.1:80/TCP"), Port: desired.ServicePort{Namespace: "song", Name: "userlist"},
		Cluster: "cluster1", Addr: netip.MustParseAddrPort("10.1.0.1:8181"), Traffic: Traffic{Attempts: 1, Refused: 1},
	}}
	if len(got) == 1 {
		want[0].ID, want[0].Generation = got[0].ID, got[0].Generation
	}
	if diff := cmp.Diff(want, got, compareAddrs, compareAddrPorts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	must(t, d.Close())
	if err := d.Traffic(func(*BackendTraffic) {}); !errors.Is(err, ErrClosed) {
		t.Errorf("once closed: %v", err)
	}
}

// Pins of an agent of our schema that did not count yet get what they lack.
func TestStartOverPinsWithoutCounters(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	mustApply(t, d, withBackends()...)
	must(t, d.Close())
	before := read(t, n)
	must(t, os.Remove(filepath.Join(n.PinDir, schemaDir, mapsDir, connectMapTraffic)))
	must(t, removeLink(linkPin(t, n, "sock_ops")))
	accept := acceptor(t, "10.1.0.1:8181")
	connect := func() int {
		fd := newSocket(t, unix.AF_INET, unix.SOCK_STREAM)
		must(t, unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80"))))
		accept()
		return fd
	}
	old := connect()
	for _, s := range read(t, n).Services {
		if s.Backends[0].Traffic != nil {
			t.Errorf("counters where there are none: %+v", s)
		}
	}
	for _, grow := range []uint32{0, 7} { // with a change of sizes at once, too
		t.Run(fmt.Sprint("and room for more by ", grow), func(t *testing.T) {
			n.Sizes.Backends += grow
			d := n.open(t)
			defer d.Close()
			if diff := cmp.Diff(before.Services, read(t, n).Services, compareAddrs, compareAddrPorts); diff != "" {
				t.Errorf("services (-before +after):\n%s", diff)
			}
			fd := connect()
			expectTraffic(t, n, "10.96.0.1:80", Traffic{Attempts: 1, Established: 1, Active: 1})
			// One of before is none of those that are counted.
			if grow > 0 {
				must(t, unix.Close(old))
			}
			must(t, unix.Close(fd))
			expectTraffic(t, n, "10.96.0.1:80", Traffic{Attempts: 1, Established: 1})
			must(t, d.Close())
			must(t, os.Remove(filepath.Join(n.PinDir, schemaDir, mapsDir, connectMapTraffic)))
			must(t, removeLink(linkPin(t, n, "sock_ops")))
		})
	}
}

// A connection is counted from its beginning, or not at all, and it is never led to a
// backend by who does not know how to show its peer.
func TestSockOpsIsBetweenTheReverseAndTheForwardHooks(t *testing.T) {
	at := slices.IndexFunc(hooks, func(h hook) bool { return h.name == "sock_ops" })
	for i, h := range hooks {
		if forward := h.forward(); i < at && forward || i > at && !forward || i == at && forward {
			t.Errorf("%s is number %d, sock_ops %d", h.name, i, at)
		}
	}
}
