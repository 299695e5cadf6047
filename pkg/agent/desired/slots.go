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

package desired

import (
	"cmp"
	"math"
	"slices"
)

// tolerance is by how much the shares of two backends may be off, against their
// weights.
const tolerance = 1.02

// mostSlots bounds the slots that the weights of one service may cost: enough for
// any ratio of a small service, and a small multiple of a large one.
func mostSlots(backends uint64) uint64 { return max(1<<16, 16*backends) }

// slotsFor turns the weights of groups of backends into the slots of each backend:
// the smallest numbers that hold every ratio within the tolerance, one each where the
// weights are equal. Whoever has a weight has a slot. They depend on the weights that
// occur, not on how often, so that a backend that comes or goes leaves the others'
// slots alone. held is false where mostSlots does not allow the ratio.
func slotsFor(weights, counts []uint64) (slots []uint32, held bool) {
	slots = make([]uint32, len(weights))
	var picked []int // the groups that have a weight and a backend
	backends, equal := uint64(0), true
	for i, w := range weights {
		if w > 0 && counts[i] > 0 {
			equal = equal && (len(picked) == 0 || weights[picked[0]] == w)
			picked = append(picked, i)
			backends += counts[i]
		}
	}
	if equal {
		for _, i := range picked {
			slots[i] = 1
		}
		return slots, true
	}
	// Equal groups are one, so that how many there are does not matter either.
	slices.SortFunc(picked, func(a, b int) int { return cmp.Compare(weights[a], weights[b]) })
	distinct, count := make([]uint64, 0, len(picked)), make([]uint64, 0, len(picked))
	for _, i := range picked {
		if n := len(distinct); n == 0 || distinct[n-1] != weights[i] {
			distinct, count = append(distinct, weights[i]), append(count, 0)
		}
		count[len(count)-1] += counts[i]
	}
	each, held := ratio(distinct, count, mostSlots(backends))
	for _, i := range picked {
		j, _ := slices.BinarySearch(distinct, weights[i])
		slots[i] = each[j]
	}
	return slots, held
}

// ratio finds the slots for each of the distinct, sorted weights, of which there are
// count each.
func ratio(weights, count []uint64, most uint64) (slots []uint32, held bool) {
	slots = make([]uint32, len(weights))
	smallest := float64(weights[0])
	for k := uint64(1); ; k++ {
		var total uint64
		low, high := math.Inf(1), 0.0
		for i, w := range weights {
			exact := float64(w) / smallest * float64(k)
			n := math.Round(exact)
			slots[i] = uint32(min(n, math.MaxUint32))
			total += uint64(n) * count[i]
			low, high = min(low, n/exact), max(high, n/exact)
		}
		if total > most {
			break
		}
		if high/low <= tolerance {
			return slots, true
		}
	}
	// No scale holds the ratio: the largest weights get what fits, the smallest one slot.
	var sum float64
	for i, w := range weights {
		sum += float64(w) * float64(count[i])
	}
	for i, w := range weights {
		slots[i] = uint32(max(1, math.Floor(float64(w)/sum*float64(most))))
	}
	return slots, false
}
