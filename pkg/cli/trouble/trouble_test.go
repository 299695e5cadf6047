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

package trouble

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/layout/golden"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func pod(name, program, node string, ready bool) corev1.Pod {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app.kubernetes.io/name": program}},
		Spec:       corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}},
			ContainerStatuses: []corev1.ContainerStatus{{Ready: ready}}},
	}
}

// healthy is a cluster in which nothing is wrong, connected to the other.
func healthy(name, id, other string, otherID int32) *Facts {
	number := name[len(name)-1:]
	skew := time.Duration(0)
	address := "172.31." + number + ".11"
	return &Facts{
		Context: name, Namespace: "mesh-system", Now: now, Problems: map[string]string{}, Readyz: map[string]string{}, Skew: &skew, SkewWithin: 500 * time.Millisecond,
		Name: name, ID: id, UID: "uid-" + name,
		APIService: &apiregistrationv1.APIService{
			Spec:   apiregistrationv1.APIServiceSpec{Service: &apiregistrationv1.ServiceReference{Namespace: "mesh-system", Name: "mesh-apiserver"}},
			Status: apiregistrationv1.APIServiceStatus{Conditions: []apiregistrationv1.APIServiceCondition{{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue}}},
		},
		Clusters: []v1alpha1.MeshCluster{
			{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.MeshClusterStatus{LastContactTime: metav1.NewTime(now.Add(-5 * time.Second)),
				Conditions: []metav1.Condition{{Type: "ExportsSynced", Status: "True"}}}},
			{ObjectMeta: metav1.ObjectMeta{Name: other}, Spec: v1alpha1.MeshClusterSpec{ID: otherID, KubeconfigSecretRef: &v1alpha1.SecretReference{Name: "mesh-peer-" + other}},
				Status: v1alpha1.MeshClusterStatus{Conditions: []metav1.Condition{{Type: "Connected", Status: "True"}, {Type: "Synced", Status: "True"}, {Type: "IdentityConflict", Status: "False"}}}},
		},
		Nodes: []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: name + "-node1"}, Status: corev1.NodeStatus{
			NodeInfo: corev1.NodeSystemInfo{KernelVersion: "6.1.0-25-amd64"}, Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}},
		}}},
		Pods: []corev1.Pod{
			pod("mesh-apiserver-0", "mesh-apiserver", name+"-node1", true), pod("mesh-controller-a", "mesh-controller", name+"-node1", true),
			pod("mesh-agent-a", "mesh-agent", name+"-node1", true),
		},
		StatefulSet: &appsv1.StatefulSet{}, Deployment: &appsv1.Deployment{}, DaemonSet: &appsv1.DaemonSet{},
		Lease:       &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To("mesh-controller-a"), RenewTime: &metav1.MicroTime{Time: now}, LeaseDurationSeconds: ptr.To[int32](10)}},
		PeerService: &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 443, NodePort: 32443}}}},
		CA:          []string{"ca-" + name},
		Peers: map[string]Peer{other: {
			Secret: "mesh-peer-" + other, Hosts: []string{"172.31." + other[len(other)-1:] + ".11"}, Ports: []string{"32443"}, CA: []string{"ca-" + other},
			IssuedAt: now.Add(-time.Hour), Expires: now.Add(1000 * time.Hour),
		}},
	}
}

func both() []*Facts {
	return []*Facts{healthy("cluster1", "1", "cluster2", 2), healthy("cluster2", "2", "cluster1", 1)}
}

func TestNothingIsWrong(t *testing.T) {
	if found := Examine(both()); len(found) != 0 {
		t.Errorf("in healthy clusters there is found: %+v", found)
	}
}

func edit(f *Facts, kind, status, reason, message string) {
	for i := range f.Clusters[1].Status.Conditions {
		if c := &f.Clusters[1].Status.Conditions[i]; c.Type == kind {
			c.Status, c.Reason, c.Message = metav1.ConditionStatus(status), reason, message
		}
	}
}

func TestEachFault(t *testing.T) {
	peer := func(change func(*Peer)) func([]*Facts) {
		return func(all []*Facts) {
			p := all[0].Peers["cluster2"]
			change(&p)
			all[0].Peers["cluster2"] = p
		}
	}
	for name, test := range map[string]struct {
		change func(all []*Facts)
		want   string // gravity cluster check: a part of what is wrong
	}{
		"kube-apiserver is gone": {func(all []*Facts) { *all[0] = Facts{Context: "cluster1", Unreachable: "refused"} }, "error cluster1 kube-apiserver: does not answer"},
		"not all may be read":    {func(all []*Facts) { all[0].Problems["the nodes"] = "forbidden"; all[0].Nodes = nil }, "warning cluster1 permissions: Not everything could be read"},
		"not installed": {func(all []*Facts) {
			*all[0] = Facts{Context: "cluster1", Namespace: "mesh-system", Problems: map[string]string{}}
		}, "error cluster1 installation: not installed"},
		"no APIService":              {func(all []*Facts) { all[0].APIService = nil }, "error cluster1 mesh-api: not registered"},
		"somebody else's APIService": {func(all []*Facts) { all[0].APIService.Spec.Service.Name = "foreign" }, "error cluster1 mesh-api: belongs to something else"},
		"an API that is not available": {func(all []*Facts) {
			all[0].APIService.Status.Conditions[0] = apiregistrationv1.APIServiceCondition{Type: apiregistrationv1.Available, Status: "False", Reason: "MissingEndpoints"}
		}, "error cluster1 mesh-api: not available"},
		"an API that does not answer": {func(all []*Facts) { all[0].MeshAPI = "timeout" }, "error cluster1 mesh-api: does not answer, although"},
		"a clock that is late":        {func(all []*Facts) { all[1].Skew = ptr.To(-10 * time.Second) }, "warning cluster2 clock: 10s behind that of this machine"},
		"nobody leads":                {func(all []*Facts) { all[0].Lease.Spec.HolderIdentity = nil }, "error cluster1 controllers: No mesh-controller leads"},
		"the leader is dead":          {func(all []*Facts) { all[0].Lease.Spec.RenewTime.Time = now.Add(-time.Minute) }, "error cluster1 controllers: No mesh-controller leads"},
		"a pod that is not ready":     {func(all []*Facts) { all[0].Pods[0] = pod("mesh-apiserver-0", "mesh-apiserver", "n", false) }, "error cluster1 pods: Pod mesh-apiserver-0 is not ready"},
		"an agent that is not ready": {func(all []*Facts) {
			all[0].Pods[2] = pod("mesh-agent-a", "mesh-agent", "cluster1-node1", false)
			all[0].Readyz["mesh-agent-a"] = "[-]mesh-api: no"
		}, "error cluster1 agents: The agent of node cluster1-node1 is not ready"},
		"a node without an agent": {func(all []*Facts) { all[0].Pods = all[0].Pods[:2] }, "error cluster1 agents: 1 of 1 nodes have no agent"},
		"an old kernel":           {func(all []*Facts) { all[0].Nodes[0].Status.NodeInfo.KernelVersion = "4.19.0-27" }, "error cluster1 kernel: older than 5.10"},
		"Cilium for kube-proxy":   {func(all []*Facts) { all[0].CiliumReplacesKubeProxy = true }, "warning cluster1 cilium: replaces kube-proxy"},
		"Cilium's mesh":           {func(all []*Facts) { all[0].CiliumMesh = true }, "warning cluster1 cilium: own cluster mesh"},
		"an annotation that means nothing": {func(all []*Facts) {
			all[0].Services = []Annotated{{"song", "web", map[string]string{"service.cilium.io/global": "yes"}}}
		}, "warning cluster1 annotations: An annotation of Service song/web means nothing"},
		"of a Namespace": {func(all []*Facts) {
			all[0].Namespaces = []Annotated{{Name: "song", Annotations: map[string]string{"mesh.io/global": "on"}}}
		}, "warning cluster1 annotations: Namespace song"},
		"a Service that never is": {func(all []*Facts) {
			all[0].Services = []Annotated{{"kube-system", "dns", map[string]string{"mesh.io/global": "true"}}}
		}, "warning cluster1 annotations: can never be"},
		"an annotation mistyped": {func(all []*Facts) {
			all[0].Services = []Annotated{{"song", "web", map[string]string{"mesh.io/globel": "true"}}}
		}, "note cluster1 annotations: does not know"},
		"two of a name":           {func(all []*Facts) { all[1].Name = "cluster1" }, "error cluster2 identity: name"},
		"two of an ID":            {func(all []*Facts) { all[1].ID = "1" }, "error cluster2 identity: ID 1 is that of cluster1"},
		"two of a UID":            {func(all []*Facts) { all[1].UID = all[0].UID }, "error cluster2 identity: one UID"},
		"an identity in conflict": {func(all []*Facts) { edit(all[0], "IdentityConflict", "True", "DuplicateID", "x") }, "error cluster1 identity: in conflict"},
		"a peer that is cut off":  {func(all []*Facts) { edit(all[0], "Connected", "False", "Unreachable", "x") }, "error cluster1 peers: cluster2 is not connected"},
		"a peer that is silent":   {func(all []*Facts) { edit(all[0], "Connected", "Unknown", "Silent", "x") }, "error cluster1 peers: The link to cluster2 seems to be broken"},
		"a peer not heard of": {func(all []*Facts) { all[0].Clusters[1].Status.LastContactTime.Time = now.Add(-40 * time.Second) },
			"error cluster1 peers: The link to cluster2 seems to be broken"},
		"a peer not in sync":        {func(all []*Facts) { edit(all[0], "Synced", "False", "Listing", "x") }, "error cluster1 peers: Not everything that cluster2 exports"},
		"a controller without life": {func(all []*Facts) { all[0].Clusters[0].Status.LastContactTime.Time = now.Add(-time.Hour) }, "error cluster1 peers: no sign of life"},
		"one way":                   {func(all []*Facts) { all[1].Clusters = all[1].Clusters[:1] }, "note cluster1 peers: one way"},
		"no Secret":                 {peer(func(p *Peer) { p.Problem = "gone" }), "error cluster1 credentials: cannot be used"},
		"an expired token":          {peer(func(p *Peer) { p.Expires = now.Add(-time.Minute) }), "error cluster1 credentials: has expired"},
		"a token about to":          {peer(func(p *Peer) { p.IssuedAt, p.Expires = now.Add(-700*time.Hour), now.Add(20*time.Hour) }), "warning cluster1 credentials: ends in 20h"},
		"another authority":         {peer(func(p *Peer) { p.CA = []string{"other"} }), "error cluster1 credentials: authority"},
		"endpoints that are gone":   {peer(func(p *Peer) { p.Hosts = []string{"172.31.2.99"} }), "error cluster1 endpoints: 1 of 1 endpoints of cluster2 exist no longer"},
		"one of two that is gone":   {peer(func(p *Peer) { p.Hosts, p.Ports = append(p.Hosts, "172.31.2.99"), append(p.Ports, "32443") }), "warning cluster1 endpoints: 1 of 2"},
		"another port":              {peer(func(p *Peer) { p.Ports = []string{"31000"} }), "error cluster1 endpoints: another port"},
		"refusals":                  {func(all []*Facts) { all[0].Clusters[1].Status.Refused = 3 }, "warning cluster1 imports: 3 objects"},
		"namespaces that wait":      {func(all []*Facts) { all[0].Clusters[1].Status.WaitingNamespaces = []string{"song"} }, "note cluster1 imports: they wait"},
		"a conflict":                {global("Conflict", "True", ""), "warning cluster1 services: disagree about 1"},
		"not programmed":            {global("Programmed", "False", ""), "error cluster1 services: not programmed"},
		"no backend":                {global("Ready", "False", "NoneReady"), "warning cluster1 services: No backend can be used"},
		"global only elsewhere":     {global("LocalService", "False", "NotGlobal"), "note cluster1 services: no Service here takes part"},
	} {
		t.Run(name, func(t *testing.T) {
			all := both()
			test.change(all)
			head, part, _ := strings.Cut(test.want, ": ")
			found := Examine(all)
			if !slices.ContainsFunc(found, func(f Finding) bool {
				return fmt.Sprintf("%s %s %s", f.Gravity, f.Cluster, f.Check) == head && strings.Contains(f.What, part) && f.Do != ""
			}) {
				t.Errorf("not found: %s; but %+v", test.want, found)
			}
		})
	}
}

func global(kind, status, reason string) func([]*Facts) {
	return func(all []*Facts) {
		all[0].Globals = []v1alpha1.GlobalService{{ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "web"}, Status: v1alpha1.GlobalServiceStatus{
			Conditions: []metav1.Condition{{Type: kind, Status: metav1.ConditionStatus(status), Reason: reason, Message: "why"}},
		}}}
	}
}

func TestClocksAreComparedByTheCluster(t *testing.T) {
	// The cluster's clock is ahead: its Lease is renewed all the same.
	all := both()
	all[0].Skew = ptr.To(-time.Hour)
	all[0].Lease.Spec.RenewTime.Time = now.Add(-time.Hour)
	for i := range all[0].Clusters {
		all[0].Clusters[i].Status.LastContactTime.Time = now.Add(-time.Hour)
	}
	for _, f := range Examine(all) {
		if f.Check != "clock" {
			t.Errorf("a wrong clock is taken for %+v", f)
		}
	}
}

func TestTokensAreReadAndNotKept(t *testing.T) {
	claims := fmt.Sprintf(`{"iat":%d,"exp":%d}`, now.Unix(), now.Add(time.Hour).Unix())
	token := "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2lnbmF0dXJl"
	kubeconfig := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"a",
		"clusters":[{"name":"a","cluster":{"server":"https://10.0.0.1:32443"}}],
		"users":[{"name":"u","user":{"token":%q}}],"contexts":[{"name":"a","context":{"cluster":"a","user":"u"}}]}`, token)
	p := peerOf("s", []byte(kubeconfig))
	if p.Problem != "" || !p.IssuedAt.Equal(now) || !p.Expires.Equal(now.Add(time.Hour)) || p.Hosts[0] != "10.0.0.1" || p.Ports[0] != "32443" {
		t.Errorf("the kubeconfig is read as %+v", p)
	}
	if content, _ := json.Marshal(p); strings.Contains(string(content), "c2lnbmF0dXJl") {
		t.Error("the token is kept")
	}
	if p := peerOf("s", []byte("{}")); p.Problem == "" {
		t.Error("an empty kubeconfig is no problem")
	}
}

// TestGolden pins what a person reads.
func TestGolden(t *testing.T) {
	all := both()
	edit(all[0], "Connected", "False", "Unreachable", "The peer's mesh API cannot be reached: check that it runs and that its address is open from here.")
	all[1].Pods[2] = pod("mesh-agent-a", "mesh-agent", "cluster2-node1", false)
	all[1].Readyz["mesh-agent-a"] = "[-]mesh-api: not in sync yet, and there is no snapshot: meshmembers for 20s\n[-]table: not applied yet"
	all[1].Clusters[1].Status.WaitingNamespaces = []string{"a", "b", "c", "d", "e", "f", "g"}
	golden.Print(t, "findings", func(w io.Writer, width int) error {
		_, err := io.WriteString(w, Text(width, Examine(all), 2))
		return err
	})
	long := strings.Repeat("a", 63)
	all = []*Facts{healthy("cluster1", "1", "cluster2", 2)}
	all[0].Context = "arn:aws:eks:eu-central-1:123456789012:cluster/" + long
	all[0].Pods[2] = pod("mesh-agent-a", "mesh-agent", long, false)
	all[0].Nodes[0].Name = long
	golden.Print(t, "long", func(w io.Writer, width int) error {
		_, err := io.WriteString(w, Text(width, Examine(all), 1))
		return err
	})
	golden.Print(t, "nothing", func(w io.Writer, width int) error {
		_, err := io.WriteString(w, Text(width, nil, 1))
		return err
	})
}
