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
	"strings"
	"testing"

	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

// located reads endpoints as "10.1.0.1@n1 10.1.0.2@n2,za 10.1.0.3=terminating@n1,za,zb,n1":
// an address and its state, where it is, and, as hints, zones (z…) and nodes (n…).
func located(list string) *Slice {
	s := &Slice{Service: song, Object: "x", Ports: http}
	for _, word := range strings.Fields(list) {
		addr, where, _ := strings.Cut(word, "@")
		s.Endpoints = append(s.Endpoints, endpoints(addr)...)
		node, hints, _ := strings.Cut(where, ",")
		near := Near{Node: Names(node)}
		var zones, nodes []string
		for _, hint := range strings.Split(hints, ",") {
			switch {
			case strings.HasPrefix(hint, "z"):
				zones = append(zones, hint)
			case strings.HasPrefix(hint, "n"):
				nodes = append(nodes, hint)
			}
		}
		near.ForZones, near.ForNodes = Names(zones...), Names(nodes...)
		s.Near = append(s.Near, near)
	}
	return s
}

func TestNearEndpoints(t *testing.T) {
	const (
		zoned  = "10.1.0.1@n1,za 10.1.0.2@n2,za 10.1.0.3@n3,zb 10.1.0.4@n4,zb"
		noded  = "10.1.0.1@n1,za,n1 10.1.0.2@n2,za,n2 10.1.0.3@n3,zb,n3"
		remote = "10.2.0.1 10.2.0.2"
	)
	tests := map[string]struct {
		local, remote string
		internalLocal bool
		node, zone    string
		annotations   []string
		spec          *v1alpha1.GlobalServiceSpec
		want          string
		localReady    bool
	}{
		// trafficDistribution, as the control plane's hints carry it out.
		"no hints": {
			local: "10.1.0.1@n1 10.1.0.2@n2", node: "n1", zone: "za", want: "1/10.1.0.1* 1/10.1.0.2*", localReady: true,
		},
		"a zone's": {
			local: zoned, node: "n1", zone: "za", want: "1/10.1.0.1* 1/10.1.0.2* 1/10.1.0.3 1/10.1.0.4", localReady: true,
		},
		"another zone's": {
			local: zoned, node: "n9", zone: "zb", want: "1/10.1.0.1 1/10.1.0.2 1/10.1.0.3* 1/10.1.0.4*", localReady: true,
		},
		"a zone that has none": {
			local: zoned, node: "n9", zone: "zc", want: "1/10.1.0.1* 1/10.1.0.2* 1/10.1.0.3* 1/10.1.0.4*", localReady: true,
		},
		"a node whose zone is not known": {
			local: zoned, node: "n1", want: "1/10.1.0.1* 1/10.1.0.2* 1/10.1.0.3* 1/10.1.0.4*", localReady: true,
		},
		"an endpoint for two zones": {
			local: "10.1.0.1@n1,za,zb 10.1.0.2@n2,zb 10.1.0.3@n3,zc", node: "n1", zone: "zb",
			want: "1/10.1.0.1* 1/10.1.0.2* 1/10.1.0.3", localReady: true,
		},
		"a zone of which another's name is the beginning": {
			local: "10.1.0.1@n1,za 10.1.0.2@n2,za2", node: "n1", zone: "za2", want: "1/10.1.0.1 1/10.1.0.2*", localReady: true,
		},
		"a ready one without a hint makes hints void": {
			local: "10.1.0.1@n1,za 10.1.0.2@n2", node: "n1", zone: "za", want: "1/10.1.0.1* 1/10.1.0.2*", localReady: true,
		},
		"one that is not ready does not": {
			local: "10.1.0.1@n1,za 10.1.0.2=notready@n2 10.1.0.3@n3,zb", node: "n1", zone: "za",
			want: "1/10.1.0.1* 1/10.1.0.2 1/10.1.0.3", localReady: true,
		},
		"of the zone none is ready": {
			local: "10.1.0.1=notready@n1,za 10.1.0.3@n3,zb", node: "n1", zone: "za", want: "1/10.1.0.1 1/10.1.0.3*", localReady: true,
		},
		"a node's own": {
			local: noded, node: "n2", zone: "za", want: "1/10.1.0.1 1/10.1.0.2* 1/10.1.0.3", localReady: true,
		},
		"a node that has none gets its zone's": {
			local: noded, node: "n9", zone: "za", want: "1/10.1.0.1* 1/10.1.0.2* 1/10.1.0.3", localReady: true,
		},
		"neither": {
			local: noded, node: "n9", zone: "zz", want: "1/10.1.0.1* 1/10.1.0.2* 1/10.1.0.3*", localReady: true,
		},
		"nothing ready: the terminating ones, wherever they are": {
			local: "10.1.0.1=terminating@n1,za 10.1.0.2=terminating@n2,zb", node: "n1", zone: "za", want: "1/10.1.0.1* 1/10.1.0.2*",
		},
		// Between clusters, hints move nothing: 4 here, 2 there, as without them.
		"the share of the cluster stays": {
			local: zoned, remote: remote, node: "n1", zone: "za",
			want: "1/10.1.0.1*2 1/10.1.0.2*2 1/10.1.0.3 1/10.1.0.4 2/10.2.0.1* 2/10.2.0.2*", localReady: true,
		},
		"with weights too": {
			local: zoned, remote: remote, node: "n1", zone: "za",
			spec: &v1alpha1.GlobalServiceSpec{Clusters: []v1alpha1.ClusterPolicy{{Name: "cluster2", Weight: ptr.To[int32](400)}}},
			want: "1/10.1.0.1* 1/10.1.0.2* 1/10.1.0.3 1/10.1.0.4 2/10.2.0.1*2 2/10.2.0.2*2", localReady: true,
		},
		"affinity local": {
			local: zoned, remote: remote, node: "n1", zone: "zb", annotations: []string{"mesh.io/affinity", "local"},
			want: "1/10.1.0.1 1/10.1.0.2 1/10.1.0.3* 1/10.1.0.4* 2/10.2.0.1 2/10.2.0.2", localReady: true,
		},
		"affinity remote": {
			local: zoned, remote: remote, node: "n1", zone: "zb", annotations: []string{"mesh.io/affinity", "remote"},
			want: "1/10.1.0.1 1/10.1.0.2 1/10.1.0.3 1/10.1.0.4 2/10.2.0.1* 2/10.2.0.2*", localReady: true,
		},
		// 4 of 8 are ready: half of the traffic goes to the 2 there, half to the 2 near ones.
		"localMinReady": {
			local:  zoned + " 10.1.0.5=notready@n5 10.1.0.6=notready@n5 10.1.0.7=notready@n5 10.1.0.8=notready@n5",
			remote: remote, node: "n1", zone: "za", annotations: []string{"mesh.io/affinity", "local"},
			spec: &v1alpha1.GlobalServiceSpec{LocalMinReady: ptr.To[int32](60)},
			want: "1/10.1.0.1* 1/10.1.0.2* 1/10.1.0.3 1/10.1.0.4 1/10.1.0.5 1/10.1.0.6 1/10.1.0.7 1/10.1.0.8 2/10.2.0.1* 2/10.2.0.2*", localReady: true,
		},
		// internalTrafficPolicy Local.
		"the node's own only": {
			local: zoned, remote: remote, internalLocal: true, node: "n3", zone: "za",
			want: "1/10.1.0.1 1/10.1.0.2 1/10.1.0.3* 1/10.1.0.4 2/10.2.0.1 2/10.2.0.2", localReady: true,
		},
		"the node has none: kube-proxy answers": {
			local: zoned, remote: remote, internalLocal: true, node: "n9", zone: "za",
			want: "1/10.1.0.1 1/10.1.0.2 1/10.1.0.3 1/10.1.0.4 2/10.2.0.1 2/10.2.0.2",
		},
		"the node's terminating one, if it has no ready one": {
			local: "10.1.0.1=terminating@n1 10.1.0.2@n2", internalLocal: true, node: "n1", want: "1/10.1.0.1* 1/10.1.0.2",
		},
		"affinity remote does not lead elsewhere": {
			local: zoned, remote: remote, internalLocal: true, node: "n1", annotations: []string{"mesh.io/affinity", "remote"},
			want: "1/10.1.0.1* 1/10.1.0.2 1/10.1.0.3 1/10.1.0.4 2/10.2.0.1 2/10.2.0.2", localReady: true,
		},
		"an endpoint of no node": {
			local: "10.1.0.1 10.1.0.2@n2", internalLocal: true, node: "n1", want: "1/10.1.0.1 1/10.1.0.2",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := mesh()
			m.Node, m.Zone = test.node, test.zone
			in := ServiceInput{Service: globalService(test.annotations...), Spec: test.spec, Local: []*Slice{located(test.local)}}
			in.Service.InternalLocal = test.internalLocal
			if test.remote != "" {
				in.Remote = []*Slice{slice("cluster2", "y", test.remote)}
			}
			result := m.Service(song, in)
			if len(result.Services) != 1 || len(result.Left) > 0 {
				t.Fatalf("%+v", result)
			}
			if got := backends(result.Services[0]); got != test.want || result.Services[0].LocalReady != test.localReady {
				t.Errorf("got  %s, local ready %t\nwant %s, local ready %t", got, result.Services[0].LocalReady, test.want, test.localReady)
			}
		})
	}
}

func TestInternalTrafficPolicyLocalNeedsANode(t *testing.T) {
	m := mesh()
	in := ServiceInput{Service: globalService(), Local: []*Slice{located("10.1.0.1@n1 10.1.0.2@n2")}, Remote: []*Slice{slice("cluster2", "y", "10.2.0.1")}}
	in.Service.InternalLocal = true
	if result := m.Service(song, in); len(result.Services) > 0 || len(result.Left) != 1 || result.Left[0].Reason != ReasonInternalLocal {
		t.Errorf("without a node's name: %+v", result)
	}
	// People ask what holds on any node.
	m.AnyNode = true
	explained, _ := m.Explain(song, in)
	if len(explained) != 1 {
		t.Fatalf("%+v", explained)
	}
	var got []string
	for _, v := range explained[0].Verdicts {
		word := v.Addr.Addr().String()
		if v.Slots > 0 {
			word += "*"
		}
		if v.ByNode {
			word += "?"
		}
		if v.Reason != "" {
			word += " (" + v.Reason + ")"
		}
		got = append(got, word)
	}
	const want = "10.1.0.1*?; 10.1.0.2*?; 10.2.0.1? (elsewhere: internalTrafficPolicy Local keeps clients to their own node)"
	if s := strings.Join(got, "; "); s != want {
		t.Errorf("explained as\n%s, want\n%s", s, want)
	}
}
