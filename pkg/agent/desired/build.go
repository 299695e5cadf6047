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
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

// Reasons for which a global Service stays with kube-proxy.
const (
	ReasonHeadless      = "it has no cluster IP"
	ReasonExternalName  = "it is an alias for a name outside"
	ReasonOtherProxy    = "its label service.kubernetes.io/service-proxy-name gives it to another proxy"
	ReasonInternalLocal = "internalTrafficPolicy is Local, and the agent does not know its node"
	ReasonProtocol      = "only TCP and UDP are balanced across clusters"
	ReasonBound         = "the node itself has its address"
)

// Reasons for which an address of a load balancer stays with kube-proxy.
const (
	ReasonLBRanges    = "its load balancer is for certain sources only"
	ReasonLBLocal     = "externalTrafficPolicy is Local"
	ReasonLBProxy     = "its load balancer wants to see the connections (ipMode Proxy)"
	ReasonLBType      = "it has the address of a load balancer without the type LoadBalancer"
	ReasonLBAddress   = "the address of its load balancer is none that clients can have"
	ReasonLBFamily    = "it has no cluster IP of the IP version of its load balancer's address"
	ReasonLBClusterIP = "the address of its load balancer is a cluster IP of another Service"
	ReasonLBClaimed   = "an older Service has the address and port of its load balancer, too"
)

// Build decides the whole table. It is every Service's part put together.
func Build(in Input) (Table, []Left) {
	table := Table{Services: make(map[Frontend]Service), Clusters: in.Mesh.Clusters()}
	var left []Left
	for name, service := range in.Services {
		result := in.Mesh.Service(name, service)
		for _, s := range result.Services {
			table.Services[s.Frontend] = s
		}
		left = append(left, result.Left...)
	}
	slices.SortFunc(left, func(a, b Left) int { return cmp.Compare(a.Service.String(), b.Service.String()) })
	return table, left
}

// Clusters names the IDs that backends may carry.
func (m *Mesh) Clusters() map[uint16]string {
	clusters := map[uint16]string{}
	for id, name := range m.Remembered {
		clusters[id] = name
	}
	for _, member := range m.Members {
		clusters[member.ID] = member.Name
	}
	clusters[m.localID()] = m.Cluster
	return clusters
}

func (m *Mesh) localID() uint16 {
	if member, ok := m.Members[m.Cluster]; ok {
		return member.ID
	}
	return m.LocalID
}

// Service decides one Service's part of the table, from nothing but its arguments.
func (m *Mesh) Service(name Name, in ServiceInput) Result {
	var result Result
	if in.Service == nil {
		return result
	}
	how := m.Policy.Service(in.Service.Annotations, in.NamespaceAnnotations, in.Spec)
	if !how.Global.Value {
		return result
	}
	leave := func(port, reason string) {
		result.Left = append(result.Left, Left{Service: ServicePort{name.Namespace, name.Name, port}, Reason: reason})
	}
	if reason := policy.Reserved(name.Namespace, name.Name, m.Namespace); reason != "" {
		leave("", reason)
		return result
	}
	if in.Service.Reason != "" {
		leave("", in.Service.Reason)
		return result
	}
	if in.Service.InternalLocal && m.Node == "" && !m.AnyNode {
		leave("", ReasonInternalLocal)
		return result
	}
	addrs, left := m.addresses(name, in)
	result.Left = append(result.Left, left...)
	for _, port := range in.Service.Ports {
		var protocol Protocol
		switch port.Protocol {
		case corev1.ProtocolTCP:
			protocol = TCP
		case corev1.ProtocolUDP:
			protocol = UDP
		default:
			leave(port.Name, ReasonProtocol)
			continue
		}
		for _, ip := range addrs {
			if older := in.claimant(name, ip, port); older != nil {
				result.Left = append(result.Left, Left{ServicePort{name.Namespace, name.Name, port.Name}, ReasonLBClaimed, fmt.Sprintf("%s, %s", older.Service, netip.AddrPortFrom(ip, port.Port))})
				continue
			}
			service := Service{
				Frontend: Frontend{ip, port.Port, protocol},
				Port:     ServicePort{name.Namespace, name.Name, port.Name},

				AffinitySeconds: in.Service.AffinitySeconds,
			}
			in := in.at(ip)
			groups := m.groups(&service, in)
			if !choose(groups, how.Affinity.Value, in.Spec) {
				result.Unheld = append(result.Unheld, service.Port)
			}
			size := 0
			for i := range groups {
				size += len(groups[i].endpoints)
			}
			service.Backends = make([]Backend, 0, size)
			for i := range groups {
				service.Backends = groups[i].appendTo(service.Backends)
				if groups[i].local && groups[i].count[Active] > 0 {
					service.LocalReady = true
				}
			}
			result.Services = append(result.Services, service)
		}
	}
	return result
}

// addresses are those that are frontends of a Service, and what is left of it for their
// sake.
func (m *Mesh) addresses(name Name, in ServiceInput) (addrs []netip.Addr, left []Left) {
	leave := func(reason, detail string) {
		left = append(left, Left{ServicePort{name.Namespace, name.Name, ""}, reason, detail})
	}
	add := func(addr netip.Addr) {
		// What is bound is served by the node: a cache of DNS, or a load balancer's own.
		if device, bound := m.Bound[addr]; bound {
			leave(ReasonBound, fmt.Sprintf("%s on %s", addr, device))
		} else if !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	for _, addr := range in.Service.ClusterIPs {
		add(addr)
	}
	if !m.LoadBalancerIPs {
		return addrs, left
	}
	for _, ip := range in.Service.LoadBalancerIPs {
		another := slices.IndexFunc(in.Claims, func(c Claim) bool { return c.Addr == ip.Addr && c.ClusterIP })
		switch {
		case slices.Contains(in.Service.ClusterIPs, ip.Addr):
		case ip.Reason != "":
			leave(ip.Reason, ip.Addr.String())
		case another >= 0:
			leave(ReasonLBClusterIP, fmt.Sprintf("%s of %s", ip.Addr, in.Claims[another].Service))
		default:
			add(ip.Addr)
		}
	}
	return addrs, left
}

// claimant is the Service that has an address and port with more right than the one of
// the given name: the oldest. Load balancers may give an address to several Services, with
// other ports for each.
func (in *ServiceInput) claimant(name Name, addr netip.Addr, port LocalPort) *Claim {
	var first *Claim
	for i := range in.Claims {
		c := &in.Claims[i]
		if c.Addr != addr || c.ClusterIP || !slices.ContainsFunc(c.Ports, func(p LocalPort) bool { return p.Port == port.Port && p.Protocol == port.Protocol }) {
			continue
		}
		if older(c.Created, c.Service, in.Service.Created, name) && (first == nil || older(c.Created, c.Service, first.Created, first.Service)) {
			first = c
		}
	}
	return first
}

// older orders Services by when they were made; of those of one second the first by name
// comes first.
func older(a time.Time, nameA Name, b time.Time, nameB Name) bool {
	return cmp.Or(a.Compare(b), cmp.Compare(nameA.Namespace, nameB.Namespace), cmp.Compare(nameA.Name, nameB.Name)) < 0
}

// at is the input as it counts for the clients of an address: internalTrafficPolicy is
// about cluster IPs.
func (in ServiceInput) at(addr netip.Addr) ServiceInput {
	if in.Service.InternalLocal && !slices.Contains(in.Service.ClusterIPs, addr) {
		service := *in.Service
		service.InternalLocal = false
		in.Service = &service
	}
	return in
}

// endpoint is an address of a service port, in a form that sorts fast.
type endpoint struct {
	high, low uint64 // the address in 16 bytes
	port      uint16
	state     State
	leaving   bool
	near      near
}

func newEndpoint(addr netip.Addr, port uint16, state State, leaving bool) endpoint {
	b := addr.As16()
	return endpoint{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), port, state, leaving, 0}
}

func (e *endpoint) addrPort() netip.AddrPort {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], e.high)
	binary.BigEndian.PutUint64(b[8:], e.low)
	return netip.AddrPortFrom(netip.AddrFrom16(b).Unmap(), e.port)
}

func (e *endpoint) same(f *endpoint) bool {
	return e.low == f.low && e.high == f.high && e.port == f.port
}

// before orders by address, and puts the best state of an address first.
func (e *endpoint) before(f *endpoint) bool {
	switch {
	case e.high != f.high:
		return e.high < f.high
	case e.low != f.low:
		return e.low < f.low
	case e.port != f.port:
		return e.port < f.port
	case e.state != f.state:
		return e.state < f.state
	}
	return !e.leaving && f.leaving
}

// group is the endpoints of one cluster behind a frontend. What decides who is picked
// is the same for all of a group, but for their state.
type group struct {
	id    uint16
	name  string
	local bool
	share policy.Share

	endpoints []endpoint        // sorted, each once
	runs      []int             // where the sorted parts of endpoints end, until they are merged
	count     [NotReady + 1]int // by state, of those that are not far
	ready     uint64            // how many are ready, far ones too
	want      uint64            // how many there are that nobody told to stop

	// picked is the state of those that are; each gets slots.
	picked State
	slots  uint32
}

func (g *group) appendTo(backends []Backend) []Backend {
	for i := range g.endpoints {
		e := &g.endpoints[i]
		b := Backend{Addr: e.addrPort(), ClusterID: g.id, State: e.state}
		if e.state == g.picked && e.near&far == 0 {
			b.Slots = g.slots
		}
		backends = append(backends, b)
	}
	return backends
}

// groups lists the endpoints that serve a frontend by cluster, sorted by its ID.
func (m *Mesh) groups(service *Service, in ServiceInput) []group {
	var groups []group
	find := func(id uint16, name string, local bool) *group {
		for i := range groups {
			if groups[i].id == id {
				// Of two members that claim one ID the first by name says how it counts.
				groups[i].name = min(groups[i].name, name)
				return &groups[i]
			}
		}
		groups = append(groups, group{id: id, name: name, local: local})
		return &groups[len(groups)-1]
	}
	add := func(s *Slice, id uint16, name string, local bool) {
		for _, port := range s.Ports {
			if port.Name != service.Port.Port || port.Protocol != service.Frontend.Protocol {
				continue
			}
			g := find(id, name, local)
			for i := range s.Endpoints {
				e := &s.Endpoints[i]
				if e.Addr.Is4() == service.Frontend.Addr.Is4() {
					g.endpoints = append(g.endpoints, newEndpoint(e.Addr, port.Port, e.State, e.Leaving))
					if local && i < len(s.Near) {
						g.endpoints[len(g.endpoints)-1].near = m.near(&s.Near[i])
					}
				}
			}
			g.runs = append(g.runs, len(g.endpoints))
		}
	}
	for _, s := range in.Local {
		add(s, m.localID(), m.Cluster, true)
	}
	for _, s := range in.Remote {
		if member, ok := m.Members[s.Cluster]; ok && s.Cluster != m.Cluster && member.ID != m.localID() {
			add(s, member.ID, s.Cluster, false)
		}
	}
	for _, b := range in.Remembered[service.Frontend] {
		name, ok := m.Remembered[b.ClusterID]
		if !ok || name == m.Cluster || b.ClusterID == m.localID() {
			continue
		}
		g := find(b.ClusterID, name, false)
		g.endpoints = append(g.endpoints, newEndpoint(b.Addr.Addr(), b.Addr.Port(), b.State, b.State == Terminating))
		g.runs = append(g.runs, len(g.endpoints))
	}
	slices.SortFunc(groups, func(a, b group) int { return cmp.Compare(a.id, b.id) })
	for i := range groups {
		g := &groups[i]
		var spec *v1alpha1.MeshClusterSpec
		if member, ok := m.Members[g.name]; ok {
			spec = &member.Spec
		}
		g.share = policy.Cluster(in.Spec, g.name, spec)
		// An address in two slices counts once, at its best.
		g.endpoints = slices.CompactFunc(mergeRuns(g.endpoints, g.runs), func(a, b endpoint) bool { return a.same(&b) })
		m.narrow(g, in.Service != nil && in.Service.InternalLocal)
		for j := range g.endpoints {
			e := &g.endpoints[j]
			if e.near&far == 0 {
				g.count[min(e.state, NotReady)]++
			}
			if e.state == Active {
				g.ready++
			}
			if !e.leaving {
				g.want++
			}
		}
	}
	return groups
}

// tier is a step in the order of preference: a side of the affinity, and a priority
// within it.
type tier struct {
	side     int8
	priority int32
}

func (t tier) compare(u tier) int {
	return cmp.Or(cmp.Compare(t.side, u.side), cmp.Compare(t.priority, u.priority))
}

func (g *group) tier(affinity v1alpha1.Affinity) tier {
	t := tier{priority: g.share.Priority}
	if affinity == v1alpha1.AffinityLocal && !g.local || affinity == v1alpha1.AffinityRemote && g.local {
		t.side = 1
	}
	return t
}

// choose gives slots to the endpoints that take new connections: all ready ones of
// the first tier that has any, else those that serve while they terminate, by the
// same order. It reports whether their weights could be held.
func choose(groups []group, affinity v1alpha1.Affinity, spec *v1alpha1.GlobalServiceSpec) (held bool) {
	// first finds the first tier with an endpoint of the state.
	first := func(state State, accept func(*group) bool) (best tier, ok bool) {
		for i := range groups {
			g := &groups[i]
			if g.count[state] > 0 && g.share.Weight > 0 && accept(g) {
				if t := g.tier(affinity); !ok || t.compare(best) < 0 {
					best, ok = t, true
				}
			}
		}
		return best, ok
	}
	weights := make([]uint64, len(groups))
	pick := func(state State, from tier, accept func(*group) bool) {
		for i := range groups {
			g := &groups[i]
			if g.count[state] > 0 && g.share.Weight > 0 && accept(g) && g.tier(affinity) == from {
				g.picked, weights[i] = state, uint64(g.share.Weight)
			}
		}
	}
	anyone := func(*group) bool { return true }
	remote := func(g *group) bool { return !g.local }

	if best, ok := first(Active, anyone); ok {
		pick(Active, best, anyone)
		spilt := false
		if affinity == v1alpha1.AffinityLocal && best.side == 0 && spec != nil && spec.LocalMinReady != nil {
			if next, ok := first(Active, remote); ok && spills(groups, *spec.LocalMinReady) {
				pick(Active, next, remote)
				spilt = true
			}
		}
		keepShare(groups, weights)
		if spilt {
			divide(groups, weights)
		}
	} else if best, ok := first(Terminating, anyone); ok {
		pick(Terminating, best, anyone)
	}

	counts := make([]uint64, len(groups))
	for i := range groups {
		counts[i] = uint64(groups[i].count[groups[i].picked])
	}
	slots, held := slotsFor(weights, counts)
	for i := range groups {
		groups[i].slots = slots[i]
	}
	return held
}

// spills says whether fewer than minReady percent of the local endpoints are ready.
func spills(groups []group, minReady int32) bool {
	for i := range groups {
		if g := &groups[i]; g.local {
			return g.ready*100 < uint64(max(minReady, 0))*g.want
		}
	}
	return false
}

// divide changes weights so that the local group gets the share ready/desired of the
// traffic, and the remote ones that are picked get the rest by their own weights.
func divide(groups []group, weights []uint64) {
	var ready, want, localSum, remoteSum uint64
	for i := range groups {
		g := &groups[i]
		sum := weights[i] * uint64(g.count[Active])
		if g.local {
			ready, want, localSum = g.ready, g.want, sum
		} else {
			remoteSum += sum
		}
	}
	for i := range groups {
		if groups[i].local {
			weights[i] *= ready * remoteSum
		} else {
			weights[i] *= (want - ready) * localSum
		}
	}
}

// mergeRuns sorts a list that consists of sorted runs; ends holds where each ends.
func mergeRuns(list []endpoint, ends []int) []endpoint {
	if len(ends) < 2 {
		return list
	}
	other := make([]endpoint, len(list))
	merged := make([]int, 0, (len(ends)+1)/2)
	for len(ends) > 1 {
		merged = merged[:0]
		start := 0
		for i := 0; i < len(ends); i += 2 {
			if i+1 == len(ends) {
				copy(other[start:], list[start:ends[i]])
				merged = append(merged, ends[i])
				break
			}
			mergeTwo(other[start:ends[i+1]], list[start:ends[i]], list[ends[i]:ends[i+1]])
			merged = append(merged, ends[i+1])
			start = ends[i+1]
		}
		list, other = other, list
		ends = append(ends[:0], merged...)
	}
	return list
}

func mergeTwo(to, a, b []endpoint) {
	// Slices of one cluster often follow each other without overlap.
	if len(a) == 0 || len(b) == 0 || !b[0].before(&a[len(a)-1]) {
		copy(to[copy(to, a):], b)
		return
	}
	i, j := 0, 0
	for k := range to {
		if j == len(b) || i < len(a) && !b[j].before(&a[i]) {
			to[k] = a[i]
			i++
		} else {
			to[k] = b[j]
			j++
		}
	}
}
