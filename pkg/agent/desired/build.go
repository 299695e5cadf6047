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
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

// Reasons for which a global Service stays with kube-proxy.
const (
	ReasonHeadless      = "it has no cluster IP"
	ReasonExternalName  = "it is an alias for a name outside"
	ReasonOtherProxy    = "its label service.kubernetes.io/service-proxy-name gives it to another proxy"
	ReasonInternalLocal = "internalTrafficPolicy is Local"
	ReasonAffinity      = "sessionAffinity ClientIP is not held yet across clusters"
	ReasonProtocol      = "only TCP and UDP are balanced across clusters"
	ReasonIPv6          = "IPv6 is not balanced across clusters yet"
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
		result.Left = append(result.Left, Left{ServicePort{name.Namespace, name.Name, port}, reason})
	}
	if reason := policy.Reserved(name.Namespace, name.Name, m.Namespace); reason != "" {
		leave("", reason)
		return result
	}
	if in.Service.Reason != "" {
		leave("", in.Service.Reason)
		return result
	}
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
		for _, ip := range in.Service.ClusterIPs {
			if ip.Is6() && !m.IPv6 {
				leave(port.Name, ReasonIPv6)
				continue
			}
			service := Service{
				Frontend: Frontend{ip, port.Port, protocol},
				Port:     ServicePort{name.Namespace, name.Name, port.Name},
			}
			candidates := m.candidates(&service, in)
			held := choose(candidates, how.Affinity.Value, in.Spec)
			if !held {
				result.Unheld = append(result.Unheld, service.Port)
			}
			service.Backends = make([]Backend, len(candidates))
			for i := range candidates {
				service.Backends[i] = candidates[i].Backend
				if candidates[i].local && candidates[i].State == Active {
					service.LocalReady = true
				}
			}
			result.Services = append(result.Services, service)
		}
	}
	return result
}

// candidate is a backend and what decides whether it is picked.
type candidate struct {
	Backend
	local   bool
	leaving bool
	share   policy.Share
}

// candidates lists the endpoints of all clusters that serve a frontend, sorted, each
// once.
func (m *Mesh) candidates(service *Service, in ServiceInput) []candidate {
	size := 0
	for _, s := range in.Local {
		size += len(s.Endpoints)
	}
	for _, s := range in.Remote {
		size += len(s.Endpoints)
	}
	list := make([]candidate, 0, size)
	// Each run of the list is sorted by itself; runs holds where they end.
	runs := make([]int, 0, len(in.Local)+len(in.Remote)+1)

	add := func(s *Slice, id uint16, local bool, share policy.Share) {
		for _, port := range s.Ports {
			if port.Name != service.Port.Port || port.Protocol != service.Frontend.Protocol {
				continue
			}
			for i := range s.Endpoints {
				e := &s.Endpoints[i]
				if e.Addr.Is4() != service.Frontend.Addr.Is4() {
					continue
				}
				list = append(list, candidate{
					Backend: Backend{Addr: netip.AddrPortFrom(e.Addr, port.Port), ClusterID: id, State: e.State},
					local:   local,
					leaving: e.Leaving,
					share:   share,
				})
			}
			runs = append(runs, len(list))
		}
	}

	var localSpec *v1alpha1.MeshClusterSpec
	if member, ok := m.Members[m.Cluster]; ok {
		localSpec = &member.Spec
	}
	share := policy.Cluster(in.Spec, m.Cluster, localSpec)
	for _, s := range in.Local {
		add(s, m.localID(), true, share)
	}
	for _, s := range in.Remote {
		member, ok := m.Members[s.Cluster]
		if !ok || s.Cluster == m.Cluster || member.ID == m.localID() {
			continue
		}
		add(s, member.ID, false, policy.Cluster(in.Spec, s.Cluster, &member.Spec))
	}
	for _, b := range in.Remembered[service.Frontend] {
		name, ok := m.Remembered[b.ClusterID]
		if !ok || name == m.Cluster || b.ClusterID == m.localID() {
			continue
		}
		var spec *v1alpha1.MeshClusterSpec
		if member, ok := m.Members[name]; ok {
			spec = &member.Spec
		}
		b.Slots = 0
		list = append(list, candidate{Backend: b, leaving: b.State == Terminating, share: policy.Cluster(in.Spec, name, spec)})
	}
	if len(in.Remembered) > 0 {
		runs = append(runs, len(list))
	}

	list = mergeRuns(list, runs, compareCandidates)
	// An address in two slices counts once, at its best.
	return slices.CompactFunc(list, func(a, b candidate) bool {
		return a.ClusterID == b.ClusterID && a.Addr == b.Addr
	})
}

// compareCandidates orders by cluster ID and address, and puts the best state of an
// address first.
func compareCandidates(a, b *candidate) int {
	if a.ClusterID != b.ClusterID {
		return cmp.Compare(a.ClusterID, b.ClusterID)
	}
	if c := a.Addr.Compare(b.Addr); c != 0 {
		return c
	}
	if a.State != b.State {
		return cmp.Compare(a.State, b.State)
	}
	if a.leaving != b.leaving {
		if a.leaving {
			return 1
		}
		return -1
	}
	// Only two members that claim the same ID get here with different shares.
	return cmp.Or(cmp.Compare(a.share.Weight, b.share.Weight), cmp.Compare(a.share.Priority, b.share.Priority))
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

// choose gives slots to the candidates that take new connections: all ready ones of
// the first tier that has any, else those that serve while they terminate, by the
// same order. It reports whether their weights could be held.
func choose(candidates []candidate, affinity v1alpha1.Affinity, spec *v1alpha1.GlobalServiceSpec) (held bool) {
	tierOf := func(c *candidate) tier {
		t := tier{priority: c.share.Priority}
		switch affinity {
		case v1alpha1.AffinityLocal:
			if !c.local {
				t.side = 1
			}
		case v1alpha1.AffinityRemote:
			if c.local {
				t.side = 1
			}
		}
		return t
	}
	// first finds the first tier with a candidate of the state that accept allows.
	first := func(state State, accept func(*candidate) bool) (best tier, ok bool) {
		for i := range candidates {
			c := &candidates[i]
			if c.State != state || c.share.Weight <= 0 || accept != nil && !accept(c) {
				continue
			}
			if t := tierOf(c); !ok || t.compare(best) < 0 {
				best, ok = t, true
			}
		}
		return best, ok
	}

	weights := make([]uint64, len(candidates))
	for _, state := range []State{Active, Terminating} {
		best, ok := first(state, nil)
		if !ok {
			continue
		}
		for i := range candidates {
			c := &candidates[i]
			if c.State == state && c.share.Weight > 0 && tierOf(c) == best {
				weights[i] = uint64(c.share.Weight)
			}
		}
		if state == Active && affinity == v1alpha1.AffinityLocal && best.side == 0 && spec != nil && spec.LocalMinReady != nil {
			if next, ok := first(Active, func(c *candidate) bool { return !c.local }); ok {
				spill(candidates, weights, *spec.LocalMinReady, func(c *candidate) bool {
					return c.State == Active && c.share.Weight > 0 && tierOf(c) == next
				})
			}
		}
		break
	}
	counts, held := slotsFor(weights)
	for i := range candidates {
		candidates[i].Slots = counts[i]
	}
	return held
}

// spill keeps only the share ready/desired of the traffic on the local candidates
// while fewer than minReady percent of them are ready, and gives the rest to the
// remote ones. weights holds those of the local candidates that are picked.
func spill(candidates []candidate, weights []uint64, minReady int32, remote func(*candidate) bool) {
	var ready, want, localSum, remoteSum uint64
	for i := range candidates {
		c := &candidates[i]
		switch {
		case c.local && c.State == Active:
			ready++
			want++
		case c.local && !c.leaving:
			want++
		case !c.local && remote(c):
			remoteSum += uint64(c.share.Weight)
		}
		localSum += weights[i]
	}
	if ready*100 >= uint64(max(minReady, 0))*want {
		return
	}
	// The local side gets ready parts of want, whatever the weights of the two sides
	// are to each other, and each side is divided by its own weights.
	for i := range candidates {
		c := &candidates[i]
		if weights[i] > 0 {
			weights[i] *= ready * remoteSum
		} else if !c.local && remote(c) {
			weights[i] = uint64(c.share.Weight) * (want - ready) * localSum
		}
	}
}

// mergeRuns sorts a list that consists of sorted runs; ends holds where each ends.
func mergeRuns[T any](list []T, ends []int, compare func(a, b *T) int) []T {
	if len(ends) < 2 {
		return list
	}
	other := make([]T, len(list))
	for len(ends) > 1 {
		merged := ends[:0:0]
		start := 0
		for i := 0; i < len(ends); i += 2 {
			if i+1 == len(ends) {
				copy(other[start:], list[start:ends[i]])
				merged = append(merged, ends[i])
				break
			}
			mergeTwo(other[start:ends[i+1]], list[start:ends[i]], list[ends[i]:ends[i+1]], compare)
			merged = append(merged, ends[i+1])
			start = ends[i+1]
		}
		list, other, ends = other, list, merged
	}
	return list
}

func mergeTwo[T any](to, a, b []T, compare func(a, b *T) int) {
	// Slices of one cluster often follow each other without overlap.
	if len(a) == 0 || len(b) == 0 || compare(&a[len(a)-1], &b[0]) <= 0 {
		copy(to[copy(to, a):], b)
		return
	}
	i, j := 0, 0
	for k := range to {
		if j == len(b) || i < len(a) && compare(&a[i], &b[j]) <= 0 {
			to[k] = a[i]
			i++
		} else {
			to[k] = b[j]
			j++
		}
	}
}
