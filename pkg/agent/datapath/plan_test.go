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
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mesh.io/clustermesh/pkg/agent/desired"
)

func TestIDsRestBeforeTheyAreUsedAgain(t *testing.T) {
	a := newIDs(4)
	var got []uint32
	take := func(n int) {
		for range n {
			got = append(got, a.take())
		}
	}
	take(4)
	take(1) // none left
	a.give(3, 1)
	a.give(2)
	if n := a.available(); n != 3 {
		t.Errorf("%d are available, want 3", n)
	}
	take(4)
	if diff := cmp.Diff([]uint32{1, 2, 3, 4, 0, 3, 1, 2, 0}, got); diff != "" {
		t.Errorf("numbers (-want +got):\n%s", diff)
	}
}

func TestIDsAreRestored(t *testing.T) {
	a := newIDs(6)
	a.restore(func(id uint32) bool { return id == 2 || id == 4 }, 5)
	var got []uint32
	for range 5 {
		got = append(got, a.take())
	}
	if diff := cmp.Diff([]uint32{1, 3, 5, 6, 0}, got); diff != "" {
		t.Errorf("numbers (-want +got):\n%s", diff)
	}
}

func TestSizeClassesWasteAtMostAQuarter(t *testing.T) {
	last := uint32(0)
	for n := uint32(1); n <= 1<<16; n++ {
		size := sizeClass(n)
		if size < n || size < last || float64(size) > float64(n)*1.25 || sizeClass(size) != size {
			t.Fatalf("sizeClass(%d) = %d after %d", n, size, last)
		}
		last = size
	}
	if size := sizeClass(1<<24 - 1); size != 1<<24 {
		t.Errorf("the largest class is %d", size)
	}
}

// Ranges never overlap and stay within the map, whatever comes and goes; and once
// all is given back, the whole map can be taken at once.
func TestRangesNeverOverlap(t *testing.T) {
	for seed := range uint64(50) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			const limit = 1000
			r := newRanges(limit)
			var owner [limit]bool
			var taken []extent
			for range 2000 {
				if len(taken) > 0 && random.IntN(2) == 0 {
					i := random.IntN(len(taken))
					e := taken[i]
					taken = append(taken[:i], taken[i+1:]...)
					for at := e.base; at < e.base+e.size; at++ {
						owner[at] = false
					}
					r.give(e)
				} else {
					n := uint32(random.IntN(1<<random.IntN(9))) + 1
					e, ok := r.take(n)
					if !ok {
						continue
					}
					if e.size < n || e.base+e.size > limit {
						t.Fatalf("take(%d) = %v", n, e)
					}
					for at := e.base; at < e.base+e.size; at++ {
						if owner[at] {
							t.Fatalf("slot %d is in two ranges", at)
						}
						owner[at] = true
					}
					taken = append(taken, e)
				}
				if random.IntN(100) == 0 {
					used := append([]extent(nil), taken...)
					r.restore(used) // as a restart would
				}
			}
			for _, e := range taken {
				r.give(e)
			}
			if e, ok := r.take(limit); !ok {
				t.Errorf("the empty map has no room: %v, %+v", e, r)
			}
		})
	}
}

func TestRangesFitExactlyWhenTheClassDoesNot(t *testing.T) {
	r := newRanges(9)
	if e, ok := r.take(9); !ok || e != (extent{0, 9}) { // the class is 10
		t.Errorf("take(9) of 9 = %v, %t", e, ok)
	}
	if e, ok := r.take(1); ok {
		t.Errorf("take(1) of a full map = %v", e)
	}
}

func TestGatherMovesAsFewAsPossible(t *testing.T) {
	// Gaps of 1, 0, 2, 1 and 3 in 20 slots.
	used := []extent{{1, 3}, {4, 2}, {8, 5}, {14, 3}}
	tests := map[uint32]struct {
		from, to int
		ok       bool
	}{
		1: {0, 0, true},
		2: {2, 2, true},
		3: {4, 4, true},
		4: {3, 4, true},
		5: {2, 4, true},
		6: {2, 4, true},
		7: {0, 4, true},
		8: {0, 0, false},
	}
	for n, want := range tests {
		from, to, ok := gather(used, 20, n)
		if ok != want.ok || ok && (from != want.from || to != want.to) {
			t.Errorf("for %d slots, %d to %d are moved (%t), want %+v", n, from, to, ok, want)
		}
	}
	if from, to, ok := gather(nil, 4, 4); from != 0 || to != 0 || !ok {
		t.Errorf("in an empty map, %d to %d are moved (%t)", from, to, ok)
	}
}

func TestGraveyardReleasesOnlyAfterTheWait(t *testing.T) {
	waits := make(chan struct{})
	var released []uint32
	g := graveyard{
		wait:    func() { <-waits },
		release: func(r retired) { released = append(released, r.backends...) },
	}
	bury := func(id uint32) { g.filling.backends = append(g.filling.backends, id) }
	expect := func(when string, want ...uint32) {
		t.Helper()
		if diff := cmp.Diff(want, released); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	bury(1)
	g.collect()
	bury(2) // during the wait for 1, which lookups of 2 may outlast
	g.collect()
	expect("before the wait is over")
	waits <- struct{}{}
	<-g.done
	g.collect()
	expect("after the first wait", 1)
	if g.empty() {
		t.Error("empty, but 2 still rests")
	}
	go func() { waits <- struct{}{} }()
	g.drain()
	expect("drained", 1, 2)
	if !g.empty() {
		t.Error("not empty after drain")
	}
	g.drain() // nothing to wait for
}

func TestCompareFindsTheCheapestWay(t *testing.T) {
	// A backend is its address' last number, then its slots.
	list := func(pairs ...[2]uint32) (backends []desired.Backend) {
		for _, p := range pairs {
			b := backendAt(fmt.Sprintf("10.1.0.%d:80", p[0]))
			b.Slots = p[1]
			backends = append(backends, b)
		}
		return backends
	}
	type pairs = [][2]uint32
	tests := map[string]struct {
		from, to pairs
		want     diff
	}{
		"nothing changes":                {pairs{{1, 2}, {2, 2}}, pairs{{1, 2}, {2, 2}}, diff{from: []int{0, 1}, length: 4}},
		"the first backends":             {nil, pairs{{1, 2}}, diff{from: []int{-1}, added: 1, length: 2, method: rebuildSlots}},
		"one is added":                   {pairs{{2, 1}}, pairs{{1, 1}, {2, 1}}, diff{from: []int{-1, 0}, added: 1, length: 2, method: editSlots}},
		"one is removed":                 {pairs{{1, 1}, {2, 1}}, pairs{{2, 1}}, diff{from: []int{1}, gone: []int{0}, length: 1, method: editSlots}},
		"the last is removed":            {pairs{{1, 1}}, nil, diff{from: []int{}, gone: []int{0}, method: rebuildSlots}},
		"one replaces another":           {pairs{{1, 1}, {2, 1}}, pairs{{2, 1}, {3, 1}}, diff{from: []int{1, -1}, gone: []int{0}, added: 1, length: 2, method: editSlots}},
		"all are replaced":               {pairs{{1, 1}}, pairs{{2, 1}}, diff{from: []int{-1}, gone: []int{0}, added: 1, length: 1, method: rebuildSlots}},
		"the share of one changes":       {pairs{{1, 1}, {2, 1}}, pairs{{1, 1}, {2, 3}}, diff{from: []int{0, 1}, length: 4, method: rebuildSlots}},
		"one is drained":                 {pairs{{1, 1}, {2, 1}}, pairs{{1, 1}, {2, 0}}, diff{from: []int{0, 1}, length: 1, method: editSlots}},
		"one is picked again":            {pairs{{1, 1}, {2, 0}}, pairs{{1, 1}, {2, 1}}, diff{from: []int{0, 1}, length: 2, method: editSlots}},
		"another tier":                   {pairs{{1, 1}, {2, 0}}, pairs{{1, 0}, {2, 1}}, diff{from: []int{0, 1}, length: 1, method: rebuildSlots}},
		"one that was not picked leaves": {pairs{{1, 1}, {2, 0}}, pairs{{1, 1}}, diff{from: []int{0}, gone: []int{1}, length: 1}},
		"one that is not picked comes":   {pairs{{1, 1}}, pairs{{1, 1}, {2, 0}}, diff{from: []int{0, -1}, added: 1, length: 1}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := compare(list(test.from...), list(test.to...))
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(diff{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// After each single store of an edit, before and after the length changes, every
// slot that a lookup can reach is of a backend of the old or the new list; at the
// end exactly the new ones are left.
func TestEditKeepsEverySlotValid(t *testing.T) {
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 1))
		shares := map[uint32]int{}
		lose := map[uint32]bool{}
		want := map[uint32]int{}
		valid := map[uint32]bool{}
		var slots []uint64
		id := uint32(1)
		for range random.IntN(12) + 1 {
			shares[id] = random.IntN(4) + 1
			valid[id] = true
			for range shares[id] {
				slots = append(slots, uint64(newSlot(id, 1, 1)))
			}
			if random.IntN(2) == 0 {
				lose[id] = true
			} else {
				want[id] = shares[id]
			}
			id++
		}
		random.Shuffle(len(slots), func(i, j int) { slots[i], slots[j] = slots[j], slots[i] })
		var add []slot
		for range random.IntN(6) {
			want[id]++
			valid[id] = true
			add = append(add, newSlot(id, 1, 1))
			id += uint32(random.IntN(2))
		}

		memory := append(append([]uint64(nil), slots...), make([]uint64, len(add))...)
		stores, length := edit(slots, lose, add)
		readable := func(n int) {
			for at := range n {
				if !valid[slot(memory[at]).backend()] {
					t.Fatalf("seed %d: slot %d of %d is %#x", seed, at, n, memory[at])
				}
			}
		}
		for _, s := range stores {
			memory[s.at] = uint64(s.slot)
			readable(len(slots))
		}
		readable(length)
		got := map[uint32]int{}
		for at := range length {
			got[slot(memory[at]).backend()]++
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d: shares (-want +got):\n%s", seed, diff)
		}
		lost := 0
		for id := range lose {
			lost += shares[id]
		}
		if len(stores) > lost+len(add) {
			t.Errorf("seed %d: %d stores, for %d slots lost and %d added", seed, len(stores), lost, len(add))
		}
	}
}
