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

package merge

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

var began = time.Unix(1_000_000, 0)

func service(annotations map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "web", Annotations: annotations, CreationTimestamp: metav1.NewTime(began)},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.7", Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
}

func imported(cluster string, id int32, since time.Duration, change ...func(*v1alpha1.ServiceRecord)) *v1alpha1.ImportedService {
	s := &v1alpha1.ImportedService{Spec: v1alpha1.ServiceRecord{
		Cluster: cluster, ClusterID: id, Type: v1alpha1.ServiceTypeClusterIP, SessionAffinity: corev1.ServiceAffinityNone,
		Ports: []v1alpha1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}}, ExportedAt: metav1.NewTime(began.Add(since)),
	}}
	for _, f := range change {
		f(&s.Spec)
	}
	return s
}

func importedSlice(cluster string, ready bool, addresses ...string) *v1alpha1.ImportedEndpointSlice {
	s := &v1alpha1.ImportedEndpointSlice{Spec: v1alpha1.SliceRecord{Cluster: cluster}}
	for _, address := range addresses {
		s.Spec.Endpoints = append(s.Spec.Endpoints, v1alpha1.Endpoint{Address: address, Ready: ready})
	}
	return s
}

func input(annotations map[string]string) Input {
	in := Input{Cluster: "cluster1", ID: 1, Global: Made("song", "web")}
	if annotations != nil {
		in.Service = service(annotations)
		in.Policy = policy.Reader{}.Service(annotations, nil, &in.Global.Spec)
	}
	return in
}

var (
	four = []corev1.IPFamily{corev1.IPv4Protocol}
	six  = []corev1.IPFamily{corev1.IPv6Protocol}
	both = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
)

func of(families []corev1.IPFamily) func(*v1alpha1.ServiceRecord) {
	return func(r *v1alpha1.ServiceRecord) { r.IPFamilies = families }
}

var global = map[string]string{"mesh.io/global": "true"}

func TestStatusClusters(t *testing.T) {
	in := input(global)
	in.Slices = []*discoveryv1.EndpointSlice{
		{AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.1.0.1"}}, {Addresses: []string{"10.1.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}},
		}},
		// The same address in a second slice counts once.
		{AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.1.0.1"}}}},
		// And so do the endpoints of a dual-stack Service.
		{AddressType: discoveryv1.AddressTypeIPv6, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"fd00:1::1"}}}},
	}
	in.Imported = []*v1alpha1.ImportedService{imported("cluster3", 3, 0), imported("cluster2", 2, 0)}
	in.ImportedSlices = []*v1alpha1.ImportedEndpointSlice{
		importedSlice("cluster2", true, "10.2.0.1", "10.2.0.2"), importedSlice("cluster2", true, "10.2.0.1"), importedSlice("cluster3", false, "10.3.0.1"),
	}
	ports := []v1alpha1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}}
	want := []v1alpha1.ClusterStatus{
		{Name: "cluster1", ID: 1, Local: true, Shared: true, Type: v1alpha1.ServiceTypeClusterIP, Ports: ports, Endpoints: v1alpha1.EndpointCount{Ready: 1, Total: 2}},
		{Name: "cluster2", ID: 2, Shared: true, Type: v1alpha1.ServiceTypeClusterIP, Ports: ports, Endpoints: v1alpha1.EndpointCount{Ready: 2, Total: 2}},
		{Name: "cluster3", ID: 3, Shared: true, Type: v1alpha1.ServiceTypeClusterIP, Ports: ports, Endpoints: v1alpha1.EndpointCount{Ready: 0, Total: 1}},
	}
	if diff := cmp.Diff(want, Status(in).Clusters); diff != "" {
		t.Errorf("the clusters differ (-want +got):\n%s", diff)
	}
	// The status stands still while nothing changes.
	first := Status(in)
	in.Global.Status = first
	if diff := cmp.Diff(first, Status(in)); diff != "" {
		t.Errorf("the status changes by itself (-first +second):\n%s", diff)
	}
}

func TestStatusConditions(t *testing.T) {
	type conditions map[string]string // reason by type
	ready := []*v1alpha1.ImportedEndpointSlice{importedSlice("cluster2", true, "10.2.0.1")}
	tests := map[string]struct {
		in     Input
		change func(*Input)
		want   conditions
	}{
		"no Service here": {input(nil), func(in *Input) { in.Imported = []*v1alpha1.ImportedService{imported("cluster2", 2, 0)} },
			conditions{"LocalService": "NotFound", "Ready": "NotUsedHere", "Conflict": "NoConflict"}},
		"not global here": {input(map[string]string{}), nil, conditions{"LocalService": "NotGlobal", "Ready": "NotUsedHere"}},
		"reserved":        {input(global), func(in *Input) { in.Reserved = "it is ours" }, conditions{"LocalService": "Reserved", "Ready": "NotUsedHere"}},
		"a name elsewhere": {input(global), func(in *Input) { in.Service.Spec.Type = corev1.ServiceTypeExternalName },
			conditions{"LocalService": "ExternalName"}},
		"nothing behind it": {input(global), nil, conditions{"LocalService": "Global", "Ready": "NoEndpoints", "AnnotationsValid": "Valid"}},
		"remote only": {input(global), func(in *Input) {
			in.Imported, in.ImportedSlices = []*v1alpha1.ImportedService{imported("cluster2", 2, 0)}, ready
		}, conditions{"Ready": "BackendsReady", "Conflict": "NoConflict"}},
		"all drained": {input(global), func(in *Input) {
			in.Imported, in.ImportedSlices = []*v1alpha1.ImportedService{imported("cluster2", 2, 0)}, ready
			in.Global.Spec.Clusters = []v1alpha1.ClusterPolicy{{Name: "cluster2", Weight: ptr.To[int32](0)}}
		}, conditions{"Ready": "Drained"}},
		"the member drained as a whole": {input(global), func(in *Input) {
			in.Imported, in.ImportedSlices = []*v1alpha1.ImportedService{imported("cluster2", 2, 0)}, ready
			in.Members = map[string]*v1alpha1.MeshClusterSpec{"cluster2": {ID: 2, Drained: true}}
		}, conditions{"Ready": "Drained"}},
		"none ready": {input(global), func(in *Input) {
			in.Imported, in.ImportedSlices = []*v1alpha1.ImportedService{imported("cluster2", 2, 0)}, []*v1alpha1.ImportedEndpointSlice{importedSlice("cluster2", false, "10.2.0.1")}
		}, conditions{"Ready": "NoneReady"}},
		"endpoints of another IP family only": {input(global), func(in *Input) {
			in.Service.Spec.IPFamilies = six
			in.Imported, in.ImportedSlices = []*v1alpha1.ImportedService{imported("cluster2", 2, 0, of(four))}, ready
		}, conditions{"Ready": "NoCommonIPFamily", "Conflict": "ClustersDiffer"}},
		"endpoints of one of its IP families": {input(global), func(in *Input) {
			in.Service.Spec.IPFamilies = both
			in.Imported, in.ImportedSlices = []*v1alpha1.ImportedService{imported("cluster2", 2, 0, of(six))},
				[]*v1alpha1.ImportedEndpointSlice{importedSlice("cluster2", true, "fd00:2::1")}
		}, conditions{"Ready": "BackendsReady", "Conflict": "ClustersDiffer"}},
		"endpoints of more IP families": {input(global), func(in *Input) {
			in.Service.Spec.IPFamilies = four
			in.Imported, in.ImportedSlices = []*v1alpha1.ImportedService{imported("cluster2", 2, 0, of(both))},
				[]*v1alpha1.ImportedEndpointSlice{importedSlice("cluster2", false, "10.2.0.1"), importedSlice("cluster2", true, "fd00:2::1")}
		}, conditions{"Ready": "NoneReady", "Conflict": "NoConflict"}},
		"a wrong annotation": {input(map[string]string{"mesh.io/global": "true", "mesh.io/affinity": "near"}), nil, conditions{"AnnotationsValid": "InvalidValue"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if test.change != nil {
				test.change(&test.in)
			}
			status := Status(test.in)
			for kind, reason := range test.want {
				if found := meta.FindStatusCondition(status.Conditions, kind); found == nil || found.Reason != reason {
					t.Errorf("%s is %+v, want the reason %s", kind, found, reason)
				}
			}
		})
	}
}

func TestConflict(t *testing.T) {
	const here = "Clients here use the ports, type and session affinity of this cluster's own Service, " +
		"and another cluster's backends through the port of the same name and protocol. What differs: "
	other := func(r *v1alpha1.ServiceRecord) { r.Ports[0].Port = 8080 }
	tests := map[string]struct {
		here     map[string]string
		imported []*v1alpha1.ImportedService
		want     string
	}{
		"they agree": {global, []*v1alpha1.ImportedService{imported("cluster2", 2, time.Hour)}, ""},
		"another port": {global, []*v1alpha1.ImportedService{imported("cluster2", 2, time.Hour, other)},
			here + `in cluster2 port "http" (80/TCP) is 8080/TCP.`},
		"another port, and ours is younger": {global, []*v1alpha1.ImportedService{imported("cluster2", 2, -time.Hour, other)},
			here + `in cluster2 port "http" (80/TCP) is 8080/TCP.`},
		"other names of ports": {global, []*v1alpha1.ImportedService{imported("cluster2", 2, time.Hour, func(r *v1alpha1.ServiceRecord) { r.Ports[0].Name = "" })},
			here + `in cluster2 port "http" (80/TCP) is missing, port 80/TCP is more.`},
		"type and affinity": {global, []*v1alpha1.ImportedService{imported("cluster2", 2, time.Hour, func(r *v1alpha1.ServiceRecord) {
			r.Type, r.SessionAffinity = v1alpha1.ServiceTypeHeadless, corev1.ServiceAffinityClientIP
		})}, here + "in cluster2 type is Headless, not ClusterIP, sessionAffinity is ClientIP, not None."},
		"an IP family less": {global, []*v1alpha1.ImportedService{imported("cluster2", 2, time.Hour, of(four))},
			here + "in cluster2 IP family IPv6 is missing."},
		"the same IP families the other way round": {global, []*v1alpha1.ImportedService{imported("cluster2", 2, time.Hour, of(append(six, four...)))}, ""},
		"none here": {nil, []*v1alpha1.ImportedService{imported("cluster2", 2, time.Hour, other), imported("cluster3", 3, 0)},
			`No Service here takes part, so no version holds here. Compared with cluster3, where it has been exported longest, this differs: in cluster2 port "http" (80/TCP) is 8080/TCP.`},
		"none here, the same age": {nil, []*v1alpha1.ImportedService{imported("cluster3", 3, 0), imported("cluster2", 2, 0, other)},
			`No Service here takes part, so no version holds here. Compared with cluster2, where it has been exported longest, this differs: in cluster3 port "http" (8080/TCP) is 80/TCP.`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			in := input(test.here)
			if in.Service != nil {
				in.Service.Spec.IPFamilies = both
			}
			in.Imported = test.imported
			found := meta.FindStatusCondition(Status(in).Conditions, v1alpha1.GlobalServiceConflict)
			if (found.Status == metav1.ConditionTrue) != (test.want != "") || test.want != "" && found.Message != test.want {
				t.Errorf("Conflict is %+v, want %q", found, test.want)
			}
		})
	}
}

func TestMessagesAreShort(t *testing.T) {
	annotations := map[string]string{"mesh.io/global": "true"}
	for _, name := range []string{"shared", "affinity", "export-manual"} {
		annotations["mesh.io/"+name] = strings.Repeat("\U0010ffff", 60_000)
	}
	in := input(annotations)
	for cluster := range 200 {
		in.Imported = append(in.Imported, imported(fmt.Sprintf("cluster-%026d", cluster), int32(cluster+2), 0, func(r *v1alpha1.ServiceRecord) {
			r.Ports = nil
			for port := range 100 {
				r.Ports = append(r.Ports, v1alpha1.ServicePort{Name: fmt.Sprintf("p%014d", port), Protocol: corev1.ProtocolTCP, Port: int32(port + 1)})
			}
		}))
	}
	conditions := Status(in).Conditions
	for _, condition := range conditions {
		if len(condition.Message) > 1200 {
			t.Errorf("the message of %s has %d bytes", condition.Type, len(condition.Message))
		}
	}
	if found := meta.FindStatusCondition(conditions, v1alpha1.GlobalServiceConflict).Message; !strings.HasSuffix(found, " more.") {
		t.Errorf("nothing says how much more there is: %s", found)
	}
}

func TestWantedAndOurs(t *testing.T) {
	if Wanted(input(nil)) || Wanted(input(map[string]string{})) || !Wanted(input(global)) {
		t.Error("a GlobalService is wanted just where the Service is global")
	}
	in := input(nil)
	in.Imported = []*v1alpha1.ImportedService{imported("cluster2", 2, 0)}
	if !Wanted(in) {
		t.Error("a GlobalService is wanted where a peer exports the Service")
	}
	ours, edited, persons := Made("a", "b"), Made("a", "b"), Made("a", "b")
	edited.Spec.Affinity = v1alpha1.AffinityLocal
	persons.Labels = nil
	if !Ours(ours) || Ours(edited) || Ours(persons) {
		t.Error("only what nobody has touched is ours to delete")
	}
}

func TestStatusKeepsForeignConditions(t *testing.T) {
	in := input(global)
	in.Global.Status.Conditions = []metav1.Condition{{Type: v1alpha1.GlobalServiceProgrammed, Status: metav1.ConditionFalse, Reason: "MapFull"}}
	if meta.FindStatusCondition(Status(in).Conditions, v1alpha1.GlobalServiceProgrammed) == nil {
		t.Error("a condition that another sets is lost")
	}
}
