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
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// openSchema1 does what an agent of schema 1 does, with the programs that such an agent
// had: testdata/schema1 holds the objects that it was built with.
func openSchema1(t *testing.T, n *node) *Datapath {
	t.Helper()
	l := &former[0]
	d := &Datapath{dir: filepath.Join(n.PinDir, l.dir), programs: map[string]*ebpf.Program{}}
	t.Cleanup(func() { _ = d.Close() })
	var err error
	d.lock, err = lockState(n.StateDir)
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(d.dir, linksDir), 0o700))
	var objects []*ebpf.CollectionSpec
	for _, file := range []string{"getpeername", "connect"} {
		spec, err := ebpf.LoadCollectionSpec(filepath.Join("testdata/schema1", file+".o"))
		must(t, err)
		for name, size := range map[string]uint32{
			connectMapVip: n.Sizes.Frontends, connectMapServiceName: n.Sizes.Frontends, connectMapService: n.Sizes.Frontends + 1,
			connectMapBackends: n.Sizes.Backends + 1, connectMapSlots: n.Sizes.Slots,
		} {
			spec.Maps[name].MaxEntries = size
		}
		objects = append(objects, spec)
	}
	pins := filepath.Join(d.dir, mapsDir)
	if _, err := os.Stat(pins); errors.Is(err, os.ErrNotExist) {
		must(t, makeMaps(d.dir, l, objects[0], nil))
	}
	d.set, err = openMaps(pins, l)
	must(t, err)
	must(t, d.set.mapArrays(true))
	// It did not count; what we do with that map is lost.
	d.set.traffic.items = make([]trafficEntry, len(d.set.backends.items))
	must(t, d.restore())
	must(t, d.load(objects))
	id, err := cgroupID(n.cgroup)
	must(t, err)
	for _, h := range hooks {
		if d.programs[h.name] == nil {
			continue
		}
		pin := filepath.Join(d.dir, linksDir, h.pinName(id))
		l, err := updateLink(pin, h, id, d.programs[h.name])
		must(t, err)
		if l == nil {
			l, err = link.AttachCgroup(link.CgroupOptions{Path: n.cgroup, Attach: h.attach, Program: d.programs[h.name]})
			must(t, err)
			must(t, l.Pin(pin))
		}
		must(t, l.Close())
	}
	must(t, d.Heartbeat())
	return d
}

// applySchema1 applies as the agent of schema 1 does, which knows fewer fields.
func applySchema1(t *testing.T, d *Datapath, services ...desired.Service) {
	t.Helper()
	mustApply(t, d, services...)
	for i := range d.set.backends.items {
		d.set.backends.items[i].Picked = 0
	}
}

func expectGone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%q is still there (%v)", path, err)
	}
}

func TestUpgradeFromSchema1KeepsEverything(t *testing.T) {
	const frontend, frontend6 = "10.96.0.1:80", "[fd00:96::1]:80"
	n := newNode(t)
	// Schema 1 has seen many backends: what is reused must have another generation.
	old := openSchema1(t, n)
	udpServer(t, 8181)
	var wanted []desired.Service
	for i := range 5 {
		wanted = nil
		for s := range 6 {
			svc := hammered(s, []int{i, i + 1, i + 2}, func(m int) uint32 { return uint32(m % 3) })
			svc.LocalReady = s == 1
			svc.Port.Port = fmt.Sprint("port", s)
			wanted = append(wanted, svc, serviceInIPv6(svc))
		}
		applySchema1(t, old, wanted...)
	}
	tcp, tcp6 := serviceAt(frontend+"/TCP", backendAt("10.1.0.1:8181")), serviceAt(frontend6+"/TCP", backendAt("[fd00:1::1]:8181"))
	wanted = append(wanted, tcp, tcp6)
	applySchema1(t, old, wanted...)
	tcpServer(t, "10.1.0.1:8181")
	tcpServer(t, "[fd00:1::1]:8181")
	// Sockets of then.
	type socket struct {
		fd int
		to string
	}
	var sockets []socket
	for _, way := range ways {
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			fd := newSocket(t, way.family, kind)
			must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
			must(t, unix.Connect(fd, sockaddr(way.family, netip.MustParseAddrPort(way.frontend))))
			sockets = append(sockets, socket{fd, way.frontend})
		}
	}
	before, err := snapshot(old.set)
	must(t, err)
	must(t, old.Close())

	d := n.open(t)
	after := read(t, n)
	if diff := cmp.Diff(before.Services, after.Services, compareAddrs, compareAddrPorts); diff != "" {
		t.Errorf("services (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(before.Clusters, after.Clusters); diff != "" {
		t.Errorf("clusters (-before +after):\n%s", diff)
	}
	for name, count := range before.Counters {
		if after.Counters[name] != count {
			t.Errorf("counter %s is %d, was %d", name, after.Counters[name], count)
		}
	}
	if before.Counters["translated"] == 0 || before.HeartbeatAge < 0 || after.HeartbeatAge < 0 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	expectGone(t, filepath.Join(n.PinDir, former[0].dir))
	for _, s := range sockets {
		if got, err := peerOf(s.fd); err != nil || got.String() != s.to {
			t.Errorf("a socket of then was connected to %s, and now to %s, %v", s.to, got, err)
		}
	}
	// Connected UDP sockets of then are answered as ours are.
	for _, s := range sockets {
		if kind, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_DGRAM {
			continue
		}
		if _, shown, err := ask(s.fd, 0, netip.AddrPort{}); err != nil || shown.String() != s.to {
			t.Errorf("the answer shows %s, %v, want %s", shown, err, s.to)
		}
	}
	if report := apply(t, d, wanted...); report.Unchanged != len(wanted) {
		t.Errorf("the first Apply changes something: %+v", report)
	}
	// What schema 1 did not know is as if we had written it: flows stay where they are.
	fd := client(t, unix.AF_INET)
	first := mustAsk(t, fd, unix.AF_INET, frontend)
	for range 20 {
		if by := mustAsk(t, fd, unix.AF_INET, frontend); by != first {
			t.Fatalf("the flow moved from %s to %s", first, by)
		}
	}
	// And the allocators know what is taken.
	mustApply(t, d, append(wanted, serviceAt("10.96.0.99:80/TCP", manyBackends(2000, 5)...))...)
	if diff := cmp.Diff(before.Services, read(t, n).Services[:len(before.Services)], compareAddrs, compareAddrPorts, ignoreTraffic); diff != "" {
		t.Errorf("services disturbed by a new one (-before +after):\n%s", diff)
	}
}

// No connect fails, is left alone or gets what was removed while the maps and programs
// of schema 1 are replaced.
func TestNoConnectIsLostInAnUpgrade(t *testing.T) {
	const services, pool = 6, 12
	one := func(int) uint32 { return 1 }
	for i, over := range []func(dialer) dialer{func(d dialer) dialer { return d }, overMapped, overIPv6, overIPv6, overMapped} {
		t.Run(fmt.Sprint("upgrade ", i), func(t *testing.T) {
			n := newNode(t)
			n.Sizes = Sizes{64, 512, 4096}
			if i%2 == 1 {
				n.Sizes = Sizes{2 * services, 200, 200}
			}
			d := openSchema1(t, n)
			rounds := 0
			hammer(t, services, pool, over(dialAndAskTheSocket(t, filepath.Join(d.dir, mapsDir))), 600*time.Millisecond, func(members [][]int) {
				rounds++
				if rounds == 3 {
					must(t, d.Close())
					// Another size makes no difference.
					n.Sizes = Sizes{32, 256, 1024}
					var err error
					if d, err = Open(n.Config); err != nil {
						t.Fatalf("Open: %v", err)
					}
					t.Cleanup(func() { _ = d.Close() })
				}
				applyMembers(t, d, one, 0)(members)
			}, func(random *rand.Rand, _ int) []int { return random.Perm(pool)[:1+random.IntN(pool-1)] })
			expectGone(t, filepath.Join(n.PinDir, former[0].dir))
		})
	}
}

// A datagram is never redirected before there is a hook that shows its answer as from
// the Service: schema 1 had none.
func TestUpgradeAttachesReverseHooksFirst(t *testing.T) {
	n := newNode(t)
	udpServer(t, 8181)
	udpServer(t, 80) // what is left alone
	to := netip.MustParseAddrPort("10.96.0.1:80")
	for range 10 {
		old := openSchema1(t, n)
		applySchema1(t, old, serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181")))
		must(t, old.Close())
		dial, stop := asker(t), make(chan struct{})
		var redirected, leftAlone atomic.Int64
		var clients sync.WaitGroup
		for range 2 {
			clients.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					switch by, err := dial(unix.AF_INET, to); {
					case err != nil:
						t.Error(err)
						return
					case by == to:
						leftAlone.Add(1)
					default:
						redirected.Add(1)
					}
				}
			})
		}
		for leftAlone.Load() < 100 && !t.Failed() {
			runtime.Gosched()
		}
		d, err := Open(n.Config)
		must(t, err)
		for redirected.Load() < 100 && !t.Failed() {
			runtime.Gosched()
		}
		close(stop)
		clients.Wait()
		must(t, d.Close())
		must(t, Cleanup(n.PinDir))
		if t.Failed() {
			return
		}
	}
}

// Maps of other sizes take over from the pinned ones, again and again, and no connect
// or datagram notices.
func TestNothingIsLostWhenSizesChange(t *testing.T) {
	const services, pool = 4, 6
	for name, of := range map[string]func(*testing.T, *node) dialer{
		"connects": func(t *testing.T, n *node) dialer {
			return n.dialAndAskTheSocket(t)
		},
		"datagrams": func(t *testing.T, _ *node) dialer {
			udpServer(t, 8181)
			udpServer(t, 80)
			return asker(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			d := n.open(t)
			one := func(int) uint32 { return 1 }
			hammer(t, services, pool, of(t, n), 1500*time.Millisecond, func(members [][]int) {
				must(t, d.Close())
				n.Sizes = Sizes{64 + rand.Uint32N(64), 256 + rand.Uint32N(256), 1024 + rand.Uint32N(1024)}
				var err error
				if d, err = Open(n.Config); err != nil {
					t.Fatalf("Open: %v", err)
				}
				if got := d.Sizes(); got != n.Sizes {
					t.Errorf("sizes are %+v, want %+v", got, n.Sizes)
				}
				applyMembers(t, d, one, 0)(members)
			}, func(random *rand.Rand, _ int) []int { return random.Perm(pool)[:1+random.IntN(pool-1)] })
			must(t, d.Close())
		})
	}
	t.Run("what is held does not fit", func(t *testing.T) {
		n := newNode(t)
		d := n.open(t)
		services := []desired.Service{serviceAt("10.96.0.1:80/UDP", manyBackends(0, 30)...), serviceAt("10.96.0.2:80/UDP", manyBackends(100, 3)...)}
		mustApply(t, d, services...)
		must(t, d.Close())
		n.Sizes = Sizes{Frontends: 1, Backends: 5, Slots: 5}
		d = n.open(t)
		expectContent(t, n, services...)
		if got := d.Sizes(); got.Frontends != 2 || got.Backends != 33 || got.Slots < 33 {
			t.Errorf("sizes are %+v", got)
		}
		mustApply(t, d, services[1])
		must(t, d.Close())
		n.open(t)
		expectContent(t, n, services[1])
	})
}

// A crash between any two steps of replacing maps leaves what the next agent can use.
func TestCrashWhileMapsAreReplaced(t *testing.T) {
	svc := serviceAt("10.96.0.1:80/UDP", manyBackends(0, 3)...)
	at := func(n *node, name string) string { return filepath.Join(n.PinDir, schemaDir, name) }
	for name, crash := range map[string]func(t *testing.T, n *node){
		"the old ones are moved away": func(t *testing.T, n *node) {
			must(t, os.Rename(at(n, mapsDir), at(n, oldMapsDir)))
			must(t, os.Mkdir(at(n, newMapsDir), 0o700))
		},
		"the new ones are in place": func(t *testing.T, n *node) {
			must(t, os.Mkdir(at(n, oldMapsDir), 0o700))
			pinned, err := ebpf.LoadPinnedMap(filepath.Join(at(n, mapsDir), connectMapSlots), nil)
			must(t, err)
			defer pinned.Close()
			m, err := pinned.Clone()
			must(t, err)
			defer m.Close()
			must(t, m.Pin(filepath.Join(at(n, oldMapsDir), connectMapSlots)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			d := n.open(t)
			mustApply(t, d, svc)
			must(t, d.Close())
			crash(t, n)
			n.Sizes.Backends++
			n.open(t)
			expectContent(t, n, svc)
			expectGone(t, at(n, oldMapsDir))
			expectGone(t, at(n, newMapsDir))
		})
	}
}

// An upgrade that was taken back in the middle, and is tried again.
func TestUpgradeAfterARollback(t *testing.T) {
	n := newNode(t)
	stale, fresh := serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181")), serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.2:8181"))
	old := openSchema1(t, n)
	applySchema1(t, old, stale)
	must(t, old.Close())
	// The new agent ends before it attaches to anything.
	cgroups := n.Cgroups
	n.Cgroups = nil
	d, err := Open(n.Config)
	must(t, err)
	must(t, d.Close())
	n.Cgroups = cgroups
	old = openSchema1(t, n)
	applySchema1(t, old, fresh)
	must(t, old.Close())

	n.open(t)
	expectContent(t, n, fresh)
	expectGone(t, filepath.Join(n.PinDir, former[0].dir))
	n.showBackends(t)
	if got, err := dial(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80")); err != nil || got.String() != "10.1.0.2:8181" {
		t.Errorf("connected to %s, %v", got, err)
	}
}

func TestCleanupRemovesFormerSchemas(t *testing.T) {
	n := newNode(t)
	old := openSchema1(t, n)
	applySchema1(t, old, serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181")))
	must(t, old.Close())
	must(t, Cleanup(n.PinDir))
	expectGone(t, n.PinDir)
	frontend := netip.MustParseAddrPort("10.96.0.1:80")
	if got, err := dial(unix.AF_INET, frontend); err != nil || got != frontend {
		t.Errorf("connected to %s, %v", got, err)
	}
}
