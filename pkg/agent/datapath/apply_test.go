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
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// ignoreTraffic lets connections be made between two looks that are compared.
var ignoreTraffic = cmpopts.IgnoreFields(Backend{}, "Traffic")

// compareAddrs lets cmp compare addresses.
var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

var compareAddrPorts = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

// content returns what the maps hold, in the form of what Apply was given.
func content(t testing.TB, s *Snapshot) map[desired.Frontend]desired.Service {
	t.Helper()
	services := map[desired.Frontend]desired.Service{}
	for _, svc := range s.Services {
		got := desired.Service{Frontend: svc.Frontend, Port: svc.Port, LocalReady: svc.LocalReady, AffinitySeconds: svc.AffinitySeconds}
		for _, b := range svc.Backends {
			got.Backends = append(got.Backends, b.Backend)
		}
		services[svc.Frontend] = got
	}
	return services
}

func read(t testing.TB, n *node) *Snapshot {
	t.Helper()
	s, err := Read(n.PinDir)
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	return s
}

func expectContent(t testing.TB, n *node, services ...desired.Service) {
	t.Helper()
	want := tableOf(services...).Services
	if diff := cmp.Diff(want, content(t, read(t, n)), compareAddrs, compareAddrPorts); diff != "" {
		t.Errorf("maps (-want +got):\n%s", diff)
	}
}

// manyBackends returns n backends of one slot, of which the first has the number from.
func manyBackends(from, n int) (backends []desired.Backend) {
	for i := from; i < from+n; i++ {
		backends = append(backends, backendAt(fmt.Sprintf("10.1.%d.%d:8181", i/250, i%250+1)))
	}
	return backends
}

func TestApplyWritesOnlyWhatDiffers(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	one := serviceAt("10.96.0.1:80/TCP", manyBackends(0, 4)...)
	two := serviceAt("10.96.0.2:80/TCP", manyBackends(10, 2)...)
	two.Backends[1].ClusterID = 2
	two.Backends[1].State = desired.NotReady
	two.Backends[1].Slots = 0
	two.Port.Port = "http"

	with := func(svc desired.Service, change func(*desired.Service)) desired.Service {
		svc.Backends = slices.Clone(svc.Backends)
		change(&svc)
		return svc
	}
	steps := []struct {
		name     string
		services []desired.Service
		want     Report
	}{
		{"the first table", []desired.Service{one, two}, Report{Added: 2}},
		{"the same again", []desired.Service{one, two}, Report{Unchanged: 2}},
		{"a backend less", []desired.Service{with(one, func(s *desired.Service) { s.Backends = slices.Delete(s.Backends, 1, 2) }), two}, Report{Changed: 1, Unchanged: 1}},
		{"and back", []desired.Service{one, two}, Report{Changed: 1, Unchanged: 1}},
		{"another share", []desired.Service{with(one, func(s *desired.Service) { s.Backends[0].Slots = 3 }), two}, Report{Changed: 1, Rebuilt: 1, Unchanged: 1}},
		{"a state", []desired.Service{one, with(two, func(s *desired.Service) { s.Backends[1].State = desired.Quarantined })}, Report{Changed: 2, Rebuilt: 1}},
		{"another tier", []desired.Service{one, with(two, func(s *desired.Service) { s.Backends[0].Slots, s.Backends[1].Slots = 0, 1 })}, Report{Changed: 1, Rebuilt: 1, Unchanged: 1}},
		{"local backends ready", []desired.Service{with(one, func(s *desired.Service) { s.LocalReady = true }), two}, Report{Changed: 2, Rebuilt: 1}},
		{"a name", []desired.Service{with(one, func(s *desired.Service) { s.Port.Port = "metrics" }), two}, Report{Changed: 1, Unchanged: 1}},
		{"more than the range holds", []desired.Service{serviceAt("10.96.0.1:80/TCP", manyBackends(0, 40)...), two}, Report{Changed: 1, Rebuilt: 1, Unchanged: 1}},
		{"no backend", []desired.Service{serviceAt("10.96.0.1:80/TCP"), two}, Report{Changed: 1, Rebuilt: 1, Unchanged: 1}},
		{"one service removed, one added", []desired.Service{two, serviceAt("10.96.0.3:80/UDP", manyBackends(60, 1)...)}, Report{Added: 1, Removed: 1, Unchanged: 1}},
		{"nothing at all", nil, Report{Removed: 2}},
	}
	for _, step := range steps {
		got := apply(t, d, step.services...)
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
		expectContent(t, n, step.services...)
	}
	// Nothing leaks: all comes back once it has rested.
	d.grave.drain()
	if got := d.backends.available(); got != int(n.Sizes.Backends) {
		t.Errorf("%d of %d backends are free", got, n.Sizes.Backends)
	}
	if got := d.indexes.available(); got != int(n.Sizes.Frontends) {
		t.Errorf("%d of %d frontends are free", got, n.Sizes.Frontends)
	}
	if _, ok := d.ranges.take(n.Sizes.Slots); !ok {
		t.Error("slots leaked")
	}
}

func TestApplyServicesLeavesTheOthers(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	one := serviceAt("10.96.0.1:80/TCP", manyBackends(0, 4)...)
	two := serviceAt("10.96.0.2:80/TCP", manyBackends(10, 2)...)
	three := serviceAt("10.96.0.3:80/TCP", manyBackends(20, 2)...)
	mustApply(t, d, one, two)
	changed := serviceAt("10.96.0.1:80/TCP", manyBackends(1, 4)...)
	report, err := d.ApplyServices(context.Background(), []desired.Service{changed, three},
		[]desired.Frontend{two.Frontend, vip("10.96.0.9:80/TCP")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Report{Added: 1, Changed: 1, Removed: 1}, report); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	expectContent(t, n, changed, three)
}

func TestBadServicesDoNotKeepOthersOut(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	good := serviceAt("10.96.0.1:80/TCP", manyBackends(0, 2)...)
	bad := serviceAt("10.96.0.2:80/TCP", backendAt("[fd00:1::1]:80"))
	report := apply(t, d, good, bad)
	if len(report.Failed) != 1 || report.Failed[0].Frontend != bad.Frontend || report.Failed[0].Partial {
		t.Errorf("failed: %v, want %s alone", report.Failed, bad.Frontend)
	}
	expectContent(t, n, good)
}

func TestUsage(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	expect := func(when string, want Sizes) {
		t.Helper()
		d.grave.drain()
		used, capacity, err := d.Usage()
		if err != nil || used != want || capacity != n.Sizes {
			t.Errorf("%s: %+v of %+v, %v, want %+v of %+v", when, used, capacity, err, want, n.Sizes)
		}
	}
	expect("empty", Sizes{})
	one, two := serviceAt("10.96.0.1:80/TCP", manyBackends(0, 4)...), serviceAt("10.96.0.2:80/TCP", manyBackends(10, 1)...)
	mustApply(t, d, one, two)
	expect("two services", Sizes{Frontends: 2, Backends: 5, Slots: 5})
	mustApply(t, d, two)
	expect("one of them", Sizes{Frontends: 1, Backends: 1, Slots: 1})
	must(t, d.Close())
	d = n.open(t)
	expect("the next process", Sizes{Frontends: 1, Backends: 1, Slots: 1})
}

func TestFullMapsKeepWhatFits(t *testing.T) {
	tests := map[string]struct {
		sizes  Sizes
		first  []desired.Service
		second []desired.Service
		want   []desired.Service // in the maps after second
		failed []string          // a part of each error, in order
	}{
		"too many frontends": {
			sizes: Sizes{Frontends: 2, Backends: 100, Slots: 100},
			second: []desired.Service{
				serviceAt("10.96.0.1:80/TCP", manyBackends(0, 1)...),
				serviceAt("10.96.0.2:80/TCP", manyBackends(1, 1)...),
				serviceAt("10.96.0.3:80/TCP", manyBackends(2, 1)...),
			},
			want: []desired.Service{
				serviceAt("10.96.0.1:80/TCP", manyBackends(0, 1)...),
				serviceAt("10.96.0.2:80/TCP", manyBackends(1, 1)...),
			},
			failed: []string{"10.96.0.3:80/TCP is not programmed: map is full: frontends"},
		},
		"too many backends": {
			sizes: Sizes{Frontends: 10, Backends: 5, Slots: 100},
			second: []desired.Service{
				serviceAt("10.96.0.1:80/TCP", manyBackends(0, 3)...),
				serviceAt("10.96.0.2:80/TCP", manyBackends(10, 3)...),
				serviceAt("10.96.0.3:80/TCP", manyBackends(20, 2)...),
			},
			want: []desired.Service{
				serviceAt("10.96.0.1:80/TCP", manyBackends(0, 3)...),
				serviceAt("10.96.0.3:80/TCP", manyBackends(20, 2)...),
			},
			failed: []string{"10.96.0.2:80/TCP is not programmed: map is full: backends"},
		},
		"too many slots": {
			sizes: Sizes{Frontends: 10, Backends: 100, Slots: 5},
			second: []desired.Service{
				serviceAt("10.96.0.1:80/TCP", manyBackends(0, 4)...),
				serviceAt("10.96.0.2:80/TCP", manyBackends(10, 2)...),
				serviceAt("10.96.0.3:80/TCP", manyBackends(20, 1)...),
			},
			want: []desired.Service{
				serviceAt("10.96.0.1:80/TCP", manyBackends(0, 4)...),
				serviceAt("10.96.0.3:80/TCP", manyBackends(20, 1)...),
			},
			failed: []string{"10.96.0.2:80/TCP is not programmed: map is full: slots"},
		},
		"room that only the removals make": {
			sizes:  Sizes{Frontends: 1, Backends: 3, Slots: 3},
			first:  []desired.Service{serviceAt("10.96.0.1:80/TCP", manyBackends(0, 3)...)},
			second: []desired.Service{serviceAt("10.96.0.2:80/TCP", manyBackends(10, 3)...)},
			want:   []desired.Service{serviceAt("10.96.0.2:80/TCP", manyBackends(10, 3)...)},
		},
		"room that one change after the other makes": {
			sizes: Sizes{Frontends: 3, Backends: 5, Slots: 100},
			first: []desired.Service{
				serviceAt("10.96.0.1:80/TCP", manyBackends(0, 2)...),
				serviceAt("10.96.0.2:80/TCP", manyBackends(10, 2)...),
				serviceAt("10.96.0.3:80/TCP", manyBackends(20, 1)...),
			},
			second: []desired.Service{
				serviceAt("10.96.0.1:80/TCP", manyBackends(30, 1)...),
				serviceAt("10.96.0.2:80/TCP", manyBackends(10, 4)...),
			},
			want: []desired.Service{
				serviceAt("10.96.0.1:80/TCP", manyBackends(30, 1)...),
				serviceAt("10.96.0.2:80/TCP", manyBackends(10, 4)...),
			},
		},
		"another set of backends where only one fits": {
			sizes:  Sizes{Frontends: 10, Backends: 4, Slots: 4},
			first:  []desired.Service{serviceAt("10.96.0.1:80/TCP", manyBackends(0, 4)...)},
			second: []desired.Service{serviceAt("10.96.0.1:80/TCP", manyBackends(10, 4)...)},
			want:   []desired.Service{serviceAt("10.96.0.1:80/TCP", manyBackends(10, 4)...)},
		},
		"a service that outgrows the map keeps what it had and still wants": {
			sizes:  Sizes{Frontends: 10, Backends: 4, Slots: 100},
			first:  []desired.Service{serviceAt("10.96.0.1:80/TCP", manyBackends(0, 4)...)},
			second: []desired.Service{serviceAt("10.96.0.1:80/TCP", manyBackends(1, 6)...)},
			want:   []desired.Service{serviceAt("10.96.0.1:80/TCP", manyBackends(1, 3)...)},
			failed: []string{"10.96.0.1:80/TCP is programmed in part: map is full: backends"},
		},
		"a service of which nothing is wanted any more, and nothing new fits": {
			sizes:  Sizes{Frontends: 10, Backends: 4, Slots: 100},
			first:  []desired.Service{serviceAt("10.96.0.1:80/TCP", manyBackends(0, 4)...)},
			second: []desired.Service{serviceAt("10.96.0.1:80/TCP", manyBackends(10, 6)...)},
			failed: []string{"10.96.0.1:80/TCP is not programmed: map is full: backends"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.Sizes = test.sizes
			d := n.open(t)
			mustApply(t, d, test.first...)
			for _, round := range []string{"first", "again"} {
				report := apply(t, d, test.second...)
				if len(report.Failed) != len(test.failed) {
					t.Fatalf("%s: failed %v, want %q", round, report.Failed, test.failed)
				}
				for i, want := range test.failed {
					if got := report.Failed[i]; !strings.Contains(got.Error(), want) || !errors.Is(got, ErrFull) {
						t.Errorf("%s: failed %v, want %q", round, got, want)
					}
				}
				expectContent(t, n, test.want...)
			}
		})
	}
}

// Whatever the map was filled with before, however scattered its slots are, the next
// table gets in whole if it fits, with one slot and one backend to spare; and on the way
// no service that has backends before and after is left alone.
func TestFullMapsRecoverWhenRoomComes(t *testing.T) {
	const services, pool = 10, 12
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 9))
	n := newNode(t)
	n.Sizes = Sizes{Frontends: 6, Backends: 18, Slots: 36}
	b := newBoard(t, filepath.Join(t.TempDir(), "board"), services, pool)
	d := n.open(t)
	dial := n.dialAndAskTheSocket(t)
	stop := make(chan struct{})
	var dialer sync.WaitGroup
	dialer.Go(func() {
		random := rand.New(rand.NewPCG(seed, 10))
		for wrong := 0; wrong < 5; {
			select {
			case <-stop:
				return
			default:
			}
			if err := b.connect(random, random.IntN(services), dial); err != nil {
				wrong++
				t.Error(err)
			}
		}
	})
	joined := 0
	fault = func(next string) {
		if next == "slide" {
			joined++
		}
	}
	defer func() { fault = nil }()
	for round := 0; round < 60 && !t.Failed(); round++ {
		var now world
		tooMany := random.IntN(5) == 0
		for now = (world{}); ; {
			slots, backends := uint32(0), 0
			clear(now)
			for _, s := range random.Perm(services)[:1+random.IntN(int(n.Sizes.Frontends))] {
				now[s] = map[int]uint32{}
				for _, m := range random.Perm(pool)[:1+random.IntN(6)] {
					now[s][m] = 1 + random.Uint32N(3)
					slots += now[s][m]
					backends++
				}
			}
			if tooMany && slots > n.Sizes.Slots || !tooMany && slots > 28 && slots < n.Sizes.Slots && backends > 14 && backends < int(n.Sizes.Backends) {
				break
			}
		}
		for s := range services {
			b.announce(s, now[s])
			if tooMany {
				b.announce(s, nil) // it may be left alone
				b.announce(s, now[s])
			}
		}
		table := tableOf()
		for s, members := range now {
			svc := boardService(s, members)
			table.Services[svc.Frontend] = svc
		}
		report, err := d.Apply(context.Background(), table)
		must(t, err)
		if tooMany != (len(report.Failed) > 0) {
			t.Errorf("seed %d, round %d: does not fit: %t; failed: %v", seed, round, tooMany, report.Failed)
		}
		if tooMany {
			continue // nobody has finished: what was there before may be found
		}
		for s := range services {
			b.finish(s)
		}
		if diff := cmp.Diff(table.Services, content(t, read(t, n)), compareAddrs, compareAddrPorts); diff != "" {
			t.Errorf("seed %d, round %d: maps (-want +got):\n%s", seed, round, diff)
		}
	}
	close(stop)
	dialer.Wait()
	t.Logf("seed %d: %d connects, %d slots moved", seed, b.common(cellConnects).Load(), joined)
	if joined == 0 {
		t.Errorf("seed %d: it was never full enough to move anything", seed)
	}
	audit(t, n, d)
}

// fill fills a map with keys made by chance, but for some elements, and returns what
// empties it again.
func fill[K comparable, V any](t *testing.T, m *ebpf.Map, key func(int) K, but int) (empty func()) {
	t.Helper()
	var keys []K
	var value V
	for i := 0; ; i++ {
		k := key(i)
		if err := m.Put(&k, &value); err != nil {
			if !errors.Is(err, unix.E2BIG) {
				t.Fatal(err)
			}
			break
		}
		keys = append(keys, k)
	}
	if len(keys) < but {
		t.Fatalf("%s holds no more than %d", m, len(keys))
	}
	remove := func(keys []K) {
		for i := range keys {
			must(t, m.Delete(&keys[i]))
		}
	}
	remove(keys[:but])
	return func() { remove(keys[but:]) }
}

// What else is in a hash map than it should be, or a kernel that has no memory for an
// element, is no reason not to go on with what fits, and with the rest later.
func TestFullHashesKeepWhatFits(t *testing.T) {
	foreign := func(i int) vipKey {
		return vipKey{Addr: [4]uint32{1, 2, 3, uint32(i)}, Port: 9, Protocol: 200}
	}
	services := []desired.Service{
		serviceAt("10.96.0.1:80/UDP", manyBackends(0, 2)...),
		serviceAt("10.96.0.2:80/UDP", manyBackends(10, 2)...),
		serviceAt("10.96.0.3:80/UDP", manyBackends(20, 2)...),
	}
	t.Run("frontends", func(t *testing.T) {
		n := newNode(t)
		d := n.open(t)
		mustApply(t, d, services[0])
		empty := fill[vipKey, uint32](t, d.set.vip(), foreign, 1)
		report := apply(t, d, services...)
		if len(report.Failed) != 1 || report.Failed[0].Frontend != services[2].Frontend || !errors.Is(report.Failed[0], ErrFull) || report.Added != 1 {
			t.Errorf("%+v, want that the third alone does not fit", report)
		}
		expectContent(t, n, services[:2]...)
		empty()
		mustApply(t, d, services...)
		expectContent(t, n, services...)
		audit(t, n, d)
	})
	t.Run("names of services", func(t *testing.T) {
		n := newNode(t)
		d := n.open(t)
		empty := fill[uint32, serviceName](t, d.set.serviceName(), func(i int) uint32 { return uint32(1000 + i) }, 2)
		report := apply(t, d, services...)
		if len(report.Failed) > 0 || report.Names == nil || report.Added != 3 {
			t.Errorf("%+v, want all three and a complaint about names", report)
		}
		if got := len(read(t, n).Services); got != 3 {
			t.Errorf("there are %d services", got)
		}
		empty()
		if report = apply(t, d, services...); report.Names != nil || report.Changed != 1 || report.Unchanged != 2 {
			t.Errorf("with room again: %+v", report)
		}
		expectContent(t, n, services...)
		audit(t, n, d)
	})
	t.Run("names of clusters", func(t *testing.T) {
		n := newNode(t)
		d := n.open(t)
		empty := fill[uint32, clusterName](t, d.set.clusterName(), func(i int) uint32 { return uint32(1000 + i) }, 1)
		report := apply(t, d, services...)
		if len(report.Failed) > 0 || report.Names == nil || report.Added != 3 {
			t.Errorf("%+v, want all three and a complaint about names", report)
		}
		empty()
		if report = apply(t, d, services...); report.Names != nil {
			t.Errorf("with room again: %+v", report)
		}
		if got := read(t, n).Clusters; got[1] != "cluster1" || got[2] != "cluster2" {
			t.Errorf("clusters are %v", got)
		}
	})
}

func TestReusedBackendHasANewGeneration(t *testing.T) {
	n := newNode(t)
	n.Sizes = Sizes{Frontends: 4, Backends: 1, Slots: 4}
	d := n.open(t)
	seen := map[uint32]bool{}
	for i := range 5 {
		mustApply(t, d, serviceAt("10.96.0.1:80/UDP", manyBackends(i, 1)...))
		b := read(t, n).Services[0].Backends[0]
		if b.ID != 1 || seen[b.Generation] || b.Generation == 0 {
			t.Errorf("round %d: backend %d has generation %d after %v", i, b.ID, b.Generation, seen)
		}
		seen[b.Generation] = true
		mustApply(t, d)
	}
	// Over the end of its bits.
	d.grave.drain()
	d.set.backends.items[1].Generation = maxGeneration
	mustApply(t, d, serviceAt("10.96.0.1:80/UDP", manyBackends(0, 1)...))
	if b := read(t, n).Services[0].Backends[0]; b.Generation != 1 {
		t.Errorf("generation %d follows the last", b.Generation)
	}
	if got, err := dial(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80")); err != nil || got.String() != "10.96.0.1:80" {
		t.Errorf("connected to %s, %v", got, err)
	}
}

// A slot that does not lead to a backend of its service is never followed.
func TestLookupRefusesWrongSlots(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	n.showBackends(t)
	svc := serviceAt("10.96.0.1:80/UDP", manyBackends(0, 1)...)
	other := serviceAt("10.96.0.2:80/UDP", manyBackends(1, 1)...)
	wrong := []desired.Service{
		other,
		serviceAt("10.96.0.1:81/UDP", manyBackends(2, 1)...),
		serviceAt("10.96.0.1:80/TCP", manyBackends(3, 1)...),
	}
	mustApply(t, d, append(wrong, svc)...)
	s := d.services[svc.Frontend]
	at := &d.set.slots.items[s.span.base]
	good := *at
	own, foreign := s.placed[0], d.services[other.Frontend].placed[0]
	for name, word := range map[string]slot{
		"another generation":              newSlot(own.id, s.index, own.generation+1),
		"another service":                 newSlot(own.id, s.index+1, own.generation),
		"a backend of another service":    newSlot(foreign.id, s.index, foreign.generation),
		"a backend that is out of bounds": newSlot(1<<slotBackendBits-1, s.index, 1),
		"an empty slot":                   0,
	} {
		*at = uint64(word)
		if got, err := dial(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80")); err != nil || got.String() != "10.96.0.1:80" {
			t.Errorf("%s: connected to %s, %v", name, got, err)
		}
	}
	counters, err := d.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if counters["gave_up"] != 5 || counters["retry"] != 15 {
		t.Errorf("counters are %v, want 5 gave_up and 15 retry", counters)
	}
	*at = good
	// An index that leads to another key's service, as a recycled hash value does.
	for _, other := range wrong {
		must(t, d.set.vip().Put(frontendKey(svc.Frontend), d.services[other.Frontend].index))
		if got, err := dial(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80")); err != nil || got.String() != "10.96.0.1:80" {
			t.Errorf("with the index of %s: connected to %s, %v", other.Frontend, got, err)
		}
	}
}

// hammer connects all the time while round is called with ever new members, the
// backends of each service. A connect must get a backend that its service had in the
// last round that was finished when it began, or in a later one. It may be left alone
// only if the service had none in such a round.
func hammer(t *testing.T, services, pool int, dial dialer, duration time.Duration,
	round func(members [][]int), next func(random *rand.Rand, service int) []int,
) {
	lastIn := make([][]atomic.Int64, services)
	for s := range lastIn {
		lastIn[s] = make([]atomic.Int64, pool)
	}
	lastEmpty := make([]atomic.Int64, services)
	var finished, connects, failures atomic.Int64
	stop := make(chan struct{})
	var dialers sync.WaitGroup
	start := func(seed uint64) {
		defer dialers.Done()
		random := rand.New(rand.NewPCG(seed, 2))
		for {
			select {
			case <-stop:
				return
			default:
			}
			service := random.IntN(services)
			began := finished.Load()
			peer, err := dial(unix.AF_INET, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, byte(service)}), 80))
			connects.Add(1)
			addr := peer.Addr()
			switch {
			case err != nil:
				t.Errorf("connect to service %d: %v", service, err)
			case addr.As4()[1] != 1:
				if lastEmpty[service].Load() >= began {
					continue
				}
				t.Errorf("connect to service %d was left alone", service)
			case int(addr.As4()[2]) != service:
				t.Errorf("connect to service %d got %s", service, peer)
			default:
				in := lastIn[service][addr.As4()[3]-1].Load()
				if in >= began {
					continue
				}
				t.Errorf("connect to service %d got %s, which was last in round %d, and began after round %d", service, peer, in, began)
			}
			if failures.Add(1) > 20 {
				return
			}
		}
	}

	random := rand.New(rand.NewPCG(1, 3))
	deadline := time.Now().Add(duration)
	rounds := int64(0)
	for (time.Now().Before(deadline) || rounds < 5 || connects.Load() < 1000) && !t.Failed() {
		rounds++
		members := make([][]int, services)
		for s := range members {
			members[s] = next(random, s)
			if len(members[s]) == 0 {
				lastEmpty[s].Store(rounds)
			}
			for _, m := range members[s] {
				lastIn[s][m].Store(rounds)
			}
		}
		round(members)
		finished.Store(rounds)
		if rounds == 1 {
			for i := range uint64(2) {
				dialers.Add(1)
				go start(i)
			}
		}
	}
	close(stop)
	dialers.Wait()
	t.Logf("%d rounds, %d connects", rounds, connects.Load())
}

// hammered returns a service of the hammer with the given backends and shares.
func hammered(s int, members []int, share func(int) uint32) desired.Service {
	svc := serviceAt(fmt.Sprintf("10.96.0.%d:80/UDP", s))
	slices.Sort(members)
	for _, m := range members {
		b := backendAt(fmt.Sprintf("10.1.%d.%d:8181", s, m+1))
		b.Slots = share(m)
		svc.Backends = append(svc.Backends, b)
	}
	slices.SortFunc(svc.Backends, func(a, b desired.Backend) int { return compareBackends(&a, &b) })
	return svc
}

// inIPv6 returns the address of IPv6 that stands for one of the hammer's.
func inIPv6(addr netip.Addr) netip.Addr {
	b := addr.As4()
	to := netip.MustParseAddr("fd00:1::").As16()
	if b[1] == 96 {
		to = netip.MustParseAddr("fd00:96::").As16()
	}
	copy(to[14:], b[2:])
	return netip.AddrFrom16(to)
}

func inIPv4(addr netip.Addr) netip.Addr {
	b := addr.As16()
	if b[3] == 0x96 {
		return netip.AddrFrom4([4]byte{10, 96, b[14], b[15]})
	}
	return netip.AddrFrom4([4]byte{10, 1, b[14], b[15]})
}

// serviceInIPv6 returns the service with addresses of IPv6.
func serviceInIPv6(svc desired.Service) desired.Service {
	svc.Frontend.Addr = inIPv6(svc.Frontend.Addr)
	svc.Backends = slices.Clone(svc.Backends)
	for i := range svc.Backends {
		b := &svc.Backends[i]
		b.Addr = netip.AddrPortFrom(inIPv6(b.Addr.Addr()), b.Addr.Port())
	}
	return svc
}

// overMapped returns a dialer that goes to the address as an IPv4-mapped one.
func overMapped(dial dialer) dialer {
	return func(_ int, to netip.AddrPort) (netip.AddrPort, error) { return dial(unix.AF_INET6, to) }
}

// overIPv6 returns a dialer that goes to what the address stands for.
func overIPv6(dial dialer) dialer {
	return func(_ int, to netip.AddrPort) (netip.AddrPort, error) {
		got, err := dial(unix.AF_INET6, netip.AddrPortFrom(inIPv6(to.Addr()), to.Port()))
		if !got.IsValid() {
			return got, err
		}
		return netip.AddrPortFrom(inIPv4(got.Addr()), got.Port()), err
	}
}

func TestNoConnectIsLostOrStaleWhile(t *testing.T) {
	const services, pool = 8, 12
	one := func(int) uint32 { return 1 }
	some := func(random *rand.Rand, _ int) []int { return random.Perm(pool)[:1+random.IntN(pool-1)] }
	tests := map[string]struct {
		sizes Sizes
		next  func(*rand.Rand, int) []int
		share func(int) uint32
		over  func(dialer) dialer // AF_INET, unless given
		// affinity is that of the services, in seconds.
		affinity uint32
	}{
		"backends come and go": {Sizes{64, 512, 4096}, some, one, nil, 0},
		"shares change": {Sizes{64, 512, 4096}, some, func(int) uint32 {
			return 1 + rand.Uint32N(5)
		}, nil, 0},
		// Little room makes everything be used again, and ranges be merged and split.
		"maps are nearly full": {Sizes{services, services*pool + pool, services*pool + 60}, some, one, nil, 0},
		"all are replaced at once": {Sizes{64, 512, 4096}, func(random *rand.Rand, _ int) []int {
			return []int{random.IntN(pool)}
		}, one, nil, 0},
		"backends come and go, IPv4-mapped": {Sizes{64, 512, 4096}, some, one, overMapped, 0},
		"backends come and go, over IPv6":   {Sizes{64, 512, 4096}, some, one, overIPv6, 0},
		"clients keep their backends":       {Sizes{64, 512, 4096}, some, one, nil, 1000},
		"both families fill the maps":       {Sizes{2 * services, 2*services*pool + pool, 2*services*pool + 60}, some, one, overIPv6, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.Sizes = test.sizes
			d := n.open(t)
			n.showBackends(t)
			how := dialer(dial)
			if test.over != nil {
				how = test.over(dial)
			}
			hammer(t, services, pool, how, 1500*time.Millisecond, applyMembers(t, d, test.share, test.affinity), test.next)
		})
	}
}

// applyMembers returns a round of the hammer for dual-stack services, or for those of
// IPv4 where the maps have no more room.
func applyMembers(t *testing.T, d *Datapath, share func(int) uint32, affinity uint32) func(members [][]int) {
	return func(members [][]int) {
		table := tableOf()
		for s := range members {
			svc := hammered(s, members[s], share)
			svc.AffinitySeconds = affinity
			table.Services[svc.Frontend] = svc
			if d.Sizes().Frontends > uint32(len(members)) {
				svc = serviceInIPv6(svc)
				table.Services[svc.Frontend] = svc
			}
		}
		report, err := d.Apply(context.Background(), table)
		if err != nil || len(report.Failed) > 0 {
			t.Errorf("Apply: %v, %v", err, report.Failed)
		}
	}
}

// Services come and go, with a frontend and without, so that others get their indices.
func TestServicesComeAndGo(t *testing.T) {
	const services, pool = 8, 6
	n := newNode(t)
	n.Sizes = Sizes{Frontends: services, Backends: 128, Slots: 256}
	d := n.open(t)
	n.showBackends(t)
	hammer(t, services, pool, dial, 1500*time.Millisecond, func(members [][]int) {
		table := tableOf()
		for s := range members {
			svc := hammered(s, members[s], func(int) uint32 { return 1 })
			if len(members[s]) == 0 && rand.IntN(2) == 0 {
				continue // the frontend goes, too
			}
			table.Services[svc.Frontend] = svc
		}
		report, err := d.Apply(context.Background(), table)
		if err != nil || len(report.Failed) > 0 {
			t.Errorf("Apply: %v, %v", err, report.Failed)
		}
	}, func(random *rand.Rand, _ int) []int { return random.Perm(pool)[:random.IntN(pool)] })

	counters, err := d.Counters()
	must(t, err)
	if counters["gave_up"] > 0 || counters["no_backend"] == 0 || counters["miss"] == 0 {
		t.Errorf("counters are %v", counters)
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	const services, pool = 4, 6
	n := newNode(t)
	d := n.open(t)
	shares := func(m int) uint32 { return uint32(m + 1) }
	var wanted []desired.Service
	for s := range services {
		svc := hammered(s, []int{0, 1, 2}, shares)
		svc.LocalReady = s == 1
		svc.Port.Port = fmt.Sprint("port", s)
		svc.Backends = append(svc.Backends, desired.Backend{
			Addr: netip.MustParseAddrPort("10.1.9.9:8181"), ClusterID: 2, State: desired.Quarantined,
		})
		wanted = append(wanted, svc)
	}
	mustApply(t, d, wanted...)
	before := read(t, n)

	// Connections go on through every restart; nothing may be left alone meanwhile.
	hammer(t, services, pool, n.dialAndAskTheSocket(t), 1500*time.Millisecond, func([][]int) {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		var err error
		if d, err = Open(n.Config); err != nil {
			t.Fatalf("Open: %v", err)
		}
		report, err := d.Apply(context.Background(), tableOf(wanted...))
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(Report{Unchanged: services}, report); diff != "" {
			t.Errorf("Apply after restart (-want +got):\n%s", diff)
		}
	}, func(*rand.Rand, int) []int { return []int{0, 1, 2} })
	defer d.Close()

	after := read(t, n)
	if diff := cmp.Diff(before.Services, after.Services, compareAddrs, compareAddrPorts, ignoreTraffic); diff != "" {
		t.Errorf("services (-before +after):\n%s", diff)
	}
	if !maps.Equal(before.Clusters, after.Clusters) {
		t.Errorf("clusters were %v, are %v", before.Clusters, after.Clusters)
	}
	// And the allocators know what is taken.
	mustApply(t, d, append(wanted, serviceAt("10.96.0.99:80/TCP", manyBackends(2000, 5)...))...)
	if diff := cmp.Diff(before.Services, read(t, n).Services[:services], compareAddrs, compareAddrPorts, ignoreTraffic); diff != "" {
		t.Errorf("services disturbed by a new one (-before +after):\n%s", diff)
	}
}

// Random changes, with a restart now and then, always leave exactly the table.
func TestMapsHoldTheTableAcrossRestarts(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	random := rand.New(rand.NewPCG(7, 7))
	for round := range 200 {
		var services []desired.Service
		for s := range 12 {
			if random.IntN(4) == 0 {
				continue
			}
			svc := hammered(s, random.Perm(12)[:random.IntN(12)], func(int) uint32 { return random.Uint32N(3) })
			svc.LocalReady = random.IntN(2) == 0
			for i := range svc.Backends {
				svc.Backends[i].State = desired.State(random.IntN(4))
			}
			services = append(services, svc)
		}
		mustApply(t, d, services...)
		if random.IntN(10) == 0 {
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			var err error
			if d, err = Open(n.Config); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			defer d.Close()
			if report := apply(t, d, services...); report.Unchanged != len(services) {
				t.Errorf("round %d: after a restart %+v", round, report)
			}
		}
		expectContent(t, n, services...)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
}

// A killed agent may have written anything up to the point where it died.
func TestRestoreAfterACrashInTheMiddle(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	n.showBackends(t)
	kept := serviceAt("10.96.0.1:80/UDP", manyBackends(0, 3)...)
	hurt := serviceAt("10.96.0.2:80/UDP", manyBackends(10, 3)...)
	drained := serviceAt("10.96.0.3:80/UDP", manyBackends(20, 2)...)
	drained.Backends[1].Slots = 0
	mustApply(t, d, kept, hurt, drained)
	keptBefore := read(t, n).Services[0]
	// A backend that nothing leads to yet; a service without its frontend; a slot that
	// was overwritten by who knows whom; a backend that lost its slots, but not its flag.
	d.set.backends.items[200] = backendEntry{Addr: addrWords(netip.MustParseAddr("10.1.0.99")), Service: 40, Generation: 9, Used: 1, Picked: 1}
	d.set.service.items[40] = serviceEntry{Key: frontendKey(vip("10.96.0.40:80/UDP"))}
	d.set.slots.items[d.services[hurt.Frontend].span.base] = uint64(newSlot(1, 1, 1))
	drainedID := d.services[drained.Frontend].placed[1].id
	d.set.backends.items[drainedID].Picked = 1
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	d = n.open(t)
	report := apply(t, d, kept, hurt, drained)
	if report.Unchanged != 2 || report.Changed != 1 || report.Rebuilt != 1 || len(report.Failed) > 0 {
		t.Errorf("the damaged service is not rebuilt alone: %+v", report)
	}
	expectContent(t, n, kept, hurt, drained)
	if diff := cmp.Diff(keptBefore, read(t, n).Services[0], compareAddrs, compareAddrPorts); diff != "" {
		t.Errorf("the good service (-before +after):\n%s", diff)
	}
	if entry := d.set.backends.items[200]; entry.Used != 0 || entry.Picked != 0 {
		t.Error("the backend that nothing leads to is still taken")
	}
	if d.set.backends.items[drainedID].Picked != 0 {
		t.Error("clients may go back to the backend that has no slots")
	}
}

const envKilled = "MESH_TEST_KILLED"

// TestKilledAgent is the agent of TestTrafficGoesOnWhenTheAgentIsKilled, which runs
// it. By itself it does nothing.
func TestKilledAgent(t *testing.T) {
	if os.Getenv(envKilled) == "" {
		return
	}
	pinDir, stateDir, _ := strings.Cut(os.Getenv(envKilled), "\n")
	stateDir, cgroup, _ := strings.Cut(stateDir, "\n")
	d, err := Open(Config{PinDir: pinDir, StateDir: stateDir, Cgroups: []string{cgroup}, Sizes: Sizes{64, 256, 1024}})
	if err != nil {
		t.Fatal(err)
	}
	mustApply(t, d, serviceAt("10.96.0.1:80/UDP", manyBackends(0, 3)...))
	if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {}
}

func TestTrafficGoesOnWhenTheAgentIsKilled(t *testing.T) {
	n := newNode(t)
	agent := exec.Command("/proc/self/exe", "-test.run=^TestKilledAgent$")
	agent.Env = append(os.Environ(), envKilled+"="+n.PinDir+"\n"+n.StateDir+"\n"+n.cgroup)
	// The child must not set up the namespaces again: it shares ours.
	agent.Env = append(agent.Env, envInside+"=1")
	if out, err := agent.CombinedOutput(); err == nil || agent.ProcessState.ExitCode() != -1 {
		t.Fatalf("the agent was not killed: %v\n%s", err, out)
	}
	expectContent(t, n, serviceAt("10.96.0.1:80/UDP", manyBackends(0, 3)...))
	frontend := netip.MustParseAddrPort("10.96.0.1:80")
	if got, err := dial(unix.AF_INET, frontend); err != nil || got != frontend {
		t.Errorf("with the agent dead, getpeername says %s, %v", got, err)
	}
	n.showBackends(t)
	if got, err := dial(unix.AF_INET, frontend); err != nil || got.Port() != 8181 {
		t.Errorf("with the agent dead, connected to %s, %v", got, err)
	}
	// The lock died with it.
	if report := apply(t, n.open(t), serviceAt("10.96.0.1:80/UDP", manyBackends(0, 3)...)); report.Unchanged != 1 {
		t.Errorf("the next agent changed something: %+v", report)
	}
}

func TestOnlyOneWrites(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	if _, err := Open(n.Config); !errors.Is(err, ErrLocked) {
		t.Errorf("second Open: %v, want %v", err, ErrLocked)
	}
	// A state folder of its own does not make the maps its own, nor does no agent.
	other := n.Config
	other.StateDir = t.TempDir()
	if _, err := Open(other); !errors.Is(err, ErrLocked) {
		t.Errorf("second Open, with another state folder: %v, want %v", err, ErrLocked)
	}
	if err := Cleanup(n.PinDir); !errors.Is(err, ErrLocked) {
		t.Errorf("Cleanup: %v, want %v", err, ErrLocked)
	}
	n.auditPins(t)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Apply(context.Background(), desired.Table{}); !errors.Is(err, ErrClosed) {
		t.Errorf("Apply after Close: %v", err)
	}
	if err := errors.Join(d.Heartbeat(), d.Attach(nil), d.Close()); !errors.Is(err, ErrClosed) {
		t.Errorf("calls after Close: %v", err)
	}
	n.open(t)
}

func TestReadWithoutMaps(t *testing.T) {
	n := newNode(t)
	if _, err := Read(n.PinDir); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("Read: %v, want %v", err, ErrNotLoaded)
	}
}

func TestReaderFollowsTheWriter(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	r, err := OpenReader(n.PinDir)
	must(t, err)
	defer r.Close()
	drained := manyBackends(10, 2)
	drained[0].Slots = 0
	for _, step := range []struct {
		backends []desired.Backend
		want     int
	}{{manyBackends(0, 3), 3}, {manyBackends(0, 4), 4}, {drained, 1}, {nil, 0}} {
		mustApply(t, d, serviceAt("10.96.0.1:80/TCP", step.backends...))
		if got, err := r.Slots(vip("10.96.0.1:80/TCP")); err != nil || got != step.want {
			t.Errorf("%d backends: %d slots, %v, want %d", len(step.backends), got, err, step.want)
		}
		if got, err := r.Slots(vip("10.96.0.1:80/UDP")); err != nil || got != 0 {
			t.Errorf("another frontend: %d slots, %v", got, err)
		}
	}
	s, err := r.Snapshot()
	if err != nil || len(s.Services) != 1 {
		t.Errorf("Snapshot: %+v, %v", s, err)
	}
}

func TestPinsThatDoNotFitAreRefused(t *testing.T) {
	pin := func(n *node, parts ...string) string {
		return filepath.Join(append([]string{n.PinDir, schemaDir}, parts...)...)
	}
	tests := map[string]struct {
		spoil func(t *testing.T, n *node)
		want  error
		says  string
	}{
		"another schema": {func(t *testing.T, n *node) {
			editMeta(t, n, func(m *metaEntry) { m.Schema = schema + 1 })
		}, ErrIncompatible, "has schema 3, not 2"},
		"the folder of a later schema": {func(t *testing.T, n *node) {
			must(t, os.Mkdir(filepath.Join(n.PinDir, "v3"), 0o700))
			t.Cleanup(func() { _ = os.Remove(filepath.Join(n.PinDir, "v3")) })
		}, ErrIncompatible, "newer version"},
		"another magic": {func(t *testing.T, n *node) {
			editMeta(t, n, func(m *metaEntry) { m.Magic = 1 })
		}, ErrForeign, "has magic 0x1"},
		"a map that is missing": {func(t *testing.T, n *node) {
			must(t, os.Remove(pin(n, mapsDir, connectMapSlots)))
		}, ErrForeign, mapsDir + "/" + connectMapSlots},
		"another map in its place": {func(t *testing.T, n *node) {
			must(t, os.Remove(pin(n, mapsDir, connectMapSlots)))
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 1024})
			must(t, err)
			defer m.Close()
			must(t, m.Pin(pin(n, mapsDir, connectMapSlots)))
		}, ErrIncompatible, connectMapSlots},
		"a program in the place of a map": {func(t *testing.T, n *node) {
			must(t, os.Remove(pin(n, mapsDir, connectMapSlots)))
			pinProgram(t, n, pin(n, mapsDir, connectMapSlots))
		}, ErrForeign, connectMapSlots + `": `},
		"a folder in the place of a map": {func(t *testing.T, n *node) {
			must(t, os.Remove(pin(n, mapsDir, connectMapSlots)))
			must(t, os.Mkdir(pin(n, mapsDir, connectMapSlots), 0o700))
		}, ErrForeign, connectMapSlots},
		"a program in the place of a link": {func(t *testing.T, n *node) {
			name := linkPin(t, n, "connect4")
			must(t, os.Remove(name))
			pinProgram(t, n, name)
		}, ErrForeign, "opening link"},
		"the link of another hook": {func(t *testing.T, n *node) {
			must(t, os.Remove(linkPin(t, n, "connect4")))
			must(t, os.Rename(linkPin(t, n, "connect6"), strings.Replace(linkPin(t, n, "connect6"), "connect6", "connect4", 1)))
		}, ErrForeign, "is not of connect4"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			d := n.open(t)
			must(t, d.Close())
			test.spoil(t, n)
			if _, err := Open(n.Config); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Open: %v, want %v that says %q", err, test.want, test.says)
			}
		})
	}
	t.Run("a folder that is not on a bpffs", func(t *testing.T) {
		n := newNode(t)
		n.PinDir = filepath.Join(t.TempDir(), "pins")
		if _, err := Open(n.Config); err == nil || !strings.Contains(err.Error(), "not on a bpf file system") {
			t.Errorf("Open: %v", err)
		}
	})
	t.Run("what a crash left half made", func(t *testing.T) {
		n := newNode(t)
		must(t, os.MkdirAll(pin(n, newMapsDir), 0o700))
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 1})
		must(t, err)
		defer m.Close()
		must(t, m.Pin(pin(n, newMapsDir, connectMapSlots)))
		n.open(t)
		if _, err := os.Stat(pin(n, newMapsDir)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("it is still there: %v", err)
		}
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func editMeta(t *testing.T, n *node, edit func(*metaEntry)) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(n.PinDir, schemaDir, mapsDir, connectMapMeta), nil)
	must(t, err)
	defer m.Close()
	var meta metaEntry
	must(t, m.Lookup(uint32(0), &meta))
	edit(&meta)
	must(t, m.Put(uint32(0), &meta))
}

func linkPin(t *testing.T, n *node, hook string) string {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(n.PinDir, schemaDir, linksDir, hook+"-*"))
	if err != nil || len(pins) != 1 {
		t.Fatalf("pins of %s: %v, %v", hook, pins, err)
	}
	return pins[0]
}

func pinProgram(t *testing.T, n *node, path string) {
	t.Helper()
	spec, err := loadGetpeername()
	must(t, err)
	objects, err := ebpf.NewCollection(spec)
	must(t, err)
	defer objects.Close()
	must(t, objects.Programs["getpeername4"].Pin(path))
}

func TestAttachRepairsLinks(t *testing.T) {
	frontend := netip.MustParseAddrPort("10.96.0.1:80")
	served := func(t *testing.T, want bool) {
		t.Helper()
		got, err := dial(unix.AF_INET, frontend)
		if err != nil || (got != frontend) != want {
			t.Errorf("connected to %s, %v; served should be %t", got, err, want)
		}
	}
	setup := func(t *testing.T) (*node, *Datapath) {
		n := newNode(t)
		d := n.open(t)
		mustApply(t, d, serviceAt("10.96.0.1:80/UDP", manyBackends(0, 3)...))
		return n, d
	}
	t.Run("its cgroup was removed and made again", func(t *testing.T) {
		n, d := setup(t)
		moveTo(t, os.Getenv(envCgroup))
		must(t, os.Remove(n.cgroup))
		must(t, os.Mkdir(n.cgroup, 0o755))
		moveTo(t, n.cgroup)
		served(t, false)
		must(t, d.Attach(n.Cgroups))
		n.showBackends(t) // fails unless the pins of the old cgroup are gone
		served(t, true)
	})
	t.Run("someone detached it by force", func(t *testing.T) {
		n, d := setup(t)
		n.showBackends(t)
		l, err := link.LoadPinnedLink(linkPin(t, n, "connect4"), nil)
		must(t, err)
		defer l.Close()
		must(t, l.Detach())
		served(t, false)
		must(t, d.Attach(n.Cgroups))
		n.showBackends(t)
		served(t, true)
	})
	t.Run("someone removed its pin", func(t *testing.T) {
		n, d := setup(t)
		n.showBackends(t)
		must(t, os.Remove(linkPin(t, n, "connect4")))
		// The kernel detaches it some time later.
		for deadline := time.Now().Add(10 * time.Second); ; {
			if got, err := dial(unix.AF_INET, frontend); err != nil || got == frontend {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the link lives on without its pin")
			}
		}
		must(t, d.Attach(n.Cgroups))
		n.showBackends(t)
		served(t, true)
	})
	t.Run("a cgroup that is no longer given is let go", func(t *testing.T) {
		n, d := setup(t)
		other := n.cgroup + "-other"
		must(t, os.Mkdir(other, 0o755))
		t.Cleanup(func() { _ = os.Remove(other) })
		must(t, d.Attach([]string{n.cgroup, other, n.cgroup + "-absent", n.cgroup + "/"}))
		must(t, d.Attach([]string{other, n.cgroup + "-absent"}))
		served(t, false)
		must(t, d.Attach([]string{n.cgroup}))
		n.showBackends(t)
		served(t, true)
	})
	t.Run("what is no cgroup is refused, and nothing is let go", func(t *testing.T) {
		n, d := setup(t)
		n.showBackends(t)
		inside := filepath.Join(n.cgroup, "inside")
		for _, cgroups := range [][]string{nil, {n.cgroup + "-absent"}, {t.TempDir()}, {inside, n.cgroup}} {
			if err := d.Attach(cgroups); err == nil {
				t.Errorf("Attach(%q) succeeds", cgroups)
			}
		}
		served(t, true)
	})
}

func TestCleanupLeavesNothing(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	mustApply(t, d, serviceAt("10.96.0.1:80/UDP", manyBackends(0, 3)...))
	must(t, d.Close())
	must(t, Cleanup(n.PinDir))
	if _, err := os.Stat(n.PinDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pin folder is still there: %v", err)
	}
	frontend := netip.MustParseAddrPort("10.96.0.1:80")
	if got, err := dial(unix.AF_INET, frontend); err != nil || got != frontend {
		t.Errorf("connected to %s, %v", got, err)
	}
	must(t, Cleanup(n.PinDir)) // again
}

func TestCleanupKeepsWhatIsNotOurs(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	must(t, d.Close())
	foreign := filepath.Join(n.PinDir, schemaDir, mapsDir, "foreign")
	pinProgram(t, n, foreign)
	if err := Cleanup(n.PinDir); err == nil {
		t.Error("no error, though a pin is left")
	}
	must(t, os.Remove(foreign))
}
