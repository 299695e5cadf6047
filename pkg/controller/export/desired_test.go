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

package export

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/view"
	"mesh.io/clustermesh/pkg/policy"
)

var self = Identity{Name: "cluster1", ID: 1}

func TestOffered(t *testing.T) {
	tests := map[string]struct {
		namespace, name string
		annotations     map[string]string
		kind            corev1.ServiceType
		namespaces      []string
		want            bool
		reason          string
	}{
		"a Service that says nothing is not":            {namespace: "song", name: "web"},
		"a global one is":                               {namespace: "song", name: "web", annotations: map[string]string{"mesh.io/global": "true"}, want: true},
		"a global one that is not shared is not":        {namespace: "song", name: "web", annotations: map[string]string{"mesh.io/global": "true", "mesh.io/shared": "false"}},
		"the API server's own never is":                 {namespace: "default", name: "kubernetes", annotations: map[string]string{"mesh.io/global": "true"}, reason: "Reserved"},
		"one of kube-system never is":                   {namespace: "kube-system", name: "dns", annotations: map[string]string{"mesh.io/global": "true"}, reason: "Reserved"},
		"one of ours never is":                          {namespace: "mesh-system", name: "web", annotations: map[string]string{"mesh.io/global": "true"}, reason: "Reserved"},
		"one without endpoints of its own is not":       {namespace: "song", name: "web", annotations: map[string]string{"mesh.io/global": "true"}, kind: corev1.ServiceTypeExternalName, reason: "ExternalName"},
		"one in a namespace that is exported is":        {namespace: "song", name: "web", annotations: map[string]string{"mesh.io/global": "true"}, namespaces: []string{"song"}, want: true},
		"one in a namespace that is not exported isn't": {namespace: "song", name: "web", annotations: map[string]string{"mesh.io/global": "true"}, namespaces: []string{"dance"}, reason: "NamespaceNotExported"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: test.namespace, Name: test.name}, Spec: corev1.ServiceSpec{Type: test.kind}}
			got, reason, message := Offered(view.Service{
				Service: service, Policy: policy.Reader{}.Service(test.annotations, nil, nil), Reserved: policy.Reserved(test.namespace, test.name, "mesh-system"),
			}, test.namespaces)
			if got != test.want || reason != test.reason || (message == "") != (reason == "") {
				t.Errorf("Offered() = %v, %q, %q, want %v, %q", got, reason, message, test.want, test.reason)
			}
		})
	}
}

func TestOwnSlice(t *testing.T) {
	tests := map[string]struct {
		labels map[string]string
		kind   discoveryv1.AddressType
		manual bool
		want   bool
	}{
		"the controller's":                               {labels: map[string]string{discoveryv1.LabelManagedBy: ownSlices}, want: true},
		"the controller's, but names":                    {labels: map[string]string{discoveryv1.LabelManagedBy: ownSlices}, kind: discoveryv1.AddressTypeFQDN},
		"made by hand":                                   {},
		"made by hand, with consent":                     {manual: true, want: true},
		"mirrored from Endpoints":                        {labels: map[string]string{discoveryv1.LabelManagedBy: "endpointslicemirroring-controller.k8s.io"}},
		"mirrored from Endpoints, with consent":          {labels: map[string]string{discoveryv1.LabelManagedBy: "endpointslicemirroring-controller.k8s.io"}, manual: true, want: true},
		"imported by us":                                 {labels: map[string]string{v1alpha1.LabelCluster: "x"}, manual: true},
		"imported by another tool of the API":            {labels: map[string]string{labelSourceCluster: "x"}, manual: true},
		"imported by another tool, known by its manager": {labels: map[string]string{discoveryv1.LabelManagedBy: foreignSlices[0]}, manual: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Labels: test.labels}, AddressType: discoveryv1.AddressTypeIPv4}
			if test.kind != "" {
				slice.AddressType = test.kind
			}
			if got := OwnSlice(slice, test.manual); got != test.want {
				t.Errorf("OwnSlice() = %v, want %v", got, test.want)
			}
		})
	}
}

func slice(addresses ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "song", Name: "web-x", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, address := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{address}})
	}
	return s
}

func TestSlicesContent(t *testing.T) {
	from := slice()
	from.Ports = []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8181)}, {Name: ptr.To("all")}}
	from.Endpoints = []discoveryv1.Endpoint{
		{Addresses: []string{"10.0.0.3"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(true), Terminating: ptr.To(true)}, Zone: ptr.To("b")},
		{Addresses: []string{"10.0.0.2", "10.0.0.9"}, Hostname: ptr.To("pod-0"), NodeName: ptr.To("n1"), Zone: ptr.To("a")},
		{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}, Zone: ptr.To("b")},
		{Addresses: []string{"10.0.0.4"}, Zone: ptr.To("no zone")}, // not a label value
		{Addresses: []string{"127.0.0.1"}},
		{Addresses: []string{"255.255.255.255"}},
		{Addresses: []string{"10.0.0.1"}},
		{},
	}
	at := metav1.NewMicroTime(time.Unix(1, 0))
	got := Slices(from, true, self, nil, at)
	if len(got) != 1 {
		t.Fatalf("%d parts, want one", len(got))
	}
	want := v1alpha1.SliceRecord{
		Cluster: "cluster1", ClusterID: 1, Service: "web", AddressType: discoveryv1.AddressTypeIPv4, ChangedAt: at,
		Ports: []v1alpha1.EndpointPort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 8181}},
		Zones: []string{"b", "a"},
		Endpoints: []v1alpha1.Endpoint{
			{Address: "10.0.0.1", Zone: ptr.To[int32](0)},
			{Address: "10.0.0.2", Ready: true, Serving: true, Hostname: "pod-0", Zone: ptr.To[int32](1)},
			{Address: "10.0.0.3", Serving: true, Terminating: true, Zone: ptr.To[int32](0)},
			{Address: "10.0.0.4", Ready: true, Serving: true},
		},
	}
	if diff := cmp.Diff(want, got[0].Spec); diff != "" {
		t.Errorf("the export differs (-want +got):\n%s", diff)
	}
	if got := Slices(from, false, self, nil, at)[0].Spec.Endpoints[1].Hostname; got != "" {
		t.Errorf("hostname %q of a Service that is not headless", got)
	}
}

func TestSlicesSplit(t *testing.T) {
	var addresses []string
	for i := range 250 {
		addresses = append(addresses, fmt.Sprintf("10.0.%d.%d", i/100, i%100+1))
	}
	first := Slices(slice(addresses...), false, self, nil, metav1.MicroTime{})
	if len(first) != 3 || len(first[0].Spec.Endpoints) != 100 || len(first[2].Spec.Endpoints) != 50 {
		t.Fatalf("250 endpoints give %d parts", len(first))
	}
	if first[0].Name != "web-x" || first[1].Name == first[2].Name || view.Source(first[2]) != "web-x" {
		t.Errorf("the parts are called %s, %s and %s", first[0].Name, first[1].Name, first[2].Name)
	}
	// One endpoint goes and two come: only the parts that they are in change.
	changed := append(append([]string{"10.9.9.9"}, addresses[:10]...), addresses[11:]...)
	second := Slices(slice(append(changed, "10.9.9.8")...), false, self, first, metav1.MicroTime{})
	different := 0
	for i := range second {
		if !sameSlice(first[i], second[i]) {
			different++
		}
	}
	if len(second) != 3 || different != 2 {
		t.Errorf("%d of %d parts have changed, want 2 of 3", different, len(second))
	}
	// The order in which endpoints are listed is not a change.
	reversed := slice()
	for i := len(addresses) - 1; i >= 0; i-- {
		reversed.Endpoints = append(reversed.Endpoints, discoveryv1.Endpoint{Addresses: []string{addresses[i]}})
	}
	for i, part := range Slices(reversed, false, self, first, metav1.NewMicroTime(time.Now())) {
		if !sameSlice(first[i], part) {
			t.Errorf("part %d has changed", i)
		}
	}
	if got := Slices(slice(), false, self, first, metav1.MicroTime{}); len(got) != 1 || len(got[0].Spec.Endpoints) != 0 {
		t.Errorf("a slice without endpoints gives %d parts", len(got))
	}
	if long := PartName(strings.Repeat("a", 253), 3); len(long) > 253 {
		t.Errorf("the name of a part has %d characters", len(long))
	}
}

func TestService(t *testing.T) {
	at := metav1.NewTime(time.Unix(7, 0))
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "web"},
		Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, SessionAffinity: corev1.ServiceAffinityClientIP,
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, AppProtocol: ptr.To("h2c")}},
		},
	}
	want := v1alpha1.ServiceRecord{
		Cluster: "cluster1", ClusterID: 1, Type: v1alpha1.ServiceTypeHeadless, ExportedAt: at,
		IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, SessionAffinity: corev1.ServiceAffinityClientIP,
		Ports: []v1alpha1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, AppProtocol: "h2c"}},
	}
	got := Service(service, self, at)
	if diff := cmp.Diff(want, got.Spec); diff != "" {
		t.Errorf("the export differs (-want +got):\n%s", diff)
	}
	service.Spec.ClusterIP = "10.96.0.7"
	if got := Service(service, self, at).Spec.Type; got != v1alpha1.ServiceTypeClusterIP {
		t.Errorf("type %s", got)
	}
}
