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
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

var compareAddrs = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

var song = Name{"song", "userlist"}

// endpoints reads "10.1.0.1 10.1.0.2:terminating 10.1.0.3:notready 10.1.0.4:leaving".
func endpoints(list string) (result []Endpoint) {
	for _, word := range strings.Fields(list) {
		addr, state, _ := strings.Cut(word, "=")
		e := Endpoint{Addr: netip.MustParseAddr(addr)}
		switch state {
		case "terminating":
			e.State, e.Leaving = Terminating, true
		case "leaving":
			e.State, e.Leaving = NotReady, true
		case "notready":
			e.State = NotReady
		}
		result = append(result, e)
	}
	return result
}

var http = []SlicePort{{Name: "http", Protocol: TCP, Port: 8181}}

func slice(cluster, object, list string) *Slice {
	return &Slice{Cluster: cluster, Service: song, Object: object, Ports: http, Endpoints: endpoints(list)}
}

func mesh() Mesh {
	return Mesh{
		Cluster:   "cluster1",
		Namespace: "mesh-system",
		Policy:    policy.Reader{Cilium: true},
		Members: map[string]Member{
			"cluster1": {Name: "cluster1", ID: 1},
			"cluster2": {Name: "cluster2", ID: 2},
			"cluster3": {Name: "cluster3", ID: 3},
		},
	}
}

func globalService(annotations ...string) *LocalService {
	s := &LocalService{
		Annotations: map[string]string{"mesh.io/global": "true"},
		ClusterIPs:  []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Ports:       []LocalPort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
	}
	for i := 0; i < len(annotations); i += 2 {
		s.Annotations[annotations[i]] = annotations[i+1]
	}
	return s
}

// backends writes a service's backends as "1/10.1.0.1 2/10.2.0.1*3": cluster, address,
// and the slots where not 0 ("*" alone is one).
func backends(s Service) string {
	var words []string
	for _, b := range s.Backends {
		word := fmt.Sprintf("%d/%s", b.ClusterID, b.Addr.Addr())
		switch b.Slots {
		case 0:
		case 1:
			word += "*"
		default:
			word += fmt.Sprintf("*%d", b.Slots)
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

func TestOrderOfPreference(t *testing.T) {
	clusters := func(list ...v1alpha1.ClusterPolicy) *v1alpha1.GlobalServiceSpec {
		return &v1alpha1.GlobalServiceSpec{Clusters: list}
	}
	weight := func(name string, w int32) v1alpha1.ClusterPolicy {
		return v1alpha1.ClusterPolicy{Name: name, Weight: ptr.To(w)}
	}
	priority := func(name string, p int32) v1alpha1.ClusterPolicy {
		return v1alpha1.ClusterPolicy{Name: name, Priority: ptr.To(p)}
	}
	for _, test := range []struct {
		name              string
		affinity          string
		spec              *v1alpha1.GlobalServiceSpec
		change            func(*Mesh)
		local, two, three string
		want              string
		localReady        bool
	}{
		{
			name: "all ready backends of all clusters are equal", local: "10.1.0.1", two: "10.2.0.1 10.2.0.2", three: "10.3.0.1",
			want: "1/10.1.0.1* 2/10.2.0.1* 2/10.2.0.2* 3/10.3.0.1*", localReady: true,
		},
		{
			name: "without local endpoints the others serve", two: "10.2.0.1",
			want: "2/10.2.0.1*",
		},
		{
			name: "backends that are not ready are listed and not picked", local: "10.1.0.1=notready", two: "10.2.0.1 10.2.0.2=terminating 10.2.0.3=leaving",
			want: "1/10.1.0.1 2/10.2.0.1* 2/10.2.0.2 2/10.2.0.3",
		},
		{
			name: "affinity local takes local backends only", affinity: "local", local: "10.1.0.1", two: "10.2.0.1",
			want: "1/10.1.0.1* 2/10.2.0.1", localReady: true,
		},
		{
			name: "affinity local falls back to the others", affinity: "local", local: "10.1.0.1=notready", two: "10.2.0.1",
			want: "1/10.1.0.1 2/10.2.0.1*",
		},
		{
			name: "affinity remote takes the others only", affinity: "remote", local: "10.1.0.1", two: "10.2.0.1", three: "10.3.0.1",
			want: "1/10.1.0.1 2/10.2.0.1* 3/10.3.0.1*", localReady: true,
		},
		{
			name: "affinity remote falls back to the local side", affinity: "remote", local: "10.1.0.1", two: "10.2.0.1=notready",
			want: "1/10.1.0.1* 2/10.2.0.1", localReady: true,
		},
		{
			name: "a ready backend of the other side comes before a terminating one of the preferred", affinity: "local", local: "10.1.0.1=terminating", two: "10.2.0.1",
			want: "1/10.1.0.1 2/10.2.0.1*",
		},
		{
			name: "terminating backends serve when nothing is ready, by the same order", affinity: "local", local: "10.1.0.1=terminating", two: "10.2.0.1=terminating",
			want: "1/10.1.0.1* 2/10.2.0.1",
		},
		{
			name: "terminating backends serve in the order that affinity remote says", affinity: "remote", local: "10.1.0.1=terminating", two: "10.2.0.1=terminating",
			want: "1/10.1.0.1 2/10.2.0.1*",
		},
		{
			name: "nothing usable leaves the address alone", local: "10.1.0.1=notready", two: "10.2.0.1=leaving",
			want: "1/10.1.0.1 2/10.2.0.1",
		},
		{
			name: "a lower priority number takes all", spec: clusters(priority("cluster2", -0), priority("cluster1", 1), priority("cluster3", 1)),
			local: "10.1.0.1", two: "10.2.0.1", three: "10.3.0.1",
			want: "1/10.1.0.1 2/10.2.0.1* 3/10.3.0.1", localReady: true,
		},
		{
			name: "the next priority takes over when the first has nothing ready", spec: clusters(priority("cluster1", 1), priority("cluster3", 2)),
			local: "10.1.0.1", two: "10.2.0.1=notready", three: "10.3.0.1",
			want: "1/10.1.0.1* 2/10.2.0.1 3/10.3.0.1", localReady: true,
		},
		{
			name: "affinity comes before priority", affinity: "local", spec: clusters(priority("cluster1", 9)), local: "10.1.0.1", two: "10.2.0.1",
			want: "1/10.1.0.1* 2/10.2.0.1", localReady: true,
		},
		{
			name: "priority orders the clusters of one side", affinity: "remote", spec: clusters(priority("cluster3", 1)), local: "10.1.0.1", two: "10.2.0.1", three: "10.3.0.1",
			want: "1/10.1.0.1 2/10.2.0.1* 3/10.3.0.1", localReady: true,
		},
		{
			name: "weights multiply each backend", spec: clusters(weight("cluster2", 50)), local: "10.1.0.1", two: "10.2.0.1 10.2.0.2",
			want: "1/10.1.0.1*2 2/10.2.0.1* 2/10.2.0.2*", localReady: true,
		},
		{
			name: "weights that are all equal cost one slot each", spec: clusters(weight("cluster1", 7), weight("cluster2", 7)), local: "10.1.0.1", two: "10.2.0.1",
			want: "1/10.1.0.1* 2/10.2.0.1*", localReady: true,
		},
		{
			name: "weights within the tolerance count as equal", spec: clusters(weight("cluster2", 99)), local: "10.1.0.1", two: "10.2.0.1",
			want: "1/10.1.0.1* 2/10.2.0.1*", localReady: true,
		},
		{
			name: "weight 0 drains a cluster", spec: clusters(weight("cluster2", 0)), local: "10.1.0.1", two: "10.2.0.1",
			want: "1/10.1.0.1* 2/10.2.0.1", localReady: true,
		},
		{
			name: "weight 0 drains the local side too", spec: clusters(weight("cluster1", 0)), local: "10.1.0.1", two: "10.2.0.1",
			want: "1/10.1.0.1 2/10.2.0.1*", localReady: true,
		},
		{
			name: "weight 0 holds even if nothing else is left", spec: clusters(weight("cluster2", 0)), local: "10.1.0.1=notready", two: "10.2.0.1",
			want: "1/10.1.0.1 2/10.2.0.1",
		},
		{
			name: "a drained tier is passed over", affinity: "local", spec: clusters(weight("cluster1", 0)), local: "10.1.0.1", two: "10.2.0.1",
			want: "1/10.1.0.1 2/10.2.0.1*", localReady: true,
		},
		{
			name: "a drained member is drained for every service", local: "10.1.0.1", two: "10.2.0.1",
			change: func(m *Mesh) {
				m.Members["cluster2"] = Member{Name: "cluster2", ID: 2, Spec: v1alpha1.MeshClusterSpec{Drained: true}}
			},
			want: "1/10.1.0.1* 2/10.2.0.1", localReady: true,
		},
		{
			name: "a member's own weight and priority hold where the service sets none", local: "10.1.0.1", two: "10.2.0.1", three: "10.3.0.1",
			change: func(m *Mesh) {
				m.Members["cluster2"] = Member{Name: "cluster2", ID: 2, Spec: v1alpha1.MeshClusterSpec{Weight: ptr.To[int32](200)}}
				m.Members["cluster3"] = Member{Name: "cluster3", ID: 3, Spec: v1alpha1.MeshClusterSpec{Priority: ptr.To[int32](1)}}
			},
			want: "1/10.1.0.1* 2/10.2.0.1*2 3/10.3.0.1", localReady: true,
		},
		{
			name: "a cluster without a MeshCluster does not count", local: "10.1.0.1", two: "10.2.0.1",
			change: func(m *Mesh) { delete(m.Members, "cluster2") },
			want:   "1/10.1.0.1*", localReady: true,
		},
		{
			name: "a peer that claims our ID does not count", local: "10.1.0.1", two: "10.2.0.1",
			change: func(m *Mesh) { m.Members["cluster2"] = Member{Name: "cluster2", ID: 1} },
			want:   "1/10.1.0.1*", localReady: true,
		},
		{
			name: "local backends serve before our own MeshCluster is known, by the ID of the kernel's table", local: "10.1.0.1",
			change: func(m *Mesh) { m.Members, m.LocalID = nil, 1 },
			want:   "1/10.1.0.1*", localReady: true,
		},
		{
			name: "localMinReady keeps all local while enough are ready", affinity: "local", spec: &v1alpha1.GlobalServiceSpec{LocalMinReady: ptr.To[int32](50)},
			local: "10.1.0.1 10.1.0.2=notready", two: "10.2.0.1",
			want: "1/10.1.0.1* 1/10.1.0.2 2/10.2.0.1", localReady: true,
		},
		{
			name: "below localMinReady only the share ready/desired stays local", affinity: "local", spec: &v1alpha1.GlobalServiceSpec{LocalMinReady: ptr.To[int32](60)},
			local: "10.1.0.1 10.1.0.2=notready 10.1.0.3=notready 10.1.0.4=notready", two: "10.2.0.1 10.2.0.2",
			want: "1/10.1.0.1*2 1/10.1.0.2 1/10.1.0.3 1/10.1.0.4 2/10.2.0.1*3 2/10.2.0.2*3", localReady: true,
		},
		{
			name: "an endpoint that is leaving is not desired", affinity: "local", spec: &v1alpha1.GlobalServiceSpec{LocalMinReady: ptr.To[int32](100)},
			local: "10.1.0.1 10.1.0.2=terminating 10.1.0.3=leaving", two: "10.2.0.1",
			want: "1/10.1.0.1* 1/10.1.0.2 1/10.1.0.3 2/10.2.0.1", localReady: true,
		},
		{
			name: "below localMinReady the rest goes to the first priority of the others", affinity: "local",
			spec:  &v1alpha1.GlobalServiceSpec{LocalMinReady: ptr.To[int32](100), Clusters: []v1alpha1.ClusterPolicy{priority("cluster2", 1)}},
			local: "10.1.0.1 10.1.0.2=notready", two: "10.2.0.1", three: "10.3.0.1",
			want: "1/10.1.0.1* 1/10.1.0.2 2/10.2.0.1 3/10.3.0.1*", localReady: true,
		},
		{
			name: "below localMinReady without others all stays local", affinity: "local", spec: &v1alpha1.GlobalServiceSpec{LocalMinReady: ptr.To[int32](100)},
			local: "10.1.0.1 10.1.0.2=notready", two: "10.2.0.1=notready",
			want: "1/10.1.0.1* 1/10.1.0.2 2/10.2.0.1", localReady: true,
		},
		{
			name: "below localMinReady with nothing ready the others take all", affinity: "local", spec: &v1alpha1.GlobalServiceSpec{LocalMinReady: ptr.To[int32](100)},
			local: "10.1.0.1=notready", two: "10.2.0.1",
			want: "1/10.1.0.1 2/10.2.0.1*",
		},
		{
			name: "localMinReady means nothing without affinity local", spec: &v1alpha1.GlobalServiceSpec{LocalMinReady: ptr.To[int32](100)},
			local: "10.1.0.1 10.1.0.2=notready", two: "10.2.0.1 10.2.0.2",
			want: "1/10.1.0.1* 1/10.1.0.2 2/10.2.0.1* 2/10.2.0.2*", localReady: true,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			service := globalService()
			if test.affinity != "" {
				service.Annotations["mesh.io/affinity"] = test.affinity
			}
			m := mesh()
			if test.change != nil {
				test.change(&m)
			}
			in := ServiceInput{Service: service, Spec: test.spec}
			if test.local != "" {
				in.Local = []*Slice{slice("", "userlist-1", test.local)}
			}
			if test.two != "" {
				in.Remote = append(in.Remote, slice("cluster2", "cluster2.x", test.two))
			}
			if test.three != "" {
				in.Remote = append(in.Remote, slice("cluster3", "cluster3.x", test.three))
			}
			got := m.Service(song, in)
			if len(got.Services) != 1 || len(got.Left) > 0 || len(got.Unheld) > 0 {
				t.Fatalf("got %+v, want one service", got)
			}
			if b := backends(got.Services[0]); b != test.want {
				t.Errorf("backends\n got %s\nwant %s", b, test.want)
			}
			if got.Services[0].LocalReady != test.localReady {
				t.Errorf("local ready: %v, want %v", got.Services[0].LocalReady, test.localReady)
			}
		})
	}
}

func TestWhichServicesAreInTheTable(t *testing.T) {
	all := ServiceInput{
		Local:  []*Slice{slice("", "userlist-1", "10.1.0.1")},
		Remote: []*Slice{slice("cluster2", "cluster2.x", "10.2.0.1")},
	}
	for _, test := range []struct {
		name      string
		service   *LocalService
		as        Name
		namespace map[string]string
		change    func(*LocalService)
		mesh      func(*Mesh)
		want      []string
		left      []Left
	}{
		{name: "a Service that is not here is not", service: nil},
		{name: "one that is not global here is left alone", change: func(s *LocalService) { s.Annotations = nil }},
		{name: "one that says false is left alone", change: func(s *LocalService) { s.Annotations["mesh.io/global"] = "false" }},
		{name: "a global one is", want: []string{"10.96.0.10:80/TCP"}},
		{
			name:      "one is by its Namespace's word",
			change:    func(s *LocalService) { s.Annotations = nil },
			namespace: map[string]string{"mesh.io/global": "true"},
			want:      []string{"10.96.0.10:80/TCP"},
		},
		{
			name:   "one is by Cilium's annotation",
			change: func(s *LocalService) { s.Annotations = map[string]string{"service.cilium.io/global": "true"} },
			want:   []string{"10.96.0.10:80/TCP"},
		},
		{
			name:   "unless Cilium's are off",
			change: func(s *LocalService) { s.Annotations = map[string]string{"service.cilium.io/global": "true"} },
			mesh:   func(m *Mesh) { m.Policy.Cilium = false },
		},
		{
			name: "shared false changes nothing for the clients here",
			change: func(s *LocalService) {
				s.Annotations["mesh.io/shared"] = "false"
			},
			want: []string{"10.96.0.10:80/TCP"},
		},
		{
			name: "default/kubernetes never is",
			as:   Name{"default", "kubernetes"},
			left: []Left{{Service: ServicePort{"default", "kubernetes", ""}, Reason: policy.Reserved("default", "kubernetes", "")}},
		},
		{
			name: "nothing in kube-system is",
			as:   Name{"kube-system", "kube-dns"},
			left: []Left{{Service: ServicePort{"kube-system", "kube-dns", ""}, Reason: policy.Reserved("kube-system", "", "")}},
		},
		{
			name: "nothing of the mesh itself is",
			as:   Name{"mesh-system", "mesh-apiserver"},
			left: []Left{{Service: ServicePort{"mesh-system", "mesh-apiserver", ""}, Reason: policy.Reserved("mesh-system", "", "mesh-system")}},
		},
		{
			name:   "one that must stay with kube-proxy is left, with the reason",
			change: func(s *LocalService) { s.Reason = ReasonInternalLocal },
			left:   []Left{{Service: ServicePort{"song", "userlist", ""}, Reason: ReasonInternalLocal}},
		},
		{
			name: "each TCP and UDP port is, an SCTP port is left",
			change: func(s *LocalService) {
				s.Ports = append(s.Ports,
					LocalPort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}, LocalPort{Name: "tel", Protocol: corev1.ProtocolSCTP, Port: 7})
			},
			want: []string{"10.96.0.10:53/UDP", "10.96.0.10:80/TCP"},
			left: []Left{{Service: ServicePort{"song", "userlist", "tel"}, Reason: ReasonProtocol}},
		},
		{
			name: "both addresses of a dual-stack Service are",
			change: func(s *LocalService) {
				s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr("fd00::10"))
			},
			want: []string{"10.96.0.10:80/TCP", "[fd00::10]:80/TCP"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := all
			in.NamespaceAnnotations = test.namespace
			if !strings.HasPrefix(test.name, "a Service that is not here") {
				in.Service = globalService()
			}
			if test.change != nil {
				test.change(in.Service)
			}
			m := mesh()
			if test.mesh != nil {
				test.mesh(&m)
			}
			name := song
			if test.as != (Name{}) {
				name = test.as
			}
			table, left := Build(Input{Mesh: m, Services: map[Name]ServiceInput{name: in}})
			var got []string
			for frontend := range table.Services {
				got = append(got, frontend.String())
			}
			slices.Sort(got)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("frontends (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.left, left); diff != "" {
				t.Errorf("left to kube-proxy (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhichEndpointsServeAPort(t *testing.T) {
	one := func(change func(*Slice)) *Slice {
		s := slice("cluster2", "cluster2.x", "10.2.0.1")
		change(s)
		return s
	}
	for _, test := range []struct {
		name   string
		ips    []netip.Addr // an IPv4 address, unless given
		ports  []LocalPort
		local  []*Slice
		remote []*Slice
		want   map[string]string
	}{
		{
			name:  "ports match by name, whatever their numbers",
			ports: []LocalPort{{"http", corev1.ProtocolTCP, 80}, {"admin", corev1.ProtocolTCP, 81}},
			local: []*Slice{{Service: song, Ports: []SlicePort{{"http", TCP, 8080}, {"admin", TCP, 8081}}, Endpoints: endpoints("10.1.0.1")}},
			remote: []*Slice{
				{Cluster: "cluster2", Service: song, Ports: []SlicePort{{"http", TCP, 9090}}, Endpoints: endpoints("10.2.0.1")},
			},
			want: map[string]string{
				"10.96.0.10:80/TCP": "10.1.0.1:8080 10.2.0.1:9090",
				"10.96.0.10:81/TCP": "10.1.0.1:8081",
			},
		},
		{
			name:   "unnamed single ports match each other",
			ports:  []LocalPort{{"", corev1.ProtocolTCP, 80}},
			local:  []*Slice{{Service: song, Ports: []SlicePort{{"", TCP, 8080}}, Endpoints: endpoints("10.1.0.1")}},
			remote: []*Slice{{Cluster: "cluster2", Service: song, Ports: []SlicePort{{"", TCP, 9090}}, Endpoints: endpoints("10.2.0.1")}},
			want:   map[string]string{"10.96.0.10:80/TCP": "10.1.0.1:8080 10.2.0.1:9090"},
		},
		{
			name:   "an unnamed port does not match a named one",
			ports:  []LocalPort{{"", corev1.ProtocolTCP, 80}},
			remote: []*Slice{slice("cluster2", "x", "10.2.0.1")},
			want:   map[string]string{"10.96.0.10:80/TCP": ""},
		},
		{
			name:   "the protocol must match too",
			ports:  []LocalPort{{"http", corev1.ProtocolUDP, 80}},
			remote: []*Slice{slice("cluster2", "x", "10.2.0.1")},
			want:   map[string]string{"10.96.0.10:80/UDP": ""},
		},
		{
			name:   "all slices of a service count, and an address in two of them once",
			ports:  []LocalPort{{"http", corev1.ProtocolTCP, 80}},
			local:  []*Slice{slice("", "a", "10.1.0.1 10.1.0.3"), slice("", "by-hand", "10.1.0.2 10.1.0.3")},
			remote: []*Slice{slice("cluster2", "a", "10.2.0.1"), slice("cluster2", "b", "10.2.0.1 10.2.0.2")},
			want:   map[string]string{"10.96.0.10:80/TCP": "10.1.0.1:8181 10.1.0.2:8181 10.1.0.3:8181 10.2.0.1:8181 10.2.0.2:8181"},
		},
		{
			name:   "the same address in two clusters is two backends",
			ports:  []LocalPort{{"http", corev1.ProtocolTCP, 80}},
			local:  []*Slice{slice("", "a", "10.1.0.1")},
			remote: []*Slice{slice("cluster2", "a", "10.1.0.1")},
			want:   map[string]string{"10.96.0.10:80/TCP": "10.1.0.1:8181 10.1.0.1:8181"},
		},
		{
			name:   "endpoints of another family do not count",
			ports:  []LocalPort{{"http", corev1.ProtocolTCP, 80}},
			remote: []*Slice{slice("cluster2", "a", "fd00::1"), slice("cluster2", "b", "10.2.0.1")},
			want:   map[string]string{"10.96.0.10:80/TCP": "10.2.0.1:8181"},
		},
		{
			name:   "a dual-stack service has endpoints of each family, from clusters that have them",
			ips:    []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::10")},
			ports:  []LocalPort{{"http", corev1.ProtocolTCP, 80}},
			local:  []*Slice{slice("", "a", "10.1.0.1"), slice("", "a6", "fd00:1::1 fd00:1::2")},
			remote: []*Slice{slice("cluster2", "b6", "fd00:2::1"), slice("cluster2", "b", "10.2.0.1"), slice("cluster3", "c6", "fd00:3::1")},
			want: map[string]string{
				"10.96.0.10:80/TCP":    "10.1.0.1:8181 10.2.0.1:8181",
				"[fd00:96::10]:80/TCP": "[fd00:1::1]:8181 [fd00:1::2]:8181 [fd00:2::1]:8181 [fd00:3::1]:8181",
			},
		},
		{
			name:   "a service of IPv6 alone",
			ips:    []netip.Addr{netip.MustParseAddr("fd00:96::10")},
			ports:  []LocalPort{{"http", corev1.ProtocolTCP, 80}},
			remote: []*Slice{slice("cluster2", "b6", "fd00:2::1"), slice("cluster2", "b", "10.2.0.1")},
			want:   map[string]string{"[fd00:96::10]:80/TCP": "[fd00:2::1]:8181"},
		},
		{
			name:  "what claims to be imported from this cluster does not count",
			ports: []LocalPort{{"http", corev1.ProtocolTCP, 80}},
			remote: []*Slice{
				one(func(s *Slice) { s.Cluster = "cluster1" }), one(func(s *Slice) { s.Cluster = "" }), one(func(s *Slice) { s.Cluster = "unknown" }),
			},
			want: map[string]string{"10.96.0.10:80/TCP": ""},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			service := globalService()
			service.Ports = test.ports
			if test.ips != nil {
				service.ClusterIPs = test.ips
			}
			table, _ := Build(Input{Mesh: mesh(), Services: map[Name]ServiceInput{song: {Service: service, Local: test.local, Remote: test.remote}}})
			got := map[string]string{}
			for frontend, s := range table.Services {
				var words []string
				for _, b := range s.Backends {
					if b.Slots != 1 {
						t.Errorf("backend %v has %d slots", b, b.Slots)
					}
					words = append(words, b.Addr.String())
				}
				got[frontend.String()] = strings.Join(words, " ")
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("backends (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSessionAffinityIsTheServices(t *testing.T) {
	m, service := mesh(), globalService()
	service.ClusterIPs = append(service.ClusterIPs, netip.MustParseAddr("fd00:96::10"))
	service.AffinitySeconds = 60
	result := m.Service(song, ServiceInput{Service: service, Remote: []*Slice{slice("cluster2", "a", "10.2.0.1")}})
	if len(result.Services) != 2 || len(result.Left) > 0 {
		t.Fatalf("got %+v", result)
	}
	for _, s := range result.Services {
		if s.AffinitySeconds != 60 {
			t.Errorf("the timeout at %s is %d", s.Frontend, s.AffinitySeconds)
		}
	}
}

func TestAnAddressInTwoSlicesCountsAtItsBest(t *testing.T) {
	m := mesh()
	result := m.Service(song, ServiceInput{Service: globalService(), Local: []*Slice{
		slice("", "a", "10.1.0.1=terminating"), slice("", "b", "10.1.0.1"), slice("", "c", "10.1.0.1=notready"),
	}})
	if got := result.Services[0].Backends; len(got) != 1 || got[0].State != Active {
		t.Errorf("got %+v, want one active backend", got)
	}
}

func TestWhatOnlyTheKernelRemembersStays(t *testing.T) {
	frontend := Frontend{netip.MustParseAddr("10.96.0.10"), 80, TCP}
	in := ServiceInput{
		Service: globalService(),
		Local:   []*Slice{slice("", "a", "10.1.0.1")},
		Remembered: map[Frontend][]Backend{frontend: {
			{Addr: netip.MustParseAddrPort("10.2.0.1:8181"), ClusterID: 2, Slots: 7},
			{Addr: netip.MustParseAddrPort("10.2.0.2:8181"), ClusterID: 2, State: Terminating},
			{Addr: netip.MustParseAddrPort("10.3.0.1:8181"), ClusterID: 3, Slots: 7},
		}},
	}
	m := mesh()
	m.Members = nil
	m.LocalID = 1
	m.Remembered = map[uint16]string{2: "cluster2"}
	if got, want := backends(m.Service(song, in).Services[0]), "1/10.1.0.1* 2/10.2.0.1* 2/10.2.0.2"; got != want {
		t.Errorf("while cluster2 is only remembered\n got %s\nwant %s", got, want)
	}
	m.Remembered = nil
	if got, want := backends(m.Service(song, in).Services[0]), "1/10.1.0.1*"; got != want {
		t.Errorf("once nothing is remembered\n got %s\nwant %s", got, want)
	}
}

// TestOrderOfInputDoesNotMatter builds one service from the same parts in every order.
func TestOrderOfInputDoesNotMatter(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	m := mesh()
	states := []string{"", "=terminating", "=notready", "=leaving"}
	for round := range 200 {
		in := ServiceInput{Service: globalService("mesh.io/affinity", []string{"none", "local", "remote"}[round%3])}
		in.Spec = &v1alpha1.GlobalServiceSpec{LocalMinReady: ptr.To(int32(random.IntN(101)))}
		for _, name := range []string{"cluster1", "cluster2", "cluster3"} {
			in.Spec.Clusters = append(in.Spec.Clusters, v1alpha1.ClusterPolicy{
				Name: name, Weight: ptr.To(int32(random.IntN(4) * 50)), Priority: ptr.To(int32(random.IntN(2))),
			})
		}
		for i := range 12 {
			list := ""
			for range random.IntN(5) {
				list += fmt.Sprintf(" 10.%d.0.%d%s", i%3+1, random.IntN(9)+1, states[random.IntN(len(states))])
			}
			s := slice([]string{"", "cluster2", "cluster3"}[i%3], fmt.Sprint(i), list)
			// As sources hand them over: sorted, each address once.
			slices.SortFunc(s.Endpoints, func(a, b Endpoint) int { return a.Addr.Compare(b.Addr) })
			s.Endpoints = slices.CompactFunc(s.Endpoints, func(a, b Endpoint) bool { return a.Addr == b.Addr })
			if i%3 == 0 {
				in.Local = append(in.Local, s)
			} else {
				in.Remote = append(in.Remote, s)
			}
		}
		want := m.Service(song, in)
		for _, b := range want.Services[0].Backends {
			if b.Slots > 0 && b.State != Active && b.State != Terminating {
				t.Fatalf("picked a backend that does not serve: %+v", b)
			}
		}
		for range 5 {
			random.Shuffle(len(in.Local), func(i, j int) { in.Local[i], in.Local[j] = in.Local[j], in.Local[i] })
			random.Shuffle(len(in.Remote), func(i, j int) { in.Remote[i], in.Remote[j] = in.Remote[j], in.Remote[i] })
			random.Shuffle(len(in.Spec.Clusters), func(i, j int) {
				in.Spec.Clusters[i], in.Spec.Clusters[j] = in.Spec.Clusters[j], in.Spec.Clusters[i]
			})
			if diff := cmp.Diff(want, m.Service(song, in), compareAddrs); diff != "" {
				t.Fatalf("the order matters (-first +later):\n%s", diff)
			}
		}
		for i := 1; i < len(want.Services[0].Backends); i++ {
			a, b := want.Services[0].Backends[i-1], want.Services[0].Backends[i]
			if a.ClusterID > b.ClusterID || a.ClusterID == b.ClusterID && a.Addr.Compare(b.Addr) >= 0 {
				t.Fatalf("backends are out of order or double: %v, %v", a, b)
			}
		}
	}
}

// large is a service with n backends, half of them local, in slices of 100.
func large(n int) ServiceInput {
	in := ServiceInput{Service: globalService()}
	for i := 0; i < n; i += 100 {
		s := &Slice{Service: song, Object: fmt.Sprint(i), Ports: http}
		base := byte(1)
		if i%200 == 100 {
			s.Cluster, base = "cluster2", 2
		}
		for j := i; j < min(i+100, n); j++ {
			// Slices overlap in what they span, as they do once pods have come and gone.
			k := j%100*n/100 + i/100
			s.Endpoints = append(s.Endpoints, Endpoint{Addr: netip.AddrFrom4([4]byte{10, base + byte(k>>16), byte(k >> 8), byte(k)})})
		}
		if s.Cluster == "" {
			in.Local = append(in.Local, s)
		} else {
			in.Remote = append(in.Remote, s)
		}
	}
	return in
}

func TestLargeServices(t *testing.T) {
	m := mesh()
	for _, n := range []int{10_000, 300_000} {
		if got := len(m.Service(song, large(n)).Services[0].Backends); got != n {
			t.Errorf("%d backends of %d", got, n)
		}
	}
}

func BenchmarkService(b *testing.B) {
	for _, n := range []int{4, 100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m, in := mesh(), large(n)
			b.ReportAllocs()
			for b.Loop() {
				m.Service(song, in)
			}
		})
	}
}

func BenchmarkBuild10000x4(b *testing.B) {
	in := Input{Mesh: mesh(), Services: map[Name]ServiceInput{}}
	for i := range 10_000 {
		service := globalService()
		service.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}
		in.Services[Name{"song", fmt.Sprint(i)}] = ServiceInput{
			Service: service, Local: []*Slice{slice("", "a", "10.1.0.1 10.1.0.2")}, Remote: []*Slice{slice("cluster2", "b", "10.2.0.1 10.2.0.2")},
		}
	}
	for b.Loop() {
		Build(in)
	}
}
