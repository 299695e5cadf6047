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
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// udpServer answers every datagram for the port, at whatever address, from there, with
// the address that it was sent to.
func udpServer(t testing.TB, port int) {
	t.Helper()
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		fd := newSocket(t, family, unix.SOCK_DGRAM)
		var err error
		if family == unix.AF_INET {
			err = errors.Join(
				unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1),
				unix.Bind(fd, &unix.SockaddrInet4{Port: port}))
		} else {
			err = errors.Join(
				unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
				unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1),
				unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1),
				unix.Bind(fd, &unix.SockaddrInet6{Port: port}))
		}
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			payload, control := make([]byte, 64), make([]byte, 64)
			for {
				n, controls, _, from, err := unix.Recvmsg(fd, payload, control, 0)
				if err != nil || n == 0 {
					return
				}
				at := controlAddr(control[:controls])
				answer := []byte(netip.AddrPortFrom(at, uint16(port)).String())
				_ = unix.Sendmsg(fd, answer, sourceControl(at), from, 0)
			}
		}()
		t.Cleanup(func() {
			// Shutting down does not wake a UDP socket that is not connected; an empty
			// datagram does.
			to := netip.AddrPortFrom(netip.MustParseAddr("10.1.0.1"), uint16(port))
			if family == unix.AF_INET6 {
				to = netip.AddrPortFrom(netip.MustParseAddr("fd00:1::1"), uint16(port))
			}
			for {
				_ = unix.Sendto(fd, nil, 0, sockaddr(family, to))
				select {
				case <-done:
					return
				case <-time.After(10 * time.Millisecond): // its queue was full
				}
			}
		})
	}
}

// controlAddr returns the address that a datagram was sent to.
func controlAddr(control []byte) netip.Addr {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(messages) != 1 {
		return netip.Addr{}
	}
	switch data := messages[0].Data; messages[0].Header.Level {
	case unix.IPPROTO_IP:
		return netip.AddrFrom4([4]byte(data[8:12]))
	default:
		return netip.AddrFrom16([16]byte(data[:16]))
	}
}

// sourceControl makes a datagram come from the address.
func sourceControl(addr netip.Addr) []byte {
	if addr.Is4() {
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: addr.As4()})
	}
	return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: addr.As16()})
}

// client is a UDP socket that waits no longer than a few seconds for an answer.
func client(t testing.TB, family int) int {
	t.Helper()
	fd := newSocket(t, family, unix.SOCK_DGRAM)
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	return fd
}

// ask sends a datagram, to the peer if no address is given, and returns who answers,
// by its own word, and by what the kernel shows.
func ask(fd, family int, to netip.AddrPort) (by, shown netip.AddrPort, err error) {
	if to.IsValid() {
		err = unix.Sendto(fd, []byte("who?"), 0, sockaddr(family, to))
	} else {
		err = unix.Send(fd, []byte("who?"), 0)
	}
	if err != nil {
		return by, shown, err
	}
	return answer(fd)
}

func answer(fd int) (by, shown netip.AddrPort, err error) { return answerWith(fd, 0) }

func answerWith(fd, flags int) (by, shown netip.AddrPort, err error) {
	payload := make([]byte, 64)
	n, from, err := unix.Recvfrom(fd, payload, flags)
	for errors.Is(err, unix.EINTR) { // by the Go runtime
		n, from, err = unix.Recvfrom(fd, payload, flags)
	}
	if err != nil {
		return by, shown, err
	}
	by, err = netip.ParseAddrPort(string(payload[:n]))
	return by, addrPort(from), err
}

// mustAsk returns who answers, and fails unless the kernel shows where it was sent.
func mustAsk(t testing.TB, fd, family int, to string) string {
	t.Helper()
	by, shown, err := ask(fd, family, netip.MustParseAddrPort(to))
	if err != nil {
		t.Fatalf("asking %s: %v", to, err)
	}
	if shown.String() != to {
		t.Errorf("asked %s, which leads to %s; the answer shows %s", to, by, shown)
	}
	return by.String()
}

func TestDatagramsOfUnconnectedSockets(t *testing.T) {
	const (
		backend4 = "10.1.0.1:8181"
		backend6 = "[fd00:1::1]:8181"
	)
	n := newNode(t)
	d := n.open(t)
	mustApply(t, d,
		serviceAt("10.96.0.1:80/UDP", backendAt(backend4)),
		serviceAt("10.96.0.2:80/UDP"),
		serviceAt("10.96.0.4:80/TCP", backendAt(backend4)),
		serviceAt("[fd00:96::1]:80/UDP", backendAt(backend6)))
	udpServer(t, 8181)
	udpServer(t, 80) // what is left alone
	tests := map[string]struct {
		family int
		to     string
		by     string
	}{
		"over IPv4":                           {unix.AF_INET, "10.96.0.1:80", backend4},
		"over an IPv4-mapped address":         {unix.AF_INET6, "10.96.0.1:80", backend4},
		"over IPv6":                           {unix.AF_INET6, "[fd00:96::1]:80", backend6},
		"a service with no backend":           {unix.AF_INET, "10.96.0.2:80", "10.96.0.2:80"},
		"a service with no backend, mapped":   {unix.AF_INET6, "10.96.0.2:80", "10.96.0.2:80"},
		"a service of TCP":                    {unix.AF_INET, "10.96.0.4:80", "10.96.0.4:80"},
		"the backend itself":                  {unix.AF_INET, backend4, backend4},
		"the backend itself, mapped":          {unix.AF_INET6, backend4, backend4},
		"the backend itself, over IPv6":       {unix.AF_INET6, backend6, backend6},
		"an IPv6 address that looks like one": {unix.AF_INET6, "[fd00:96::a60:1]:80", "[fd00:96::a60:1]:80"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			fd := client(t, test.family)
			for range 2 {
				if by := mustAsk(t, fd, test.family, test.to); by != test.by {
					t.Errorf("%s is answered by %s, want %s", test.to, by, test.by)
				}
			}
		})
		t.Run(name+", of a connected socket", func(t *testing.T) {
			fd := client(t, test.family)
			must(t, unix.Connect(fd, sockaddr(test.family, netip.MustParseAddrPort(test.to))))
			by, shown, err := ask(fd, test.family, netip.AddrPort{})
			if err != nil || by.String() != test.by || shown.String() != test.to {
				t.Errorf("%s is answered by %s, shown as %s, %v", test.to, by, shown, err)
			}
		})
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		t.Run(fmt.Sprintf("port 0, family %d", family), func(t *testing.T) {
			if _, _, err := ask(client(t, family), family, netip.MustParseAddrPort("10.96.0.1:0")); !errors.Is(err, unix.EINVAL) {
				t.Errorf("a datagram to port 0: %v, want what the kernel says", err)
			}
		})
	}
	t.Run("a backend that sends to its own service", func(t *testing.T) {
		fd := client(t, unix.AF_INET)
		at := netip.MustParseAddrPort("10.1.0.9:8182")
		must(t, unix.Bind(fd, sockaddr(unix.AF_INET, at)))
		mustApply(t, d, serviceAt("10.96.0.1:80/UDP", backendAt(at.String())))
		must(t, unix.Sendto(fd, []byte(at.String()), 0, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80"))))
		if by, shown, err := answer(fd); err != nil || by != at || shown.String() != "10.96.0.1:80" {
			t.Errorf("got what %s sent, shown as %s, %v", by, shown, err)
		}
	})
}

// A flow stays with its backend for as long as that takes new connections, and not a
// datagram longer. Many a protocol over UDP has state there.
func TestDatagramsStayWithTheirBackend(t *testing.T) {
	const frontend = "10.96.0.1:80"
	n := newNode(t)
	d := n.open(t)
	udpServer(t, 8181)
	with := func(shares ...uint32) desired.Service {
		svc := serviceAt(frontend + "/UDP")
		for i, share := range shares {
			b := backendAt(fmt.Sprintf("10.1.0.%d:8181", i+1))
			b.Slots = share
			svc.Backends = append(svc.Backends, b)
		}
		return svc
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		t.Run(fmt.Sprintf("family %d", family), func(t *testing.T) {
			mustApply(t, d, with(1, 1, 1, 1, 1))
			seen := map[string]int{}
			for range 40 {
				fd := client(t, family)
				by := mustAsk(t, fd, family, frontend)
				seen[by]++
				for range 10 {
					if again := mustAsk(t, fd, family, frontend); again != by {
						t.Fatalf("the flow moved from %s to %s", by, again)
					}
				}
			}
			if len(seen) < 3 {
				t.Errorf("40 sockets got %v", seen)
			}

			// The first backend leaves in every way there is, and comes back.
			fd := client(t, family)
			mustApply(t, d, with(1))
			expect := func(when, want string) {
				t.Helper()
				if by := mustAsk(t, fd, family, frontend); by != want {
					t.Errorf("%s: answered by %s, want %s", when, by, want)
				}
			}
			expect("alone", "10.1.0.1:8181")
			mustApply(t, d, with(1, 1, 1))
			expect("others came", "10.1.0.1:8181")
			mustApply(t, d, with(0, 1))
			expect("it was drained", "10.1.0.2:8181")
			mustApply(t, d, with(1, 1, 1))
			expect("it is back", "10.1.0.2:8181")
			gone := with(1, 1, 1)
			gone.Backends = gone.Backends[2:]
			mustApply(t, d, gone)
			expect("the second was removed", "10.1.0.3:8181")
			mustApply(t, d)
			d.grave.drain()
			mustApply(t, d, with(1))
			expect("the service was made again", "10.1.0.1:8181")
		})
	}
}

// A flow, too, is handed back with its service, and taken back.
func TestStaleAgentHandsDatagramsBack(t *testing.T) {
	const frontend, backend = "10.96.0.1:80", "10.1.0.1:8181"
	n := newNode(t)
	n.StaleAfter = time.Minute
	d := n.open(t)
	udpServer(t, 8181)
	udpServer(t, 80) // what is left alone
	svc := serviceAt(frontend+"/UDP", backendAt(backend))
	svc.LocalReady, svc.AffinitySeconds = true, 60
	mustApply(t, d, svc)
	fd := client(t, unix.AF_INET)
	expect := func(when, want string) {
		t.Helper()
		if by := mustAsk(t, fd, unix.AF_INET, frontend); by != want {
			t.Errorf("%s: answered by %s, want %s", when, by, want)
		}
	}
	expect("fresh", backend)
	d.set.meta.items[0].HeartbeatNs -= uint64(2 * n.StaleAfter)
	expect("stale", frontend)
	must(t, d.Heartbeat())
	expect("fresh again", backend)
}

// Some connect and name the address again with each datagram. The kernel drops what
// does not come from the peer, so it must be the same backend.
func TestDatagramsToThePeerByItsAddress(t *testing.T) {
	n := newNode(t)
	var backends6 []desired.Backend
	for i := range 20 {
		backends6 = append(backends6, backendAt(fmt.Sprintf("[fd00:1::%x]:8181", i+1)))
	}
	mustApply(t, n.open(t), serviceAt("10.96.0.1:80/UDP", manyBackends(0, 20)...), serviceAt("[fd00:96::1]:80/UDP", backends6...))
	udpServer(t, 8181)
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			for range 10 {
				fd := client(t, way.family)
				must(t, unix.Connect(fd, sockaddr(way.family, netip.MustParseAddrPort(way.frontend))))
				by, _, err := ask(fd, way.family, netip.AddrPort{})
				must(t, err)
				if again := mustAsk(t, fd, way.family, way.frontend); again != by.String() {
					t.Errorf("connected to %s, answered by %s", by, again)
				}
			}
		})
	}
}

// What a socket was told of is not forgotten because the service has changed.
func TestLateAnswersShowTheService(t *testing.T) {
	const frontend, late = "10.96.0.1:80", "10.1.0.200:8183"
	n := newNode(t)
	d := n.open(t)
	udpServer(t, 8181)
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		t.Run(fmt.Sprintf("family %d", family), func(t *testing.T) {
			server := client(t, unix.AF_INET)
			must(t, unix.Bind(server, sockaddr(unix.AF_INET, netip.MustParseAddrPort(late))))
			fd := client(t, family)
			mustApply(t, d, serviceAt(frontend+"/UDP", backendAt(late)))
			must(t, unix.Sendto(fd, []byte("who?"), 0, sockaddr(family, netip.MustParseAddrPort(frontend))))
			_, from, err := unix.Recvfrom(server, make([]byte, 64), 0)
			must(t, err)
			// The backend goes, and everything of it is used again, again and again.
			for i := range 20 {
				mustApply(t, d, serviceAt(frontend+"/UDP", backendAt("10.1.0.1:8181")),
					serviceAt("10.96.0.2:80/UDP", backendAt(fmt.Sprintf("10.1.1.%d:8181", i+1))))
				d.grave.drain()
				if by := mustAsk(t, fd, family, frontend); by != "10.1.0.1:8181" {
					t.Fatalf("answered by %s", by)
				}
			}
			must(t, unix.Sendto(server, []byte(late), 0, from))
			if by, shown, err := answer(fd); err != nil || by.String() != late || shown.String() != frontend {
				t.Errorf("the late answer of %s shows %s, %v", by, shown, err)
			}
			_ = unix.Close(server)
		})
	}
}

// A socket that sends to a pod by the pod's address hears from the pod.
func TestDirectDatagramsShowTheBackend(t *testing.T) {
	const frontend, other, backend = "10.96.0.1:80", "10.96.0.2:80", "10.1.0.1:8181"
	n := newNode(t)
	mustApply(t, n.open(t), serviceAt(frontend+"/UDP", backendAt(backend)), serviceAt(other+"/UDP", backendAt(backend)))
	udpServer(t, 8181)
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		t.Run(fmt.Sprintf("family %d", family), func(t *testing.T) {
			fd := client(t, family)
			for range 2 {
				for _, to := range []string{frontend, backend, other, frontend, frontend, backend} {
					mustAsk(t, fd, family, to)
				}
			}
		})
	}
}

// A socket with more peers than it remembers by itself.
func TestSocketWithManyPeers(t *testing.T) {
	const services = 40
	n := newNode(t)
	d := n.open(t)
	udpServer(t, 8181)
	var all []desired.Service
	for i := range services {
		svc := serviceAt(fmt.Sprintf("10.96.0.%d:80/UDP", i+1))
		for b := range 4 {
			svc.Backends = append(svc.Backends, backendAt(fmt.Sprintf("10.1.%d.%d:8181", i, b+1)))
		}
		all = append(all, svc)
	}
	mustApply(t, d, all...)
	fd := client(t, unix.AF_INET)
	// All are asked before any is heard.
	by := map[string]string{}
	for round := range 3 {
		for i := range all {
			must(t, unix.Sendto(fd, []byte("who?"), 0, sockaddr(unix.AF_INET, netip.AddrPortFrom(all[i].Frontend.Addr, 80))))
		}
		now := map[string]string{}
		for range all {
			who, shown, err := answer(fd)
			must(t, err)
			now[shown.String()] = who.String()
		}
		for i := range all {
			frontend := netip.AddrPortFrom(all[i].Frontend.Addr, 80).String()
			if now[frontend] == "" {
				t.Errorf("round %d: no answer shows %s", round, frontend)
			}
		}
		if round > 0 && !maps.Equal(by, now) {
			t.Errorf("round %d: flows moved from %v to %v", round, by, now)
		}
		by = now
	}
	counters, err := d.Counters()
	must(t, err)
	if counters["sent"] != 3*services || counters["from_renamed"] != 3*services || counters["sent_spilt"] != services-8 {
		t.Errorf("counters are %v", counters)
	}

	// The overflow forgets the way back from the first: the answer shows who it is
	// from, and the next datagram has a way back again.
	first := netip.MustParseAddrPort("10.96.0.1:80")
	must(t, unix.Sendto(fd, []byte("who?"), 0, sockaddr(unix.AF_INET, first)))
	overflow := d.set.byName[connectMapSentMore]
	keys, _, err := readHash[connectSentMoreKey, connectSentMoreEntry](overflow)
	must(t, err)
	for _, key := range keys {
		if key.Answer == 1 {
			must(t, overflow.Delete(&key))
		}
	}
	if who, shown, err := answer(fd); err != nil || shown != who {
		t.Errorf("the answer of %s shows %s, %v", who, shown, err)
	}
	mustAsk(t, fd, unix.AF_INET, first.String())
}

// A socket that cannot remember is left to kube-proxy.
func TestDatagramsWithoutStorageAreLeftAlone(t *testing.T) {
	const limit = "/proc/sys/net/core/optmem_max"
	n := newNode(t)
	d := n.open(t)
	// A namespace has its own limit since Linux 6.8 or so; the limit of all is not ours.
	before, err := os.ReadFile(limit)
	if err != nil {
		t.Skipf("the limit of sockets' memory is not that of the namespace: %v", err)
	}
	udpServer(t, 8181)
	udpServer(t, 80)
	mustApply(t, d, serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181")))
	must(t, os.WriteFile(limit, []byte(strconv.Itoa(1)), 0))
	defer func() { must(t, os.WriteFile(limit, before, 0)) }()
	if by := mustAsk(t, client(t, unix.AF_INET), unix.AF_INET, "10.96.0.1:80"); by != "10.96.0.1:80" {
		t.Errorf("answered by %s", by)
	}
	counters, err := d.Counters()
	must(t, err)
	if counters["sent_denied"] != 1 || counters["sent"] != 0 {
		t.Errorf("counters are %v", counters)
	}
}

// Threads that use one socket do not disturb each other.
func TestThreadsShareASocket(t *testing.T) {
	const services, rounds = 30, 3000
	n := newNode(t)
	d := n.open(t)
	udpServer(t, 8181)
	var all []desired.Service
	for i := range services {
		all = append(all, serviceAt(fmt.Sprintf("10.96.0.%d:80/UDP", i+1), backendAt(fmt.Sprintf("10.1.%d.1:8181", i))))
	}
	mustApply(t, d, all...)
	fd := client(t, unix.AF_INET6)
	var threads sync.WaitGroup
	for range 4 {
		threads.Go(func() {
			for range rounds {
				to := netip.AddrPortFrom(all[rand.IntN(services)].Frontend.Addr, 80)
				if err := unix.Sendto(fd, []byte("who?"), 0, sockaddr(unix.AF_INET6, to)); err != nil {
					t.Error(err)
				}
				// Another thread's answer, or none: a queue may have been full.
				by, shown, err := answerWith(fd, unix.MSG_DONTWAIT)
				if errors.Is(err, unix.EAGAIN) {
					continue
				}
				if want := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, by.Addr().As4()[2] + 1}), 80); err != nil || shown != want {
					t.Errorf("the answer of %s shows %s, %v", by, shown, err)
					return
				}
			}
		})
	}
	threads.Wait()
	counters, err := d.Counters()
	must(t, err)
	if counters["sent"] != 4*rounds || counters["from_renamed"] < 100 {
		t.Errorf("counters are %v", counters)
	}
}

// asker returns a dialer of unconnected sockets, a few of which are used again and
// again: what they remember must follow every change.
func asker(t testing.TB) dialer {
	sockets4, sockets6 := make(chan int, 8), make(chan int, 8)
	for range cap(sockets4) {
		sockets4 <- client(t, unix.AF_INET)
		sockets6 <- client(t, unix.AF_INET6)
	}
	return func(_ int, to netip.AddrPort) (netip.AddrPort, error) {
		family, sockets := unix.AF_INET, sockets4
		if to.Addr().Is6() || rand.IntN(2) == 0 {
			family, sockets = unix.AF_INET6, sockets6
		}
		fd := <-sockets
		defer func() { sockets <- fd }()
		by, shown, err := ask(fd, family, to)
		if err == nil && shown != to {
			err = fmt.Errorf("the answer of %s shows %s", by, shown)
		}
		return by, err
	}
}

func TestNoDatagramIsLostOrStaleWhile(t *testing.T) {
	const services, pool = 8, 12
	one := func(int) uint32 { return 1 }
	some := func(random *rand.Rand, _ int) []int { return random.Perm(pool)[:1+random.IntN(pool-1)] }
	tests := map[string]struct {
		sizes Sizes
		share func(int) uint32
		over  func(dialer) dialer // AF_INET and IPv4-mapped, unless given
	}{
		"backends come and go":            {Sizes{64, 512, 4096}, one, nil},
		"shares change":                   {Sizes{64, 512, 4096}, func(int) uint32 { return 1 + rand.Uint32N(5) }, nil},
		"maps are nearly full":            {Sizes{services, services*pool + pool, services*pool + 60}, one, nil},
		"backends come and go, over IPv6": {Sizes{64, 512, 4096}, one, overIPv6},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.Sizes = test.sizes
			d := n.open(t)
			udpServer(t, 8181)
			udpServer(t, 80)
			how := asker(t)
			if test.over != nil {
				how = test.over(how)
			}
			hammer(t, services, pool, how, 1500*time.Millisecond, applyMembers(t, d, test.share, 0), some)
		})
	}
}
