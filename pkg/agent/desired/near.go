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

// near is what the node of the client makes of where an endpoint is.
type near uint8

const (
	onNode   near = 1 << iota // it is on the client's node
	zoneHint                  // it is meant for some zones,
	forZone                   // the client's among them
	nodeHint                  // it is meant for some nodes,
	forNode                   // the client's among them
	far                       // the client does not get it, as there are nearer ones
)

func (m *Mesh) near(where *Near) (n near) {
	if _, here := names(where.Node, m.Node); here && m.Node != "" {
		n |= onNode
	}
	if some, here := names(where.ForZones, m.Zone); some {
		n |= zoneHint
		if here && m.Zone != "" {
			n |= forZone
		}
	}
	if some, here := names(where.ForNodes, m.Node); some {
		n |= nodeHint
		if here && m.Node != "" {
			n |= forNode
		}
	}
	return n
}

// narrow marks as far what clients of this node do not get, as kube-proxy has it: with
// internalTrafficPolicy Local all that is not on the node; else, of the ready endpoints
// of this cluster, those that are not meant for the node, or for its zone, if all of
// them are meant for somebody and some for it. That is how the control plane carries
// out trafficDistribution. It says nothing about other clusters: what they get is a
// matter of weights and affinity.
func (m *Mesh) narrow(g *group, internalLocal bool) {
	if internalLocal {
		for i := range g.endpoints {
			// Any node has the endpoints that are on it.
			if e := &g.endpoints[i]; e.near&onNode == 0 && (!m.AnyNode || !g.local) {
				e.near |= far
			}
		}
		return
	}
	if !g.local || m.AnyNode {
		return
	}
	for _, hint := range []struct{ some, here near }{{nodeHint, forNode}, {zoneHint, forZone}} {
		all, some := true, false
		for i := range g.endpoints {
			if e := &g.endpoints[i]; e.state == Active {
				all = all && e.near&hint.some != 0
				some = some || e.near&hint.here != 0
			}
		}
		if !all || !some {
			continue
		}
		for i := range g.endpoints {
			if e := &g.endpoints[i]; e.state == Active && e.near&hint.here == 0 {
				e.near |= far
			}
		}
		return
	}
}

// byNode says whether a client's node decides which endpoints of the group it gets.
func (g *group) byNode(internalLocal bool) bool {
	if internalLocal {
		return true
	}
	for i := range g.endpoints {
		if g.endpoints[i].near&(zoneHint|nodeHint) != 0 {
			return true
		}
	}
	return false
}

// keepShare changes weights so that a cluster of whose ready endpoints some are far gets
// the same share as with all of them: the near ones take it over.
func keepShare(groups []group, weights []uint64) {
	for i := range groups {
		g := &groups[i]
		if g.picked != Active || weights[i] == 0 || uint64(g.count[Active]) == g.ready {
			continue
		}
		for j := range groups {
			if j == i {
				weights[j] *= g.ready
			} else {
				weights[j] *= uint64(g.count[Active])
			}
		}
	}
}
