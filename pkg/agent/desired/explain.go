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
	"fmt"
	"net/netip"
	"slices"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

// Verdict is what Service decides about one endpoint, and why.
type Verdict struct {
	Addr    netip.AddrPort
	Cluster string
	ID      uint16 // the cluster's; 0 if it has none here
	State   State
	// Slots is as in Backend.
	Slots uint32
	// Listed is set if the table holds the backend, picked or not.
	Listed bool
	// Drained is set while its cluster has the weight 0.
	Drained bool
	// Standby is set while it could serve, and others are preferred.
	Standby bool
	// ByNode is set where a client's node decides whether it gets the endpoint; Slots
	// and Reason then are as if all were as near as the nearest.
	ByNode bool
	// Reason says why no new connection goes to it; empty if any does.
	Reason string
}

// Explained is a frontend with the verdict on every endpoint that is known of its
// service, sorted by cluster and address.
type Explained struct {
	Frontend Frontend
	Port     ServicePort
	Verdicts []Verdict
}

// Explain says for each frontend that Service makes what becomes of every endpoint
// that is known, those included that the table does not hold.
func (m *Mesh) Explain(name Name, in ServiceInput) ([]Explained, []Left) {
	result := m.Service(name, in)
	if len(result.Services) == 0 {
		return nil, result.Left
	}
	how := m.Policy.Service(in.Service.Annotations, in.NamespaceAnnotations, in.Spec)
	var all []Explained
	for i := range result.Services {
		service := &result.Services[i]
		in := in.at(service.Frontend.Addr)
		groups := m.groups(service, in)
		choose(groups, how.Affinity.Value, in.Spec)
		e := Explained{Frontend: service.Frontend, Port: service.Port}
		for j := range groups {
			g := &groups[j]
			byNode := m.AnyNode && g.byNode(in.Service.InternalLocal)
			for k := range g.endpoints {
				v := Verdict{
					ByNode: byNode,
					Addr:   g.endpoints[k].addrPort(), Cluster: g.name, ID: g.id,
					State: g.endpoints[k].state, Listed: true, Drained: g.share.Weight == 0,
				}
				isFar := g.endpoints[k].near&far != 0
				if v.State == g.picked && !isFar {
					v.Slots = g.slots
				}
				switch {
				case v.Slots > 0:
				case isFar && in.Service.InternalLocal:
					v.Reason = "elsewhere: internalTrafficPolicy Local keeps clients to their own node"
				case isFar:
					v.Reason, v.Standby = "farther: trafficDistribution prefers others", true
				default:
					v.Reason, v.Standby = m.unpicked(g, v.State, groups, how, in.Spec)
				}
				e.Verdicts = append(e.Verdicts, v)
			}
		}
		e.Verdicts = append(e.Verdicts, m.unlisted(service, in, e.Verdicts)...)
		slices.SortFunc(e.Verdicts, func(a, b Verdict) int {
			return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), a.Addr.Compare(b.Addr))
		})
		all = append(all, e)
	}
	return all, result.Left
}

// unpicked says why an endpoint of a group is not picked.
func (m *Mesh) unpicked(g *group, state State, groups []group, how policy.Service, spec *v1alpha1.GlobalServiceSpec) (reason string, standby bool) {
	var member *v1alpha1.MeshClusterSpec
	if found, ok := m.Members[g.name]; ok {
		member = &found.Spec
	}
	if g.share.Weight == 0 {
		switch weight, _ := policy.ShareSources(spec, g.name, member); weight {
		case policy.ShareSpec:
			return "drained: weight 0 in the spec", false
		case policy.ShareDrained:
			return fmt.Sprintf("drained: MeshCluster %s is drained", g.name), false
		default:
			return fmt.Sprintf("drained: weight 0 of MeshCluster %s", g.name), false
		}
	}
	switch state {
	case NotReady:
		return "not ready", false
	case Quarantined:
		return "quarantined: connections to it fail", false
	case Terminating:
		return "terminating: used when nothing ready is left", false
	}
	// It is ready, so another tier takes all.
	var best *group
	for i := range groups {
		if o := &groups[i]; o.slots > 0 && (best == nil || o.tier(how.Affinity.Value).compare(best.tier(how.Affinity.Value)) < 0) {
			best = o
		}
	}
	if best == nil {
		return "not picked", false
	}
	mine, theirs := g.tier(how.Affinity.Value), best.tier(how.Affinity.Value)
	if mine.side != theirs.side {
		return fmt.Sprintf("standby: affinity %s prefers %s", how.Affinity.Value, best.name), true
	}
	return fmt.Sprintf("standby: priority %d comes after %d of %s", mine.priority, theirs.priority, best.name), true
}

// unlisted are the endpoints that are known and that a frontend does not list, but
// for those that listed has. One of another address family is no endpoint of it.
func (m *Mesh) unlisted(service *Service, in ServiceInput, listed []Verdict) []Verdict {
	type key struct {
		cluster string
		addr    netip.Addr
	}
	seen := map[key]bool{}
	for _, v := range listed {
		seen[key{v.Cluster, v.Addr.Addr()}] = true
	}
	var found []Verdict
	add := func(s *Slice, cluster string, id uint16, reason string) {
		var port uint16
		if len(s.Ports) > 0 {
			port = s.Ports[0].Port
		}
		for _, p := range s.Ports {
			if p.Name == service.Port.Port && p.Protocol == service.Frontend.Protocol {
				port = p.Port
			}
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if k := (key{cluster, e.Addr}); e.Addr.Is4() == service.Frontend.Addr.Is4() && !seen[k] {
				seen[k] = true
				found = append(found, Verdict{Addr: netip.AddrPortFrom(e.Addr, port), Cluster: cluster, ID: id, State: e.State, Reason: reason})
			}
		}
	}
	mismatch := fmt.Sprintf("its Service has no port like %s/%s", cmp.Or(service.Port.Port, "the unnamed one"), service.Frontend.Protocol)
	for _, s := range in.Local {
		add(s, m.Cluster, m.localID(), mismatch)
	}
	for _, s := range in.Remote {
		member, ok := m.Members[s.Cluster]
		switch {
		case !ok:
			add(s, s.Cluster, 0, fmt.Sprintf("%s has no MeshCluster here", s.Cluster))
		case s.Cluster == m.Cluster || member.ID == m.localID():
			add(s, s.Cluster, member.ID, fmt.Sprintf("%s has this cluster's own name or ID", s.Cluster))
		default:
			add(s, s.Cluster, member.ID, mismatch)
		}
	}
	return found
}
