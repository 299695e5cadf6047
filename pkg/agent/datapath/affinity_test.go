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
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// withAffinity returns a service of n backends with session affinity.
func withAffinity(frontend string, seconds uint32, n int) desired.Service {
	svc := serviceAt(frontend, manyBackends(0, n)...)
	svc.AffinitySeconds = seconds
	return svc
}

// inNamespace runs f in a new network namespace: that is another client.
func inNamespace(t *testing.T, f func() error) {
	t.Helper()
	result := make(chan error)
	go func() {
		// The thread is not given back, and its namespace ends with it.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = makeLocal()
		}
		if err == nil {
			err = f()
		}
		result <- err
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

// askSocket sends a datagram and finds the backend in what the programs keep in the
// socket.
func askSocket(d *Datapath, family int, to netip.AddrPort) (netip.AddrPort, error) {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, []byte("who?"), 0, sockaddr(family, to)); err != nil {
		return netip.AddrPort{}, err
	}
	var sent connectSentEntry
	if err := d.set.byName[connectMapSockSent].Lookup(int32(fd), &sent); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(wordsAddr(sent.To[0].BackendAddr), networkPort(sent.To[0].BackendPort)), nil
}

func TestSessionAffinity(t *testing.T) {
	frontend := netip.MustParseAddrPort("10.96.0.1:80")
	n := newNode(t)
	d := n.open(t)
	n.showBackends(t)
	mustApply(t, d, withAffinity("10.96.0.1:80/UDP", 3600, 50), withAffinity("10.96.0.2:80/UDP", 0, 50))
	mine, err := dial(unix.AF_INET, frontend)
	must(t, err)
	// All sockets of a client, connected or not, of either family.
	stay := func() error {
		first, err := dial(unix.AF_INET, frontend)
		if err != nil {
			return err
		}
		for range 10 {
			for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
				got, err := dial(family, frontend)
				if err != nil || got != first {
					return fmt.Errorf("a client of %s gets %s, %w", first, got, err)
				}
				if got, err = askSocket(d, family, frontend); err != nil || got != first {
					return fmt.Errorf("a datagram of a client of %s goes to %s, %w", first, got, err)
				}
			}
		}
		return nil
	}
	must(t, stay())
	// Each client has its own backend.
	others := map[netip.AddrPort]bool{}
	for range 10 {
		inNamespace(t, func() error {
			if err := stay(); err != nil {
				return err
			}
			got, err := dial(unix.AF_INET, frontend)
			others[got] = true
			return err
		})
	}
	if len(others) < 3 {
		t.Errorf("10 clients got %v", others)
	}
	if again, err := dial(unix.AF_INET, frontend); err != nil || again != mine {
		t.Errorf("after the others, %s gets %s, %v", mine, again, err)
	}
	// Without affinity nobody does.
	free := map[netip.AddrPort]bool{}
	for range 20 {
		got, err := dial(unix.AF_INET, netip.MustParseAddrPort("10.96.0.2:80"))
		must(t, err)
		free[got] = true
	}
	if len(free) < 3 {
		t.Errorf("without affinity, 20 connects got %v", free)
	}
	counters, err := d.Counters()
	must(t, err)
	if counters["affine"] == 0 {
		t.Errorf("counters are %v", counters)
	}
	expectContent(t, n, withAffinity("10.96.0.1:80/UDP", 3600, 50), withAffinity("10.96.0.2:80/UDP", 0, 50))

	// It can be given and taken, and nothing else changes by that.
	if report := apply(t, d, withAffinity("10.96.0.1:80/UDP", 0, 50), withAffinity("10.96.0.2:80/UDP", 3600, 50)); report.Changed != 2 || report.Rebuilt != 0 {
		t.Errorf("report: %+v", report)
	}
	frontend = netip.MustParseAddrPort("10.96.0.2:80")
	must(t, stay())
}

func TestSessionAffinityEnds(t *testing.T) {
	const seconds = 60
	frontend := netip.MustParseAddrPort("10.96.0.1:80")
	n := newNode(t)
	d := n.open(t)
	n.showBackends(t)
	mustApply(t, d, withAffinity("10.96.0.1:80/UDP", seconds, 50))
	connect := func() string {
		t.Helper()
		got, err := dial(unix.AF_INET, frontend)
		must(t, err)
		return got.String()
	}
	clients := d.set.byName[connectMapAffinity]
	// age makes the last connect so much older.
	age := func(by uint64) {
		t.Helper()
		keys, values, err := readHash[connectAffinityKey, connectAffinityEntry](clients)
		must(t, err)
		if len(keys) != 1 {
			t.Fatalf("%d clients are known", len(keys))
		}
		values[0].UsedNs -= by * 1e9
		must(t, clients.Put(&keys[0], &values[0]))
	}
	first := connect()
	for range 20 {
		// Each connect makes the time begin anew.
		age(seconds - 5)
		if got := connect(); got != first {
			t.Fatalf("within the time, a client of %s gets %s", first, got)
		}
	}
	seen := map[string]bool{}
	for range 20 {
		age(seconds + 1)
		got := connect()
		seen[got] = true
		if again := connect(); again != got {
			t.Errorf("a client of %s since then gets %s", got, again)
		}
	}
	if len(seen) < 3 {
		t.Errorf("after the time, 20 times, a client got %v", seen)
	}

	// What takes no new connections takes none of old clients either.
	with := func(shares ...uint32) desired.Service {
		svc := withAffinity("10.96.0.1:80/UDP", seconds, len(shares))
		for i, share := range shares {
			svc.Backends[i].Slots = share
		}
		return svc
	}
	expect := func(when, want string) {
		t.Helper()
		if got := connect(); got != want {
			t.Errorf("%s: got %s, want %s", when, got, want)
		}
	}
	mustApply(t, d, with(1))
	expect("alone", "10.1.0.1:8181")
	mustApply(t, d, with(0, 1))
	expect("it was drained", "10.1.0.2:8181")
	mustApply(t, d, with(1, 1, 1))
	for range 10 {
		expect("it is back", "10.1.0.2:8181")
	}
	gone := with(1, 1, 1)
	gone.Backends = gone.Backends[2:]
	mustApply(t, d, gone)
	expect("the second was removed", "10.1.0.3:8181")
	// Everything is used again for another service.
	mustApply(t, d)
	d.grave.drain()
	other := withAffinity("10.96.0.2:80/UDP", seconds, 0)
	other.Backends = manyBackends(1000, 3)
	mustApply(t, d, other)
	d.grave.drain()
	mustApply(t, d, with(1), other)
	expect("the service was made again", "10.1.0.1:8181")
	if got, err := dial(unix.AF_INET, netip.MustParseAddrPort("10.96.0.2:80")); err != nil || got.Addr().As4()[2] != 4 {
		t.Errorf("another service got %s, %v", got, err)
	}
	// And it outlives the agent.
	must(t, d.Close())
	n.Sizes.Backends++
	d = n.open(t)
	n.showBackends(t)
	mustApply(t, d, with(1, 1, 1, 1, 1))
	for range 10 {
		expect("after a restart with other sizes", "10.1.0.1:8181")
	}
}

// meeting lets two threads wait for each other without sleeping, so that what they do
// next they do at the same time.
type meeting struct{ arrived atomic.Int64 }

func (m *meeting) meet() {
	n := m.arrived.Add(1)
	for both := (n + 1) / 2 * 2; m.arrived.Load() < both; {
		runtime.Gosched()
	}
}

// Connects of a new client that run at once get one backend.
func TestSessionAffinityOfTheFirstConnects(t *testing.T) {
	const rounds = 3000
	frontend := sockaddr(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80"))
	n := newNode(t)
	d := n.open(t)
	n.showBackends(t)
	mustApply(t, d, withAffinity("10.96.0.1:80/UDP", 3600, 50))
	clients := d.set.byName[connectMapAffinity]
	if _, err := dial(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80")); err != nil {
		t.Fatal(err)
	}
	keys, _, err := readHash[connectAffinityKey, connectAffinityEntry](clients)
	must(t, err)

	var got [2][rounds]netip.AddrPort
	var errs [2]error
	var both meeting
	var threads sync.WaitGroup
	for i := range got {
		threads.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for round := range rounds {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if i == 0 {
					err = errors.Join(err, deleteAll(clients, keys))
				}
				both.meet()
				err = errors.Join(err, unix.Connect(fd, frontend))
				both.meet()
				var peer error
				got[i][round], peer = peerOf(fd)
				errs[i] = errors.Join(errs[i], err, peer, unix.Close(fd))
			}
		})
	}
	threads.Wait()
	must(t, errors.Join(errs[:]...))
	differ := 0
	for round := range rounds {
		if got[0][round] != got[1][round] {
			differ++
		}
	}
	if differ > 0 {
		t.Errorf("in %d of %d times, two connects at once got two backends", differ, rounds)
	}
}
