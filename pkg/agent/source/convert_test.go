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

package source

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestConvertService(t *testing.T) {
	spec := func(change func(*corev1.Service)) *corev1.Service {
		s := &corev1.Service{Spec: corev1.ServiceSpec{
			ClusterIPs:            []string{"10.96.0.1", "fd00::1"},
			Ports:                 []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
			InternalTrafficPolicy: ptr.To(corev1.ServiceInternalTrafficPolicyCluster),
		}}
		change(s)
		return s
	}
	for name, test := range map[string]struct {
		change func(*corev1.Service)
		reason string
	}{
		"a plain one is balanced":                              {func(*corev1.Service) {}, ""},
		"externalTrafficPolicy says nothing of the cluster IP": {func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }, ""},
		"internalTrafficPolicy Local keeps clients to their node": {func(s *corev1.Service) {
			s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
		}, ""},
		"sessionAffinity ClientIP is kept":                       {func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }, ""},
		"a headless one has no address":                          {func(s *corev1.Service) { s.Spec.ClusterIPs = []string{corev1.ClusterIPNone} }, desired.ReasonHeadless},
		"one without an address yet is like a headless one":      {func(s *corev1.Service) { s.Spec.ClusterIPs = nil }, desired.ReasonHeadless},
		"ExternalName is an alias":                               {func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }, desired.ReasonExternalName},
		"another proxy's is another proxy's":                     {func(s *corev1.Service) { s.Labels = map[string]string{labelProxyName: "x"} }, desired.ReasonOtherProxy},
		"the type LoadBalancer has a cluster IP like any other":  {func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer }, ""},
		"external IPs are not addresses of ours (CVE-2020-8554)": {func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.1"} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec(test.change)
			s.Annotations = map[string]string{
				"mesh.io/global": "true", "service.cilium.io/affinity": "local", "io.cilium/shared-service": "false",
				"kubectl.kubernetes.io/last-applied-configuration": "much",
			}
			got := convertService(s)
			if len(got.Annotations) != 3 {
				t.Errorf("annotations %v", got.Annotations)
			}
			if got.Reason != test.reason {
				t.Errorf("reason %q, want %q", got.Reason, test.reason)
			}
			for _, ip := range got.ClusterIPs {
				if ip != netip.MustParseAddr("10.96.0.1") && ip != netip.MustParseAddr("fd00::1") {
					t.Errorf("address %s", ip)
				}
			}
		})
	}
}

func TestConvertLoadBalancer(t *testing.T) {
	mode := func(mode corev1.LoadBalancerIPMode) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Status.LoadBalancer.Ingress[0].IPMode = &mode }
	}
	at := func(ip string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Status.LoadBalancer.Ingress[0].IP = ip }
	}
	one := func(ip, reason string) []desired.LoadBalancerIP {
		return []desired.LoadBalancerIP{{Addr: netip.MustParseAddr(ip), Reason: reason}}
	}
	for name, test := range map[string]struct {
		change func(*corev1.Service)
		want   []desired.LoadBalancerIP
	}{
		"without a mode it is a VIP":      {func(*corev1.Service) {}, one("192.0.2.7", "")},
		"with the mode VIP, too":          {mode(corev1.LoadBalancerIPModeVIP), one("192.0.2.7", "")},
		"Proxy wants to see connections":  {mode(corev1.LoadBalancerIPModeProxy), one("192.0.2.7", desired.ReasonLBProxy)},
		"an unknown mode is none of ours": {mode("Other"), one("192.0.2.7", desired.ReasonLBProxy)},
		"with ports of nodes or without":  {func(s *corev1.Service) { s.Spec.AllocateLoadBalancerNodePorts = ptr.To(false) }, one("192.0.2.7", "")},
		"source ranges are kube-proxy's":  {func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24"} }, one("192.0.2.7", desired.ReasonLBRanges)},
		"those of the old annotation, too": {func(s *corev1.Service) {
			s.Annotations = map[string]string{corev1.AnnotationLoadBalancerSourceRangesKey: "198.51.100.0/24"}
		}, one("192.0.2.7", desired.ReasonLBRanges)},
		"externalTrafficPolicy Local":     {func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }, one("192.0.2.7", desired.ReasonLBLocal)},
		"externalTrafficPolicy Cluster":   {func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster }, one("192.0.2.7", "")},
		"what a changed type left behind": {func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }, one("192.0.2.7", desired.ReasonLBType)},
		"a name is no address": {func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress[0] = corev1.LoadBalancerIngress{Hostname: "lb.example.com"}
		}, nil},
		"nonsense is no address":           {at("300.1.1.1"), nil},
		"IPv6":                             {at("2001:db8::7"), one("2001:db8::7", "")},
		"IPv4-mapped is IPv4":              {at("::ffff:192.0.2.7"), one("192.0.2.7", "")},
		"loopback":                         {at("127.0.0.1"), one("127.0.0.1", desired.ReasonLBAddress)},
		"link-local":                       {at("169.254.169.254"), one("169.254.169.254", desired.ReasonLBAddress)},
		"multicast":                        {at("224.0.0.1"), one("224.0.0.1", desired.ReasonLBAddress)},
		"unspecified":                      {at("::"), one("::", desired.ReasonLBAddress)},
		"of an IP version that it has not": {func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"fd00::1"} }, one("192.0.2.7", desired.ReasonLBFamily)},
	} {
		t.Run(name, func(t *testing.T) {
			s := &corev1.Service{
				Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ClusterIPs: []string{"10.96.0.1", "fd00::1"}},
				Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{
					Ingress: []corev1.LoadBalancerIngress{{IP: "192.0.2.7"}},
				}},
			}
			test.change(s)
			if diff := cmp.Diff(test.want, convertService(s).LoadBalancerIPs, compareAddrs); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestConvertSessionAffinity(t *testing.T) {
	for name, test := range map[string]struct {
		affinity corev1.ServiceAffinity
		config   *corev1.SessionAffinityConfig
		want     uint32
	}{
		"none":             {corev1.ServiceAffinityNone, nil, 0},
		"not given":        {"", nil, 0},
		"by default":       {corev1.ServiceAffinityClientIP, nil, 3 * 60 * 60},
		"without client":   {corev1.ServiceAffinityClientIP, &corev1.SessionAffinityConfig{}, 3 * 60 * 60},
		"without a number": {corev1.ServiceAffinityClientIP, &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{}}, 3 * 60 * 60},
		"a minute":         {corev1.ServiceAffinityClientIP, &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To[int32](60)}}, 60},
	} {
		t.Run(name, func(t *testing.T) {
			s := &corev1.Service{Spec: corev1.ServiceSpec{SessionAffinity: test.affinity, SessionAffinityConfig: test.config}}
			if got := convertService(s).AffinitySeconds; got != test.want {
				t.Errorf("%d seconds, want %d", got, test.want)
			}
		})
	}
}

func TestConvertSlice(t *testing.T) {
	conditions := func(ready, serving, terminating *bool) discoveryv1.EndpointConditions {
		return discoveryv1.EndpointConditions{Ready: ready, Serving: serving, Terminating: terminating}
	}
	yes, no := ptr.To(true), ptr.To(false)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "song", Name: "x", Labels: map[string]string{discoveryv1.LabelServiceName: "userlist"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{
			{Name: ptr.To("http"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](8181)},
			{Name: ptr.To("any"), Protocol: ptr.To(corev1.ProtocolTCP)},
			{Name: ptr.To("tel"), Protocol: ptr.To(corev1.ProtocolSCTP), Port: ptr.To[int32](7)},
			{Port: ptr.To[int32](53), Protocol: ptr.To(corev1.ProtocolUDP)},
		},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.1.0.6"}, Conditions: conditions(no, no, yes)},
			{Addresses: []string{"10.1.0.1"}}, // unknown means ready
			{Addresses: []string{"10.1.0.2"}, Conditions: conditions(yes, yes, no)},
			{Addresses: []string{"10.1.0.3"}, Conditions: conditions(no, yes, yes)},
			{Addresses: []string{"10.1.0.4"}, Conditions: conditions(no, no, no)},
			{Addresses: []string{"10.1.0.5"}, Conditions: conditions(yes, nil, yes)}, // publishNotReadyAddresses
			{Addresses: []string{"10.1.0.3"}, Conditions: conditions(no, no, no)},
			{Addresses: []string{"0.0.0.0"}}, {Addresses: []string{"nonsense"}}, {},
		},
	}
	want := &desired.Slice{
		Service: userlist, Object: "x",
		Ports: []desired.SlicePort{{Name: "http", Protocol: desired.TCP, Port: 8181}, {Protocol: desired.UDP, Port: 53}},
		Endpoints: []desired.Endpoint{
			{Addr: netip.MustParseAddr("10.1.0.1")},
			{Addr: netip.MustParseAddr("10.1.0.2")},
			{Addr: netip.MustParseAddr("10.1.0.3"), State: desired.Terminating, Leaving: true},
			{Addr: netip.MustParseAddr("10.1.0.4"), State: desired.NotReady},
			{Addr: netip.MustParseAddr("10.1.0.5")},
			{Addr: netip.MustParseAddr("10.1.0.6"), State: desired.NotReady, Leaving: true},
		},
	}
	if diff := cmp.Diff(want, convertSlice(slice), compareAddrs); diff != "" {
		t.Errorf("slice (-want +got):\n%s", diff)
	}
	for name, change := range map[string]func(*discoveryv1.EndpointSlice){
		"of no Service":         func(s *discoveryv1.EndpointSlice) { delete(s.Labels, discoveryv1.LabelServiceName) },
		"of a headless Service": func(s *discoveryv1.EndpointSlice) { s.Labels[corev1.IsHeadlessService] = "" },
		"of another proxy":      func(s *discoveryv1.EndpointSlice) { s.Labels[labelProxyName] = "x" },
		"of names":              func(s *discoveryv1.EndpointSlice) { s.AddressType = discoveryv1.AddressTypeFQDN },
	} {
		s := slice.DeepCopy()
		change(s)
		if got := convertSlice(s); got != nil {
			t.Errorf("a slice %s is used: %+v", name, got)
		}
	}
}

func TestConvertNear(t *testing.T) {
	endpoint := func(addr, node string, hints *discoveryv1.EndpointHints) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node, Hints: hints}
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "song", Name: "x", Labels: map[string]string{discoveryv1.LabelServiceName: "userlist"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{
			endpoint("10.1.0.2", "n2", &discoveryv1.EndpointHints{
				ForZones: []discoveryv1.ForZone{{Name: "a"}, {Name: "b"}}, ForNodes: []discoveryv1.ForNode{{Name: "n2"}},
			}),
			endpoint("10.1.0.1", "n1", nil),
			{Addresses: []string{"10.1.0.3"}},
		},
	}
	got := convertSlice(slice)
	want := []desired.Near{
		{Node: desired.Names("n1")},
		{Node: desired.Names("n2"), ForZones: desired.Names("a", "b"), ForNodes: desired.Names("n2")},
		{},
	}
	if len(got.Endpoints) != 3 || got.Endpoints[0].Addr != netip.MustParseAddr("10.1.0.1") || !slices.Equal(got.Near, want) {
		t.Errorf("near: %v of %v, want %v", got.Near, got.Endpoints, want)
	}
	// Where pods are moves no address, and is a change all the same.
	moved := slice.DeepCopy()
	moved.Endpoints[1].NodeName = ptr.To("n2")
	if sameSlice(got, convertSlice(moved)) || !sameSlice(got, convertSlice(slice)) {
		t.Error("a pod's other node is no change, or none is one")
	}
}

func TestConvertImportedTrustsNoAddress(t *testing.T) {
	slice := &v1alpha1.ImportedEndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "cluster2.x"},
		Spec: v1alpha1.SliceRecord{
			Cluster: "cluster2", ClusterID: 7, Service: "userlist", ChangedAt: metav1.NewMicroTime(time.Unix(1, 0)),
			Ports: []v1alpha1.EndpointPort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 8181}, {Name: "bad", Protocol: corev1.ProtocolTCP, Port: 70000}},
			Endpoints: []v1alpha1.Endpoint{
				{Address: "10.2.0.2", Serving: true, Terminating: true},
				{Address: "::ffff:10.2.0.1", Ready: true},
			},
		},
	}
	for _, address := range []string{
		"127.0.0.1", "::1", "0.0.0.0", "::", "169.254.1.1", "fe80::1", "224.0.0.1", "ff02::1", "255.255.255.255",
		"::ffff:127.0.0.1", "fe80::1%eth0", "10.2.0", "example.com", "",
	} {
		slice.Spec.Endpoints = append(slice.Spec.Endpoints, v1alpha1.Endpoint{Address: address, Ready: true})
	}
	want := &desired.Slice{
		Cluster: "cluster2", Service: userlist, Object: "cluster2.x", ChangedAt: time.Unix(1, 0),
		Ports: []desired.SlicePort{{Name: "http", Protocol: desired.TCP, Port: 8181}},
		Endpoints: []desired.Endpoint{
			{Addr: netip.MustParseAddr("10.2.0.1")},
			{Addr: netip.MustParseAddr("10.2.0.2"), State: desired.Terminating, Leaving: true},
		},
	}
	if diff := cmp.Diff(want, convertImported(slice), compareAddrs); diff != "" {
		t.Errorf("slice (-want +got):\n%s", diff)
	}
}
