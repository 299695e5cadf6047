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
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// slowLookup is lookup() of bpf/lib/lookup.h in slow motion: each call of next does one
// read of the maps. A real one may be interrupted between any two.
type slowLookup struct {
	service    int
	began      int64
	key        vipKey
	stage      int
	index      uint32
	descriptor descriptor
	word       slot
	addr       netip.Addr
	random     uint32
}

// next does the next read. done says that it was the last, and peer what was found: the
// frontend where the address is left alone.
func (l *slowLookup) next(set *mapSet) (peer netip.AddrPort, done bool, err error) {
	to := boardFrontend(l.service)
	alone := netip.AddrPortFrom(to.Addr, to.Port)
	// What makes lookup() begin again does not happen while no hash element is recycled
	// between its lookup and the reading of its value, which is one step here.
	again := func(what string) (netip.AddrPort, bool, error) {
		return alone, true, fmt.Errorf("lookup of service %d: it has to begin again: %s", l.service, what)
	}
	l.stage++
	switch l.stage {
	case 1:
		err := set.vip().Lookup(&l.key, &l.index)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return alone, true, nil
		}
		return peer, err != nil, err
	case 2:
		if int(l.index) >= len(set.service.items) || set.service.items[l.index].Key != l.key {
			return again("the index is of another service")
		}
	case 3:
		l.descriptor = descriptor(atomic.LoadUint64(&set.service.items[l.index].Descriptor))
		if l.descriptor.length() == 0 {
			return alone, true, nil
		}
	case 4:
		at := l.descriptor.base() + uint32(uint64(l.random)*uint64(l.descriptor.length())>>32)
		if int(at) >= len(set.slots.items) {
			return again("the range is not in the map")
		}
		l.word = slot(atomic.LoadUint64(&set.slots.items[at]))
	case 5:
		if int(l.word.backend()) >= len(set.backends.items) {
			return again("the slot leads out of the map")
		}
		entry := &set.backends.items[l.word.backend()]
		if entry.Service != l.index || l.word.service() != l.index || l.word.generation() != entry.Generation {
			return again(fmt.Sprintf("slot %d/%d/%d leads to entry %d/%d", l.word.backend(), l.word.service(), l.word.generation(), entry.Service, entry.Generation))
		}
	case 6: // into the socket's storage
		l.addr = set.backends.items[l.word.backend()].addrPort().Addr()
	default: // into the application's address
		peer := set.backends.items[l.word.backend()].addrPort()
		if peer.Addr() != l.addr {
			return peer, true, fmt.Errorf("lookup of service %d: the socket has %s, the application %s", l.service, l.addr, peer)
		}
		return peer, true, nil
	}
	return peer, false, nil
}

// Lookups that last as long as a lookup can: each may be interrupted between any two of
// its reads, while the writer goes on, and ends only when the grace period makes the
// writer wait for it. The maps are nearly full, so that all that was given up is used
// again at once. Still every lookup finds what it may.
func TestLookupsInSlowMotion(t *testing.T) {
	t.Run("nearly full maps", func(t *testing.T) { lookInSlowMotion(t, 700, 5, 5, 125) })
	// Services are moved closer together all the time.
	t.Run("as few slots as will do", func(t *testing.T) { lookInSlowMotion(t, 150, 12, 3, 12) })
}

func lookInSlowMotion(t *testing.T, rounds, services, pool int, slots uint32) {
	const most = 60
	seed := uint64(20)
	n := newNode(t)
	n.Sizes = Sizes{Frontends: uint32(services), Backends: uint32(services*pool + 4), Slots: slots}
	b := newBoard(t, filepath.Join(t.TempDir(), "board"), services, pool)
	d := n.open(t)
	r, err := OpenReader(n.PinDir)
	must(t, err)
	t.Cleanup(func() { _ = r.Close() })

	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 4))
	var lookups []*slowLookup
	ended, wrong, slid, over := 0, 0, 0, false
	begin := func() *slowLookup {
		s := random.IntN(services)
		return &slowLookup{service: s, began: b.began(s), key: frontendKey(boardFrontend(s)), random: random.Uint32()}
	}
	// read does a read for a lookup, and says whether it has ended.
	read := func(l *slowLookup) bool {
		peer, done, err := l.next(r.set)
		if !done {
			return false
		}
		if err == nil {
			err = b.judge(l.service, l.began, peer)
		}
		if err != nil && wrong < 10 {
			wrong++
			t.Errorf("seed %d: service %d: %v", seed, l.service, err)
		}
		ended++
		return true
	}
	// advance does a read for one that lasts.
	advance := func(i int) {
		if read(lookups[i]) {
			lookups[i] = lookups[len(lookups)-1]
			lookups = lookups[:len(lookups)-1]
		}
	}
	fault = func(next string) {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return
		}
		if next == "grace" {
			for len(lookups) > 0 {
				advance(len(lookups) - 1)
			}
			return
		}
		if next == "slide" {
			slid++
		}
		for range 4 { // that are not interrupted
			for l := begin(); !read(l); {
			}
		}
		for range random.IntN(3) {
			if len(lookups) < most {
				lookups = append(lookups, begin())
			}
		}
		for range random.IntN(4) {
			if len(lookups) > 0 {
				advance(random.IntN(len(lookups)))
			}
		}
	}
	t.Cleanup(func() {
		fault = nil
		mu.Lock()
		defer mu.Unlock()
		over = true // for a wait that still goes on
	})

	now := world{}
	changes := rand.New(rand.NewPCG(seed, 5))
	for round := range rounds {
		touched := map[int]bool{}
		for range 1 + changes.IntN(3) {
			touched[changes.IntN(services)] = true
		}
		var changed []desired.Service
		var removed []desired.Frontend
		for s := range touched {
			for before := maps.Clone(now); ; now = maps.Clone(before) {
				if change(now, changes, s, pool); now.slots() < slots {
					break
				}
			}
			if members, ok := now[s]; ok {
				changed = append(changed, boardService(s, members))
			} else {
				removed = append(removed, boardFrontend(s))
			}
			b.announce(s, now[s])
		}
		report, err := d.ApplyServices(context.Background(), changed, removed, nil)
		if err != nil || len(report.Failed) > 0 {
			t.Fatalf("seed %d, round %d: %v, %v", seed, round, err, report.Failed)
		}
		for s := range touched {
			b.finish(s)
		}
		if changes.IntN(40) == 0 {
			must(t, d.Close())
			d = n.open(t)
		}
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	audit(t, n, d) // waits for the last lookups
	t.Logf("%d lookups, %d slots moved", ended, slid)
	if ended < 1000 {
		t.Errorf("only %d lookups have ended", ended)
	}
	if slots < 50 && slid == 0 {
		t.Error("nothing was moved")
	}
}

// Two neighbours move into the room that a third has left, the second to where the first
// was. Lookups that know the place of then are waited for.
func TestSlotsAreMovedToWhereNobodyReads(t *testing.T) {
	const services, pool = 4, 3
	n := newNode(t)
	n.Sizes = Sizes{Frontends: services, Backends: services * pool, Slots: 9}
	b := newBoard(t, filepath.Join(t.TempDir(), "board"), services, pool)
	d := n.open(t)
	r, err := OpenReader(n.PinDir)
	must(t, err)
	t.Cleanup(func() { _ = r.Close() })
	write := func(w world) {
		t.Helper()
		table := tableOf()
		for s := range services {
			b.announce(s, w[s])
			if members, ok := w[s]; ok {
				svc := boardService(s, members)
				table.Services[svc.Frontend] = svc
			}
		}
		report, err := d.Apply(context.Background(), table)
		if err != nil || len(report.Failed) > 0 {
			t.Fatalf("Apply: %v, %v", err, report.Failed)
		}
		for s := range services {
			b.finish(s)
		}
	}
	three := map[int]uint32{0: 1, 1: 1, 2: 1}
	for _, w := range []world{{0: {0: 1, 1: 1}}, {0: {0: 1, 1: 1}, 1: three}, {0: {0: 1, 1: 1}, 1: three, 2: three}} {
		write(w) // one after the other, so that they are neighbours
	}

	var mu sync.Mutex
	var lookups []*slowLookup
	slid, ended := 0, 0
	fault = func(next string) {
		mu.Lock()
		defer mu.Unlock()
		switch next {
		case "slide":
			slid++
			for s := 1; s < 3; s++ {
				for at := range uint32(3) {
					l := &slowLookup{service: s, began: b.began(s), key: frontendKey(boardFrontend(s)), random: at<<30 + at<<29}
					for range 3 { // it knows where to look
						if _, _, err := l.next(r.set); err != nil {
							t.Error(err)
						}
					}
					lookups = append(lookups, l)
				}
			}
		case "grace":
			for _, l := range lookups {
				for done := false; !done; {
					var peer netip.AddrPort
					if peer, done, err = l.next(r.set); done {
						if err == nil {
							err = b.judge(l.service, l.began, peer)
						}
						if err != nil {
							t.Errorf("service %d: %v", l.service, err)
						}
					}
				}
				ended++
			}
			lookups = nil
		}
	}
	write(world{1: three, 2: three, 3: three})
	d.mu.Lock()
	d.grave.drain()
	d.mu.Unlock()
	fault = nil
	if slid != 6 || ended == 0 || len(lookups) > 0 {
		t.Errorf("%d slots were moved, want 6; %d lookups ended, %d did not", slid, ended, len(lookups))
	}
	audit(t, n, d)
}
