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

// freshStore is what the members said when the mesh API was first seen to have
// another store than the one that the state is from.
type freshStore struct {
	epoch      string
	heartbeats map[string]time.Time
}

// Doubt is what is kept although the mesh API does not list it.
type Doubt struct {
	// Slices counts the held slices by cluster, Specs the held specs.
	Slices map[string]int
	Specs  int
	// Members names the MeshClusters that vanished with a store.
	Members []string
	// Remembered names the clusters of which only the kernel's table knows.
	Remembered []string
}

// Any says whether anything is in doubt.
func (d Doubt) Any() bool {
	return len(d.Slices) > 0 || d.Specs > 0 || len(d.Members) > 0 || len(d.Remembered) > 0
}

// Doubt returns what is in doubt now.
func (s *State) Doubt() Doubt {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := Doubt{Slices: map[string]int{}}
	for _, e := range s.entries {
		if e.specHeld {
			d.Specs++
		}
		for _, r := range e.remote {
			if r.held {
				d.Slices[r.Cluster]++
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

// Settled says that nothing is held, all is in sync, and the store is known: a
// witness would change nothing.
func (s *State) Settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.meshSynced || s.epoch != "" && s.fresh.epoch == "" && len(s.memory) == 0 && s.epochSeen == s.epoch && !s.holds()
}

// Revision returns the highest resource version of the local MeshCluster that was
// seen.
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
//   - The store is another one, or an older copy of the same, so that it says nothing about what went before:
//     what is held of a cluster goes once the controller has been seen at work in this
//     store, for this cluster too (their heartbeats moved), says that everything the
//     cluster exports is imported, and there is something of it if it says so. A
//     cluster whose MeshCluster went with the old store stays.
//   - What only the kernel's table knows of a cluster goes once the cluster is in
//     sync, or is not a member.
//
// Once nothing is held, the state is from this store.
func (s *State) Resolve(members map[string]Member, before uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	local, ok := members[s.config.Cluster]
	if !s.meshSynced || !ok || local.Status.Epoch == "" || !local.Status.ExportsSynced {
		return
	}

	for id, name := range s.memory {
		m, member := members[name]
		if !member || m.Status.Synced {
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
		for name, m := range s.members {
			if _, listed := members[name]; m.held && !listed {
				s.removeMember(name)
			}
		}
		return
	}

	if s.epoch == "" && !s.loaded && !s.holds() {
		s.settle(local.Status)
		return
	}
	if s.fresh.epoch != local.Status.Epoch {
		s.fresh = freshStore{epoch: local.Status.Epoch, heartbeats: map[string]time.Time{}}
		for name, m := range members {
			s.fresh.heartbeats[name] = m.Status.Heartbeat
		}
		return
	}
	if !s.moved(local) {
		return
	}
	s.dropHeldSpecs(func(desired.Name) bool { return true })
	live := s.liveSlices()
	confirmed := func(m Member) bool {
		return m.Status.Synced && s.moved(m) && (m.Status.Endpoints == 0 || live[m.Name] > 0)
	}
	s.dropHeld(func(_ desired.Name, cluster string) bool {
		m, ok := members[cluster]
		if _, counts := s.members[cluster]; !ok && !counts {
			return true // it was no member before either
		}
		return ok && confirmed(m)
	})
	for name, m := range members {
		if name != s.config.Cluster && !confirmed(m) {
			return
		}
	}
	if !s.holds() {
		s.settle(local.Status)
	}
}

// moved says whether the controller has written the member's status since the store
// was first seen.
func (s *State) moved(m Member) bool {
	first, seen := s.fresh.heartbeats[m.Name]
	return !seen || m.Status.Heartbeat.After(first)
}

func (s *State) holds() bool {
	if s.heldSlices > 0 {
		return true
	}
	for _, m := range s.members {
		if m.held {
			return true
		}
	}
	for _, e := range s.entries {
		if e.specHeld {
			return true
		}
	}
	return false
}

func (s *State) liveSlices() map[string]int {
	live := map[string]int{}
	for _, e := range s.entries {
		for _, r := range e.remote {
			if !r.held {
				live[r.Cluster]++
			}
		}
	}
	return live
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
	if d.Specs > 0 {
		parts = append(parts, fmt.Sprintf("%d GlobalService specs", d.Specs))
	}
	if len(d.Members) > 0 {
		parts = append(parts, "MeshCluster "+strings.Join(slices.Sorted(slices.Values(d.Members)), ", "))
	}
	if len(d.Remembered) > 0 {
		parts = append(parts, "what the kernel's table held of "+strings.Join(slices.Sorted(slices.Values(d.Remembered)), ", "))
	}
	return strings.Join(parts, "; ")
}
