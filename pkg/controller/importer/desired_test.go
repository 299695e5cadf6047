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

package importer

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

func rules(change ...func(cluster, local *v1alpha1.MeshCluster)) *Rules {
	cluster := &v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: "cluster2"}, Spec: v1alpha1.MeshClusterSpec{ID: 2}}
	local := &v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: "cluster1"}, Spec: v1alpha1.MeshClusterSpec{ID: 1, PodCIDRs: []string{"10.1.0.0/16", "fd01::/48"}}}
	for _, f := range change {
		f(cluster, local)
	}
	nodes := []*corev1.Node{{
		ObjectMeta: metav1.ObjectMeta{Name: "n1"},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.244.0.0/24"}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.1.1"}, {Type: corev1.NodeHostName, Address: "n1"}}},
	}}
	return NewRules(cluster, local, nodes, "mesh-system", func(ip string) bool { return ip == "10.96.0.1" })
}

func exportedSlice(addresses ...string) *v1alpha1.ExportedEndpointSlice {
	slice := &v1alpha1.ExportedEndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "web-x", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"}},
		Spec: v1alpha1.SliceRecord{
			Cluster: "cluster1", ClusterID: 1, Service: "web", AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []v1alpha1.EndpointPort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	for _, address := range addresses {
		slice.Spec.Endpoints = append(slice.Spec.Endpoints, v1alpha1.Endpoint{Address: address, Ready: true})
	}
	return slice
}

func TestAddresses(t *testing.T) {
	bounded := func(cluster, _ *v1alpha1.MeshCluster) {
		cluster.Spec.PodCIDRs = []string{"10.2.0.0/16", "not a prefix"}
	}
	tests := map[string]struct {
		address string
		family  discoveryv1.AddressType
		rules   *Rules
		want    string // part of the refusal; empty: it is taken
	}{
		"a pod's":                     {"10.2.0.1", discoveryv1.AddressTypeIPv4, rules(), ""},
		"a pod's, IPv6":               {"fd02::1", discoveryv1.AddressTypeIPv6, rules(), ""},
		"inside what is declared":     {"10.2.0.1", discoveryv1.AddressTypeIPv4, rules(bounded), ""},
		"outside what is declared":    {"10.3.0.1", discoveryv1.AddressTypeIPv4, rules(bounded), "outside the pod CIDRs"},
		"no address":                  {"web.example.org", discoveryv1.AddressTypeIPv4, rules(), "not an IP address"},
		"with a zone":                 {"fe80::1%eth0", discoveryv1.AddressTypeIPv6, rules(), "zone"},
		"of the other family":         {"fd02::1", discoveryv1.AddressTypeIPv4, rules(), "address type"},
		"of the other family, v6":     {"10.2.0.1", discoveryv1.AddressTypeIPv6, rules(), "address type"},
		"IPv4 in IPv6":                {"::ffff:10.2.0.1", discoveryv1.AddressTypeIPv6, rules(), "written as IPv6"},
		"loopback":                    {"127.0.0.1", discoveryv1.AddressTypeIPv4, rules(), "loopback"},
		"loopback, IPv6":              {"::1", discoveryv1.AddressTypeIPv6, rules(), "loopback"},
		"link-local":                  {"169.254.169.254", discoveryv1.AddressTypeIPv4, rules(), "link-local"},
		"link-local, IPv6":            {"fe80::1", discoveryv1.AddressTypeIPv6, rules(), "link-local"},
		"multicast":                   {"224.0.0.1", discoveryv1.AddressTypeIPv4, rules(), "multicast"},
		"multicast, IPv6":             {"ff02::1", discoveryv1.AddressTypeIPv6, rules(), "multicast"},
		"unspecified":                 {"0.0.0.0", discoveryv1.AddressTypeIPv4, rules(), "unspecified"},
		"this network":                {"0.1.2.3", discoveryv1.AddressTypeIPv4, rules(), "reserved"},
		"broadcast":                   {"255.255.255.255", discoveryv1.AddressTypeIPv4, rules(), "reserved"},
		"in our pod CIDR":             {"10.1.2.3", discoveryv1.AddressTypeIPv4, rules(), "this cluster's pod CIDR"},
		"in our pod CIDR, IPv6":       {"fd01::7", discoveryv1.AddressTypeIPv6, rules(), "this cluster's pod CIDR"},
		"in a pod CIDR of a node":     {"10.244.0.7", discoveryv1.AddressTypeIPv4, rules(), `node "n1"`},
		"of a node":                   {"192.168.1.1", discoveryv1.AddressTypeIPv4, rules(), `node "n1"`},
		"the cluster IP of a Service": {"10.96.0.1", discoveryv1.AddressTypeIPv4, rules(), "Service here"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			from := exportedSlice("10.2.0.77", test.address)
			if test.family == discoveryv1.AddressTypeIPv6 {
				from = exportedSlice("fd02::77", test.address)
				from.Spec.AddressType = test.family
			}
			got, refusals := test.rules.Slice(from)
			if got == nil {
				t.Fatalf("the whole slice is refused: %v", refusals)
			}
			const good = 1 // the one beside it
			if test.want == "" {
				if len(refusals) != 0 || len(got.Spec.Endpoints) != good+1 {
					t.Errorf("refusals %v, endpoints %v", refusals, got.Spec.Endpoints)
				}
				return
			}
			if len(refusals) != 1 || !strings.Contains(refusals[0].Message, test.want) || len(got.Spec.Endpoints) != good {
				t.Errorf("refusals %v, want one with %q; endpoints %v", refusals, test.want, got.Spec.Endpoints)
			}
		})
	}
}

func TestSlice(t *testing.T) {
	got, refusals := rules().Slice(exportedSlice("10.2.0.1", "10.2.0.1"))
	if got == nil || len(refusals) > 0 {
		t.Fatalf("refused: %v", refusals)
	}
	if got.Spec.Cluster != "cluster2" || got.Spec.ClusterID != 2 || got.Name != "cluster2.web-x" || len(got.Annotations) > 0 || got.Labels["a"] != "" || len(got.Spec.Endpoints) != 1 {
		t.Errorf("the import is %+v", got)
	}
	tests := map[string]struct {
		change func(*v1alpha1.ExportedEndpointSlice)
		reason string
	}{
		"a namespace of the system":    {func(s *v1alpha1.ExportedEndpointSlice) { s.Namespace = "kube-system" }, RefusedReserved},
		"a namespace of ours":          {func(s *v1alpha1.ExportedEndpointSlice) { s.Namespace = "mesh-system" }, RefusedReserved},
		"the API server":               {func(s *v1alpha1.ExportedEndpointSlice) { s.Namespace, s.Spec.Service = "default", "kubernetes" }, RefusedReserved},
		"a name that none can have":    {func(s *v1alpha1.ExportedEndpointSlice) { s.Name = "../x" }, RefusedName},
		"a namespace that none can be": {func(s *v1alpha1.ExportedEndpointSlice) { s.Namespace = "" }, RefusedName},
		"a Service that none can be":   {func(s *v1alpha1.ExportedEndpointSlice) { s.Spec.Service = "a/b" }, RefusedInvalid},
		"too many endpoints":           {func(s *v1alpha1.ExportedEndpointSlice) { s.Spec.Endpoints = make([]v1alpha1.Endpoint, 101) }, RefusedInvalid},
		"too many ports":               {func(s *v1alpha1.ExportedEndpointSlice) { s.Spec.Ports = make([]v1alpha1.EndpointPort, 101) }, RefusedInvalid},
		"too many zones":               {func(s *v1alpha1.ExportedEndpointSlice) { s.Spec.Zones = make([]string, 101) }, RefusedInvalid},
		"a port that none can be":      {func(s *v1alpha1.ExportedEndpointSlice) { s.Spec.Ports[0].Port = 70000 }, RefusedInvalid},
		"a protocol that is not known": {func(s *v1alpha1.ExportedEndpointSlice) { s.Spec.Ports[0].Protocol = "ICMP" }, RefusedInvalid},
		"names in place of addresses":  {func(s *v1alpha1.ExportedEndpointSlice) { s.Spec.AddressType = discoveryv1.AddressTypeFQDN }, RefusedInvalid},
		"ports with one name":          {func(s *v1alpha1.ExportedEndpointSlice) { s.Spec.Ports = append(s.Spec.Ports, s.Spec.Ports[0]) }, RefusedInvalid},
		"a port without a name": {func(s *v1alpha1.ExportedEndpointSlice) {
			s.Spec.Ports = append(s.Spec.Ports, v1alpha1.EndpointPort{Protocol: corev1.ProtocolTCP, Port: 81})
		}, RefusedInvalid},
		"more bytes than any has": {func(s *v1alpha1.ExportedEndpointSlice) { s.Spec.Endpoints[0].Hostname = strings.Repeat("x", maxSize) }, RefusedInvalid},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			from := exportedSlice("10.2.0.1")
			test.change(from)
			got, refusals := rules().Slice(from)
			if got != nil || len(refusals) != 1 || refusals[0].Reason != test.reason {
				t.Errorf("Slice() = %v, %v, want it refused for %s", got, refusals, test.reason)
			}
		})
	}
	// Decoration that makes no sense is dropped, and the endpoint stays.
	from := exportedSlice("10.2.0.1")
	from.Spec.Endpoints[0].Zone, from.Spec.Endpoints[0].Hostname = ptr.To[int32](7), "../etc"
	if got, _ := rules().Slice(from); got == nil || got.Spec.Endpoints[0].Zone != nil || got.Spec.Endpoints[0].Hostname != "" {
		t.Errorf("Slice() = %+v", got)
	}
	// So are zones, and what refers to those that stay does so still.
	from = exportedSlice("10.2.0.1", "10.2.0.2", "10.2.0.3")
	from.Spec.Zones = []string{"", strings.Repeat("z", 64), "a", "not a zone", "b", "a"}
	for n, zone := range []int32{1, 4, 5} {
		from.Spec.Endpoints[n].Zone = &zone
	}
	result, refusals := rules().Slice(from)
	if result == nil || len(refusals) > 0 || !slices.Equal(result.Spec.Zones, []string{"a", "b"}) ||
		result.Spec.Endpoints[0].Zone != nil || *result.Spec.Endpoints[1].Zone != 1 || *result.Spec.Endpoints[2].Zone != 0 {
		t.Errorf("Slice() = %+v, %v", result, refusals)
	}
	// What is wrong with many endpoints is said once.
	if _, refusals := rules().Slice(exportedSlice("127.0.0.1", "127.0.0.2", "x", "10.2.0.1")); len(refusals) != 1 || refusals[0].Count != 3 {
		t.Errorf("refusals are %v", refusals)
	}
}

func TestServiceImport(t *testing.T) {
	from := func() *v1alpha1.ExportedService {
		return &v1alpha1.ExportedService{
			ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "web"},
			Spec: v1alpha1.ServiceRecord{
				Cluster: "cluster1", ClusterID: 1, Type: v1alpha1.ServiceTypeClusterIP, SessionAffinity: corev1.ServiceAffinityNone,
				Ports: []v1alpha1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}}, Consumers: []string{"cluster1"},
			},
		}
	}
	got, refusal := rules().Service(from())
	if refusal != nil || got.Spec.Cluster != "cluster2" || got.Spec.ClusterID != 2 || got.Name != "cluster2.web" || got.Spec.Consumers != nil {
		t.Errorf("Service() = %+v, %v", got, refusal)
	}
	for name, change := range map[string]func(*v1alpha1.ServiceRecord){
		"type":             func(r *v1alpha1.ServiceRecord) { r.Type = "x" },
		"session affinity": func(r *v1alpha1.ServiceRecord) { r.SessionAffinity = "x" },
		"family":           func(r *v1alpha1.ServiceRecord) { r.IPFamilies = []corev1.IPFamily{"IPv5"} },
		"families": func(r *v1alpha1.ServiceRecord) {
			r.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv4Protocol}
		},
		"unnamed ports": func(r *v1alpha1.ServiceRecord) {
			r.Ports = append(r.Ports, v1alpha1.ServicePort{Name: "b", Protocol: corev1.ProtocolTCP, Port: 81})
		},
		"appProtocol": func(r *v1alpha1.ServiceRecord) { r.Ports[0].AppProtocol = "\xff" },
		"size":        func(r *v1alpha1.ServiceRecord) { r.Consumers = append(r.Consumers, strings.Repeat("x", maxSize)) },
		"port":        func(r *v1alpha1.ServiceRecord) { r.Ports[0].Port = 0 },
		"port's name": func(r *v1alpha1.ServiceRecord) { r.Ports[0].Name = "UPPER" },
		"ports":       func(r *v1alpha1.ServiceRecord) { r.Ports = make([]v1alpha1.ServicePort, 101) },
	} {
		t.Run(name, func(t *testing.T) {
			service := from()
			change(&service.Spec)
			if got, refusal := rules().Service(service); got != nil || refusal == nil || refusal.Reason != RefusedInvalid {
				t.Errorf("Service() = %v, %v", got, refusal)
			}
		})
	}
	allowed := rules(func(cluster, _ *v1alpha1.MeshCluster) { cluster.Spec.Import.Namespaces = []string{"dance"} })
	if _, refusal := allowed.Service(from()); refusal == nil || refusal.Reason != RefusedNamespace {
		t.Errorf("a namespace that is not imported: %v", refusal)
	}
	if !rules().OfferedHere(nil) || !rules().OfferedHere([]string{"x", "cluster1"}) || rules().OfferedHere([]string{"x"}) {
		t.Error("OfferedHere() does not follow the consumers")
	}
}

func TestName(t *testing.T) {
	if got := Name("cluster2", "web"); got != "cluster2.web" {
		t.Errorf("Name() = %q", got)
	}
	long, other := Name("cluster2", strings.Repeat("a", 250)), Name("cluster2", strings.Repeat("a", 251))
	if len(long) > 253 || !strings.HasPrefix(long, "cluster2.") || long == other {
		t.Errorf("Name() = %q, %q", long, other)
	}
}

func TestConflict(t *testing.T) {
	member := func(name string, id int32, uid string) *v1alpha1.MeshCluster {
		return &v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MeshClusterSpec{ID: id}, Status: v1alpha1.MeshClusterStatus{UID: uid}}
	}
	leaving := member("gone", 2, "u2")
	leaving.DeletionTimestamp = &metav1.Time{}
	tests := map[string]struct {
		cluster *v1alpha1.MeshCluster
		others  []*v1alpha1.MeshCluster
		seen    *Identity
		want    string
	}{
		"nothing is known yet":              {member("cluster2", 2, ""), nil, nil, ConflictNone},
		"all is well":                       {member("cluster2", 2, "u2"), []*v1alpha1.MeshCluster{member("cluster1", 1, "u1")}, &Identity{Name: "cluster2", ID: 2, UID: "u2"}, ConflictNone},
		"another has the ID":                {member("cluster2", 2, ""), []*v1alpha1.MeshCluster{member("cluster3", 2, "")}, nil, ConflictID},
		"one that leaves has the ID":        {member("cluster2", 2, ""), []*v1alpha1.MeshCluster{leaving}, &Identity{Name: "cluster2", ID: 2, UID: "u2"}, ConflictNone},
		"it calls itself something else":    {member("cluster2", 2, ""), nil, &Identity{Name: "cluster3", ID: 2, UID: "u2"}, ConflictName},
		"it has another ID":                 {member("cluster2", 2, ""), nil, &Identity{Name: "cluster2", ID: 3, UID: "u2"}, ConflictIDDiffers},
		"it is this cluster":                {member("cluster2", 2, ""), nil, &Identity{Name: "cluster2", ID: 2, UID: "own"}, ConflictSelf},
		"it is a member under another name": {member("cluster2", 2, ""), []*v1alpha1.MeshCluster{member("cluster3", 3, "u2")}, &Identity{Name: "cluster2", ID: 2, UID: "u2"}, ConflictUID},
		"it is not the one that it was":     {member("cluster2", 2, "u2"), nil, &Identity{Name: "cluster2", ID: 2, UID: "new"}, ConflictUIDChanged},
		"it has not introduced itself":      {member("cluster2", 2, "u2"), nil, &Identity{}, ConflictNone},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, message := Conflict(test.cluster, append(test.others, test.cluster), "own", test.seen)
			if got != test.want || (message == "") != (got == ConflictNone) {
				t.Errorf("Conflict() = %q, %q, want %q", got, message, test.want)
			}
		})
	}
}

func TestVouches(t *testing.T) {
	good := Identity{StoreEpoch: "e", ControllerRun: "r", ExportsSynced: true}
	tests := map[string]struct {
		before, after Identity
		want          bool
	}{
		"nothing changed":            {good, good, true},
		"another store":              {good, Identity{StoreEpoch: "f", ControllerRun: "r", ExportsSynced: true}, false},
		"another run":                {good, Identity{StoreEpoch: "e", ControllerRun: "s", ExportsSynced: true}, false},
		"exports not written before": {Identity{StoreEpoch: "e", ControllerRun: "r"}, good, false},
		"exports not written after":  {good, Identity{StoreEpoch: "e", ControllerRun: "r"}, false},
		"a store that was set back":  {Identity{StoreEpoch: "e", ControllerRun: "r", ExportsSynced: true, ResourceVersion: 8}, Identity{StoreEpoch: "e", ControllerRun: "r", ExportsSynced: true, ResourceVersion: 7}, false},
		"a store that has moved on":  {good, Identity{StoreEpoch: "e", ControllerRun: "r", ExportsSynced: true, ResourceVersion: 7}, true},
		"no epoch to compare":        {Identity{ControllerRun: "r", ExportsSynced: true}, Identity{ControllerRun: "r", ExportsSynced: true}, false},
		"no run to compare":          {Identity{StoreEpoch: "e", ExportsSynced: true}, Identity{StoreEpoch: "e", ExportsSynced: true}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Vouches(test.before, test.after); got != test.want {
				t.Errorf("Vouches() = %v, want %v", got, test.want)
			}
		})
	}
}

func TestRestoredStore(t *testing.T) {
	at := func(version uint64, run string) Identity {
		return Identity{StoreEpoch: "e", ControllerRun: run, ResourceVersion: version}
	}
	if got := IdentityOf(&v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "1790000000000"}}); got.ResourceVersion != 1790000000000 {
		t.Errorf("the version is read as %d", got.ResourceVersion)
	}
	var h history
	if !h.restart(at(10, "r")) || !h.trusts(at(10, "r")) {
		t.Error("a store that is seen first is no other, or not trusted")
	}
	h.note(at(20, "s"))
	if h.restart(at(20, "s")) || h.behind(at(20, "s")) {
		t.Error("a store that stands still counts as restored")
	}
	if !h.behind(at(12, "r")) || !h.restart(at(12, "r")) {
		t.Fatal("a store that is back where it was earlier counts as the same")
	}
	if h.restart(at(13, "r")) {
		t.Error("it counts as restored for ever")
	}
	// The run in it may be as old as it is, and the last one may know nothing of it.
	if h.trusts(at(13, "r")) || h.trusts(at(14, "s")) {
		t.Error("a run from before vouches for what was restored")
	}
	if !h.trusts(at(14, "new")) || !h.trusts(at(21, "s")) {
		t.Error("nobody vouches for it ever again")
	}
	if !h.restart(Identity{StoreEpoch: "f", ResourceVersion: 1, ControllerRun: "s"}) || !h.trusts(Identity{StoreEpoch: "f", ResourceVersion: 1, ControllerRun: "s"}) {
		t.Error("a store that was made anew is not another, or not trusted")
	}
}
