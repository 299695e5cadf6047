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

	"mesh.io/clustermesh/pkg/agent/desired"
)

// compareBackends orders the backends of a service: by cluster ID, then address.
func compareBackends(a, b *desired.Backend) int {
	if c := cmp.Compare(a.ClusterID, b.ClusterID); c != 0 {
		return c
	}
	return a.Addr.Compare(b.Addr)
}

// method is how the slots of a service get from one list of backends to another.
type method uint8

const (
	keepSlots    method = iota // they are as they should be
	editSlots                  // some backends come or go, the shares of the others stay
	rebuildSlots               // shares change, or nobody stays: into a new range
	rewriteSlots               // likewise, where there is no other range
)

// diff is the difference between two lists of backends of one service.
type diff struct {
	// from holds, for each new backend, its place in the old list, or -1.
	from []int
	// gone holds the places of old backends that are not in the new list.
	gone []int
	// added is the number of new backends that are not in the old list.
	added int
	// length is the sum of the new shares.
	length uint32
	method method
}

// compare finds the difference. Both lists are sorted and without duplicates.
func compare(from, to []desired.Backend) diff {
	d := diff{from: make([]int, len(to))}
	stay, ratio, moved := false, false, false
	i := 0
	for j := range to {
		for ; i < len(from) && compareBackends(&from[i], &to[j]) < 0; i++ {
			d.gone = append(d.gone, i)
			moved = moved || from[i].Slots > 0
		}
		before := uint32(0)
		if i < len(from) && compareBackends(&from[i], &to[j]) == 0 {
			d.from[j] = i
			before = from[i].Slots
			i++
		} else {
			d.from[j] = -1
			d.added++
		}
		after := to[j].Slots
		d.length += after
		switch {
		case before == after:
			stay = stay || after > 0
		case before > 0 && after > 0:
			ratio = true
		default:
			moved = true
		}
	}
	for ; i < len(from); i++ {
		d.gone = append(d.gone, i)
		moved = moved || from[i].Slots > 0
	}
	switch {
	case ratio || moved && !stay:
		d.method = rebuildSlots
	case moved:
		d.method = editSlots
	}
	return d
}

// store is one slot to be written.
type store struct {
	at   int
	slot slot
}

// edit plans the stores that take the slots of the backends in lose out of the
// range and put add in. Each store leaves a range in which every slot is valid,
// before and after the length changes; the new length is published after the last.
func edit(slots []uint64, lose map[uint32]bool, add []slot) (stores []store, length int) {
	length = len(slots)
	var gaps []int
	if len(lose) > 0 {
		for at := range slots {
			if lose[slot(slots[at]).backend()] {
				gaps = append(gaps, at)
			}
		}
	}
	// What comes takes the places of what goes, and the end where those run out.
	for len(add) > 0 && len(gaps) > 0 {
		stores = append(stores, store{gaps[0], add[0]})
		add, gaps = add[1:], gaps[1:]
	}
	for _, s := range add {
		stores = append(stores, store{length, s})
		length++
	}
	// The last slots fill the gaps that are left. Gaps at the end are cut off.
	for first, last := 0, len(gaps)-1; first <= last; {
		length--
		if gaps[last] == length {
			last--
			continue
		}
		stores = append(stores, store{gaps[first], slot(slots[length])})
		first++
	}
	return stores, length
}
