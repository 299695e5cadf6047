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
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestSlotsFor(t *testing.T) {
	one := func(weights []uint64) []uint64 { return slices.Repeat([]uint64{1}, len(weights)) }
	for _, test := range []struct {
		name    string
		weights []uint64
		want    []uint32
	}{
		{"nobody", nil, []uint32{}},
		{"nobody with a weight", []uint64{0, 0}, []uint32{0, 0}},
		{"equal weights have one slot each", []uint64{100, 100, 0, 100}, []uint32{1, 1, 0, 1}},
		{"a ratio is reduced", []uint64{100, 50}, []uint32{2, 1}},
		{"a ratio of three", []uint64{300, 200, 100}, []uint32{3, 2, 1}},
		{"what has a weight has a slot", []uint64{1000, 1}, []uint32{1000, 1}},
		{"a ratio within 2 % is equal", []uint64{100, 99}, []uint32{1, 1}},
		{"one that is not needs more slots", []uint64{100, 97}, []uint32{21, 20}},
		{"large weights of both sides of localMinReady", []uint64{1e15, 3e15}, []uint32{1, 3}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, held := slotsFor(test.weights, one(test.weights))
			if !held {
				t.Errorf("the ratio is not held")
			}
			if test.name == "one that is not needs more slots" {
				if ratio := float64(got[0]) / float64(got[1]) / (100.0 / 97); ratio > tolerance || 1/ratio > tolerance || got[0] > 51 {
					t.Errorf("got %v", got)
				}
				return
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}

	t.Run("how many there are does not change the slots of the others", func(t *testing.T) {
		few, _ := slotsFor([]uint64{100, 30}, []uint64{1, 1})
		more, _ := slotsFor([]uint64{100, 30}, []uint64{500, 20})
		if !slices.Equal(few, more) {
			t.Errorf("%v, then %v", few, more)
		}
	})
	t.Run("a group without backends does not count", func(t *testing.T) {
		if got, _ := slotsFor([]uint64{100, 30}, []uint64{5, 0}); !slices.Equal(got, []uint32{1, 0}) {
			t.Errorf("got %v", got)
		}
	})
	t.Run("a ratio that costs too many slots is reported, and everybody still has one", func(t *testing.T) {
		got, held := slotsFor([]uint64{1000, 1}, []uint64{10_000, 1})
		if held {
			t.Error("it should not be held")
		}
		if got[0] == 0 || got[1] == 0 {
			t.Errorf("a backend with a weight has no slot: %v", got)
		}
		if sum, most := uint64(got[0])*10_000+uint64(got[1]), mostSlots(10_001)+10_001; sum > most {
			t.Errorf("%d slots are more than %d", sum, most)
		}
	})
}

func TestSlotsHoldEveryRatio(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		weights := make([]uint64, 1+random.IntN(6))
		for i := range weights {
			weights[i] = 1 + uint64(random.IntN(1000))
		}
		slots, held := slotsFor(weights, slices.Repeat([]uint64{1}, len(weights)))
		if !held {
			t.Fatalf("weights %v are not held", weights)
		}
		for i := range weights {
			for j := range weights {
				off := float64(slots[i]) / float64(slots[j]) / (float64(weights[i]) / float64(weights[j]))
				if math.Max(off, 1/off) > tolerance+1e-9 {
					t.Fatalf("weights %v got slots %v", weights, slots)
				}
			}
		}
	}
}
