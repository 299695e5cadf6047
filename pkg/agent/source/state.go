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

// Package source turns what two API servers say into the plain values that the
// table is built from.
//
// Local Services, endpoints and Namespaces come from kube-apiserver, and its word is
// final. Everything remote comes from this cluster's mesh API, and there nothing is
// removed on doubt: see State.Resolve.
package source

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

// Member is a MeshCluster: what the table depends on, and what it says about itself.
type Member struct {
	desired.Member
	Status Status
}

// Status is what the mesh API says about a member.
type Status struct {
	// Revision is the store's, when this was read: it only grows.
	Revision      uint64
	Epoch         string
	Heartbeat     time.Time
	Endpoints     int
	Synced        bool
	ExportsSynced bool
}

// object names an API object.
type object struct{ namespace, name string }

// remoteSlice is a slice of another cluster.
type remoteSlice struct {
	*desired.Slice
	// held is set while the mesh API does not list the slice, or has not been asked
	// since the start, and nobody is known to have deleted it.
	held bool
}

// tally counts the slices of a cluster.
type tally struct{ live, held int }

// entry is what is known of one Service name.
type entry struct {
	service *desired.LocalService
	local   map[string]*desired.Slice
	remote  map[string]remoteSlice
	spec    *v1alpha1.GlobalServiceSpec
	// specHeld is set while nobody is known to have taken the spec back, though the
	// mesh API does not list it.
	specHeld bool
	// specStore is the epoch of the store that the spec was read from, if that was
	// known then, and is not the one that the state is from.
	specStore  string
	remembered map[desired.Frontend][]desired.Backend
}

func (e *entry) empty() bool {
	return e.service == nil && len(e.local) == 0 && len(e.remote) == 0 && e.spec == nil && e.remembered == nil
}

type heldMember struct {
	Member
	held bool
}

// Change is one imported slice that changed: when its cluster saw it, and when it
// arrived here.
type Change struct {
	Service   desired.Name
	Cluster   string
	ChangedAt time.Time
	SeenAt    time.Time
}

// Batch is what changed since the last one, with all that it takes to build it.
type Batch struct {
	// All is set when every Service is in the batch. A Service that is not is gone.
	All      bool
	Mesh     desired.Mesh
	Services map[desired.Name]desired.ServiceInput
	// Since is when the first change of the batch arrived.
	Since time.Time
	// Remote is set when what is remote is in it, from the mesh API or from the
	// snapshot.
	Remote bool
	// Changes are those of imported slices, once the sources were in sync.
	Changes []Change
}

// Config is what a State needs to know at its start.
type Config struct {
	Cluster   string // this cluster's name
	Namespace string // the mesh's own
	Node      string // this node's name; empty if unknown
	// Policy says which annotations count. CiliumAuto makes Cilium's count as long as
	// Cilium's own cluster mesh does not run here, whatever Policy says.
	Policy     policy.Reader
	CiliumAuto bool
	// LoadBalancerIPs makes the addresses of load balancers frontends, too.
	LoadBalancerIPs bool
	Now             func() time.Time
}

var ciliumMesh = desired.Name{Namespace: policy.CiliumMesh.Namespace, Name: policy.CiliumMesh.Name}

// State is what is known, in plain values. Informers and the snapshot fill it from
// any goroutine; the loop takes from it what changed.
type State struct {
	config Config
	wake   chan struct{}

	mu         sync.Mutex
	entries    map[desired.Name]*entry
	remote     map[object]desired.Name // the service that a remote slice is of
	namespaces map[string]map[string]string
	socketLB   map[string]string     // of those Namespaces that have the annotation
	bound      map[netip.Addr]string // the node's own addresses; never changed, but replaced
	// owners are the Services that have an address, of the cluster or of a load balancer;
	// nil where load balancers' don't count.
	owners     map[netip.Addr][]desired.Name
	members    map[string]*heldMember
	localID    uint16
	zone       string // of this node; empty until it is known
	memory     map[uint16]string
	epoch      string // of the store that all this is from
	revision   uint64 // the highest that was seen of that store
	fresh      freshStore
	heldSlices int
	heldSpecs  int
	tallies    map[string]tally // the remote slices by cluster
	// arrivals are the slices that changed before the first sync, with what was in
	// their place.
	arrivals map[object]*desired.Slice
	// heldAt finds the held slices by the addresses in them. It is nil until a slice
	// that arrives has to be compared with them, and while there are none.
	heldAt map[netip.Addr][]object

	localSynced, meshSynced, loaded bool
	version                         uint64 // counts the changes of what is remote

	dirty   map[desired.Name]struct{}
	all     bool
	since   time.Time
	changes []Change
}

// NewState returns a state that knows nothing.
func NewState(config Config) *State {
	if config.Now == nil {
		config.Now = time.Now
	}
	s := &State{
		config:     config,
		wake:       make(chan struct{}, 1),
		entries:    map[desired.Name]*entry{},
		remote:     map[object]desired.Name{},
		namespaces: map[string]map[string]string{},
		socketLB:   map[string]string{},
		members:    map[string]*heldMember{},
		tallies:    map[string]tally{},
		arrivals:   map[object]*desired.Slice{},
		memory:     map[uint16]string{},
		dirty:      map[desired.Name]struct{}{},
	}
	if config.LoadBalancerIPs {
		s.owners = map[netip.Addr][]desired.Name{}
	}
	return s
}

// Wake receives once something can be taken.
func (s *State) Wake() <-chan struct{} { return s.wake }

// Take returns what changed since the last call. ok is false while there is nothing,
// and until the local source is in sync: before that the kernel's table stays as it is.
func (s *State) Take() (batch Batch, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.localSynced || !s.all && len(s.dirty) == 0 {
		return Batch{}, false
	}
	batch = Batch{All: s.all, Since: s.since, Changes: s.changes, Mesh: s.mesh(), Remote: s.meshSynced || s.loaded}
	if s.all {
		batch.Services = make(map[desired.Name]desired.ServiceInput, len(s.entries))
		for name := range s.entries {
			batch.Services[name] = s.input(name)
		}
	} else {
		batch.Services = make(map[desired.Name]desired.ServiceInput, len(s.dirty))
		for name := range s.dirty {
			batch.Services[name] = s.input(name)
		}
	}
	s.all, s.changes, s.since = false, nil, time.Time{}
	clear(s.dirty)
	return batch, true
}

func (s *State) mesh() desired.Mesh {
	m := desired.Mesh{
		Cluster:    s.config.Cluster,
		Namespace:  s.config.Namespace,
		Policy:     s.config.Policy,
		Members:    make(map[string]desired.Member, len(s.members)),
		LocalID:    s.localID,
		Node:       s.config.Node,
		Zone:       s.zone,
		Remembered: maps.Clone(s.memory),

		LoadBalancerIPs: s.config.LoadBalancerIPs,
		Bound:           s.bound,
	}
	if s.config.CiliumAuto {
		e := s.entries[ciliumMesh]
		m.Policy.Cilium = e == nil || e.service == nil
	}
	if s.meshSynced || s.loaded {
		for name, member := range s.members {
			m.Members[name] = member.Member.Member
		}
	}
	return m
}

func (s *State) input(name desired.Name) desired.ServiceInput {
	in := desired.ServiceInput{NamespaceAnnotations: s.namespaces[name.Namespace]}
	e := s.entries[name]
	if e == nil {
		return in
	}
	in.Service = e.service
	in.Claims = s.claims(name, e.service)
	in.Local = slices.Collect(maps.Values(e.local))
	// What has arrived before the first sync is a part of it, and counts with the rest.
	if s.meshSynced || s.loaded {
		in.Spec = e.spec
		for _, r := range e.remote {
			in.Remote = append(in.Remote, r.Slice)
		}
	}
	if len(s.memory) > 0 {
		in.Remembered = e.remembered
	}
	return in
}

func (s *State) entry(name desired.Name) *entry {
	e := s.entries[name]
	if e == nil {
		e = &entry{}
		s.entries[name] = e
	}
	return e
}

// tidy forgets an entry that holds nothing.
func (s *State) tidy(name desired.Name) {
	if e := s.entries[name]; e != nil && e.empty() {
		delete(s.entries, name)
	}
}

// touch marks one Service. A change of what is remote waits for the first sync of
// its source, so that no service is built from a part of it.
func (s *State) touch(name desired.Name, remote bool) {
	if remote {
		s.version++
		if !s.meshSynced && !s.loaded {
			return
		}
	}
	s.dirty[name] = struct{}{}
	s.woke()
}

func (s *State) touchAll() {
	s.all = true
	s.woke()
}

func (s *State) woke() {
	if s.since.IsZero() {
		s.since = s.config.Now()
	}
	if !s.localSynced {
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// SetService takes a Service of this cluster; nil where it is gone.
func (s *State) SetService(name desired.Name, service *desired.LocalService) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entry(name)
	if e.service != nil && service != nil && reflect.DeepEqual(e.service, service) {
		return
	}
	if name == ciliumMesh && s.config.CiliumAuto && (e.service == nil) != (service == nil) {
		s.touchAll()
	}
	s.own(name, e.service, service)
	e.service = service
	s.tidy(name)
	s.touch(name, false)
}

// own keeps owners as they are with a Service in the place of an older one, either of
// which may be nil, and marks those that have an address with it.
func (s *State) own(name desired.Name, old, service *desired.LocalService) {
	if s.owners == nil {
		return
	}
	for _, addr := range addressesOf(old) {
		if left := slices.DeleteFunc(s.owners[addr], func(n desired.Name) bool { return n == name }); len(left) > 0 {
			s.owners[addr] = left
		} else {
			delete(s.owners, addr)
		}
	}
	for _, addr := range addressesOf(service) {
		s.owners[addr] = append(s.owners[addr], name)
	}
	for _, addr := range append(addressesOf(old), addressesOf(service)...) {
		for _, other := range s.owners[addr] {
			s.touch(other, false)
		}
	}
}

// addressesOf returns the addresses of a Service's cluster IPs and load balancer.
func addressesOf(service *desired.LocalService) (addrs []netip.Addr) {
	if service == nil {
		return nil
	}
	addrs = slices.Clone(service.ClusterIPs)
	for _, ip := range service.LoadBalancerIPs {
		addrs = append(addrs, ip.Addr)
	}
	return addrs
}

// claims are the other Services that have an address of a Service's load balancer.
func (s *State) claims(name desired.Name, service *desired.LocalService) (claims []desired.Claim) {
	if s.owners == nil || service == nil {
		return nil
	}
	for _, ip := range service.LoadBalancerIPs {
		for _, owner := range s.owners[ip.Addr] {
			if owner == name {
				continue
			}
			other := s.entries[owner].service
			claims = append(claims, desired.Claim{
				Service: owner, Created: other.Created, Addr: ip.Addr,
				ClusterIP: slices.Contains(other.ClusterIPs, ip.Addr), Ports: other.Ports,
			})
		}
	}
	return claims
}

// SetBound takes the addresses that the node itself has, each with its device. The map
// must not be changed any more.
func (s *State) SetBound(bound map[netip.Addr]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.bound
	s.bound = bound
	changed := map[netip.Addr]bool{}
	for addr, device := range old {
		if now, ok := bound[addr]; !ok || now != device {
			changed[addr] = true
		}
	}
	for addr := range bound {
		if _, ok := old[addr]; !ok {
			changed[addr] = true
		}
	}
	if len(changed) == 0 {
		return
	}
	for name, e := range s.entries {
		if slices.ContainsFunc(addressesOf(e.service), func(addr netip.Addr) bool { return changed[addr] }) {
			s.touch(name, false)
		}
	}
}

// ServiceAddresses returns every address that a Service of this cluster has, global or
// not.
func (s *State) ServiceAddresses() map[netip.Addr]struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	addresses := make(map[netip.Addr]struct{}, len(s.entries))
	for _, e := range s.entries {
		if e.service == nil {
			continue
		}
		for _, list := range [][]netip.Addr{e.service.ClusterIPs, e.service.ExternalIPs} {
			for _, addr := range list {
				addresses[addr] = struct{}{}
			}
		}
		for _, ip := range e.service.LoadBalancerIPs {
			addresses[ip.Addr] = struct{}{}
		}
	}
	return addresses
}

// SetSlice takes a slice of this cluster in the place of an older one of the same
// object. Either may be nil.
func (s *State) SetSlice(old, slice *desired.Slice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old != nil && (slice == nil || slice.Service != old.Service) {
		if e := s.entries[old.Service]; e != nil {
			delete(e.local, old.Object)
			s.tidy(old.Service)
			s.touch(old.Service, false)
		}
	}
	if slice == nil {
		return
	}
	e := s.entry(slice.Service)
	if e.local == nil {
		e.local = make(map[string]*desired.Slice, 1)
	}
	if previous := e.local[slice.Object]; previous != nil && sameSlice(previous, slice) {
		return
	}
	e.local[slice.Object] = slice
	s.touch(slice.Service, false)
}

// sameSlice says whether two slices mean the same.
func sameSlice(a, b *desired.Slice) bool {
	return a.Cluster == b.Cluster && a.Service == b.Service &&
		slices.Equal(a.Ports, b.Ports) && slices.Equal(a.Endpoints, b.Endpoints) && slices.Equal(a.Near, b.Near)
}

// SetNamespace takes a Namespace of this cluster.
func (s *State) SetNamespace(name string, annotations map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if value, ok := annotations[policy.AnnotationSocketLB]; ok {
		s.socketLB[name] = value
	} else {
		delete(s.socketLB, name)
	}
	// Of its other annotations only one means anything.
	var kept map[string]string
	if value, ok := annotations[policy.AnnotationGlobal]; ok {
		kept = map[string]string{policy.AnnotationGlobal: value}
	}
	old, known := s.namespaces[name]
	s.namespaces[name] = kept
	if known && maps.Equal(old, kept) || !known && kept == nil {
		return
	}
	s.touchNamespace(name)
}

// SetZone takes the zone of this node.
func (s *State) SetZone(zone string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.zone != zone {
		s.zone = zone
		s.touchAll()
	}
}

// SocketLB returns what the Namespaces' annotation of that name says, where there is
// any. ok is false until kube-apiserver's objects have all arrived.
func (s *State) SocketLB() (namespaces map[string]string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.socketLB), s.localSynced
}

// DeleteNamespace forgets a Namespace of this cluster, and what is held of it.
func (s *State) DeleteNamespace(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.namespaces, name)
	delete(s.socketLB, name)
	s.dropHeld(func(n desired.Name, _ string) bool { return n.Namespace == name })
	s.dropHeldSpecs(func(n desired.Name) bool { return n.Namespace == name })
	s.touchNamespace(name)
}

func (s *State) touchNamespace(namespace string) {
	for name := range s.entries {
		if name.Namespace == namespace {
			s.touch(name, false)
		}
	}
}

// SyncedLocal says that all of kube-apiserver's objects have arrived.
func (s *State) SyncedLocal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.localSynced {
		return
	}
	s.localSynced = true
	// A namespace that is not here was deleted while nobody looked.
	absent := func(n desired.Name) bool { _, here := s.namespaces[n.Namespace]; return !here }
	s.dropHeld(func(n desired.Name, _ string) bool { return absent(n) })
	s.dropHeldSpecs(absent)
	s.touchAll()
}

// SyncedMesh says that all of the mesh API's objects have arrived once.
func (s *State) SyncedMesh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meshSynced {
		return
	}
	s.meshSynced = true
	s.touchAll()
	// Until now most of what was held had yet to arrive.
	for key, previous := range s.arrivals {
		if name, ok := s.remote[key]; ok {
			if r := s.entries[name].remote[key.name]; !r.held {
				s.takeOver(r.Slice, previous)
			}
		}
	}
	s.arrivals = nil
}

// Load takes what an earlier agent left on disk. All of it is held until the mesh
// API lists it.
func (s *State) Load(remote desired.Remote) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loaded = true
	s.epoch, s.revision = remote.Epoch, remote.Revision
	for _, m := range remote.Members {
		s.members[m.Name] = &heldMember{Member: Member{Member: m}, held: true}
	}
	for name, spec := range remote.Specs {
		e := s.entry(name)
		e.spec = &spec
		s.holdSpec(e, true)
	}
	for _, slice := range remote.Slices {
		s.putRemote(slice, true)
	}
	s.version++
	s.touchAll()
}

// Remember takes the kernel's table as it was at start: this cluster's ID from it,
// and the remote backends where nothing was loaded. Those of a cluster stay until
// the mesh API has said what it knows of that cluster. ID 0 says nothing: an agent
// that did not know its own cluster's ID yet wrote it.
func (s *State) Remember(table desired.Table) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, name := range table.Clusters {
		if name == s.config.Cluster && id != 0 && (s.localID == 0 || id < s.localID) {
			s.localID = id
		}
	}
	if s.loaded {
		return
	}
	for frontend, service := range table.Services {
		var backends []desired.Backend
		for _, b := range service.Backends {
			name, ok := table.Clusters[b.ClusterID]
			if !ok || name == s.config.Cluster || b.ClusterID == 0 {
				continue
			}
			b.Addr = netip.AddrPortFrom(b.Addr.Addr().Unmap(), b.Addr.Port())
			s.memory[b.ClusterID] = name
			backends = append(backends, b)
		}
		if len(backends) == 0 {
			continue
		}
		slices.SortFunc(backends, func(a, b desired.Backend) int {
			if a.ClusterID != b.ClusterID {
				return int(a.ClusterID) - int(b.ClusterID)
			}
			return a.Addr.Compare(b.Addr)
		})
		e := s.entry(desired.Name{Namespace: service.Port.Namespace, Name: service.Port.Name})
		if e.remembered == nil {
			e.remembered = map[desired.Frontend][]desired.Backend{}
		}
		e.remembered[frontend] = backends
	}
	s.touchAll()
}

// putRemote stores a remote slice in the place of an older one of the same object.
func (s *State) putRemote(slice *desired.Slice, held bool) {
	key := object{slice.Service.Namespace, slice.Object}
	if service, ok := s.remote[key]; ok && service != slice.Service {
		s.removeRemote(key)
	}
	e := s.entry(slice.Service)
	if e.remote == nil {
		e.remote = make(map[string]remoteSlice, 1)
	}
	if previous, ok := e.remote[slice.Object]; ok {
		s.count(key, previous, -1)
	}
	e.remote[slice.Object] = remoteSlice{slice, held}
	s.remote[key] = slice.Service
	s.count(key, e.remote[slice.Object], +1)
}

// count counts a remote slice in or out.
func (s *State) count(key object, r remoteSlice, n int) {
	t := s.tallies[r.Cluster]
	if !r.held {
		t.live += n
	} else {
		t.held += n
		s.heldSlices += n
	}
	if t == (tally{}) {
		delete(s.tallies, r.Cluster)
	} else {
		s.tallies[r.Cluster] = t
	}
	if s.heldSlices == 0 {
		s.heldAt = nil
	}
	switch {
	case !r.held || s.heldAt == nil:
	case n > 0:
		s.indexHeld(key, r.Slice)
	default:
		s.unindexHeld(key, r.Slice)
	}
}

func (s *State) indexHeld(key object, slice *desired.Slice) {
	for _, endpoint := range slice.Endpoints {
		s.heldAt[endpoint.Addr] = append(s.heldAt[endpoint.Addr], key)
	}
}

func (s *State) unindexHeld(key object, slice *desired.Slice) {
	for _, endpoint := range slice.Endpoints {
		keys := s.heldAt[endpoint.Addr]
		if i := slices.Index(keys, key); i >= 0 {
			keys = slices.Delete(keys, i, i+1)
		}
		if len(keys) == 0 {
			delete(s.heldAt, endpoint.Addr)
		} else {
			s.heldAt[endpoint.Addr] = keys
		}
	}
}

// removeRemote forgets a remote slice.
func (s *State) removeRemote(key object) {
	name, ok := s.remote[key]
	if !ok {
		return
	}
	delete(s.remote, key)
	e := s.entries[name]
	s.count(key, e.remote[key.name], -1)
	delete(e.remote, key.name)
	s.tidy(name)
	s.touch(name, true)
}

// SetImported takes an imported slice that the mesh API has.
func (s *State) SetImported(slice *desired.Slice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := object{slice.Service.Namespace, slice.Object}
	var previous remoteSlice
	if service, ok := s.remote[key]; ok && service == slice.Service {
		previous = s.entries[service].remote[slice.Object]
	}
	s.putRemote(slice, false)
	same := previous.Slice != nil && sameSlice(previous.Slice, slice)
	if s.meshSynced {
		s.takeOver(slice, previous.Slice)
	} else if _, known := s.arrivals[key]; s.loaded && !known && !same {
		s.arrivals[key] = previous.Slice
	}
	if same {
		return
	}
	s.touch(slice.Service, true)
	if s.meshSynced && s.localSynced && len(s.changes) < 10000 {
		s.changes = append(s.changes, Change{slice.Service, slice.Cluster, slice.ChangedAt, s.config.Now()})
	}
}

// takeOver takes a slice's addresses away from what is held, where another backend
// has them now: one of another member that did not have it before, or another endpoint
// of the same service. That another service of the cluster has an address too says
// nothing: both may stand before the same pods. previous is what was in the slice's
// place.
func (s *State) takeOver(slice, previous *desired.Slice) {
	if s.heldSlices == 0 {
		return
	}
	if s.heldAt == nil {
		s.heldAt = map[netip.Addr][]object{}
		for key, name := range s.remote {
			if r := s.entries[name].remote[key.name]; r.held {
				s.indexHeld(key, r.Slice)
			}
		}
	}
	var lose map[object]map[netip.Addr]bool
	for _, endpoint := range slice.Endpoints {
		for _, key := range s.heldAt[endpoint.Addr] {
			name := s.remote[key]
			same := s.entries[name].remote[key.name].Cluster == slice.Cluster
			if same && name != slice.Service || !same && !s.newAddress(slice, previous, endpoint.Addr) {
				continue
			}
			if lose == nil {
				lose = map[object]map[netip.Addr]bool{}
			}
			if lose[key] == nil {
				lose[key] = map[netip.Addr]bool{}
			}
			lose[key][endpoint.Addr] = true
		}
	}
	for key, addresses := range lose {
		name := s.remote[key]
		rest := *s.entries[name].remote[key.name].Slice
		rest.Endpoints = slices.DeleteFunc(slices.Clone(rest.Endpoints), func(e desired.Endpoint) bool { return addresses[e.Addr] })
		s.putRemote(&rest, true)
		s.touch(name, true)
	}
}

// newAddress says whether an address is one that the slice's cluster did not offer for
// the service before. What is imported from no member counts for nothing.
func (s *State) newAddress(slice, previous *desired.Slice, addr netip.Addr) bool {
	if _, member := s.members[slice.Cluster]; !member {
		return false
	}
	has := func(s *desired.Slice) bool {
		return slices.ContainsFunc(s.Endpoints, func(e desired.Endpoint) bool { return e.Addr == addr })
	}
	if previous != nil && previous.Cluster == slice.Cluster && has(previous) {
		return false
	}
	for _, r := range s.entries[slice.Service].remote {
		if r.Slice != slice && r.Cluster == slice.Cluster && has(r.Slice) {
			return false
		}
	}
	return true
}

// DeleteImported forgets a slice that was seen to be deleted.
func (s *State) DeleteImported(namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeRemote(object{namespace, name})
}

// MissImported holds a slice that a list no longer has.
func (s *State) MissImported(namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if service, ok := s.remote[object{namespace, name}]; ok {
		s.putRemote(s.entries[service].remote[name].Slice, true)
	}
}

// SetSpec takes the spec of a GlobalService that a person wrote.
func (s *State) SetSpec(name desired.Name, spec *v1alpha1.GlobalServiceSpec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entry(name)
	same := e.spec != nil && reflect.DeepEqual(e.spec, spec)
	e.spec, e.specStore = spec, ""
	s.holdSpec(e, false)
	if s.fresh.atWork {
		e.specStore = s.fresh.epoch
	}
	if !same {
		s.touch(name, true)
	}
}

// saysNothing says whether a spec is empty.
func saysNothing(spec *v1alpha1.GlobalServiceSpec) bool {
	return equality.Semantic.DeepEqual(*spec, v1alpha1.GlobalServiceSpec{})
}

// DeleteSpec forgets a spec that was seen to be deleted.
func (s *State) DeleteSpec(name desired.Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeSpec(name)
}

func (s *State) removeSpec(name desired.Name) {
	if e := s.entries[name]; e != nil && e.spec != nil {
		e.spec, e.specStore = nil, ""
		s.holdSpec(e, false)
		s.tidy(name)
		s.touch(name, true)
	}
}

// MissSpec holds a spec that a list no longer has. In its place may be what the
// controller made: that is in no list, as nobody wrote it.
func (s *State) MissSpec(name desired.Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[name]; e != nil && e.spec != nil {
		if saysNothing(e.spec) {
			// There is nothing to lose.
			s.removeSpec(name)
			return
		}
		s.holdSpec(e, true)
	}
}

func (s *State) holdSpec(e *entry, held bool) {
	switch {
	case held && !e.specHeld:
		s.heldSpecs++
	case !held && e.specHeld:
		s.heldSpecs--
	}
	e.specHeld = held
}

// SetMember takes a MeshCluster that the mesh API has.
func (s *State) SetMember(m Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.members[m.Name]
	s.members[m.Name] = &heldMember{Member: m}
	if old == nil || !reflect.DeepEqual(old.Member.Member, m.Member) {
		s.version++
		if s.meshSynced || s.loaded {
			s.touchAll()
		}
	}
}

// DeleteMember forgets a MeshCluster that a person has deleted, and all that is
// known of that cluster only from before: it does not count from now on.
func (s *State) DeleteMember(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeMember(name)
}

func (s *State) removeMember(name string) {
	if _, ok := s.members[name]; !ok {
		return
	}
	delete(s.members, name)
	for id, remembered := range s.memory {
		if remembered == name {
			delete(s.memory, id)
		}
	}
	s.dropHeld(func(_ desired.Name, cluster string) bool { return cluster == name })
	s.version++
	s.touchAll()
}

// MissMember holds a MeshCluster that a list no longer has.
func (s *State) MissMember(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.members[name]; m != nil {
		m.held = true
	}
}

// dropHeld forgets the held slices that match.
func (s *State) dropHeld(match func(service desired.Name, cluster string) bool) {
	if s.heldSlices == 0 {
		return
	}
	for key, name := range s.remote {
		r := s.entries[name].remote[key.name]
		if r.held && match(name, r.Cluster) {
			s.removeRemote(key)
		}
	}
}

// dropHeldSpecs forgets the held specs that match.
func (s *State) dropHeldSpecs(match func(desired.Name) bool) {
	if s.heldSpecs == 0 {
		return
	}
	for name, e := range s.entries {
		if e.specHeld && match(name) {
			s.removeSpec(name)
		}
	}
}

// Remote returns what is known of the rest of the mesh, and the number of its
// version: it is the same while nothing has changed. whole is false while that is only
// a part: the mesh API has not been read to the end yet, or only the kernel's table
// knows of some cluster.
func (s *State) Remote() (remote desired.Remote, version uint64, whole bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.meshSynced && !s.loaded || len(s.memory) > 0 {
		return remote, s.version, false
	}
	remote = desired.Remote{Epoch: s.epoch, Revision: s.revision, Specs: map[desired.Name]v1alpha1.GlobalServiceSpec{}}
	for _, m := range s.members {
		remote.Members = append(remote.Members, m.Member.Member)
	}
	for name, e := range s.entries {
		if e.spec != nil && !saysNothing(e.spec) {
			remote.Specs[name] = *e.spec
		}
		for _, r := range e.remote {
			remote.Slices = append(remote.Slices, r.Slice)
		}
	}
	return remote, s.version, true
}

// Loaded says whether a snapshot was loaded at the start.
func (s *State) Loaded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loaded
}

// Local says whether the MeshCluster of this cluster is known.
func (s *State) Local() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, known := s.members[s.config.Cluster]
	return known
}

// Synced says whether each source has been read to the end since the start.
func (s *State) Synced() (local, mesh bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.localSynced, s.meshSynced
}

// Version is that of Remote.
func (s *State) Version() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version
}

// MeshService is how the mesh API's own Service can be reached: its cluster IP with
// the port, then its ready endpoints.
func (s *State) MeshService(name desired.Name) (addresses []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[name]
	if e == nil || e.service == nil || len(e.service.Ports) == 0 {
		return nil
	}
	port := e.service.Ports[0]
	for _, p := range e.service.Ports {
		if p.Name == "https" || p.Port == 443 {
			port = p
			break
		}
	}
	for _, ip := range e.service.ClusterIPs {
		addresses = append(addresses, netip.AddrPortFrom(ip, port.Port))
	}
	for _, slice := range e.local {
		for _, p := range slice.Ports {
			if p.Name != port.Name {
				continue
			}
			for _, endpoint := range slice.Endpoints {
				if endpoint.State == desired.Active {
					addresses = append(addresses, netip.AddrPortFrom(endpoint.Addr, p.Port))
				}
			}
		}
	}
	return addresses
}
