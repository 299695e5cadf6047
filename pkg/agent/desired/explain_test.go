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
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

func TestExplain(t *testing.T) {
	clusters := func(list ...v1alpha1.ClusterPolicy) *v1alpha1.GlobalServiceSpec {
		return &v1alpha1.GlobalServiceSpec{Clusters: list}
	}
	for name, test := range map[string]struct {
		annotations   []string
		spec          *v1alpha1.GlobalServiceSpec
		change        func(*Mesh)
		local, remote string
		strange       *Slice
		want          string
	}{
		"all are used": {local: "10.1.0.1", remote: "10.2.0.1", want: `
10.1.0.1 cluster1 1
10.2.0.1 cluster2 1`},
		"drained in the spec": {local: "10.1.0.1", remote: "10.2.0.1", spec: clusters(v1alpha1.ClusterPolicy{Name: "cluster2", Weight: ptr.To[int32](0)}), want: `
10.1.0.1 cluster1 1
10.2.0.1 cluster2 drained: weight 0 in the spec`},
		"drained as a whole": {local: "10.1.0.1", remote: "10.2.0.1", change: func(m *Mesh) {
			m.Members["cluster2"] = Member{Name: "cluster2", ID: 2, Spec: v1alpha1.MeshClusterSpec{Drained: true}}
		}, want: `
10.1.0.1 cluster1 1
10.2.0.1 cluster2 drained: MeshCluster cluster2 is drained`},
		"weight 0 of the member": {local: "10.1.0.1", remote: "10.2.0.1", change: func(m *Mesh) {
			m.Members["cluster2"] = Member{Name: "cluster2", ID: 2, Spec: v1alpha1.MeshClusterSpec{Weight: ptr.To[int32](0)}}
		}, want: `
10.1.0.1 cluster1 1
10.2.0.1 cluster2 drained: weight 0 of MeshCluster cluster2`},
		"affinity": {local: "10.1.0.1", remote: "10.2.0.1", annotations: []string{"mesh.io/affinity", "local"}, want: `
10.1.0.1 cluster1 1
10.2.0.1 cluster2 standby: affinity Local prefers cluster1`},
		"affinity falls back": {local: "10.1.0.1=notready", remote: "10.2.0.1", annotations: []string{"mesh.io/affinity", "local"}, want: `
10.1.0.1 cluster1 not ready
10.2.0.1 cluster2 1`},
		"priority": {local: "10.1.0.1", remote: "10.2.0.1", spec: clusters(v1alpha1.ClusterPolicy{Name: "cluster2", Priority: ptr.To[int32](7)}), want: `
10.1.0.1 cluster1 1
10.2.0.1 cluster2 standby: priority 7 comes after 0 of cluster1`},
		"states": {local: "10.1.0.1 10.1.0.2=notready 10.1.0.3=terminating", want: `
10.1.0.1 cluster1 1
10.1.0.2 cluster1 not ready
10.1.0.3 cluster1 terminating: used when nothing ready is left`},
		"no member": {local: "10.1.0.1", remote: "10.2.0.1", change: func(m *Mesh) { delete(m.Members, "cluster2") }, want: `
10.1.0.1 cluster1 1
10.2.0.1 cluster2 unlisted: cluster2 has no MeshCluster here`},
		"another port": {local: "10.1.0.1", strange: &Slice{Cluster: "cluster3", Service: song, Object: "s", Endpoints: endpoints("10.3.0.1"), Ports: []SlicePort{{Name: "web", Protocol: TCP, Port: 9}}}, want: `
10.1.0.1 cluster1 1
10.3.0.1 cluster3 unlisted: its Service has no port like http/TCP`},
	} {
		t.Run(name, func(t *testing.T) {
			m := mesh()
			if test.change != nil {
				test.change(&m)
			}
			in := ServiceInput{Service: globalService(test.annotations...), Spec: test.spec}
			if test.local != "" {
				in.Local = []*Slice{slice("", "l", test.local)}
			}
			if test.remote != "" {
				in.Remote = append(in.Remote, slice("cluster2", "r", test.remote))
			}
			if test.strange != nil {
				in.Remote = append(in.Remote, test.strange)
			}
			all, left := m.Explain(song, in)
			if len(all) != 1 || len(left) != 0 {
				t.Fatalf("got %v, left %v", all, left)
			}
			var got strings.Builder
			slots := map[string]uint32{}
			for _, v := range all[0].Verdicts {
				text := v.Reason
				if !v.Listed {
					text = "unlisted: " + text
				} else if v.Slots > 0 {
					text = fmt.Sprint(v.Slots)
				}
				if (v.Slots > 0) != (v.Reason == "") {
					t.Errorf("%v has %d slots and the reason %q", v.Addr, v.Slots, v.Reason)
				}
				fmt.Fprintf(&got, "\n%s %s %s", v.Addr.Addr(), v.Cluster, text)
				slots[v.Addr.String()] = v.Slots
			}
			if diff := cmp.Diff(test.want, got.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			// It is what the table gets.
			for _, b := range m.Service(song, in).Services[0].Backends {
				if slots[b.Addr.String()] != b.Slots {
					t.Errorf("%s has %d slots in the table, %d here", b.Addr, b.Slots, slots[b.Addr.String()])
				}
			}
		})
	}
}
