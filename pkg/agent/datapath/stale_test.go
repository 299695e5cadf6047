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
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/datapath/sockdiag"
	"mesh.io/clustermesh/pkg/agent/desired"
)

// staleNode is a node whose stale UDP sockets are destroyed.
type staleNode struct {
	*node
	sweeps chan StaleSweep
}

// eachFinder runs the test with either way to find sockets.
func eachFinder(t *testing.T, test func(t *testing.T, n *staleNode)) {
	t.Helper()
	for _, by := range []string{SweepIterator, SweepDiag} {
		t.Run(by, func(t *testing.T) {
			if by == SweepIterator && !kernelIs(t, 5, 12) {
				t.Skip("this kernel's iterators cannot tell the cookie of a socket")
			}
			n := &staleNode{newNode(t), make(chan StaleSweep, 1000)}
			n.noIterator = by == SweepDiag
			n.destroy()
			test(t, n)
		})
	}
}

// kernelIs says whether the running kernel is of that version, or newer.
func kernelIs(t *testing.T, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	must(t, unix.Uname(&name))
	var a, b int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &a, &b); err != nil {
		t.Fatal(err)
	}
	return a > major || a == major && b >= minor
}

func (n *staleNode) destroy() {
	n.KeepStaleUDP = false
	n.OnStaleSweep = func(s StaleSweep) { n.sweeps <- s }
}

// await waits until that many sockets were destroyed since the last call, and the sweep
// that has done it is over.
func (n *staleNode) await(t *testing.T, count int) {
	t.Helper()
	want := SweepIterator
	if n.noIterator {
		want = SweepDiag
	}
	deadline := time.After(20 * time.Second)
	for destroyed := 0; ; {
		select {
		case s := <-n.sweeps:
			if s.Err != nil || s.Failed > 0 || s.By != want {
				t.Fatalf("sweep: %+v, by %s, want %s", s, s.By, want)
			}
			if s.Destroyed > 0 {
				t.Logf("%d sockets destroyed in %s", s.Destroyed, s.Took)
			}
			if destroyed += s.Destroyed; destroyed > count {
				t.Fatalf("%d sockets were destroyed, want %d", destroyed, count)
			}
			// Without any, it is the first sweep to begin after the change that tells.
			if destroyed == count && (count > 0 || s.Found == 0) {
				return
			}
		case <-deadline:
			t.Fatalf("%d sockets were destroyed, want %d", destroyed, count)
		}
	}
}

// connectTo returns a new socket that is connected to the frontend.
func connectTo(t testing.TB, family, kind int, to string) int {
	t.Helper()
	fd := newSocket(t, family, kind)
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}))
	must(t, unix.Connect(fd, sockaddr(family, netip.MustParseAddrPort(to))))
	return fd
}

// inNewNetns calls the function in a new network namespace, where the test's addresses
// are local. It stays as long as the sockets that are made there, and has no name; with
// a process there is one in it till the test ends.
func inNewNetns(t testing.TB, process bool, f func()) {
	t.Helper()
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	must(t, err)
	defer func() {
		must(t, unix.Setns(int(home.Fd()), unix.CLONE_NEWNET))
		home.Close()
		runtime.UnlockOSThread()
	}()
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	must(t, makeLocal())
	if process {
		sleep := exec.Command("sleep", "60")
		must(t, sleep.Start())
		t.Cleanup(func() {
			_ = sleep.Process.Kill()
			_ = sleep.Wait()
		})
	}
	f()
}

// hasNetnsByID says whether the kernel opens a network namespace by its ID.
func hasNetnsByID(t testing.TB) bool {
	t.Helper()
	_, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/proc/thread-self/ns/net", unix.AT_SYMLINK_FOLLOW)
	return err == nil
}

// mustBeAborted fails unless the application is told that its socket is of no use any
// more, and can connect again, to the given backend.
func mustBeAborted(t *testing.T, what string, fd, family int, frontend, backend string) {
	t.Helper()
	_, _, err := unix.Recvfrom(fd, make([]byte, 1), 0)
	for errors.Is(err, unix.EINTR) {
		_, _, err = unix.Recvfrom(fd, make([]byte, 1), 0)
	}
	if !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("%s: a call that waits for an answer ends with %v, want %v", what, err, unix.ECONNABORTED)
	}
	if err := unix.Send(fd, []byte("x"), 0); !errors.Is(err, unix.EDESTADDRREQ) {
		t.Errorf("%s: the next send ends with %v, want %v", what, err, unix.EDESTADDRREQ)
	}
	if peer, err := peerOf(fd); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("%s: getpeername says %s, %v", what, peer, err)
	}
	if err := unix.Connect(fd, sockaddr(family, netip.MustParseAddrPort(frontend))); err != nil {
		t.Errorf("%s: connecting again: %v", what, err)
	}
	if by, _, err := ask(fd, family, netip.AddrPort{}); err != nil || by.String() != backend {
		t.Errorf("%s: connected again, it is answered by %s, %v, want %s", what, by, err, backend)
	}
}

// mustBeConnected fails unless the socket shows the peer.
func mustBeConnected(t *testing.T, what string, fd int, peer string) {
	t.Helper()
	if got, err := peerOf(fd); err != nil || got.String() != peer {
		t.Errorf("%s: getpeername says %s, %v, want %s", what, got, err, peer)
	}
	if soError, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || soError != 0 {
		t.Errorf("%s: the socket has error %v, %v", what, unix.Errno(soError), err)
	}
}

func TestStaleUDPSocketsAreDestroyed(t *testing.T) {
	eachFinder(t, func(t *testing.T, n *staleNode) {
		d := n.open(t)
		old := map[bool][]string{true: {"10.1.0.1:8181", "10.1.0.2:8181"}, false: {"[fd00:1::1]:8181", "[fd00:1::2]:8181"}}
		table := func(i int) []desired.Service {
			return []desired.Service{
				serviceAt("10.96.0.1:80/UDP", backendAt(old[true][i])),
				serviceAt("[fd00:96::1]:80/UDP", backendAt(old[false][i])),
				serviceAt("10.96.0.1:80/TCP", backendAt(old[true][i])),
				// Nothing changes for these: one has the same backend.
				serviceAt("10.96.0.2:80/UDP", backendAt(old[true][0])),
				serviceAt("[fd00:96::2]:80/UDP", backendAt(old[false][0])),
			}
		}
		mustApply(t, d, table(0)...)
		tcpServer(t, old[true][0])
		udpServer(t, 8181)

		type socket struct {
			what     string
			fd       int
			family   int
			frontend string
		}
		var lost, kept []socket
		in := func(place string) {
			for name, way := range ways {
				what := name + ", in " + place
				add := func(list *[]socket, what, to string) int {
					fd := connectTo(t, way.family, unix.SOCK_DGRAM, to)
					*list = append(*list, socket{what, fd, way.family, to})
					return fd
				}
				backend := old[netip.MustParseAddrPort(way.frontend).Addr().Is4()][0]
				other := netip.AddrPortFrom(netip.MustParseAddrPort(way.frontend).Addr().Next(), 80).String()
				add(&lost, what, way.frontend)
				add(&kept, what+", to another service with that backend", other)
				add(&kept, what+", to the backend itself", backend)
				fd := add(&kept, what+", to the service, and then to the backend itself", way.frontend)
				kept[len(kept)-1].frontend = backend
				must(t, unix.Connect(fd, sockaddr(way.family, netip.MustParseAddrPort(backend))))
				fd = add(&kept, what+", to the service, and then to another one", way.frontend)
				kept[len(kept)-1].frontend = other
				must(t, unix.Connect(fd, sockaddr(way.family, netip.MustParseAddrPort(other))))
			}
		}
		in("its own network namespace")
		inNewNetns(t, true, func() {
			udpServer(t, 8181)
			in("another network namespace")
		})
		if !n.noIterator && hasNetnsByID(t) {
			inNewNetns(t, false, func() {
				udpServer(t, 8181)
				in("a network namespace without a process")
			})
		}
		tcp := connectTo(t, unix.AF_INET, unix.SOCK_STREAM, "10.96.0.1:80")
		unconnected := client(t, unix.AF_INET)
		mustAsk(t, unconnected, unix.AF_INET, "10.96.0.1:80")
		disconnected := connectTo(t, unix.AF_INET, unix.SOCK_DGRAM, "10.96.0.1:80")
		must(t, disconnect(disconnected))

		mustApply(t, d, table(1)...)
		n.await(t, len(lost))
		for _, s := range lost {
			mustBeAborted(t, s.what, s.fd, s.family, s.frontend, old[netip.MustParseAddrPort(s.frontend).Addr().Is4()][1])
		}
		for _, s := range kept {
			mustBeConnected(t, s.what, s.fd, s.frontend)
		}
		mustBeConnected(t, "TCP", tcp, "10.96.0.1:80")
		expectAnswer(t, tcp, old[true][0])
		for what, fd := range map[string]int{"not connected": unconnected, "disconnected": disconnected} {
			if by := mustAsk(t, fd, unix.AF_INET, "10.96.0.1:80"); by != old[true][1] {
				t.Errorf("%s: answered by %s", what, by)
			}
		}
		if stats := d.StaleSockets(); stats.Destroyed != uint64(len(lost)) || stats.Failed != 0 || stats.Sweeps == 0 || stats.Last == 0 {
			t.Errorf("counted %+v, want %d destroyed", stats, len(lost))
		}
	})
}

// Whoever waits for an answer when it happens is told at once.
func TestACallThatWaitsIsAborted(t *testing.T) {
	eachFinder(t, func(t *testing.T, n *staleNode) {
		d := n.open(t)
		mustApply(t, d, serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181")))
		fd := connectTo(t, unix.AF_INET, unix.SOCK_DGRAM, "10.96.0.1:80")
		ended := make(chan error, 1)
		go func() {
			_, _, err := unix.Recvfrom(fd, make([]byte, 1), 0)
			for errors.Is(err, unix.EINTR) {
				_, _, err = unix.Recvfrom(fd, make([]byte, 1), 0)
			}
			ended <- err
		}()
		start := time.Now()
		mustApply(t, d, serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.2:8181")))
		if err := <-ended; !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("it ends with %v", err)
		}
		t.Logf("after %s", time.Since(start))
	})
}

// Which backends count as gone.
func TestWhoLosesUDPSockets(t *testing.T) {
	const frontend, at = "10.96.0.1:80", "10.1.0.1:8181"
	with := func(change func(*desired.Backend)) []desired.Service {
		b := backendAt(at)
		change(&b)
		return []desired.Service{serviceAt(frontend+"/UDP", b, backendAt("10.1.0.2:8181"))}
	}
	moved := backendAt(at)
	moved.ClusterID = 2
	broken := serviceAt(frontend+"/UDP", backendAt("10.1.0.2:8181"), backendAt("10.1.0.2:8181"))
	tests := map[string]struct {
		after []desired.Service
		fails bool
		lost  bool
	}{
		"it is no backend any more": {after: []desired.Service{serviceAt(frontend+"/UDP", backendAt("10.1.0.2:8181"))}, lost: true},
		"nobody is":                 {after: []desired.Service{serviceAt(frontend + "/UDP")}, lost: true},
		"the service is gone":       {lost: true},
		"it does not serve":         {after: with(func(b *desired.Backend) { b.State, b.Slots = desired.NotReady, 0 }), lost: true},
		"it serves to its end":      {after: with(func(b *desired.Backend) { b.State, b.Slots = desired.Terminating, 0 })},
		"it is drained":             {after: with(func(b *desired.Backend) { b.Slots = 0 })},
		"it is quarantined":         {after: with(func(b *desired.Backend) { b.State, b.Slots = desired.Quarantined, 0 })},
		"another cluster has it":    {after: []desired.Service{serviceAt(frontend+"/UDP", backendAt("10.1.0.2:8181"), moved)}},
		"the service is refused":    {after: []desired.Service{broken}, fails: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			eachFinder(t, func(t *testing.T, n *staleNode) {
				d := n.open(t)
				// The witness loses its backend in any case: what is not destroyed with it stays.
				mustApply(t, d, serviceAt(frontend+"/UDP", backendAt(at)), serviceAt("10.96.0.9:80/UDP", backendAt("10.1.0.9:8181")))
				fd := connectTo(t, unix.AF_INET, unix.SOCK_DGRAM, frontend)
				witness := connectTo(t, unix.AF_INET, unix.SOCK_DGRAM, "10.96.0.9:80")
				report := apply(t, d, test.after...)
				if failed := len(report.Failed) > 0; failed != test.fails {
					t.Fatalf("Apply: %v", report.Failed)
				}
				if test.lost {
					n.await(t, 2)
					return
				}
				n.await(t, 1)
				mustBeConnected(t, "its socket", fd, frontend)
				if _, err := peerOf(witness); !errors.Is(err, unix.ENOTCONN) {
					t.Errorf("the witness is connected: %v", err)
				}
				// When it goes for good, it is found.
				mustApply(t, d, serviceAt(frontend+"/UDP", backendAt("10.1.0.2:8181")))
				n.await(t, 1)
			})
		})
	}
}

// Backends that went while no agent was there: sockets are found by the next one, by
// the generation that they remember. Who has the number now, or the address, is spared.
func TestStaleUDPSocketsOfBeforeAreDestroyed(t *testing.T) {
	eachFinder(t, func(t *testing.T, n *staleNode) {
		n.Sizes.Backends = 4
		n.KeepStaleUDP = true
		d := n.open(t)
		a, b, c, e := backendAt("10.1.0.1:8181"), backendAt("10.1.0.2:8181"), backendAt("10.1.0.3:8181"), backendAt("10.1.0.5:8181")
		mustApply(t, d, serviceAt("10.96.0.1:80/UDP", a), serviceAt("10.96.0.2:80/UDP", e))
		ofA := connectTo(t, unix.AF_INET6, unix.SOCK_DGRAM, "10.96.0.1:80")
		ofE := connectTo(t, unix.AF_INET, unix.SOCK_DGRAM, "10.96.0.2:80")
		numbers := func() map[string]uint32 {
			m := map[string]uint32{}
			for _, s := range read(t, n.node).Services {
				for _, b := range s.Backends {
					m[b.Addr.String()] = b.ID
				}
			}
			return m
		}
		before := numbers()
		// E comes back under another number; C gets A's in the end.
		mustApply(t, d, serviceAt("10.96.0.1:80/UDP", b), serviceAt("10.96.0.2:80/UDP"))
		mustApply(t, d, serviceAt("10.96.0.1:80/UDP", b), serviceAt("10.96.0.2:80/UDP", e))
		for i := 0; numbers()[c.Addr.String()] != before[a.Addr.String()]; i++ {
			if i == 8 {
				t.Fatalf("nobody gets the number of %s: %v, then %v", a.Addr, before, numbers())
			}
			mustApply(t, d, serviceAt("10.96.0.1:80/UDP", b), serviceAt("10.96.0.2:80/UDP", e))
			d.mu.Lock()
			d.grave.drain()
			d.mu.Unlock()
			mustApply(t, d, serviceAt("10.96.0.1:80/UDP", c), serviceAt("10.96.0.2:80/UDP", e))
		}
		if numbers()[e.Addr.String()] == before[e.Addr.String()] {
			t.Fatalf("%s has the number of before", e.Addr)
		}
		ofC := connectTo(t, unix.AF_INET, unix.SOCK_DGRAM, "10.96.0.1:80")
		must(t, d.Close())

		n.destroy()
		d = n.open(t)
		mustApply(t, d, serviceAt("10.96.0.1:80/UDP", c), serviceAt("10.96.0.2:80/UDP", e))
		n.await(t, 1)
		udpServer(t, 8181)
		mustBeAborted(t, "connected to what is gone", ofA, unix.AF_INET6, "10.96.0.1:80", c.Addr.String())
		mustBeConnected(t, "connected to who has its number now", ofC, "10.96.0.1:80")
		mustBeConnected(t, "connected to who came back", ofE, "10.96.0.2:80")
	})
}

// A connect() whose lookup ended before its backend went may end after the first look.
func TestASocketThatIsLateIsDestroyed(t *testing.T) {
	eachFinder(t, func(t *testing.T, n *staleNode) {
		d := n.open(t)
		mustApply(t, d, serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181")))
		witness := connectTo(t, unix.AF_INET, unix.SOCK_DGRAM, "10.96.0.1:80")
		// As it is between the programs' part of connect() and the kernel's.
		fd := connectTo(t, unix.AF_INET, unix.SOCK_DGRAM, "10.96.0.1:80")
		must(t, disconnect(fd))
		// This one's goes on to something else, whatever the programs have noted.
		other := connectTo(t, unix.AF_INET, unix.SOCK_DGRAM, "10.96.0.1:80")
		must(t, disconnect(other))
		mustApply(t, d)
		n.await(t, 1)
		if _, err := peerOf(witness); !errors.Is(err, unix.ENOTCONN) {
			t.Fatalf("the witness is connected: %v", err)
		}
		must(t, removeLink(linkPin(t, n.node, "connect4")))
		must(t, unix.Connect(other, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.1.9.9:99"))))
		must(t, unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.1.0.1:8181"))))
		n.await(t, 1)
		mustBeConnected(t, "connected to something else", other, "10.1.9.9:99")
		if peer, err := peerOf(fd); !errors.Is(err, unix.ENOTCONN) {
			t.Errorf("the late one is connected to %s, %v", peer, err)
		}
	})
}

// fakeFinder finds no socket, and takes its time.
type fakeFinder struct {
	takes time.Duration
	began *[]time.Time
}

func (f fakeFinder) name() string { return "fake" }
func (f fakeFinder) close() error { return nil }
func (f fakeFinder) find(*sockdiag.Namespaces) ([]staleSocket, error) {
	*f.began = append(*f.began, time.Now())
	time.Sleep(f.takes)
	return nil, nil
}

// Each change is looked at at once, or as soon as the pause after the last look lets it,
// and again after a while; then there is rest.
func TestWhenStaleSocketsAreLookedFor(t *testing.T) {
	for _, takes := range []time.Duration{time.Millisecond, 40 * time.Millisecond, 10 * time.Second} {
		t.Run(takes.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var looks []time.Time
				ctx, cancel := context.WithCancel(t.Context())
				r := &reaper{
					proc:  "/proc",
					open:  func() finder { return fakeFinder{takes, &looks} },
					judge: func(s []staleSocket) []staleSocket { return s },
					wake:  make(chan struct{}, 1), stop: cancel, done: make(chan struct{}),
				}
				go r.run(ctx)
				for range 100 {
					time.Sleep(7 * time.Millisecond)
					r.look()
				}
				last := time.Now()
				time.Sleep(time.Hour)
				must(t, r.close())

				second := false
				for i, look := range looks {
					if i > 0 {
						pause := look.Sub(looks[i-1]) - takes
						if least := min(max(leastPause, 9*takes), mostPause); pause < least {
							t.Errorf("a look begins %s after the end of the one before, want at least %s", pause, least)
						}
						if look.Before(last) && pause > mostPause {
							t.Errorf("a look begins %s after the end of the one before, while there are changes", pause)
						}
					}
					second = second || look.Sub(last) >= secondLook
				}
				if !second {
					t.Errorf("nothing is looked for %s after the last change: %v", secondLook, looks)
				}
				if rest := time.Since(looks[len(looks)-1]); rest < time.Hour-time.Minute {
					t.Errorf("the last look is of %s ago", rest)
				}
			})
		})
	}
}

// Two sockets with the same addresses: the kernel finds one after the other.
func TestStaleUDPSocketsThatShareAddresses(t *testing.T) {
	eachFinder(t, func(t *testing.T, n *staleNode) {
		d := n.open(t)
		mustApply(t, d, serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181")))
		for range 4 {
			fd := newSocket(t, unix.AF_INET, unix.SOCK_DGRAM)
			must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
			must(t, unix.Bind(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.1.0.7:5353"))))
			must(t, unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80"))))
		}
		mustApply(t, d)
		n.await(t, 4)
	})
}

func TestThousandsOfStaleUDPSockets(t *testing.T) {
	const each = 2000
	eachFinder(t, func(t *testing.T, n *staleNode) {
		d := n.open(t)
		mustApply(t, d, serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181")), serviceAt("10.96.0.2:80/UDP", backendAt("10.1.0.2:8181")))
		var kept []int
		for range 3 {
			inNewNetns(t, true, func() {
				for range each {
					connectTo(t, unix.AF_INET, unix.SOCK_DGRAM, "10.96.0.1:80")
					kept = append(kept, connectTo(t, unix.AF_INET6, unix.SOCK_DGRAM, "10.96.0.2:80"))
				}
			})
		}
		start := time.Now()
		mustApply(t, d, serviceAt("10.96.0.2:80/UDP", backendAt("10.1.0.2:8181")))
		n.await(t, 3*each)
		t.Logf("%d of %d sockets were gone after %s", 3*each, 6*each, time.Since(start))
		for _, fd := range kept {
			mustBeConnected(t, "the other service", fd, "10.96.0.2:80")
		}
	})
}

// What cannot be done is said, and is no failure of anything else.
func TestSocketsThatCannotBeDestroyed(t *testing.T) {
	n := &staleNode{newNode(t), make(chan StaleSweep, 1000)}
	n.destroy()
	n.Proc = t.TempDir() // no process is seen
	d := n.open(t)
	d.reaper.judge = func(sockets []staleSocket) []staleSocket {
		for i := range sockets {
			sockets[i].Netns = sockdiag.Netns{Inum: sockets[i].Netns.Inum} // as before Linux 6.18
		}
		return d.judgeStale(sockets)
	}
	mustApply(t, d, serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181")))
	var fd int
	inNewNetns(t, true, func() { fd = connectTo(t, unix.AF_INET, unix.SOCK_DGRAM, "10.96.0.1:80") })
	mustApply(t, d)
	for s := range n.sweeps {
		if s.Found == 0 {
			continue
		}
		if s.Failed != 1 || !errors.Is(s.Err, sockdiag.ErrNoNetns) {
			t.Errorf("sweep: %+v", s)
		}
		break
	}
	if stats := d.StaleSockets(); stats.Failed == 0 || stats.Destroyed != 0 {
		t.Errorf("counted %+v", stats)
	}
	if _, err := peerOf(fd); err != nil {
		t.Errorf("the socket is not connected: %v", err)
	}
	mustApply(t, d, serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181")))
}

// Whatever comes and goes while sockets are connected, with numbers used again all the
// time: in the end who has lost its backend is destroyed, and nobody else ever is.
func TestStaleUDPSocketsInAStormOfChanges(t *testing.T) {
	const services, pool, changes = 4, 6, 120
	eachFinder(t, func(t *testing.T, n *staleNode) {
		n.Sizes.Backends = services * pool
		d := n.open(t)
		state := d.set.byName[connectMapSockState]

		type socket struct {
			fd, service, member int
			began               int // the number of changes before its connect()
		}
		var mu sync.Mutex
		var sockets []socket
		change := 0
		absent := map[[2]int]int{} // the last change that began and had no such backend
		table := world{}
		for s := range services {
			table[s] = map[int]uint32{0: 1, 1: 1, 2: 1}
		}
		random := rand.New(rand.NewPCG(1, 1))
		next := func() {
			if s, m := random.IntN(services), random.IntN(pool); table[s][m] == 0 {
				table[s][m] = 1
			} else {
				delete(table[s], m)
			}
			mu.Lock()
			change++
			for s := range services {
				for m := range pool {
					if table[s][m] == 0 {
						absent[[2]int{s, m}] = change
					}
				}
			}
			mu.Unlock()
			report, err := d.Apply(t.Context(), table.table(""))
			if err != nil || len(report.Failed) > 0 {
				t.Errorf("Apply: %v, %v", err, report.Failed)
			}
		}
		next()

		connects := make(chan struct{})
		stop := make(chan struct{})
		var dialer sync.WaitGroup
		dialer.Go(func() {
			defer close(connects)
			random := rand.New(rand.NewPCG(2, 2))
			for {
				select {
				case <-stop:
					return
				case connects <- struct{}{}:
				}
				s := socket{service: random.IntN(services)}
				to := boardFrontend(s.service)
				family := unix.AF_INET6
				if to.Addr.Is4() && random.IntN(2) == 0 {
					family = unix.AF_INET
				}
				mu.Lock()
				s.began = change
				mu.Unlock()
				s.fd = newSocket(t, family, unix.SOCK_DGRAM)
				if err := unix.Connect(s.fd, sockaddr(family, netip.AddrPortFrom(to.Addr, to.Port))); err != nil {
					t.Errorf("connect: %v", err)
					return
				}
				var entry connectSockEntry
				if err := state.Lookup(int32(s.fd), &entry); errors.Is(err, ebpf.ErrKeyNotExist) {
					continue // the service had none
				} else if err != nil {
					t.Error(err)
					return
				}
				peer := netip.AddrPortFrom(wordsAddr(entry.BackendAddr), networkPort(entry.BackendPort))
				for s.member = 0; boardBackend(s.service, s.member) != peer; s.member++ {
				}
				mu.Lock()
				sockets = append(sockets, s)
				mu.Unlock()
			}
		})
		for range changes {
			for range 10 {
				<-connects
			}
			next()
		}
		close(stop)
		dialer.Wait()

		// stale says how many are connected that should not be, and whether one is not that should.
		stale := func() (stale, kept int) {
			for _, s := range sockets {
				last := absent[[2]int{s.service, s.member}]
				_, err := unix.Getpeername(s.fd)
				switch {
				case last < s.began:
					kept++
					if err != nil {
						t.Fatalf("a socket of service %d was destroyed, whose backend served all the time", s.service)
					}
				case last == change && err == nil:
					stale++
				}
			}
			return stale, kept
		}
		deadline := time.After(20 * time.Second)
		for {
			left, kept := stale()
			if left == 0 {
				t.Logf("%d of %d sockets were there from their beginning to the end", kept, len(sockets))
				break
			}
			select {
			case s := <-n.sweeps:
				if s.Err != nil {
					t.Fatalf("sweep: %+v", s)
				}
			case <-deadline:
				t.Fatalf("%d of %d sockets are still connected to what is gone", left, len(sockets))
			}
		}
		if destroyed := d.StaleSockets().Destroyed; destroyed == 0 {
			t.Errorf("none of %d sockets was destroyed", len(sockets))
		}
	})
}

const envHolder = "MESH_TEST_HOLDER"

// TestHolderOfSockets holds as many sockets as it is told, until its input ends: one
// process may not have as many as the benchmark needs. By itself it does nothing.
func TestHolderOfSockets(t *testing.T) {
	count, err := strconv.Atoi(os.Getenv(envHolder))
	if err != nil {
		return
	}
	must(t, makeLocal())
	for range count {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		must(t, err)
		must(t, unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80"))))
	}
	fmt.Println("holding")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// hold makes that many sockets in a network namespace of their own.
func hold(t testing.TB, count int) {
	t.Helper()
	holder := exec.Command("/proc/self/exe", "-test.run=^TestHolderOfSockets$")
	holder.Env = append(os.Environ(), envInside+"=1", envHolder+"="+strconv.Itoa(count))
	holder.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET}
	end, err := holder.StdinPipe()
	must(t, err)
	out, err := holder.StdoutPipe()
	must(t, err)
	must(t, holder.Start())
	t.Cleanup(func() {
		_ = end.Close()
		_ = holder.Wait()
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "holding" {
			return
		}
	}
	t.Fatal("there are no sockets")
}

// BenchmarkStaleSweep measures a look for sockets on a node with that many that were
// connected by us, in 8 network namespaces. None is stale.
func BenchmarkStaleSweep(b *testing.B) {
	const holders = 8
	for _, count := range []int{1000, 10_000, 100_000} {
		b.Run(strconv.Itoa(count), func(b *testing.B) {
			n := newNode(b)
			d := n.open(b)
			mustApply(b, d, serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181")))
			for range holders {
				hold(b, count/holders)
			}
			for _, by := range []string{SweepIterator, SweepDiag} {
				b.Run(by, func(b *testing.B) {
					f := newFinder(d.set, by == SweepDiag)
					defer f.close()
					if f.name() != by {
						b.Skip("the kernel cannot do that")
					}
					for b.Loop() {
						namespaces, err := sockdiag.NewNamespaces("/proc")
						must(b, err)
						found, err := f.find(namespaces)
						must(b, err)
						if by == SweepDiag && len(found) < count {
							b.Fatalf("found %d sockets of %d", len(found), count)
						}
						if stale := d.judgeStale(found); len(stale) > 0 {
							b.Fatalf("%d are stale", len(stale))
						}
					}
				})
			}
		})
	}
}
