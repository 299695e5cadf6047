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

package source

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// freshStore is another store than the one that the state is from.
type freshStore struct {
	epoch    string
	revision uint64 // when it was last read
	// heartbeats are what the members said when the mesh API was first seen to have
	// this store.
	heartbeats map[string]time.Time
	// atWork is set once the controller was seen to write to it.
	atWork bool
	// settled are the clusters of which all is in it: what a list of it does not have
	// of them was deleted. The others do not keep these waiting.
	settled map[string]bool
}

// Doubt is what is kept although the mesh API does not list it.
type Doubt struct {
	// Slices counts the held slices by cluster.
	Slices map[string]int
	// Specs names the GlobalServices whose spec is held.
	Specs []string
	// Members names the MeshClusters that vanished with a store.
	Members []string
	// Remembered names the clusters of which only the kernel's table knows.
	Remembered []string
}

// Any says whether anything is in doubt.
func (d Doubt) Any() bool {
	return len(d.Slices) > 0 || len(d.Specs) > 0 || len(d.Members) > 0 || len(d.Remembered) > 0
}

// Doubt returns what is in doubt now. It is asked with each probe, also while all is taken
// in after a start: it must not look at every slice.
func (s *State) Doubt() Doubt {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := Doubt{Slices: map[string]int{}}
	for cluster, t := range s.tallies {
		if t.held > 0 {
			d.Slices[cluster] = t.held
		}
	}
	if s.heldSpecs > 0 {
		for name, e := range s.entries {
			if e.specHeld {
				d.Specs = append(d.Specs, name.String())
			}
		}
	}
	for name, m := range s.members {
		if m.held {
			d.Members = append(d.Members, name)
		}
	}
	for _, name := range s.memory {
		d.Remembered = append(d.Remembered, name)
	}
	return d
}

// Epoch returns the epoch of the store that the state is from.
func (s *State) Epoch() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

// Settled says that a witness would change nothing: all that is known is in the store
// that it is from.
func (s *State) Settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.meshSynced {
		return true // what has not been listed cannot be missed
	}
	own := s.members[s.config.Cluster]
	moved := own != nil && own.Status.Epoch != "" && own.Status.Epoch != s.epoch
	return !moved && !s.holds() && len(s.memory) == 0 && s.fresh.epoch == ""
}

// Saw takes the revision of something that the mesh API has: of any kind, as they are
// all of one store.
func (s *State) Saw(revision uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision = max(s.revision, revision)
}

// Revision returns the highest revision that was seen of the store.
func (s *State) Revision() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision
}

// restored stands before the epoch of a store that went back in time: it is not the
// one that the state is from, though it has its name.
const restored = "later than "

// Resolve judges what is held, by the MeshClusters as the mesh API had them after the
// lists that missed it. before is what Revision was when they were read. It removes
// nothing without evidence:
//
//   - The local MeshCluster is absent, names no store, or its controller is not in
//     sync: doubt. Everything stays.
//   - The store is the one that the state is from: what a list does not have was
//     deleted by someone who could. All that is held goes.
//   - The store is another one, or an older copy of the same, so that it says nothing
//     about what went before: what is held of a cluster goes once the controller has
//     been seen at work in this store, for this cluster too (their heartbeats moved),
//     says that everything the cluster exports is imported, and there is something of
//     it if it says so. From then on the store has the last word on that cluster. A
//     cluster whose MeshCluster went with the old store stays.
//   - A person's spec, unlike a slice, is brought into another store by nobody but that
//     person. It stays until a person writes the GlobalService again, or it is seen to
//     be deleted there.
//   - What only the kernel's table knows of a cluster goes once the cluster is in
//     sync. That it has no MeshCluster says nothing: the store may be new. One that is
//     seen to be deleted takes it along; see DeleteMember.
//
// Once nothing is held, the state is from this store. Until then the snapshot names
// the old one, so that the next agent doubts too.
func (s *State) Resolve(members map[string]Member, before uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	local, ok := members[s.config.Cluster]
	if !s.meshSynced || !ok || local.Status.Epoch == "" || !local.Status.ExportsSynced {
		return
	}

	for id, name := range s.memory {
		if m, member := members[name]; member && s.complete(m) {
			delete(s.memory, id)
			s.touchAll()
		}
	}
	if len(s.memory) == 0 {
		for name, e := range s.entries {
			if e.remembered != nil {
				e.remembered = nil
				s.tidy(name)
			}
		}
	}

	if s.epoch == local.Status.Epoch && local.Status.Revision < before {
		s.epoch = restored + s.epoch
	}
	if s.epoch == local.Status.Epoch {
		s.fresh = freshStore{}
		s.dropHeld(func(desired.Name, string) bool { return true })
		s.dropHeldSpecs(func(desired.Name) bool { return true })
		s.dropHeldMembers(members, func(string) bool { return true })
		return
	}

	if s.epoch == "" && !s.loaded && !s.holds() {
		s.settle(local.Status)
		return
	}
	if s.fresh.epoch != local.Status.Epoch || local.Status.Revision < s.fresh.revision {
		s.fresh = freshStore{
			epoch: local.Status.Epoch, revision: local.Status.Revision,
			heartbeats: map[string]time.Time{}, settled: map[string]bool{},
		}
		for name, m := range members {
			s.fresh.heartbeats[name] = m.Status.Heartbeat
		}
		for _, e := range s.entries {
			e.specStore = "" // an older copy has the name of the store that it is of
		}
		return
	}
	s.fresh.revision = local.Status.Revision
	if !s.fresh.atWork && !s.moved(local) {
		return
	}
	s.fresh.atWork = true
	all := true
	for name, m := range members {
		if name == s.config.Cluster {
			continue
		}
		if s.confirmed(m) {
			s.fresh.settled[name] = true
		}
		all = all && s.fresh.settled[name]
	}
	s.dropHeld(func(_ desired.Name, cluster string) bool {
		_, listed := members[cluster]
		_, counts := s.members[cluster]
		// One that counts nowhere was no member before either.
		return s.fresh.settled[cluster] || !listed && !counts
	})
	s.dropHeldMembers(members, func(name string) bool { return s.fresh.settled[name] })
	for name, e := range s.entries {
		if e.specHeld && e.specStore == s.fresh.epoch {
			s.removeSpec(name)
		}
	}
	if all && !s.holds() {
		s.settle(local.Status)
	}
}

// dropHeldMembers forgets the held MeshClusters that match and are not listed.
func (s *State) dropHeldMembers(listed map[string]Member, match func(name string) bool) {
	for name, m := range s.members {
		if _, ok := listed[name]; m.held && !ok && match(name) {
			s.removeMember(name)
		}
	}
}

// complete says whether the controller says that all of a member's exports are here,
// and there is something if it says so.
func (s *State) complete(m Member) bool {
	return m.Status.Synced && (m.Status.Endpoints == 0 || s.tallies[m.Name].live > 0)
}

// confirmed says whether all of a member's exports have been brought into the fresh
// store.
func (s *State) confirmed(m Member) bool {
	return s.complete(m) && s.moved(m)
}

// moved says whether the controller has written the member's status since the store
// was first seen.
func (s *State) moved(m Member) bool {
	first, seen := s.fresh.heartbeats[m.Name]
	return !seen || m.Status.Heartbeat.After(first)
}

func (s *State) holds() bool {
	if s.heldSlices > 0 || s.heldSpecs > 0 {
		return true
	}
	for _, m := range s.members {
		if m.held {
			return true
		}
	}
	return false
}

// settle takes up a store: from now on the state is from it.
func (s *State) settle(local Status) {
	s.epoch, s.revision = local.Epoch, local.Revision
	s.fresh = freshStore{}
	s.version++
}

// String says what is in doubt, for people.
func (d Doubt) String() string {
	var parts []string
	for _, cluster := range slices.Sorted(maps.Keys(d.Slices)) {
		parts = append(parts, fmt.Sprintf("%d slices of %s", d.Slices[cluster], cluster))
	}
	if len(d.Specs) > 0 {
		names := slices.Sorted(slices.Values(d.Specs))
		const most = 10
		if len(names) > most {
			names = append(names[:most], fmt.Sprintf("and %d more", len(d.Specs)-most))
		}
		parts = append(parts, "the spec of GlobalService "+strings.Join(names, ", "))
	}
	if len(d.Members) > 0 {
		parts = append(parts, "MeshCluster "+strings.Join(slices.Sorted(slices.Values(d.Members)), ", "))
	}
	if len(d.Remembered) > 0 {
		parts = append(parts, "what the kernel's table held of "+strings.Join(slices.Sorted(slices.Values(d.Remembered)), ", "))
	}
	return strings.Join(parts, "; ")
}
