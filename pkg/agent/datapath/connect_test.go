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
	"math"
	"net/netip"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// listen returns a socket that listens on the address.
func listen(t *testing.T, at string) int {
	t.Helper()
	ap := netip.MustParseAddrPort(at)
	family := unix.AF_INET6
	if ap.Addr().Is4() {
		family = unix.AF_INET
	}
	listener := newSocket(t, family, unix.SOCK_STREAM)
	// An earlier test's connections may still be in TIME_WAIT.
	if err := unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	if family == unix.AF_INET6 {
		// IPv6 takes addresses of a local prefix only so.
		if err := unix.SetsockoptInt(listener, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Bind(listener, sockaddr(family, ap)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(listener, 16); err != nil {
		t.Fatal(err)
	}
	return listener
}

// tcpServer accepts on the address and answers each connection with its name.
func tcpServer(t *testing.T, at string) {
	t.Helper()
	serveTCP(t, at, func(fd int) { _, _ = unix.Write(fd, []byte(at)) })
}

// serveTCP accepts on the address, gives each connection to the function, and closes it.
func serveTCP(t *testing.T, at string, serve func(fd int)) {
	t.Helper()
	listener := listen(t, at)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			fd, _, err := unix.Accept(listener)
			if err != nil {
				return
			}
			serve(fd)
			_ = unix.Close(fd)
		}
	}()
	t.Cleanup(func() {
		_ = unix.Shutdown(listener, unix.SHUT_RDWR)
		<-done
	})
}

func TestConnect(t *testing.T) {
	const (
		backend4 = "10.1.0.1:8181"
		backend6 = "[fd00:1::1]:8181"
	)
	n := newNode(t)
	mustApply(t, n.open(t),
		serviceAt("10.96.0.1:80/TCP", backendAt(backend4)),
		serviceAt("10.96.0.1:80/UDP", backendAt(backend4)),
		serviceAt("10.96.0.2:80/UDP"),
		serviceAt("[fd00:96::1]:80/TCP", backendAt(backend6)),
		serviceAt("[fd00:96::1]:80/UDP", backendAt(backend6)))
	tcpServer(t, backend4)
	tcpServer(t, backend6)
	tcpServer(t, "10.96.0.1:81")

	tests := map[string]struct {
		family int
		kind   int
		to     string
		real   string // where the connection goes; the same as to, unless given
	}{
		"TCP over IPv4":                        {unix.AF_INET, unix.SOCK_STREAM, "10.96.0.1:80", backend4},
		"UDP over IPv4":                        {unix.AF_INET, unix.SOCK_DGRAM, "10.96.0.1:80", backend4},
		"TCP over an IPv4-mapped address":      {unix.AF_INET6, unix.SOCK_STREAM, "10.96.0.1:80", backend4},
		"UDP over an IPv4-mapped address":      {unix.AF_INET6, unix.SOCK_DGRAM, "10.96.0.1:80", backend4},
		"TCP over IPv6":                        {unix.AF_INET6, unix.SOCK_STREAM, "[fd00:96::1]:80", backend6},
		"UDP over IPv6":                        {unix.AF_INET6, unix.SOCK_DGRAM, "[fd00:96::1]:80", backend6},
		"a port of the address that is none":   {unix.AF_INET, unix.SOCK_STREAM, "10.96.0.1:81", ""},
		"an address that is none":              {unix.AF_INET, unix.SOCK_DGRAM, "10.96.0.9:80", ""},
		"the backend itself":                   {unix.AF_INET, unix.SOCK_DGRAM, backend4, ""},
		"a service with no backend":            {unix.AF_INET, unix.SOCK_DGRAM, "10.96.0.2:80", ""},
		"a service with no backend, mapped":    {unix.AF_INET6, unix.SOCK_DGRAM, "10.96.0.2:80", ""},
		"an IPv6 address that looks like IPv4": {unix.AF_INET6, unix.SOCK_DGRAM, "[fd00:96::a60:1]:80", ""},
	}
	// First what the application is told, then, without the reverse hooks, where the
	// connections really go.
	for _, truth := range []bool{false, true} {
		if truth {
			n.showBackends(t)
		}
		for name, test := range tests {
			t.Run(fmt.Sprintf("%s, truth %t", name, truth), func(t *testing.T) {
				fd := newSocket(t, test.family, test.kind)
				if err := unix.Connect(fd, sockaddr(test.family, netip.MustParseAddrPort(test.to))); err != nil {
					t.Fatalf("connect: %v", err)
				}
				want := test.to
				if truth && test.real != "" {
					want = test.real
				}
				if got, err := peerOf(fd); err != nil || got.String() != want {
					t.Errorf("getpeername: %s, %v, want %s", got, err, want)
				}
				if test.kind == unix.SOCK_STREAM && test.real != "" {
					answer := make([]byte, 64)
					if n, err := unix.Read(fd, answer); err != nil || string(answer[:n]) != test.real {
						t.Errorf("answered by %q, %v, want %q", answer[:n], err, test.real)
					}
				}
			})
		}
	}
}

// The connection of an MPTCP socket is made by a TCP socket inside it, which is
// translated. The reverse state is in that one, so getpeername() tells the truth.
func TestMultipathTCPReachesABackend(t *testing.T) {
	n := newNode(t)
	mustApply(t, n.open(t),
		serviceAt("10.96.0.1:80/TCP", backendAt("10.1.0.1:8181")), serviceAt("[fd00:96::1]:80/TCP", backendAt("[fd00:1::1]:8181")))
	tcpServer(t, "10.1.0.1:8181")
	tcpServer(t, "[fd00:1::1]:8181")
	for name, test := range ways {
		t.Run(name, func(t *testing.T) {
			fd, err := unix.Socket(test.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
			if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
				t.Skip("the kernel has no MPTCP")
			} else if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			must(t, unix.Connect(fd, sockaddr(test.family, netip.MustParseAddrPort(test.frontend))))
			expectAnswer(t, fd, test.backend)
			if got, err := peerOf(fd); err != nil || got.String() != test.backend {
				t.Errorf("getpeername says %s, %v; the documents say that it is the pod", got, err)
			}
		})
	}
}

// ways are those to a service of either family, with a backend on port 8181.
var ways = map[string]struct {
	family            int
	frontend, backend string
}{
	"over IPv4":                   {unix.AF_INET, "10.96.0.1:80", "10.1.0.1:8181"},
	"over an IPv4-mapped address": {unix.AF_INET6, "10.96.0.1:80", "10.1.0.1:8181"},
	"over IPv6":                   {unix.AF_INET6, "[fd00:96::1]:80", "[fd00:1::1]:8181"},
}

// expectAnswer reads what a tcpServer says first.
func expectAnswer(t *testing.T, fd int, want string) {
	t.Helper()
	answer := make([]byte, 64)
	n, err := unix.Read(fd, answer)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(fd, answer)
	}
	if err != nil || string(answer[:max(n, 0)]) != want {
		t.Errorf("answered by %q, %v, want %q", answer[:max(n, 0)], err, want)
	}
}

// With TCP fast open it is sendto() that connects, or the first write after connect().
func TestFastOpenReachesABackend(t *testing.T) {
	const synData = 32 // TCPI_OPT_SYN_DATA: data went with the SYN and was taken
	n := newNode(t)
	// Clients and servers, without cookies, and all listeners.
	must(t, os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte("1543"), 0)) // 0x607
	for _, at := range []string{"10.1.0.1:8181", "[fd00:1::1]:8181"} {
		serveTCP(t, at, func(fd int) {
			heard := make([]byte, 64)
			if n, err := unix.Read(fd, heard); err != nil || string(heard[:n]) != "early" {
				t.Errorf("the server hears %q, %v", heard[:max(n, 0)], err)
			}
			_, _ = unix.Write(fd, []byte(at))
		})
	}
	mustApply(t, n.open(t), serviceAt("10.96.0.1:80/TCP", backendAt("10.1.0.1:8181")), serviceAt("[fd00:96::1]:80/TCP", backendAt("[fd00:1::1]:8181")),
		serviceAt("10.96.0.1:81/TCP", backendAt("10.1.0.1:8182")), serviceAt("[fd00:96::1]:81/TCP", backendAt("[fd00:1::1]:8182")))
	// These never do anything.
	listen(t, "10.1.0.1:8182")
	listen(t, "[fd00:1::1]:8182")
	for name, test := range ways {
		frontend := netip.MustParseAddrPort(test.frontend)
		for how, connect := range map[string]func(fd int, to unix.Sockaddr) error{
			"by sendto": func(fd int, to unix.Sockaddr) error {
				return unix.Sendto(fd, []byte("early"), unix.MSG_FASTOPEN, to)
			},
			"by connect": func(fd int, to unix.Sockaddr) error {
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1); err != nil {
					return err
				}
				if err := unix.Connect(fd, to); err != nil {
					return err
				}
				_, err := unix.Write(fd, []byte("early"))
				return err
			},
		} {
			t.Run(name+", "+how, func(t *testing.T) {
				fd := newSocket(t, test.family, unix.SOCK_STREAM)
				must(t, connect(fd, sockaddr(test.family, frontend)))
				expectAnswer(t, fd, test.backend)
				info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
				must(t, err)
				if info.Options&synData == 0 {
					t.Errorf("no data went with the SYN: options %#x", info.Options)
				}
			})
			t.Run(name+", "+how+", the peer", func(t *testing.T) {
				fd := newSocket(t, test.family, unix.SOCK_STREAM)
				silent := netip.AddrPortFrom(frontend.Addr(), 81)
				must(t, connect(fd, sockaddr(test.family, silent)))
				if got, err := peerOf(fd); err != nil || got != silent {
					t.Errorf("getpeername says %s, %v", got, err)
				}
			})
		}
	}
}

// A backend that is a client of its own Service may get itself.
func TestABackendConnectsToItsOwnService(t *testing.T) {
	n := newNode(t)
	mustApply(t, n.open(t),
		serviceAt("10.96.0.1:80/TCP", backendAt("10.1.0.1:8181")), serviceAt("[fd00:96::1]:80/TCP", backendAt("[fd00:1::1]:8181")))
	tcpServer(t, "10.1.0.1:8181")
	tcpServer(t, "[fd00:1::1]:8181")
	for name, test := range ways {
		t.Run(name, func(t *testing.T) {
			fd := newSocket(t, test.family, unix.SOCK_STREAM)
			if test.family == unix.AF_INET6 {
				must(t, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1))
			}
			self := netip.AddrPortFrom(netip.MustParseAddrPort(test.backend).Addr(), 0)
			must(t, unix.Bind(fd, sockaddr(test.family, self)))
			must(t, unix.Connect(fd, sockaddr(test.family, netip.MustParseAddrPort(test.frontend))))
			expectAnswer(t, fd, test.backend)
		})
	}
}

// A TCP socket that was disconnected by AF_UNSPEC is like a new one.
func TestReconnectAfterUnspec(t *testing.T) {
	n := newNode(t)
	mustApply(t, n.open(t),
		serviceAt("10.96.0.1:80/TCP", backendAt("10.1.0.1:8181")), serviceAt("10.96.0.2:80/TCP", backendAt("10.1.0.2:8181")),
		serviceAt("[fd00:96::1]:80/TCP", backendAt("[fd00:1::1]:8181")))
	for _, at := range []string{"10.1.0.1:8181", "10.1.0.2:8181", "[fd00:1::1]:8181"} {
		tcpServer(t, at)
	}
	for name, test := range ways {
		t.Run(name, func(t *testing.T) {
			fd := newSocket(t, test.family, unix.SOCK_STREAM)
			steps := [][2]string{{test.frontend, test.backend}, {test.backend, test.backend}, {test.frontend, test.backend}}
			if netip.MustParseAddrPort(test.frontend).Addr().Is4() {
				steps = append(steps, [2]string{"10.96.0.2:80", "10.1.0.2:8181"}, [2]string{"10.1.0.1:8181", "10.1.0.1:8181"})
			}
			for _, step := range steps {
				must(t, unix.Connect(fd, sockaddr(test.family, netip.MustParseAddrPort(step[0]))))
				if got, err := peerOf(fd); err != nil || got.String() != step[0] {
					t.Errorf("connected to %s, getpeername says %s, %v", step[0], got, err)
				}
				expectAnswer(t, fd, step[1])
				must(t, disconnect(fd))
			}
		})
	}
}

func TestConnectToPort0IsLeftAlone(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	mustApply(t, d, serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181")), serviceAt("10.96.0.1:80/TCP", backendAt("10.1.0.1:8181")),
		serviceAt("[fd00:96::1]:80/UDP", backendAt("[fd00:1::1]:8181")))
	for name, test := range ways {
		to := netip.AddrPortFrom(netip.MustParseAddrPort(test.frontend).Addr(), 0)
		// The kernel holds a UDP socket with port 0 for unconnected.
		if got, err := dial(test.family, to); !errors.Is(err, unix.ENOTCONN) {
			t.Errorf("connect to port 0 %s leads to %s, %v", name, got, err)
		}
		fd := newSocket(t, test.family, unix.SOCK_STREAM)
		if err := unix.Connect(fd, sockaddr(test.family, to)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("connect to port 0 of TCP %s: %v, want what the kernel says", name, err)
		}
	}
	counters, err := d.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if counters["miss"] != uint64(2*len(ways)) || counters["translated"] != 0 {
		t.Errorf("counters are %v, want %d misses", counters, 2*len(ways))
	}
}

func TestGetpeernameIsNeverStale(t *testing.T) {
	const (
		frontend = "10.96.0.1:80"
		first    = "10.1.0.1:8181"
	)
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		t.Run(fmt.Sprintf("family %d", family), func(t *testing.T) {
			n := newNode(t)
			d := n.open(t)
			mustApply(t, d, serviceAt(frontend+"/UDP", backendAt(first)), serviceAt("10.96.0.2:80/UDP", backendAt("10.1.0.2:8181")))

			fd := newSocket(t, family, unix.SOCK_DGRAM)
			connect := func(to string) {
				t.Helper()
				if err := unix.Connect(fd, sockaddr(family, netip.MustParseAddrPort(to))); err != nil {
					t.Fatalf("connect %s: %v", to, err)
				}
			}
			expect := func(what, want string) {
				t.Helper()
				if got, err := peerOf(fd); err != nil || got.String() != want {
					t.Errorf("%s: getpeername says %s, %v, want %s", what, got, err, want)
				}
			}
			connect(frontend)
			expect("connected", frontend)
			connect("10.96.0.2:80")
			expect("connected to another service", "10.96.0.2:80")
			connect("10.1.9.9:99")
			expect("connected to something else", "10.1.9.9:99")
			connect(frontend)
			expect("connected again", frontend)
			connect(first)
			expect("connected to the backend itself", first)

			connect(frontend)
			if err := disconnect(fd); err != nil {
				t.Fatal(err)
			}
			if got, err := peerOf(fd); err == nil {
				t.Errorf("disconnected: getpeername says %s", got)
			}
			connect("10.1.9.9:99")
			expect("reconnected after AF_UNSPEC", "10.1.9.9:99")
			connect(frontend)
			expect("reconnected to the service", frontend)
			// Its backend is removed: the connection, and what it shows, stay.
			mustApply(t, d)
			expect("service removed", frontend)
			// Whoever else moves the socket, what was stored does not go with it.
			must(t, removeLink(linkPin(t, n, "connect4")))
			must(t, removeLink(linkPin(t, n, "connect6")))
			for _, to := range []string{"10.1.0.1:99", "10.1.9.9:8181"} {
				connect(to)
				expect("connected without our hook", to)
			}
		})
	}
}

func TestDistributionFollowsShares(t *testing.T) {
	const rounds = 20_000
	for name, shares := range map[string][]uint32{
		"equal":   {1, 1, 1, 1, 1, 1, 1},
		"uneven":  {1, 2, 3, 10},
		"drained": {5, 0, 5},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			d := n.open(t)
			n.showBackends(t)
			var backends []desired.Backend
			total := uint32(0)
			for i, share := range shares {
				b := backendAt(fmt.Sprintf("10.1.0.%d:8181", i+1))
				b.Slots = share
				backends = append(backends, b)
				total += share
			}
			mustApply(t, d, serviceAt("10.96.0.1:80/UDP", backends...))

			counts := make([]int, len(shares))
			for range rounds {
				peer, err := dial(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80"))
				if err != nil {
					t.Fatal(err)
				}
				counts[peer.Addr().As4()[3]-1]++
			}
			chi2, freedom := 0.0, -1
			for i, share := range shares {
				if share == 0 {
					if counts[i] != 0 {
						t.Errorf("backend %d has no share, but got %d connections", i, counts[i])
					}
					continue
				}
				expected := float64(rounds) * float64(share) / float64(total)
				chi2 += math.Pow(float64(counts[i])-expected, 2) / expected
				freedom++
			}
			if limit := chiSquare(freedom, 1e-6); chi2 > limit {
				t.Errorf("shares %v got %v connections: chi² %.1f is over %.1f", shares, counts, chi2, limit)
			}
		})
	}
}

// chiSquare returns the value that a χ² variable passes with probability p at most,
// by the bound of Laurent and Massart (2000).
func chiSquare(freedom int, p float64) float64 {
	x, k := -math.Log(p), float64(freedom)
	return k + 2*math.Sqrt(k*x) + 2*x
}

func TestStaleAgentHandsLocalServicesBack(t *testing.T) {
	n := newNode(t)
	n.StaleAfter = 300 * time.Millisecond
	d := n.open(t)
	n.showBackends(t)
	local := serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181"))
	local.LocalReady = true
	remote := serviceAt("10.96.0.2:80/UDP", backendAt("10.1.0.2:8181"))
	mustApply(t, d, local, remote)

	expect := func(when, to, want string) {
		t.Helper()
		if got, err := dial(unix.AF_INET, netip.MustParseAddrPort(to)); err != nil || got.String() != want {
			t.Errorf("%s: %s leads to %s, %v, want %s", when, to, got, err, want)
		}
	}
	expect("fresh", "10.96.0.1:80", "10.1.0.1:8181")
	expect("fresh", "10.96.0.2:80", "10.1.0.2:8181")
	// The agent was last heard of longer ago than it may be.
	d.set.meta.items[0].HeartbeatNs -= uint64(2 * n.StaleAfter)
	expect("stale, with local backends", "10.96.0.1:80", "10.96.0.1:80")
	expect("stale, without local backends", "10.96.0.2:80", "10.1.0.2:8181")
	// A change of another service does not make it fresh.
	mustApply(t, d, local)
	expect("stale, after a change", "10.96.0.1:80", "10.96.0.1:80")
	if err := d.Heartbeat(); err != nil {
		t.Fatal(err)
	}
	expect("fresh again", "10.96.0.1:80", "10.1.0.1:8181")
	counters, err := d.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if counters["handed_back"] != 2 || counters["translated"] != 4 {
		t.Errorf("counters are %v, want 2 handed_back and 4 translated", counters)
	}
}

// disconnect does what connect() does with AF_UNSPEC.
func disconnect(fd int) error {
	var unspec [16]byte
	return rawConnect(fd, unspec[:])
}

func rawConnect(fd int, sockaddr []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sockaddr[0])), uintptr(len(sockaddr)))
	if errno != 0 {
		return errno
	}
	return nil
}
