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
	"cmp"
	"fmt"
	"hash/maphash"
	"slices"
	"sort"
	"sync"

	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/apply"
)

// kind is one of the two kinds that are imported.
type kind int

const (
	serviceKind kind = iota
	sliceKind
	kinds // how many there are
)

func (k kind) String() string {
	if k == serviceKind {
		return "service"
	}
	return "slice"
}

// item is one object, by the name that it has here.
type item struct {
	kind kind
	apply.Key
}

// limits bounds what is taken from one peer.
type limits struct {
	objects    [kinds]int
	endpoints  int
	namespaces int
}

func limitsOf(spec v1alpha1.ImportLimits) limits {
	value := func(set *int32, otherwise int32) int { return int(ptr.Deref(set, otherwise)) }
	return limits{
		objects: [kinds]int{
			serviceKind: value(spec.Services, v1alpha1.DefaultImportServices),
			sliceKind:   value(spec.Slices, v1alpha1.DefaultImportSlices),
		},
		endpoints:  value(spec.Endpoints, v1alpha1.DefaultImportEndpoints),
		namespaces: value(spec.Namespaces, v1alpha1.DefaultImportNamespaces),
	}
}

const (
	// maxNamed bounds how many refused objects are remembered with why, and maxUnnamed
	// how many more of each kind are counted.
	maxNamed   = 1000
	maxUnnamed = 100_000
)

// unnamed is what is remembered of one refused object beyond maxNamed.
type unnamed struct {
	reason string
	count  int
}

// hashes seeds the hashes by which unnamed objects are told apart.
var hashes = maphash.MakeSeed()

func hash(i item) uint64 { return maphash.Comparable(hashes, i) }

// entry is one object of the peer.
type entry struct {
	// obj is the object as the peer sent it, or nil where it is only known from what
	// was imported before this process began: the peer has not confirmed it yet.
	obj any
	// endpoints is how many the object takes of the limit.
	endpoints int
	// service is the Service that the object is of.
	service apply.Key
	// round is the listing that showed the object last.
	round int
}

// offer is an object as the peer sends it.
type offer struct {
	item
	obj     any
	service string
	// endpoints is how many there are in the object, and cut makes it shorter where
	// only a part of them fits.
	endpoints int
	cut       func(n int) any
	// refusal is why the object is refused by its looks.
	refusal *Refusal
}

// table is the peer's objects of one kind.
type table struct {
	entries map[apply.Key]*entry
	round   int
	// listed: the present round's listing is complete.
	listed bool
	// unnamed are the refused objects beyond maxNamed, in this round; more: not all.
	unnamed map[uint64]unnamed
	more    bool
}

// store is what is known of one peer's objects. It holds no more objects than the
// limits allow, each without its metadata and none of more than maxSize, whatever the
// peer sends. An object leaves it only on evidence.
type store struct {
	mu        sync.Mutex
	limits    limits
	tables    [kinds]table
	endpoints int
	// namespaces holds what is held in each.
	namespaces map[string]map[item]bool
	// services holds the slices of each Service.
	services map[apply.Key]map[item]bool
	// atArrival and atWriting hold why objects are refused: before they are held, and
	// when they are checked.
	atArrival map[item]Refusal
	atWriting map[item][]Refusal
	// gone holds what there is evidence against, until its import is seen to be gone.
	gone    map[item]bool
	changed func(item)
}

func newStore(changed func(item)) *store {
	s := &store{namespaces: map[string]map[item]bool{}, services: map[apply.Key]map[item]bool{}, atArrival: map[item]Refusal{}, atWriting: map[item][]Refusal{}, gone: map[item]bool{}, changed: changed}
	for k := range s.tables {
		s.tables[k].entries, s.tables[k].unnamed = map[apply.Key]*entry{}, map[uint64]unnamed{}
	}
	return s
}

// seed adds what was imported earlier, unconfirmed.
func (s *store) seed(i item, service string, endpoints int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.insert(i, &entry{service: apply.Key{Namespace: i.Namespace, Name: service}, endpoints: endpoints})
}

// adopt is told of an import that the store does not hold. It returns true where it
// is to be removed: the peer has deleted the object or was proven to have it no more,
// or the object is refused. Else it is seeded, however late, and in doubt if the
// listing is complete already.
func (s *store) adopt(i item, service string, endpoints int) (remove, doubt bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, held := s.tables[i.kind].entries[i.Key]; held {
		return false, false // it has come meanwhile, and is looked at again
	}
	if _, refused := s.atArrival[i]; refused || s.gone[i] {
		return true, false
	}
	s.insert(i, &entry{service: apply.Key{Namespace: i.Namespace, Name: service}, endpoints: endpoints})
	return false, s.tables[i.kind].listed
}

// removed is told that there is no import of an object that the store does not hold.
func (s *store) removed(i item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, held := s.tables[i.kind].entries[i.Key]; !held {
		delete(s.gone, i)
	}
}

func (s *store) setLimits(l limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits = l
}

func (s *store) insert(i item, e *entry) {
	s.tables[i.kind].entries[i.Key] = e
	if s.namespaces[i.Namespace] == nil {
		s.namespaces[i.Namespace] = map[item]bool{}
	}
	s.namespaces[i.Namespace][i] = true
	if i.kind == sliceKind {
		if s.services[e.service] == nil {
			s.services[e.service] = map[item]bool{}
		}
		s.services[e.service][i] = true
	}
	s.endpoints += e.endpoints
}

func (s *store) drop(i item) {
	e, held := s.tables[i.kind].entries[i.Key]
	if !held {
		return
	}
	delete(s.tables[i.kind].entries, i.Key)
	s.endpoints -= e.endpoints
	if delete(s.services[e.service], i); len(s.services[e.service]) == 0 {
		delete(s.services, e.service)
	}
	if delete(s.namespaces[i.Namespace], i); len(s.namespaces[i.Namespace]) == 0 {
		delete(s.namespaces, i.Namespace)
	}
}

// begin starts a listing of one kind.
func (s *store) begin(k kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.tables[k]
	t.round++
	t.listed = false
	t.unnamed, t.more = map[uint64]unnamed{}, false
	for i := range s.atArrival {
		if i.kind == k {
			delete(s.atArrival, i)
		}
	}
}

// unlist says that what the store holds is to be listed anew.
func (s *store) unlist() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.tables {
		s.tables[k].listed = false
	}
}

// end completes it, and returns how many objects it did not show.
func (s *store) end(k kind) (doubtful int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tables[k].listed = true
	return len(s.doubtfulLocked(k))
}

// put takes an object of the peer, as far as the limits allow. It returns true as
// remove does, where it makes room.
func (s *store) put(o offer) (room bool) {
	s.mu.Lock()
	defer func() {
		s.mu.Unlock()
		s.changed(o.item)
	}()
	t := &s.tables[o.kind]
	old, held := t.entries[o.Key]
	refusal := o.refusal
	if refusal == nil {
		if problem := s.exceeds(o.item, held); problem != "" {
			refusal = &Refusal{Reason: RefusedLimit, Message: problem, Count: 1}
		}
	}
	s.drop(o.item)
	if refusal != nil {
		if held {
			s.gone[o.item] = true
		}
		s.refuse(o.item, *refusal)
		return false
	}
	delete(s.gone, o.item)
	s.admit(o.item)
	if left := max(0, s.limits.endpoints-s.endpoints); o.endpoints > left {
		s.refuse(o.item, Refusal{RefusedLimit, fmt.Sprintf("%d of its %d endpoints exceed the limit of %d endpoints", o.endpoints-left, o.endpoints, s.limits.endpoints), o.endpoints - left})
		o.obj, o.endpoints = o.cut(left), left
	}
	s.insert(o.item, &entry{obj: o.obj, endpoints: o.endpoints, service: apply.Key{Namespace: o.Namespace, Name: o.service}, round: t.round})
	shorter := held && old.round == t.round && o.endpoints < old.endpoints
	return shorter && t.listed && s.lackedRoom()
}

// exceeds says which limit an object would break.
func (s *store) exceeds(i item, held bool) string {
	count, limit := len(s.tables[i.kind].entries), s.limits.objects[i.kind]
	if !held {
		count++
	}
	if count > limit {
		return fmt.Sprintf("it exceeds the limit of %d %ss", limit, i.kind)
	}
	count = len(s.namespaces)
	if s.namespaces[i.Namespace] == nil {
		count++
	}
	if count > s.limits.namespaces {
		return fmt.Sprintf("it exceeds the limit of %d namespaces", s.limits.namespaces)
	}
	return ""
}

func (s *store) refuse(i item, refusal Refusal) {
	if _, named := s.atArrival[i]; !named && len(s.atArrival) >= maxNamed {
		t := &s.tables[i.kind]
		h := hash(i)
		if _, counted := t.unnamed[h]; !counted && len(t.unnamed) >= maxUnnamed {
			t.more = true
			return
		}
		t.unnamed[h] = unnamed{refusal.Reason, refusal.Count}
		return
	}
	delete(s.tables[i.kind].unnamed, hash(i))
	s.atArrival[i] = refusal
}

// admit forgets that an object was refused.
func (s *store) admit(i item) {
	delete(s.atArrival, i)
	delete(s.tables[i.kind].unnamed, hash(i))
}

// remove forgets an object that the peer has deleted. It returns true where that
// makes room for one that was refused because of a limit.
func (s *store) remove(i item) (room bool) {
	s.mu.Lock()
	defer func() {
		s.mu.Unlock()
		s.changed(i)
	}()
	_, held := s.tables[i.kind].entries[i.Key]
	if held {
		s.gone[i] = true
	}
	s.drop(i)
	s.admit(i)
	delete(s.atWriting, i)
	return held && s.lackedRoom()
}

// lackedRoom says whether anything is refused because of a limit.
func (s *store) lackedRoom() bool {
	for _, t := range s.tables {
		if t.more {
			return true
		}
		for _, refusal := range t.unnamed {
			if refusal.reason == RefusedLimit {
				return true
			}
		}
	}
	for _, refusal := range s.atArrival {
		if refusal.Reason == RefusedLimit {
			return true
		}
	}
	return false
}

// get returns an object: held is false where it is known to be gone, and obj nil
// where the peer has not confirmed it.
func (s *store) get(i item) (obj any, held bool) {
	obj, held, _ = s.lookup(i)
	return obj, held
}

// lookup is get, and says whether the listing of the kind is complete.
func (s *store) lookup(i item) (obj any, held, listed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.tables[i.kind]
	if e, ok := t.entries[i.Key]; ok {
		return e.obj, true, t.listed
	}
	return nil, false, t.listed
}

// doubtful returns the objects that the last complete listing did not show.
func (s *store) doubtful(k kind) map[apply.Key]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doubtfulLocked(k)
}

func (s *store) doubtfulLocked(k kind) map[apply.Key]bool {
	t := &s.tables[k]
	if !t.listed {
		return nil
	}
	keys := map[apply.Key]bool{}
	for key, e := range t.entries {
		if e.round < t.round {
			keys[key] = true
		}
	}
	return keys
}

// sweep forgets doubtful objects that are proven to be gone; one that has come back
// meanwhile is left alone. It returns true as remove does.
func (s *store) sweep(k kind, gone map[apply.Key]bool) (room bool) {
	for key := range gone {
		s.mu.Lock()
		t := &s.tables[k]
		e, held := t.entries[key]
		gone := held && t.listed && e.round < t.round
		if gone {
			s.drop(item{k, key})
			s.gone[item{k, key}] = true
			delete(s.atWriting, item{k, key})
			room = s.lackedRoom()
		}
		s.mu.Unlock()
		if gone {
			s.changed(item{k, key})
		}
	}
	return room
}

// listed says whether both kinds have been listed completely.
func (s *store) listed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tables[serviceKind].listed && s.tables[sliceKind].listed
}

// checked records why an object, or some of its endpoints, was refused on writing.
func (s *store) checked(i item, refusals []Refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(refusals) == 0 {
		delete(s.atWriting, i)
		return
	}
	s.atWriting[i] = refusals
}

// items returns what is held in a namespace, or everywhere for "".
func (s *store) items(namespace string) []item {
	s.mu.Lock()
	defer s.mu.Unlock()
	var items []item
	add := func(held map[item]bool) {
		for i := range held {
			items = append(items, i)
		}
	}
	if namespace != "" {
		add(s.namespaces[namespace])
		return items
	}
	for _, held := range s.namespaces {
		add(held)
	}
	return items
}

// slicesOf returns the slices that are held of a Service.
func (s *store) slicesOf(service apply.Key) []item {
	s.mu.Lock()
	defer s.mu.Unlock()
	var items []item
	for i := range s.services[service] {
		items = append(items, i)
	}
	return items
}

// summary is what a person is told of a store.
type summary struct {
	refused    int
	more       bool // at least so many are refused
	byReason   map[string]int
	refusals   []string
	namespaces []string
}

// maxRefusals is how many refusals a status names.
const maxRefusals = 10

// line is a refusal and what it is of.
type line struct {
	item
	Refusal
}

// first keeps the first lines by reason and name, so that the status stands still.
func first(lines []line, l line) []line {
	before := func(a, b line) int {
		return cmp.Or(
			cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.kind, b.kind),
			cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Message, b.Message))
	}
	if len(lines) == maxRefusals && before(l, lines[maxRefusals-1]) >= 0 {
		return lines
	}
	at, _ := slices.BinarySearchFunc(lines, l, before)
	lines = slices.Insert(lines, at, l)
	return lines[:min(len(lines), maxRefusals)]
}

func (s *store) summary() summary {
	s.mu.Lock()
	defer s.mu.Unlock()
	result := summary{byReason: map[string]int{}}
	var lines []line
	count := func(reason string, n int) {
		result.refused += n
		result.byReason[reason] += n
	}
	for i, refusal := range s.atArrival {
		count(refusal.Reason, refusal.Count)
		lines = first(lines, line{i, refusal})
	}
	for i, refusals := range s.atWriting {
		for _, refusal := range refusals {
			count(refusal.Reason, refusal.Count)
			lines = first(lines, line{i, refusal})
		}
	}
	for _, t := range s.tables {
		for _, refusal := range t.unnamed {
			count(refusal.reason, refusal.count)
		}
		result.more = result.more || t.more
	}
	for _, l := range lines {
		result.refusals = append(result.refusals, clip(fmt.Sprintf("%s %s: %s: %s", l.kind, l.Key, l.Reason, l.Message), maxMessage))
	}
	for namespace := range s.namespaces {
		result.namespaces = append(result.namespaces, namespace)
	}
	sort.Strings(result.namespaces)
	return result
}

// String formats an item for people.
func (i item) String() string { return i.kind.String() + " " + i.Key.String() }
