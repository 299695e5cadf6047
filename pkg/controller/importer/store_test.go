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

package importer

import (
	"fmt"
	"strings"
	"testing"

	"mesh.io/clustermesh/pkg/controller/apply"
)

// list puts slices with a number of endpoints each into a store, as a listing does.
func list(s *store, endpoints int, names ...string) {
	s.begin(sliceKind)
	for _, name := range names {
		s.put(offer{item: slice(name), obj: name, service: "web", endpoints: endpoints, cut: func(n int) any { return fmt.Sprintf("%s cut to %d", name, n) }})
	}
	s.end(sliceKind)
}

func slice(name string) item { return item{sliceKind, apply.Key{Namespace: "song", Name: name}} }

func newTestStore(l limits) (*store, map[item]int) {
	changed := map[item]int{}
	s := newStore(func(i item) { changed[i]++ })
	s.setLimits(l)
	return s, changed
}

var wide = limits{objects: [kinds]int{10, 10}, endpoints: 100, namespaces: 10}

func TestStoreKeepsOnDoubt(t *testing.T) {
	s, _ := newTestStore(wide)
	s.seed(slice("old"), "web", 1)
	if obj, held := s.get(slice("old")); obj != nil || !held {
		t.Fatalf("what was imported earlier is %v, %v", obj, held)
	}
	list(s, 1, "a", "b")
	// A listing without it is not enough.
	if _, held := s.get(slice("old")); !held {
		t.Fatal("an object that a listing did not show is gone")
	}
	doubtful := s.doubtful(sliceKind)
	if len(doubtful) != 1 || !doubtful[slice("old").Key] {
		t.Fatalf("doubtful are %v", doubtful)
	}
	// It comes back while it is being asked for: what was proven is out of date.
	s.put(offer{item: slice("old"), obj: "old", service: "web", endpoints: 1})
	s.sweep(sliceKind, doubtful)
	if _, held := s.get(slice("old")); !held {
		t.Fatal("an object that came back is gone")
	}
	// A listing that broke off proves nothing.
	s.begin(sliceKind)
	s.sweep(sliceKind, map[apply.Key]bool{slice("a").Key: true})
	if len(s.doubtful(sliceKind)) != 0 {
		t.Error("there is doubt before a listing is complete")
	}
	if _, held := s.get(slice("a")); !held {
		t.Fatal("an object is gone by a listing that broke off")
	}
	list(s, 1, "a")
	s.sweep(sliceKind, s.doubtful(sliceKind))
	if _, held := s.get(slice("b")); held {
		t.Error("an object that is proven to be gone is held")
	}
	if got := s.slicesOf(apply.Key{Namespace: "song", Name: "web"}); len(got) != 1 {
		t.Errorf("the slices of the Service are %v", got)
	}
	if s.remove(slice("a")); len(s.services) != 0 || len(s.items("")) != 0 || s.endpoints != 0 || len(s.namespaces) != 0 {
		t.Errorf("left are %v, %d endpoints, %v", s.items(""), s.endpoints, s.namespaces)
	}
}

func TestStoreLimits(t *testing.T) {
	s, _ := newTestStore(limits{objects: [kinds]int{10, 2}, endpoints: 15, namespaces: 1})
	s.seed(slice("z"), "web", 10)
	list(s, 10, "a", "b", "z")
	if _, held := s.get(slice("z")); !held {
		t.Error("what was imported earlier lost its place")
	}
	if _, held := s.get(slice("b")); held {
		t.Error("a third slice is held")
	}
	if obj, _ := s.get(slice("a")); obj != "a cut to 5" {
		t.Errorf("the slice that does not fit is %v", obj)
	}
	sum := s.summary()
	// One slice as a whole, and five endpoints of another.
	if sum.refused != 6 || sum.byReason[RefusedLimit] != 6 || len(sum.refusals) != 2 {
		t.Errorf("refused are %+v", sum)
	}
	other := item{sliceKind, apply.Key{Namespace: "dance", Name: "a"}}
	if s.put(offer{item: other, obj: "x"}); len(s.items("dance")) != 0 {
		t.Error("a second namespace is held")
	}
	if !s.remove(slice("z")) {
		t.Error("the room that a deletion makes is not reported")
	}
	// A lower limit takes effect with the next listing.
	s.setLimits(limits{objects: [kinds]int{10, 0}, endpoints: 15, namespaces: 1})
	list(s, 1, "a")
	if len(s.items("")) != 0 {
		t.Errorf("held are %v", s.items(""))
	}
}

func TestStoreIsBounded(t *testing.T) {
	s, _ := newTestStore(limits{objects: [kinds]int{10, 10}, endpoints: 100, namespaces: 5})
	s.begin(sliceKind)
	const many = 100_000
	for i := range many {
		s.put(offer{item: slice(fmt.Sprintf("s%d", i)), obj: "x", endpoints: 1})
	}
	s.end(sliceKind)
	if len(s.items("")) != 10 || len(s.atArrival) > maxNamed {
		t.Errorf("%d objects and %d refusals are held", len(s.items("")), len(s.atArrival))
	}
	if got := s.summary(); got.refused != many-10 || len(got.refusals) != maxRefusals {
		t.Errorf("%d are refused, %d named", got.refused, len(got.refusals))
	}
}

func TestRefusedCountsAreTrue(t *testing.T) {
	s, _ := newTestStore(limits{objects: [kinds]int{10, 0}, endpoints: 100, namespaces: 5})
	s.begin(sliceKind)
	const many = maxNamed + 500
	put := func() {
		for i := range many {
			s.put(offer{item: slice(fmt.Sprintf("s%d", i)), obj: "x"})
		}
	}
	put()
	s.end(sliceKind)
	put() // as changes: they are the same objects
	if got := s.summary(); got.refused != many || got.more {
		t.Errorf("%d are refused, more: %v", got.refused, got.more)
	}
	for i := range many {
		s.remove(slice(fmt.Sprintf("s%d", i)))
	}
	if got := s.summary(); got.refused != 0 || s.lackedRoom() {
		t.Errorf("%d are refused of none", got.refused)
	}
	for i := range maxNamed + maxUnnamed + 1 {
		s.put(offer{item: slice(fmt.Sprintf("s%d", i)), obj: "x"})
	}
	if got := s.summary(); got.refused != maxNamed+maxUnnamed || !got.more {
		t.Errorf("%d are refused, more: %v", got.refused, got.more)
	}
}

func TestSummaryNamesTheFirst(t *testing.T) {
	s, _ := newTestStore(wide)
	for i := range 500 {
		s.checked(slice(fmt.Sprintf("s%03d", (i*7)%500)), []Refusal{{RefusedInvalid, "x", 2}})
	}
	s.checked(slice("zzz"), []Refusal{{RefusedAddress, strings.Repeat("y", 5000), 1}})
	got := s.summary()
	if got.refused != 1001 || len(got.refusals) != maxRefusals || len(got.refusals[0]) > maxMessage || !strings.Contains(got.refusals[0], "zzz") {
		t.Fatalf("the summary is %+v", got)
	}
	for i, refusal := range got.refusals[1:] {
		if want := fmt.Sprintf("slice song/s%03d: %s: x", i, RefusedInvalid); refusal != want {
			t.Errorf("refusal %d is %q, want %q", i+1, refusal, want)
		}
	}
}
