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

package policy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

func TestService(t *testing.T) {
	type annotations = map[string]string
	setting := func(v bool, s v1alpha1.PolicySource) Setting[bool] { return Setting[bool]{v, s} }
	affinity := func(v v1alpha1.Affinity, s v1alpha1.PolicySource) Setting[v1alpha1.Affinity] {
		return Setting[v1alpha1.Affinity]{v, s}
	}
	no, yes := setting(false, v1alpha1.SourceDefault), setting(true, v1alpha1.SourceDefault)
	none := affinity(v1alpha1.AffinityNone, v1alpha1.SourceDefault)

	for _, test := range []struct {
		name               string
		service, namespace annotations
		spec               *v1alpha1.GlobalServiceSpec
		onlyOurs           bool
		want               Service
	}{
		{
			name: "nothing annotated is not global",
			want: Service{Global: no, Shared: yes, Affinity: none},
		},
		{
			name:    "our annotations",
			service: annotations{"mesh.io/global": "true", "mesh.io/shared": "false", "mesh.io/affinity": "local"},
			want: Service{
				Global: setting(true, v1alpha1.SourceAnnotation), Shared: setting(false, v1alpha1.SourceAnnotation),
				Affinity: affinity(v1alpha1.AffinityLocal, v1alpha1.SourceAnnotation),
			},
		},
		{
			name:    "Cilium's annotations mean the same",
			service: annotations{"service.cilium.io/global": "true", "service.cilium.io/shared": "false", "service.cilium.io/affinity": "remote"},
			want: Service{
				Global: setting(true, v1alpha1.SourceAnnotation), Shared: setting(false, v1alpha1.SourceAnnotation),
				Affinity: affinity(v1alpha1.AffinityRemote, v1alpha1.SourceAnnotation),
			},
		},
		{
			name:    "and so do its old ones",
			service: annotations{"io.cilium/global-service": "true", "io.cilium/shared-service": "false", "io.cilium/service-affinity": "none"},
			want: Service{
				Global: setting(true, v1alpha1.SourceAnnotation), Shared: setting(false, v1alpha1.SourceAnnotation),
				Affinity: affinity(v1alpha1.AffinityNone, v1alpha1.SourceAnnotation),
			},
		},
		{
			name:     "unless they are switched off",
			service:  annotations{"service.cilium.io/global": "true", "io.cilium/global-service": "true"},
			onlyOurs: true,
			want:     Service{Global: no, Shared: yes, Affinity: none},
		},
		{
			name:    "ours wins where several stand, then Cilium's newer one",
			service: annotations{"mesh.io/global": "false", "service.cilium.io/global": "true", "service.cilium.io/affinity": "local", "io.cilium/service-affinity": "remote"},
			want: Service{
				Global: setting(false, v1alpha1.SourceAnnotation), Shared: yes,
				Affinity: affinity(v1alpha1.AffinityLocal, v1alpha1.SourceAnnotation),
			},
		},
		{
			name:    "values count in any case",
			service: annotations{"mesh.io/global": "TRUE", "mesh.io/shared": "False", "mesh.io/affinity": "Local"},
			want: Service{
				Global: setting(true, v1alpha1.SourceAnnotation), Shared: setting(false, v1alpha1.SourceAnnotation),
				Affinity: affinity(v1alpha1.AffinityLocal, v1alpha1.SourceAnnotation),
			},
		},
		{
			name:      "the Namespace makes its Services global",
			namespace: annotations{"mesh.io/global": "true"},
			want:      Service{Global: setting(true, v1alpha1.SourceNamespace), Shared: yes, Affinity: none},
		},
		{
			name:      "unless they say otherwise",
			service:   annotations{"service.cilium.io/global": "false"},
			namespace: annotations{"mesh.io/global": "true"},
			want:      Service{Global: setting(false, v1alpha1.SourceAnnotation), Shared: yes, Affinity: none},
		},
		{
			name:      "a Namespace knows no other annotation and no other spelling",
			namespace: annotations{"service.cilium.io/global": "true", "mesh.io/shared": "false", "mesh.io/affinity": "local"},
			want:      Service{Global: no, Shared: yes, Affinity: none},
		},
		{
			name:      "a value that means nothing is the default, not the Namespace's or the other spelling's",
			service:   annotations{"mesh.io/global": "yes", "service.cilium.io/global": "true"},
			namespace: annotations{"mesh.io/global": "true"},
			want: Service{Global: no, Shared: yes, Affinity: none, Problems: []Problem{
				{"mesh.io/global", "yes", "true or false", true},
			}},
		},
		{
			name: "every wrong value is named",
			service: annotations{
				"service.cilium.io/global": "1", "service.cilium.io/shared": "", "io.cilium/service-affinity": "nearest", "mesh.io/export-manual": "on",
			},
			want: Service{Global: no, Shared: yes, Affinity: none, Problems: []Problem{
				{"service.cilium.io/global", "1", "true or false", true},
				{"service.cilium.io/shared", "", "true or false", true},
				{"io.cilium/service-affinity", "nearest", "none, local or remote", true},
				{"mesh.io/export-manual", "on", "true or false", true},
			}},
		},
		{
			name:      "on the Namespace too",
			namespace: annotations{"mesh.io/global": "True "},
			want: Service{Global: no, Shared: yes, Affinity: none, Problems: []Problem{
				{"mesh.io/global", "True ", "true or false", false},
			}},
		},
		{
			name:    "the spec wins over annotations, field by field",
			service: annotations{"mesh.io/global": "true", "mesh.io/shared": "true", "mesh.io/affinity": "local"},
			spec:    &v1alpha1.GlobalServiceSpec{Shared: ptr.To(false)},
			want: Service{
				Global: setting(true, v1alpha1.SourceAnnotation), Shared: setting(false, v1alpha1.SourceSpec),
				Affinity: affinity(v1alpha1.AffinityLocal, v1alpha1.SourceAnnotation),
			},
		},
		{
			name: "a spec alone does not make a Service global",
			spec: &v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityRemote, Shared: ptr.To(true)},
			want: Service{Global: no, Shared: setting(true, v1alpha1.SourceSpec), Affinity: affinity(v1alpha1.AffinityRemote, v1alpha1.SourceSpec)},
		},
		{
			name:    "hand-made slices by request",
			service: annotations{"mesh.io/global": "true", "mesh.io/export-manual": "true"},
			want:    Service{Global: setting(true, v1alpha1.SourceAnnotation), Shared: yes, Affinity: none, ExportManual: true},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Reader{Cilium: !test.onlyOurs}.Service(test.service, test.namespace, test.spec)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("policy (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExports(t *testing.T) {
	for _, test := range []struct{ global, shared, want bool }{
		{true, true, true}, {true, false, false}, {false, true, false}, {false, false, false},
	} {
		s := Service{Global: Setting[bool]{Value: test.global}, Shared: Setting[bool]{Value: test.shared}}
		if got := s.Exports(); got != test.want {
			t.Errorf("global %v, shared %v: exports %v, want %v", test.global, test.shared, got, test.want)
		}
	}
}

func TestReserved(t *testing.T) {
	for _, test := range []struct {
		namespace, name string
		want            bool
	}{
		{"default", "kubernetes", true},
		{"default", "shop", false},
		{"song", "kubernetes", false},
		{"kube-system", "kube-dns", true},
		{"mesh-system", "mesh-apiserver", true},
		{"song", "userlist-svc", false},
	} {
		if got := Reserved(test.namespace, test.name, "mesh-system"); (got != "") != test.want {
			t.Errorf("%s/%s: %q, want reserved %v", test.namespace, test.name, got, test.want)
		}
	}
}

func TestCluster(t *testing.T) {
	spec := func(weight, priority *int32) *v1alpha1.GlobalServiceSpec {
		return &v1alpha1.GlobalServiceSpec{Clusters: []v1alpha1.ClusterPolicy{
			{Name: "other", Weight: ptr.To[int32](7)},
			{Name: "cluster2", Weight: weight, Priority: priority},
		}}
	}
	for _, test := range []struct {
		name    string
		spec    *v1alpha1.GlobalServiceSpec
		cluster *v1alpha1.MeshClusterSpec
		want    Share
	}{
		{"defaults", nil, nil, Share{100, 0}},
		{"the member's own", nil, &v1alpha1.MeshClusterSpec{Weight: ptr.To[int32](50), Priority: ptr.To[int32](2)}, Share{50, 2}},
		{"the service's wins, field by field", spec(ptr.To[int32](10), nil), &v1alpha1.MeshClusterSpec{Weight: ptr.To[int32](50), Priority: ptr.To[int32](2)}, Share{10, 2}},
		{"zero means zero", spec(ptr.To[int32](0), ptr.To[int32](0)), &v1alpha1.MeshClusterSpec{Weight: ptr.To[int32](50), Priority: ptr.To[int32](2)}, Share{0, 0}},
		{"a drained member stays drained", spec(ptr.To[int32](10), nil), &v1alpha1.MeshClusterSpec{Drained: true}, Share{0, 0}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := Cluster(test.spec, "cluster2", test.cluster); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestProblemIsShort(t *testing.T) {
	problem := Problem{Annotation: "mesh.io/global", Value: strings.Repeat("\U0010ffff", 60_000), Want: "true or false"}
	if got := problem.String(); len(got) > 1024 || !strings.Contains(got, "use true or false") {
		t.Errorf("a value of any length gives a text of %d bytes", len(got))
	}
}

func TestShareSources(t *testing.T) {
	spec := &v1alpha1.GlobalServiceSpec{Clusters: []v1alpha1.ClusterPolicy{{Name: "a", Weight: ptr.To[int32](0)}, {Name: "b", Priority: ptr.To[int32](1)}}}
	member := &v1alpha1.MeshClusterSpec{Weight: ptr.To[int32](5), Priority: ptr.To[int32](2)}
	for name, test := range map[string]struct {
		spec             *v1alpha1.GlobalServiceSpec
		cluster          string
		member           *v1alpha1.MeshClusterSpec
		weight, priority ShareSource
	}{
		"nothing is said":                {nil, "a", nil, ShareDefault, ShareDefault},
		"the member says":                {nil, "a", member, ShareMember, ShareMember},
		"the spec wins":                  {spec, "a", member, ShareSpec, ShareMember},
		"of another cluster it is mute":  {spec, "c", nil, ShareDefault, ShareDefault},
		"priority alone":                 {spec, "b", nil, ShareDefault, ShareSpec},
		"a drained member stays drained": {&v1alpha1.GlobalServiceSpec{Clusters: []v1alpha1.ClusterPolicy{{Name: "a", Weight: ptr.To[int32](9)}}}, "a", &v1alpha1.MeshClusterSpec{Drained: true}, ShareDrained, ShareDefault},
	} {
		t.Run(name, func(t *testing.T) {
			weight, priority := ShareSources(test.spec, test.cluster, test.member)
			if weight != test.weight || priority != test.priority {
				t.Errorf("got %s, %s", weight, priority)
			}
		})
	}
}
