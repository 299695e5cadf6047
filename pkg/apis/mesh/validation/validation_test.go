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

package validation

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh"
)

// problems are where something is wrong and of which kind.
func problems(errs field.ErrorList) []string {
	var found []string
	for _, err := range errs {
		found = append(found, fmt.Sprintf("%s: %s", err.Field, err.Type))
	}
	return found
}

func TestClusterName(t *testing.T) {
	for name, valid := range map[string]bool{
		"cluster1": true, "a": true, strings.Repeat("a", 32): true, "1a": true,
		"": false, "default": false, strings.Repeat("a", 33): false, "Cluster": false, "a.b": false, "-a": false, "a_b": false,
	} {
		if got := ClusterName(name); (len(got) == 0) != valid {
			t.Errorf("%q: problems %v, want it valid: %v", name, got, valid)
		}
	}
}

func TestGlobalService(t *testing.T) {
	tests := []struct {
		name   string
		change func(*mesh.GlobalService)
		want   []string
	}{
		{"good", func(*mesh.GlobalService) {}, nil},
		{"a name that no Service can have", func(s *mesh.GlobalService) { s.Name = "a.b" }, []string{"metadata.name: Invalid value"}},
		{"a policy for a cluster called default", func(s *mesh.GlobalService) {
			s.Spec.Clusters = []mesh.ClusterPolicy{{Name: "cluster1"}, {Name: "default"}}
		}, []string{"spec.clusters[1].name: Invalid value"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			service := &mesh.GlobalService{ObjectMeta: metav1.ObjectMeta{Name: "web"}}
			test.change(service)
			if diff := cmp.Diff(test.want, problems(GlobalService(service))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMeshCluster(t *testing.T) {
	const cidr = "spec.podCIDRs[0]: Invalid value"
	tests := []struct {
		name   string
		change func(*mesh.MeshCluster)
		want   []string
	}{
		{"good", func(c *mesh.MeshCluster) { c.Spec.PodCIDRs = []string{"10.244.0.0/16", "fd00:10::/56"} }, nil},
		{"a reserved name", func(c *mesh.MeshCluster) { c.Name = "default" }, []string{"metadata.name: Invalid value"}},
		{"a long name", func(c *mesh.MeshCluster) { c.Name = strings.Repeat("a", 33) }, []string{"metadata.name: Invalid value"}},
		{"no prefix", func(c *mesh.MeshCluster) { c.Spec.PodCIDRs = []string{"10.0.0.1"} }, []string{cidr}},
		{"host bits", func(c *mesh.MeshCluster) { c.Spec.PodCIDRs = []string{"10.0.0.1/16"} }, []string{cidr}},
		{"a long form", func(c *mesh.MeshCluster) { c.Spec.PodCIDRs = []string{"fd00:0::/64"} }, []string{cidr}},
		{"IPv4 in IPv6", func(c *mesh.MeshCluster) { c.Spec.PodCIDRs = []string{"::ffff:10.0.0.0/112"} }, []string{cidr}},
		{"everything", func(c *mesh.MeshCluster) { c.Spec.PodCIDRs = []string{"0.0.0.0/0"} }, []string{cidr}},
		{"namespaces", func(c *mesh.MeshCluster) {
			c.Spec.Import.Namespaces = []string{"song", "A"}
			c.Spec.Export.Namespaces = []string{""}
		}, []string{"spec.import.namespaces[1]: Invalid value", "spec.export.namespaces[0]: Invalid value"}},
		{"an entry that no Secret has", func(c *mesh.MeshCluster) { c.Spec.KubeconfigSecretRef.Key = "a/b" }, []string{"spec.kubeconfigSecretRef.key: Invalid value"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cluster := &mesh.MeshCluster{
				ObjectMeta: metav1.ObjectMeta{Name: "cluster2"},
				Spec:       mesh.MeshClusterSpec{ID: 2, KubeconfigSecretRef: &mesh.SecretReference{Name: "peer", Key: "kubeconfig"}},
			}
			test.change(cluster)
			if diff := cmp.Diff(test.want, problems(MeshCluster(cluster))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMeshClusterUpdate(t *testing.T) {
	peer := &mesh.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: mesh.MeshClusterSpec{ID: 1, KubeconfigSecretRef: &mesh.SecretReference{Name: "a"}}}
	other := peer.DeepCopy()
	other.Spec.KubeconfigSecretRef.Name = "b"
	local := peer.DeepCopy()
	local.Spec.KubeconfigSecretRef = nil
	forbidden := []string{"spec.kubeconfigSecretRef: Forbidden"}
	for _, test := range []struct {
		name     string
		now, old *mesh.MeshCluster
		want     []string
	}{
		{"another Secret", other, peer, nil},
		{"a peer becomes local", local, peer, forbidden},
		{"the local one becomes a peer", peer, local, forbidden},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, problems(MeshClusterUpdate(test.now, test.old))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestServiceRecord(t *testing.T) {
	tests := []struct {
		name     string
		object   string
		imported bool
		change   func(*mesh.ServiceRecord)
		want     []string
	}{
		{"good", "web", false, func(*mesh.ServiceRecord) {}, nil},
		{"good, imported", "cluster2.web", true, func(*mesh.ServiceRecord) {}, nil},
		{"imported under another cluster's name", "cluster1.web", true, func(*mesh.ServiceRecord) {}, []string{"metadata.name: Invalid value"}},
		{"imported under a longer cluster's name", "cluster22.web", true, func(*mesh.ServiceRecord) {}, []string{"metadata.name: Invalid value"}},
		{"imported with no name", "cluster2.", true, func(*mesh.ServiceRecord) {}, []string{"metadata.name: Invalid value"}},
		{"exported with a dot", "a.b", false, func(*mesh.ServiceRecord) {}, []string{"metadata.name: Invalid value"}},
		{"a reserved cluster", "web", false, func(r *mesh.ServiceRecord) { r.Cluster = "default" }, []string{"spec.cluster: Invalid value"}},
		{"two unnamed ports", "web", false, func(r *mesh.ServiceRecord) {
			r.Ports = []mesh.ServicePort{{Protocol: "TCP", Port: 1}, {Protocol: "UDP", Port: 1}}
		}, []string{"spec.ports[0].name: Required value", "spec.ports[1].name: Required value"}},
		{"a name twice", "web", false, func(r *mesh.ServiceRecord) {
			r.Ports = []mesh.ServicePort{{Name: "a", Protocol: "TCP", Port: 1}, {Name: "a", Protocol: "UDP", Port: 1}}
		}, []string{"spec.ports[1].name: Duplicate value"}},
		{"a protocol that does not exist", "web", false, func(r *mesh.ServiceRecord) { r.Ports[0].Protocol = "ICMP" }, []string{"spec.ports[0].protocol: Unsupported value"}},
		{"families", "web", false, func(r *mesh.ServiceRecord) {
			r.IPFamilies = []corev1.IPFamily{"IPv4", "IPv4", "IPv5"}
		}, []string{"spec.ipFamilies[1]: Duplicate value", "spec.ipFamilies[2]: Unsupported value"}},
		{"a session affinity that does not exist", "web", false, func(r *mesh.ServiceRecord) { r.SessionAffinity = "Cookie" }, []string{"spec.sessionAffinity: Unsupported value"}},
		{"consumers", "web", false, func(r *mesh.ServiceRecord) { r.Consumers = []string{"cluster1", "Cluster1", "default"} },
			[]string{"spec.consumers[1]: Invalid value", "spec.consumers[2]: Invalid value"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			record := &mesh.ServiceRecord{
				Cluster: "cluster2", ClusterID: 2, SessionAffinity: corev1.ServiceAffinityNone,
				Ports: []mesh.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}},
			}
			test.change(record)
			if diff := cmp.Diff(test.want, problems(ServiceRecord(&metav1.ObjectMeta{Name: test.object}, record, test.imported))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestSliceRecord(t *testing.T) {
	tests := []struct {
		name   string
		change func(*mesh.SliceRecord)
		want   []string
	}{
		{"good", func(*mesh.SliceRecord) {}, nil},
		{"an address type that does not exist", func(r *mesh.SliceRecord) { r.AddressType = "FQDN" }, []string{"spec.addressType: Unsupported value"}},
		{"an address twice", func(r *mesh.SliceRecord) { r.Endpoints = append(r.Endpoints, r.Endpoints[0]) }, []string{"spec.endpoints[1].address: Duplicate value"}},
		{"a zone beyond the table", func(r *mesh.SliceRecord) { r.Endpoints[0].Zone = ptr.To[int32](1) }, []string{"spec.endpoints[0].zone: Invalid value"}},
		{"zones", func(r *mesh.SliceRecord) { r.Zones = []string{"a", "a", "", "/"} },
			[]string{"spec.zones[1]: Duplicate value", "spec.zones[2]: Required value", "spec.zones[3]: Invalid value"}},
		{"a protocol that does not exist", func(r *mesh.SliceRecord) { r.Ports[0].Protocol = "" }, []string{"spec.ports[0].protocol: Unsupported value"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			record := &mesh.SliceRecord{
				Cluster: "cluster2", ClusterID: 2, Service: "web", AddressType: discoveryv1.AddressTypeIPv4, Zones: []string{"zone-a"},
				Endpoints: []mesh.Endpoint{{Address: "10.0.0.1", Zone: ptr.To[int32](0)}},
				Ports:     []mesh.EndpointPort{{Protocol: corev1.ProtocolTCP, Port: 80}},
			}
			test.change(record)
			if diff := cmp.Diff(test.want, problems(SliceRecord(&metav1.ObjectMeta{Name: "cluster2.a"}, record, true))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAddress(t *testing.T) {
	const v4, v6 = discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6
	for _, test := range []struct {
		address string
		kind    discoveryv1.AddressType
		want    string
	}{
		{"10.0.0.1", v4, ""},
		{"fd00::1", v6, ""},
		{"10.0.0.1", v6, "must be an IPv6 address"},
		{"fd00::1", v4, "must be an IPv4 address"},
		{"::ffff:10.0.0.1", v6, "must be an IPv6 address"},
		{"::ffff:10.0.0.1", v4, "must be an IPv4 address"},
		{"fd00:0::1", v6, "shortest form"},
		{"FD00::1", v6, "shortest form"},
		{"fe80::1%eth0", v6, "must be an IP address"},
		{"web.example.com", v4, "must be an IP address"},
		{"010.0.0.1", v4, "must be an IP address"},
		{"127.0.0.1", v4, "loopback"},
		{"127.8.0.1", v4, "loopback"},
		{"::1", v6, "loopback"},
		{"0.0.0.0", v4, "unspecified"},
		{"::", v6, "unspecified"},
		{"169.254.169.254", v4, "link-local"},
		{"fe80::1", v6, "link-local"},
		{"224.0.0.1", v4, "multicast"},
		{"ff02::1", v6, "multicast"},
		{"255.255.255.255", v4, "broadcast"},
	} {
		errs := address(test.address, test.kind, field.NewPath("address"))
		if test.want == "" && len(errs) > 0 || test.want != "" && (len(errs) != 1 || !strings.Contains(errs[0].Detail, test.want)) {
			t.Errorf("%s as %s: %v, want %q", test.address, test.kind, errs, test.want)
		}
	}
}
