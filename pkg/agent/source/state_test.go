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
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

var userlist = desired.Name{Namespace: "song", Name: "userlist"}

// node is a State with what goes on around it.
type node struct {
	*testing.T
	*State
	clock time.Time
}

func newNode(t *testing.T) *node {
	return &node{T: t, State: NewState(Config{Cluster: "cluster1", Namespace: "mesh-system", Policy: policy.Reader{}})}
}

func imported(cluster, object string, addrs ...string) *desired.Slice {
	return importedFor(userlist, cluster, object, addrs...)
}

func importedFor(service desired.Name, cluster, object string, addrs ...string) *desired.Slice {
	s := &desired.Slice{
		Cluster: cluster, Service: service, Object: object,
		Ports: []desired.SlicePort{{Name: "http", Protocol: desired.TCP, Port: 8181}},
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, desired.Endpoint{Addr: netip.MustParseAddr(a)})
	}
	return s
}

func member(name string, id uint16) Member {
	return Member{Member: desired.Member{Name: name, ID: id}}
}

// known is a State that has been in sync with store e1: one slice each of cluster2 and
// cluster3, a spec, and their MeshClusters.
func known(t *testing.T) *node {
	n := newNode(t)
	n.SetNamespace("song", nil)
	n.SetService(userlist, &desired.LocalService{Annotations: map[string]string{"mesh.io/global": "true"}})
	for i, name := range []string{"cluster1", "cluster2", "cluster3"} {
		n.SetMember(member(name, uint16(i+1)))
	}
	n.SetSpec(userlist, &v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityLocal})
	n.SetImported(imported("cluster2", "cluster2.a", "10.2.0.1"))
	n.SetImported(imported("cluster3", "cluster3.a", "10.3.0.1"))
	n.SyncedLocal()
	n.SyncedMesh()
	n.Resolve(n.says("e1"), n.Revision())
	if n.Epoch() != "e1" || n.Doubt().Any() {
		t.Fatalf("epoch %q, doubt %v", n.Epoch(), n.Doubt())
	}
	return n
}

// says is what the mesh API says of a store: all clusters in sync, at a time that
// moves on with each call.
func (n *node) says(epoch string, change ...func(map[string]Member)) map[string]Member {
	n.clock = n.clock.Add(time.Second)
	members := map[string]Member{}
	for i, name := range []string{"cluster1", "cluster2", "cluster3"} {
		m := member(name, uint16(i+1))
		m.Status = Status{Heartbeat: n.clock, Synced: name != "cluster1"}
		if name == "cluster1" {
			m.Status.Epoch, m.Status.ExportsSynced = epoch, true
		}
		members[name] = m
	}
	for _, f := range change {
		f(members)
	}
	return members
}

func with(name string, change func(*Status)) func(map[string]Member) {
	return func(members map[string]Member) {
		m := members[name]
		change(&m.Status)
		members[name] = m
	}
}

func without(name string) func(map[string]Member) {
	return func(members map[string]Member) { delete(members, name) }
}

// emptyList is what informers say when a list has nothing any more.
func (n *node) emptyList() {
	n.MissImported("song", "cluster2.a")
	n.MissImported("song", "cluster3.a")
	n.MissSpec(userlist)
	for _, name := range []string{"cluster1", "cluster2", "cluster3"} {
		n.MissMember(name)
	}
}

// has says what the state would build the service from.
func (n *node) has() string {
	n.State.mu.Lock()
	defer n.State.mu.Unlock()
	in, mesh := n.input(userlist), n.mesh()
	var words []string
	for _, s := range in.Remote {
		if _, ok := mesh.Members[s.Cluster]; ok {
			for _, e := range s.Endpoints {
				words = append(words, e.Addr.String())
			}
		}
	}
	for _, b := range in.Remembered {
		for _, b := range b {
			if _, ok := mesh.Remembered[b.ClusterID]; ok {
				words = append(words, b.Addr.Addr().String())
			}
		}
	}
	slices.Sort(words)
	if in.Spec != nil {
		words = append(words, "spec")
	}
	return strings.Join(words, " ")
}

func (n *node) want(when, want string) {
	n.Helper()
	if got := n.has(); got != want {
		n.Errorf("%s\n got %q\nwant %q", when, got, want)
	}
}

const everything = "10.2.0.1 10.3.0.1 spec"

func TestNothingIsRemovedOnDoubt(t *testing.T) {
	for name, doubt := range map[string]func(*node){
		"the list is empty, and nobody has said why": func(n *node) {},
		"the mesh API has no MeshCluster of our own": func(n *node) {
			n.Resolve(n.says("e1", without("cluster1")), n.Revision())
			n.Resolve(n.says("e2", without("cluster1")), n.Revision())
		},
		"the mesh API has no MeshCluster at all": func(n *node) {
			n.Resolve(map[string]Member{}, n.Revision())
		},
		"the store has no epoch yet": func(n *node) {
			for range 3 {
				n.Resolve(n.says(""), n.Revision())
			}
		},
		"our controller has not synced its exports": func(n *node) {
			for range 3 {
				n.Resolve(n.says("e1", with("cluster1", func(s *Status) { s.ExportsSynced = false })), n.Revision())
			}
		},
		"the store is new, and was only just seen": func(n *node) {
			n.Resolve(n.says("e2"), n.Revision())
		},
		"the store is new, and nobody writes to it: a backup with conditions of old": func(n *node) {
			restored := n.says("e2")
			for range 5 {
				n.Resolve(restored, n.Revision())
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := known(t)
			n.emptyList()
			doubt(n)
			n.want("in doubt", everything)
			if d := n.Doubt(); d.Slices["cluster2"] != 1 || d.Slices["cluster3"] != 1 || !slices.Equal(d.Specs, []string{"song/userlist"}) {
				t.Errorf("what is in doubt is not reported: %v", d)
			}
			// Whatever happens to the mesh API next, the agent can restart.
			n.restart()
			doubt(n)
			n.want("in doubt after a restart", everything)
		})
	}
}

// restart makes a new state of the snapshot of the old one, in sync with an empty API.
func (n *node) restart() {
	n.Helper()
	remote, _, whole := n.Remote()
	if !whole {
		n.Fatal("nothing to keep on disk")
	}
	next := newNode(n.T)
	next.Load(remote)
	next.SetNamespace("song", nil)
	next.SetService(userlist, &desired.LocalService{Annotations: map[string]string{"mesh.io/global": "true"}})
	next.SyncedLocal()
	next.SyncedMesh()
	n.State = next.State
}

func TestDoubtOfOneClusterOnly(t *testing.T) {
	for name, change := range map[string]func(map[string]Member){
		"its imports are not in sync":                     with("cluster3", func(s *Status) { s.Synced = false }),
		"its MeshCluster went with the old store":         without("cluster3"),
		"it has not been heard of in the new store":       with("cluster3", func(s *Status) { s.Heartbeat = time.Time{}.Add(time.Second) }),
		"the list is empty and its MeshCluster says more": with("cluster3", func(s *Status) { s.Endpoints = 5 }),
	} {
		t.Run(name, func(t *testing.T) {
			n := known(t)
			n.emptyList()
			for _, name := range []string{"cluster1", "cluster2"} {
				m := n.says("e2")[name]
				n.SetMember(m)
			}
			n.clock = time.Time{}
			for range 4 {
				n.Resolve(n.says("e2", change), n.Revision())
			}
			n.want("cluster2 is settled, cluster3 is not", "10.3.0.1 spec")
			if n.Epoch() != "e1" {
				t.Errorf("took up store %q while in doubt", n.Epoch())
			}
		})
	}
}

func TestEvidenceRemoves(t *testing.T) {
	t.Run("a DELETED event", func(t *testing.T) {
		n := known(t)
		n.DeleteImported("song", "cluster2.a")
		n.want("after the event of a slice", "10.3.0.1 spec")
		n.DeleteSpec(userlist)
		n.want("after the event of a spec", "10.3.0.1")
	})
	t.Run("a synced list under the same store epoch", func(t *testing.T) {
		n := known(t)
		n.MissImported("song", "cluster2.a")
		n.want("before anybody has asked", everything)
		n.Resolve(n.says("e1"), n.Revision())
		n.want("once the store is known to be the same", "10.3.0.1 spec")
	})
	t.Run("a synced list under the same store epoch, after a restart", func(t *testing.T) {
		n := known(t)
		n.restart()
		n.SetImported(imported("cluster3", "cluster3.a", "10.3.0.1"))
		for i, name := range []string{"cluster1", "cluster2", "cluster3"} {
			n.SetMember(member(name, uint16(i+1)))
		}
		n.Resolve(n.says("e1"), n.Revision())
		n.want("cluster2's slice was deleted while the agent was down, and so was the spec", "10.3.0.1")
	})
	t.Run("the MeshCluster deleted by a person, at once", func(t *testing.T) {
		n := known(t)
		n.DeleteMember("cluster2")
		n.want("after the event", "10.3.0.1 spec")
	})
	t.Run("the MeshCluster deleted while the agent was down", func(t *testing.T) {
		n := known(t)
		n.restart()
		n.SetImported(imported("cluster3", "cluster3.a", "10.3.0.1"))
		n.SetMember(member("cluster3", 3))
		n.Resolve(n.says("e1", without("cluster2")), n.Revision())
		n.want("the list has no cluster2", "10.3.0.1")
	})
	t.Run("the MeshCluster deleted takes what is held of the cluster with it", func(t *testing.T) {
		n := known(t)
		n.emptyList()
		n.DeleteMember("cluster2")
		n.SetMember(member("cluster2", 2))
		n.want("a new MeshCluster of the name does not bring it back", "10.3.0.1 spec")
	})
	t.Run("the namespace deleted here takes what is held in it", func(t *testing.T) {
		n := known(t)
		n.emptyList()
		n.DeleteNamespace("song")
		n.SetNamespace("song", nil)
		n.want("a new namespace of the name does not bring it back", "")
	})
	t.Run("the namespace deleted while the agent was down", func(t *testing.T) {
		n := known(t)
		remote, _, _ := n.Remote()
		next := newNode(t)
		next.Load(remote)
		next.SyncedLocal()
		next.want("nothing of it is left", "")
	})
	t.Run("an address taken over by another endpoint of its service", func(t *testing.T) {
		n := known(t)
		n.emptyList()
		n.SetImported(imported("cluster2", "cluster2.b", "10.2.0.9"))
		n.want("another address", "10.2.0.1 10.2.0.9 10.3.0.1 spec")
		notReady := imported("cluster2", "cluster2.b", "10.2.0.9", "10.2.0.1")
		notReady.Endpoints[1].State = desired.NotReady
		n.SetImported(notReady)
		n.want("it is in one slice now", "10.2.0.1 10.2.0.9 10.3.0.1 spec")
		n.DeleteImported("song", "cluster2.b")
		n.want("that slice had the last word", "10.3.0.1 spec")
	})
	t.Run("an address taken over by a backend of another cluster", func(t *testing.T) {
		n := known(t)
		other := desired.Name{Namespace: "song", Name: "other"}
		n.SetImported(importedFor(other, "cluster2", "cluster2.o", "10.2.0.9"))
		n.emptyList()
		n.SetImported(importedFor(other, "cluster2", "cluster2.o", "10.2.0.9", "10.3.0.1"))
		n.want("a pod of cluster2 has it now", "10.2.0.1 spec")
	})
	t.Run("an address that another cluster has offered all along", func(t *testing.T) {
		n := known(t)
		other := desired.Name{Namespace: "song", Name: "other"}
		n.SetImported(importedFor(other, "cluster2", "cluster2.o", "10.3.0.1"))
		n.emptyList()
		n.SetImported(importedFor(other, "cluster2", "cluster2.o", "10.3.0.1", "10.2.0.9"))
		n.SetImported(importedFor(other, "cluster2", "cluster2.p", "10.3.0.1"))
		n.SetImported(importedFor(other, "cluster7", "cluster7.o", "10.2.0.1")) // of no member
		n.want("nobody took it over", everything)
	})
	t.Run("an address taken over while the agent was down", func(t *testing.T) {
		n := known(t)
		remote, _, _ := n.Remote()
		next := newNode(t)
		next.Load(remote)
		next.SetNamespace("song", nil)
		next.SyncedLocal()
		next.SetImported(importedFor(desired.Name{Namespace: "song", Name: "other"}, "cluster2", "cluster2.o", "10.3.0.1"))
		if next.heldAt != nil {
			t.Error("each slice of the first list is compared with what is held")
		}
		next.want("before the first list has come to its end", "10.2.0.1 10.3.0.1 spec")
		next.SyncedMesh()
		next.want("once it has", "10.2.0.1 spec")
	})
	t.Run("a new store, once the controller has brought everything into it", func(t *testing.T) {
		n := known(t)
		n.emptyList()
		n.SetMember(member("cluster1", 1))
		n.SetMember(member("cluster2", 2))
		n.SetMember(member("cluster3", 3))
		n.SetImported(imported("cluster4", "cluster4.a", "10.4.0.1")) // of no member
		n.MissImported("song", "cluster4.a")
		n.SetImported(imported("cluster2", "cluster2.b", "10.2.0.2"))
		n.want("while it does, old and new stand side by side", "10.2.0.1 10.2.0.2 10.3.0.1 spec")
		endpoints := with("cluster2", func(s *Status) { s.Endpoints = 1 })
		n.Resolve(n.says("e2", endpoints), n.Revision())
		n.want("at first sight of the store", "10.2.0.1 10.2.0.2 10.3.0.1 spec")
		n.Resolve(n.says("e2", endpoints), n.Revision())
		n.want("once the heartbeats have moved", "10.2.0.2 spec")
		if d := n.Doubt().String(); d != "the spec of GlobalService song/userlist" {
			t.Errorf("in doubt is %q", d)
		}
		n.SetSpec(userlist, &v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityRemote})
		n.Resolve(n.says("e2", endpoints), n.Revision())
		if n.Epoch() != "e2" || n.Doubt().Any() {
			t.Errorf("epoch %q, doubt %v", n.Epoch(), n.Doubt())
		}
	})
}

// TestTwoServicesOverTheSamePods have each address twice: one does not take it from
// the other.
func TestTwoServicesOverTheSamePods(t *testing.T) {
	n := known(t)
	n.emptyList()
	n.SetImported(importedFor(desired.Name{Namespace: "song", Name: "userlist-canary"}, "cluster2", "cluster2.canary", "10.2.0.1"))
	n.want("the pod is still one of the service", everything)
}

// TestWhatIsHeldIsFoundByAddress goes through all that changes the index.
func TestWhatIsHeldIsFoundByAddress(t *testing.T) {
	n := known(t)
	check := func(when string, want ...string) {
		t.Helper()
		n.SetImported(imported("cluster4", "cluster4.z")) // makes the index if there is any need
		var got []string
		for addr, keys := range n.heldAt {
			for _, key := range keys {
				got = append(got, addr.String()+" "+key.name)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", when, got, want)
		}
		tallies, held := map[string]tally{}, 0
		for _, e := range n.entries {
			for _, r := range e.remote {
				c := tallies[r.Cluster]
				if r.held {
					held++
					c.held++
				} else {
					c.live++
				}
				tallies[r.Cluster] = c
			}
		}
		if !maps.Equal(tallies, n.tallies) || held != n.heldSlices {
			t.Errorf("%s: counted %v and %d, want %v and %d", when, n.tallies, n.heldSlices, tallies, held)
		}
	}
	check("nothing is held")
	n.MissImported("song", "cluster2.a")
	check("one is", "10.2.0.1 cluster2.a")
	n.MissImported("song", "cluster3.a")
	n.MissImported("song", "cluster3.a")
	check("two are", "10.2.0.1 cluster2.a", "10.3.0.1 cluster3.a")
	n.SetImported(imported("cluster2", "cluster2.b", "10.2.0.1"))
	check("one is taken over", "10.3.0.1 cluster3.a")
	n.SetImported(imported("cluster2", "cluster2.a", "10.2.0.1"))
	n.MissImported("song", "cluster2.a")
	check("one is listed again, and missed again", "10.2.0.1 cluster2.a", "10.3.0.1 cluster3.a")
	n.DeleteImported("song", "cluster2.a")
	n.DeleteMember("cluster3")
	check("all are gone")
	if n.heldSlices != 0 {
		t.Errorf("%d are counted", n.heldSlices)
	}
}

// TestAnArrivalCostsWhatArrived holds many slices while others arrive.
func TestAnArrivalCostsWhatArrived(t *testing.T) {
	const held, arrive = 10_000, 5_000
	n := known(t)
	for i := range held {
		service := desired.Name{Namespace: "song", Name: fmt.Sprintf("s%d", i)}
		addr := netip.AddrFrom4([4]byte{10, 3, byte(i >> 8), byte(i)}).String()
		n.SetImported(importedFor(service, "cluster3", service.Name, addr))
		n.MissImported("song", service.Name)
	}
	begin := time.Now()
	for i := range arrive {
		n.SetImported(imported("cluster2", fmt.Sprintf("cluster2.%d", i%10), netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}).String()))
	}
	// It takes a few milliseconds; to look at all that is held takes seconds.
	if took := time.Since(begin); took > time.Second {
		t.Errorf("%d slices took %s to arrive", arrive, took)
	} else {
		t.Logf("%d slices took %s to arrive", arrive, took)
	}
}

// TestAPersonsSpecOutlivesTheStore loses the store, and the controller makes the
// GlobalService again, with nothing in it.
func TestAPersonsSpecOutlivesTheStore(t *testing.T) {
	// lose is the loss in the order in which it may be seen.
	for name, lose := range map[string]func(*node){
		"a list misses it": func(n *node) {
			n.emptyList()
			n.Resolve(n.says("e2"), n.Revision())
		},
		"a later list misses it, too": func(n *node) {
			n.emptyList()
			for range 3 {
				n.Resolve(n.says("e2"), n.Revision())
			}
			n.MissSpec(userlist)
		},
		"the next agent sees only the new store": func(n *node) {
			n.restart()
		},
		"one agent sees the loss, the next one the new store": func(n *node) {
			n.emptyList()
			for range 3 {
				n.Resolve(n.says("e2"), n.Revision())
			}
			n.restart()
		},
	} {
		t.Run(name, func(t *testing.T) {
			begin := func() *node {
				n := known(t)
				lose(n)
				for range 3 {
					says := n.says("e2")
					for _, m := range says {
						n.SetMember(m)
					}
					n.Resolve(says, n.Revision())
				}
				if got := n.affinity(); got != v1alpha1.AffinityLocal {
					t.Fatalf("affinity is %q", got)
				}
				if d := n.Doubt().String(); d != "the spec of GlobalService song/userlist" {
					t.Errorf("in doubt is %q", d)
				}
				return n
			}
			settled := func(n *node, want v1alpha1.Affinity) {
				t.Helper()
				n.Resolve(n.says("e2"), n.Revision())
				if got := n.affinity(); got != want || n.Doubt().Any() || n.Epoch() != "e2" {
					t.Errorf("affinity %q, want %q; doubt %v, epoch %q", got, want, n.Doubt(), n.Epoch())
				}
			}
			n := begin()
			n.SetSpec(userlist, &v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityRemote})
			settled(n, v1alpha1.AffinityRemote) // a person wrote it again
			n = begin()
			n.SetSpec(userlist, &v1alpha1.GlobalServiceSpec{})
			settled(n, "") // a person made it empty
			n = begin()
			n.DeleteSpec(userlist)
			settled(n, "") // it was deleted in the new store
		})
	}
	t.Run("in the same store it was deleted by someone who could", func(t *testing.T) {
		n := known(t)
		n.MissSpec(userlist)
		n.Resolve(n.says("e1"), n.Revision())
		if got := n.affinity(); got != "" || n.Doubt().Any() {
			t.Errorf("affinity is %q, doubt %v", got, n.Doubt())
		}
	})
	t.Run("one that was written in the new store, and is missed there, was deleted", func(t *testing.T) {
		n := known(t)
		other := desired.Name{Namespace: "song", Name: "other"}
		n.emptyList()
		for range 2 {
			n.Resolve(n.says("e2"), n.Revision())
		}
		n.SetSpec(other, &v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityRemote})
		n.MissSpec(other)
		for _, m := range n.says("e2") {
			n.SetMember(m)
		}
		if n.Settled() {
			t.Error("nobody is asked what became of it")
		}
		n.Resolve(n.says("e2"), n.Revision())
		if d := n.Doubt().Specs; !slices.Equal(d, []string{"song/userlist"}) {
			t.Errorf("in doubt are %v", d)
		}
	})
}

// affinity is that of the spec, if there is any.
func (n *node) affinity() v1alpha1.Affinity {
	n.State.mu.Lock()
	defer n.State.mu.Unlock()
	if spec := n.input(userlist).Spec; spec != nil {
		return spec.Affinity
	}
	return ""
}

// TestADeadClusterKeepsNobodyWaiting takes up a new store while cluster3 is dead.
func TestADeadClusterKeepsNobodyWaiting(t *testing.T) {
	n := known(t)
	dead := func(members map[string]Member) {
		m := members["cluster3"]
		m.Status.Synced, m.Status.Heartbeat = false, time.Time{}
		members["cluster3"] = m
	}
	hear := func(change ...func(map[string]Member)) {
		says := n.says("e2", change...)
		for _, m := range says {
			n.SetMember(m)
		}
		if !n.Settled() {
			n.Resolve(says, n.Revision())
		}
	}
	n.emptyList()
	n.SetSpec(userlist, &v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityLocal})
	for range 3 {
		hear(dead)
	}
	n.want("what is held of the dead one stays", "10.3.0.1 spec")
	n.SetImported(imported("cluster2", "cluster2.a", "10.2.0.1"))
	n.MissImported("song", "cluster2.a")
	hear(dead)
	n.want("for cluster2 the new store has the last word", "10.3.0.1 spec")
	n.MissMember("cluster2")
	hear(dead, without("cluster2"))
	if d := n.Doubt(); len(d.Members) > 0 {
		t.Errorf("MeshClusters in doubt: %v", d.Members)
	}
	if n.Epoch() != "e1" {
		t.Errorf("the next agent would not doubt what is held of cluster3: epoch %q", n.Epoch())
	}
	hear(without("cluster2"))
	n.want("cluster3 is back", "spec")
	if n.Epoch() != "e2" || n.Doubt().Any() || !n.Settled() {
		t.Errorf("epoch %q, doubt %v, settled %v", n.Epoch(), n.Doubt(), n.Settled())
	}
}

func TestAListThatHasEverythingAgainEndsTheDoubt(t *testing.T) {
	n := known(t)
	n.emptyList()
	n.SetImported(imported("cluster2", "cluster2.a", "10.2.0.1"))
	n.SetImported(imported("cluster3", "cluster3.a", "10.3.0.1"))
	n.SetSpec(userlist, &v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityLocal})
	for i, name := range []string{"cluster1", "cluster2", "cluster3"} {
		n.SetMember(member(name, uint16(i+1)))
	}
	if d := n.Doubt(); d.Any() {
		t.Errorf("still in doubt: %v", d)
	}
	if !n.Settled() {
		// The epoch that MeshCluster cluster1 names here is none.
		n.Resolve(n.says("e1"), n.Revision())
	}
	n.want("nothing was ever missing", everything)
}

// TestAStoreThatChangesUnseen makes the store new while no list ever misses anything:
// what a later list misses must still be in doubt.
func TestAStoreThatChangesUnseen(t *testing.T) {
	n := known(t)
	n.Resolve(n.says("e2"), n.Revision())
	n.MissImported("song", "cluster2.a")
	n.want("in doubt", everything)
	n.Resolve(n.says("e2", with("cluster2", func(s *Status) { s.Synced = false })), n.Revision())
	n.want("the controller has not brought cluster2 into it", everything)
	n.Resolve(n.says("e2"), n.Revision())
	n.want("now it has", "10.3.0.1 spec")
}

// TestAnOlderCopyOfTheStore has the epoch that the agent knows, and less in it.
func TestAnOlderCopyOfTheStore(t *testing.T) {
	n := known(t)
	at := func(revision uint64) func(map[string]Member) {
		return with("cluster1", func(s *Status) { s.Revision = revision })
	}
	n.Saw(100)
	n.MissImported("song", "cluster2.a")
	n.Resolve(n.says("e1", at(50), with("cluster2", func(s *Status) { s.Synced = false })), n.Revision())
	n.want("the store went back in time", everything)
	n.restart()
	n.SetImported(imported("cluster3", "cluster3.a", "10.3.0.1"))
	n.SetSpec(userlist, &v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityLocal})
	n.Resolve(n.says("e1", at(51), with("cluster2", func(s *Status) { s.Synced = false })), n.Revision())
	n.want("the next agent knows it too", everything)
	n.SetMember(n.says("e1")["cluster2"])
	n.SetMember(n.says("e1")["cluster3"])
	n.SetMember(n.says("e1", at(52))["cluster1"])
	for range 2 {
		n.Resolve(n.says("e1", at(53)), n.Revision())
	}
	n.want("the controller has brought everything into it", "10.3.0.1 spec")
	if n.Epoch() != "e1" || n.Doubt().Any() {
		t.Errorf("epoch %q, doubt %v", n.Epoch(), n.Doubt())
	}
}

func TestWhatTheKernelRemembers(t *testing.T) {
	frontend := desired.Frontend{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Protocol: desired.TCP}
	table := desired.Table{
		Services: map[desired.Frontend]desired.Service{frontend: {
			Frontend: frontend, Port: desired.ServicePort{Namespace: "song", Name: "userlist", Port: "http"},
			Backends: []desired.Backend{
				{Addr: netip.MustParseAddrPort("10.1.0.1:8181"), ClusterID: 1},
				{Addr: netip.MustParseAddrPort("10.2.0.1:8181"), ClusterID: 2},
				{Addr: netip.MustParseAddrPort("10.3.0.1:8181"), ClusterID: 3},
			},
		}},
		Clusters: map[uint16]string{1: "cluster1", 2: "cluster2", 3: "cluster3"},
	}
	begin := func(t *testing.T) *node {
		n := newNode(t)
		n.Remember(table)
		n.SetNamespace("song", nil)
		n.SetService(userlist, &desired.LocalService{})
		n.SyncedLocal()
		return n
	}
	t.Run("remote backends stay while nothing else is known of their cluster", func(t *testing.T) {
		n := begin(t)
		n.want("the mesh API is down", "10.2.0.1 10.3.0.1")
		n.SetImported(imported("cluster2", "cluster2.a", "10.2.0.2"))
		n.want("a part of a list does not count", "10.2.0.1 10.3.0.1")
		n.SyncedMesh()
		n.SetMember(member("cluster2", 2))
		n.want("the list may be of a new store", "10.2.0.1 10.2.0.2 10.3.0.1")
		if _, _, whole := n.Remote(); whole {
			t.Error("a snapshot now would forget what only the kernel remembers")
		}
		n.Resolve(n.says("e1", with("cluster3", func(s *Status) { s.Synced = false })), n.Revision())
		n.want("cluster2 is in sync, cluster3 is not", "10.2.0.2 10.3.0.1")
		n.Resolve(n.says("e1"), n.Revision())
		n.want("both are", "10.2.0.2")
		if _, _, whole := n.Remote(); !whole {
			t.Error("nothing more is missing for a snapshot")
		}
	})
	t.Run("a store that was emptied takes nothing away", func(t *testing.T) {
		n := begin(t)
		n.SyncedMesh()
		for range 5 { // the controller is at work, and has made our own MeshCluster
			says := n.says("e2", without("cluster2"), without("cluster3"))
			n.SetMember(says["cluster1"])
			n.Resolve(says, n.Revision())
		}
		n.want("the others have no MeshCluster yet", "10.2.0.1 10.3.0.1")
		if d := n.Doubt().String(); d != "what the kernel's table held of cluster2, cluster3" {
			t.Errorf("in doubt is %q", d)
		}
		n.SetMember(member("cluster2", 2))
		n.SetMember(member("cluster3", 3))
		n.DeleteMember("cluster2")
		n.want("a person deletes the MeshCluster of cluster2", "10.3.0.1")
		says := n.says("e2", without("cluster2"), with("cluster3", func(s *Status) { s.Endpoints = 1 }))
		n.Resolve(says, n.Revision())
		n.want("cluster3 has an endpoint, which is not here yet", "10.3.0.1")
		n.SetImported(imported("cluster3", "cluster3.a", "10.3.0.2"))
		n.SetMember(says["cluster3"])
		if n.Settled() {
			t.Error("it does not ask though cluster3 is in sync")
		}
		n.Resolve(says, n.Revision())
		n.want("now it is", "10.3.0.2")
	})
	t.Run("an ID that was not known yet says nothing", func(t *testing.T) {
		for range 20 { // maps have no order
			n := newNode(t)
			withZero := table
			withZero.Clusters = map[uint16]string{0: "cluster1", 7: "cluster1", 2: "cluster2"}
			n.Remember(withZero)
			if m := n.mesh(); m.LocalID != 7 {
				t.Fatalf("our ID is %d, want 7", m.LocalID)
			}
		}
		n := newNode(t)
		withZero := table
		withZero.Clusters = map[uint16]string{0: "cluster9"}
		withZero.Services = map[desired.Frontend]desired.Service{frontend: {
			Frontend: frontend, Port: desired.ServicePort{Namespace: "song", Name: "userlist", Port: "http"},
			Backends: []desired.Backend{{Addr: netip.MustParseAddrPort("10.1.0.1:8181")}},
		}}
		n.Remember(withZero)
		if len(n.memory) != 0 {
			t.Errorf("it remembers %v", n.memory)
		}
	})
	t.Run("a snapshot stands in for all of it", func(t *testing.T) {
		n := newNode(t)
		n.Load(desired.Remote{Epoch: "e1", Members: []desired.Member{{Name: "cluster2", ID: 2}}, Slices: []*desired.Slice{imported("cluster2", "cluster2.a", "10.2.0.7")}})
		n.Remember(table)
		n.SetNamespace("song", nil)
		n.want("as it was written", "10.2.0.7")
		if m := n.mesh(); m.LocalID != 1 {
			t.Errorf("our ID is %d, and the kernel knows it: 1", m.LocalID)
		}
	})
}

func TestTake(t *testing.T) {
	take := func(t *testing.T, n *node) []string {
		t.Helper()
		batch, ok := n.Take()
		if !ok {
			return nil
		}
		var names []string
		for name := range batch.Services {
			names = append(names, name.String())
		}
		slices.Sort(names)
		return append(names, fmt.Sprintf("all=%v", batch.All))
	}
	expect := func(t *testing.T, n *node, when string, want ...string) {
		t.Helper()
		if got := take(t, n); !slices.Equal(got, want) {
			t.Errorf("%s: took %v, want %v", when, got, want)
		}
	}
	n := newNode(t)
	n.SetService(userlist, &desired.LocalService{})
	expect(t, n, "before the local source is in sync")
	n.SyncedLocal()
	expect(t, n, "at first", "song/userlist", "all=true")
	expect(t, n, "when nothing has changed")

	n.SetImported(imported("cluster2", "cluster2.a", "10.2.0.1"))
	expect(t, n, "before the mesh API is in sync, a part of it counts for nothing")
	n.SyncedMesh()
	expect(t, n, "then all of it", "song/userlist", "all=true")

	other := desired.Name{Namespace: "song", Name: "other"}
	n.SetService(other, &desired.LocalService{})
	n.SetImported(imported("cluster2", "cluster2.a", "10.2.0.2"))
	expect(t, n, "what changed, and only that", "song/other", "song/userlist", "all=false")
	n.SetImported(imported("cluster2", "cluster2.a", "10.2.0.2"))
	n.SetService(other, &desired.LocalService{})
	n.SetNamespace("song", map[string]string{"anything": "else"})
	expect(t, n, "what means the same")
	n.SetNamespace("song", map[string]string{"mesh.io/global": "true"})
	expect(t, n, "a Namespace touches its Services", "song/other", "song/userlist", "all=false")
	n.SetMember(member("cluster2", 2))
	expect(t, n, "a MeshCluster touches everything", "song/other", "song/userlist", "all=true")
	beat := member("cluster2", 2)
	beat.Status.Heartbeat = time.Now()
	n.SetMember(beat)
	expect(t, n, "its heartbeat touches nothing")
	n.SetService(other, nil)
	expect(t, n, "a Service that is gone", "song/other", "all=false")

	local := &desired.Slice{Service: userlist, Object: "userlist-1"}
	n.SetSlice(nil, local)
	expect(t, n, "a local slice", "song/userlist", "all=false")
	moved := &desired.Slice{Service: other, Object: "userlist-1"}
	n.SetSlice(local, moved)
	expect(t, n, "a local slice that is of another Service now", "song/other", "song/userlist", "all=false")
	n.SetSlice(moved, nil)
	expect(t, n, "a local slice that is gone", "song/other", "all=false")
}

func TestCiliumAnnotationsCountUnlessItsMeshRuns(t *testing.T) {
	n := &node{T: t, State: NewState(Config{Cluster: "cluster1", CiliumAuto: true})}
	if m := n.mesh(); !m.Policy.Cilium {
		t.Error("they do not count without it")
	}
	n.SyncedLocal()
	n.Take()
	n.SetService(ciliumMesh, &desired.LocalService{})
	if batch, _ := n.Take(); batch.Mesh.Policy.Cilium || !batch.All {
		t.Error("they count beside it")
	}
	n.SetService(ciliumMesh, nil)
	if batch, _ := n.Take(); !batch.Mesh.Policy.Cilium || !batch.All {
		t.Error("they do not count once it is gone")
	}
}

// frontends takes what has changed and says what it makes of each Service in it.
func frontends(t *testing.T, s *State) map[string]string {
	t.Helper()
	batch, ok := s.Take()
	if !ok {
		return nil
	}
	made := map[string]string{}
	for name, in := range batch.Services {
		var parts []string
		result := batch.Mesh.Service(name, in)
		for _, service := range result.Services {
			parts = append(parts, service.Frontend.String())
		}
		for _, left := range result.Left {
			parts = append(parts, "left: "+left.Detail)
		}
		made[name.String()] = strings.Join(parts, ", ")
	}
	return made
}

func TestAddressesOfServicesDependOnOthersAndOnTheNode(t *testing.T) {
	ip := netip.MustParseAddr
	s := NewState(Config{Cluster: "cluster1", LoadBalancerIPs: true})
	service := func(age int, clusterIP string, lb ...string) *desired.LocalService {
		l := &desired.LocalService{
			Annotations: map[string]string{"mesh.io/global": "true"}, ClusterIPs: []netip.Addr{ip(clusterIP)},
			Ports: []desired.LocalPort{{Protocol: "TCP", Port: 80}}, Created: time.Unix(int64(1000-age), 0),
		}
		for _, addr := range lb {
			l.LoadBalancerIPs = append(l.LoadBalancerIPs, desired.LoadBalancerIP{Addr: ip(addr)})
		}
		return l
	}
	a, b, c := desired.Name{Namespace: "song", Name: "a"}, desired.Name{Namespace: "song", Name: "b"}, desired.Name{Namespace: "song", Name: "c"}
	expect := func(what string, want map[string]string) {
		t.Helper()
		if diff := cmp.Diff(want, frontends(t, s)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	s.SetNamespace("song", nil)
	s.SetService(a, service(1, "10.96.0.1", "192.0.2.7"))
	s.SetService(c, service(0, "10.96.0.3"))
	s.SetBound(map[netip.Addr]string{ip("10.96.0.9"): "eth0"})
	s.SyncedLocal()
	expect("at first", map[string]string{"song/a": "10.96.0.1:80/TCP, 192.0.2.7:80/TCP", "song/c": "10.96.0.3:80/TCP"})
	s.SetService(b, service(2, "10.96.0.2", "192.0.2.7"))
	expect("an older one", map[string]string{"song/a": "10.96.0.1:80/TCP, left: song/b, 192.0.2.7:80", "song/b": "10.96.0.2:80/TCP, 192.0.2.7:80/TCP"})
	s.SetService(b, service(2, "10.96.0.2", "192.0.2.8"))
	expect("it has another address", map[string]string{"song/a": "10.96.0.1:80/TCP, 192.0.2.7:80/TCP", "song/b": "10.96.0.2:80/TCP, 192.0.2.8:80/TCP"})
	s.SetService(c, service(0, "192.0.2.8"))
	expect("a cluster IP", map[string]string{"song/b": "10.96.0.2:80/TCP, left: 192.0.2.8 of song/c", "song/c": "192.0.2.8:80/TCP"})
	s.SetService(c, nil)
	expect("it is gone", map[string]string{"song/b": "10.96.0.2:80/TCP, 192.0.2.8:80/TCP", "song/c": ""})

	s.SetBound(map[netip.Addr]string{ip("10.96.0.9"): "eth0", ip("192.0.2.8"): "eth0", ip("10.96.0.1"): "dns"})
	expect("the node takes two", map[string]string{"song/a": "192.0.2.7:80/TCP, left: 10.96.0.1 on dns", "song/b": "10.96.0.2:80/TCP, left: 192.0.2.8 on eth0"})
	s.SetBound(map[netip.Addr]string{ip("192.0.2.8"): "eth0", ip("10.96.0.1"): "dns"})
	expect("it loses one of nobody's", nil)
	s.SetBound(map[netip.Addr]string{ip("192.0.2.8"): "eth1"})
	expect("it loses one", map[string]string{"song/a": "10.96.0.1:80/TCP, 192.0.2.7:80/TCP", "song/b": "10.96.0.2:80/TCP, left: 192.0.2.8 on eth1"})

	if got := s.ServiceAddresses(); len(got) != 4 {
		t.Errorf("the Services have the addresses %v", got)
	}
}
