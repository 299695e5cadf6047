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
	"cmp"
	"math/bits"
	"slices"
)

// ids hands out the numbers 1..limit. Numbers that were given back come again in
// the order of their return, so that each rests for as long as possible.
type ids struct {
	free  []uint32
	next  uint32 // the lowest number never handed out
	limit uint32
}

func newIDs(limit uint32) *ids { return &ids{next: 1, limit: limit} }

// restore sets the numbers that are in use, and the lowest one never used.
func (a *ids) restore(inUse func(uint32) bool, next uint32) {
	a.free, a.next = nil, next
	for id := uint32(1); id < next; id++ {
		if !inUse(id) {
			a.free = append(a.free, id)
		}
	}
}

func (a *ids) available() int { return len(a.free) + int(a.limit-a.next+1) }

// take returns 0 if there is none.
func (a *ids) take() uint32 {
	if len(a.free) > 0 {
		id := a.free[0]
		a.free = a.free[1:]
		return id
	}
	if a.next > a.limit {
		return 0
	}
	a.next++
	return a.next - 1
}

func (a *ids) give(id ...uint32) { a.free = append(a.free, id...) }

// extent is a range of slots.
type extent struct {
	base, size uint32
}

// ranges hands out ranges of slots. Sizes are rounded up to classes, four to each
// doubling, so that a range that was given back fits the next request and services
// have room to grow. Only when the map is used up are free ranges merged and split.
type ranges struct {
	free  map[uint32][]uint32 // bases, by size
	next  uint32              // everything from here on was never handed out
	limit uint32
}

func newRanges(limit uint32) *ranges {
	return &ranges{free: map[uint32][]uint32{}, limit: limit}
}

// sizeClass returns the size that a range for n slots gets.
func sizeClass(n uint32) uint32 {
	if n <= 8 {
		return n
	}
	step := uint32(1) << (bits.Len32(n-1) - 3)
	return (n + step - 1) / step * step
}

// restore sets the ranges that are in use. They must not overlap.
func (r *ranges) restore(used []extent) {
	slices.SortFunc(used, func(a, b extent) int { return cmp.Compare(a.base, b.base) })
	r.free, r.next = map[uint32][]uint32{}, 0
	for _, e := range used {
		if e.base > r.next {
			r.give(extent{r.next, e.base - r.next})
		}
		r.next = e.base + e.size
	}
}

// take returns a range of at least n > 0 slots, or false if there is none.
func (r *ranges) take(n uint32) (extent, bool) {
	size := sizeClass(n)
	if e, ok := r.takeSize(size); ok {
		return e, true
	}
	if r.limit-r.next >= size {
		r.next += size
		return extent{r.next - size, size}, true
	}
	if e, ok := r.split(n, size); ok {
		return e, true
	}
	r.merge()
	return r.split(n, size)
}

func (r *ranges) takeSize(size uint32) (extent, bool) {
	bases := r.free[size]
	if len(bases) == 0 {
		return extent{}, false
	}
	base := bases[len(bases)-1]
	r.free[size] = bases[:len(bases)-1]
	return extent{base, size}, true
}

// split cuts a range from the smallest free one that is large enough, of the size
// of its class if possible, else of n exactly.
func (r *ranges) split(n, size uint32) (extent, bool) {
	for _, want := range []uint32{size, n} {
		if r.limit-r.next >= want {
			r.next += want
			return extent{r.next - want, want}, true
		}
		best := uint32(0)
		for s, bases := range r.free {
			if len(bases) > 0 && s >= want && (best == 0 || s < best) {
				best = s
			}
		}
		if best == 0 {
			continue
		}
		e, _ := r.takeSize(best)
		if best > want {
			r.give(extent{e.base + want, best - want})
		}
		return extent{e.base, want}, true
	}
	return extent{}, false
}

// merge joins free ranges that touch.
func (r *ranges) merge() {
	var all []extent
	for size, bases := range r.free {
		for _, base := range bases {
			all = append(all, extent{base, size})
		}
	}
	slices.SortFunc(all, func(a, b extent) int { return cmp.Compare(a.base, b.base) })
	r.free = map[uint32][]uint32{}
	for i := 0; i < len(all); {
		e := all[i]
		for i++; i < len(all) && e.base+e.size == all[i].base; i++ {
			e.size += all[i].size
		}
		if e.base+e.size == r.next {
			r.next = e.base
			return
		}
		r.give(e)
	}
}

func (r *ranges) give(e extent) {
	if e.size > 0 {
		r.free[e.size] = append(r.free[e.size], e.base)
	}
}

// gather finds the fewest neighbours to move down, each next to the one before it, so
// that n slots in a row become free behind them: those from `from` up to `to`, which may be none.
// The ranges in use are sorted.
func gather(used []extent, limit, n uint32) (from, to int, ok bool) {
	gap := func(i int) uint32 { // before range i
		begin, end := uint32(0), limit
		if i > 0 {
			begin = used[i-1].base + used[i-1].size
		}
		if i < len(used) {
			end = used[i].base
		}
		return end - begin
	}
	room, first := uint32(0), 0
	for i := range len(used) + 1 {
		room += gap(i)
		for ; room-gap(first) >= n && first < i; first++ {
			room -= gap(first)
		}
		if room >= n && (!ok || i-first < to-from) {
			from, to, ok = first, i, true
		}
	}
	return from, to, ok
}
