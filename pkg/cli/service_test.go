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

package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/agent/dump"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/explain"
	"mesh.io/clustermesh/pkg/layout/golden"
)

var clock = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func before(d time.Duration) metav1.Time { return metav1.NewTime(clock.Add(-d)) }

// longest is a name of so many letters, with a dash in it.
func longest(n int, letter byte) string {
	name := bytes.Repeat([]byte{letter}, n)
	name[n/2] = '-'
	return string(name)
}

func globalService(namespace, name string, spec v1alpha1.GlobalServiceSpec, clusters ...v1alpha1.ClusterStatus) v1alpha1.GlobalService {
	return v1alpha1.GlobalService{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Generation: 1},
		Spec:       spec,
		Status: v1alpha1.GlobalServiceStatus{
			ObservedGeneration: 1, Clusters: clusters,
			Shared:   v1alpha1.EffectiveShared{Value: true, Source: v1alpha1.SourceDefault},
			Affinity: v1alpha1.EffectiveAffinity{Value: v1alpha1.AffinityNone, Source: v1alpha1.SourceDefault},
		},
	}
}

func has(name string, local bool, ready, total int32) v1alpha1.ClusterStatus {
	return v1alpha1.ClusterStatus{Name: name, Local: local, Shared: true, Endpoints: v1alpha1.EndpointCount{Ready: ready, Total: total}}
}

func TestServiceList(t *testing.T) {
	notHere := globalService("song", "names", v1alpha1.GlobalServiceSpec{}, has("cluster2", false, 0, 0))
	notHere.Status.Conditions = []metav1.Condition{{Type: v1alpha1.GlobalServiceLocalService, Status: metav1.ConditionFalse, Reason: "NotFound"}}
	unseen := globalService("song", "unseen", v1alpha1.GlobalServiceSpec{})
	unseen.Status = v1alpha1.GlobalServiceStatus{}
	one := seen{context: "ctx1", cluster: "cluster1", services: []v1alpha1.GlobalService{
		globalService("song", "userlist-svc", v1alpha1.GlobalServiceSpec{}, has("cluster1", true, 1, 1), has("cluster2", false, 0, 2)), notHere, unseen,
	}}
	two := seen{context: "ctx2", cluster: "cluster2", services: []v1alpha1.GlobalService{
		globalService("song", "userlist-svc", v1alpha1.GlobalServiceSpec{}, has("cluster2", true, 0, 2), has("cluster1", false, 1, 1)),
		globalService("song", "names", v1alpha1.GlobalServiceSpec{}, has("cluster2", true, 3, 3)),
	}}
	golden.Print(t, "service-list", func(w io.Writer, width int) error {
		return writeServiceList(w, width, mergeViews([]seen{one}), 1)
	})
	golden.Print(t, "service-list-contexts", func(w io.Writer, width int) error {
		return writeServiceList(w, width, mergeViews([]seen{one, two}), 2)
	})
	two.services = append(two.services, globalService("a-namespace-of-many-letters", "a-service-of-even-more-letters", v1alpha1.GlobalServiceSpec{}, has("cluster2", true, 3, 3)))
	golden.Print(t, "service-list-long", func(w io.Writer, width int) error {
		return writeServiceList(w, width, mergeViews([]seen{one, two}), 2)
	})
	one.cluster, two.cluster = longest(32, 'c'), longest(32, 'd')
	two.services = append(two.services, globalService(longest(63, 'n'), longest(63, 's'), v1alpha1.GlobalServiceSpec{}, has("cluster2", true, 300, 3000)))
	golden.Print(t, "service-list-longest", func(w io.Writer, width int) error {
		return writeServiceList(w, width, mergeViews([]seen{one, two}), 2)
	})
	golden.Print(t, "service-list-longest-one", func(w io.Writer, width int) error {
		return writeServiceList(w, width, mergeViews([]seen{two}), 1)
	})
	two.err, two.services = io.ErrUnexpectedEOF, nil
	list := mergeViews([]seen{one, two})
	if len(list.Problems) != 1 || list.Problems[0].Context != "ctx2" || len(list.Services[0].Views) != 1 {
		t.Errorf("of a cluster that does not answer: %+v", list)
	}
}

// someFacts is a service of two clusters for the clients of cluster1.
func someFacts(spec v1alpha1.GlobalServiceSpec) *explain.Cluster {
	g := globalService("song", "userlist-svc", spec, has("cluster1", true, 1, 2), has("cluster2", false, 2, 2))
	g.Status.Conditions = []metav1.Condition{
		{Type: "Ready", Status: metav1.ConditionTrue, Reason: "BackendsReady", Message: "At least one backend is ready.", LastTransitionTime: before(time.Minute)},
		{Type: "Conflict", Status: metav1.ConditionTrue, Reason: "ClustersDiffer", Message: `Clients here use the ports, type and session affinity of this cluster's own Service, and another cluster's backends through the port of the same name and protocol. What differs: in cluster2 port "web" (81/TCP) is more.`, LastTransitionTime: before(3 * time.Hour)},
	}
	peer := v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: "cluster2"}, Spec: v1alpha1.MeshClusterSpec{ID: 2, KubeconfigSecretRef: &v1alpha1.SecretReference{Name: "s"}}}
	peer.Status.Conditions = []metav1.Condition{{Type: "Connected", Status: metav1.ConditionTrue}, {Type: "Synced", Status: metav1.ConditionTrue}}
	gone := v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: "cluster3"}, Spec: v1alpha1.MeshClusterSpec{ID: 3, Drained: true, KubeconfigSecretRef: &v1alpha1.SecretReference{Name: "s"}}}
	gone.Status.Conditions = []metav1.Condition{{Type: "Connected", Status: metav1.ConditionFalse}}
	slice := discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "song", Name: "s", Labels: map[string]string{discoveryv1.LabelServiceName: "userlist-svc"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8181)}},
	}
	for address, ready := range map[string]bool{"10.1.1.4": true, "10.1.1.5": false} {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(ready)}})
	}
	imported := func(cluster string, id int32, addresses ...string) v1alpha1.ImportedEndpointSlice {
		s := v1alpha1.ImportedEndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "song"}, Spec: v1alpha1.SliceRecord{
			Cluster: cluster, ClusterID: id, Service: "userlist-svc", AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []v1alpha1.EndpointPort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 8181}},
		}}
		for _, a := range addresses {
			s.Spec.Endpoints = append(s.Spec.Endpoints, v1alpha1.Endpoint{Address: a, Ready: true, Serving: true})
		}
		return s
	}
	return &explain.Cluster{
		Context: "ctx1", Name: "cluster1", MeshNamespace: "mesh-system", Global: &g,
		Namespace: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "song"}},
		Service: &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "userlist-svc", CreationTimestamp: before(26 * time.Hour), Annotations: map[string]string{"service.cilium.io/global": "true"}},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIPs: []string{"10.101.14.7"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
		},
		Members: []v1alpha1.MeshCluster{{ObjectMeta: metav1.ObjectMeta{Name: "cluster1"}, Spec: v1alpha1.MeshClusterSpec{ID: 1}}, peer, gone},
		Slices:  []discoveryv1.EndpointSlice{slice},
		ImportedSlices: []v1alpha1.ImportedEndpointSlice{
			imported("cluster2", 2, "10.2.1.6", "10.2.1.7"), imported("cluster3", 3, "10.3.1.1"), imported("cluster9", 9, "10.9.1.1"),
		},
	}
}

func kernel() *dump.Document {
	backend := func(id uint32, address, cluster string, clusterID uint16, state string, slots uint32) dump.Backend {
		return dump.Backend{ID: id, Address: address, Port: 8181, Cluster: cluster, ClusterID: clusterID, State: state, Slots: slots, Preferred: slots > 0}
	}
	return &dump.Document{
		HeartbeatAgeSeconds: ptr.To(400.0),
		Agent:               &dump.Agent{Checks: []dump.Check{{Name: "mesh-api", Message: "not in sync yet, and there is no snapshot: globalservices, meshclusters since the start (connection refused)"}}},
		LeftToKubeProxy:     []dump.Left{{Service: "song/names", Reason: "it has no cluster IP"}, {Service: "other/x", Reason: "it has no cluster IP"}},
		Services: []dump.Service{
			{ID: 1, Address: "10.101.14.7", Port: 80, Protocol: "TCP", Namespace: "song", Name: "userlist-svc", PortName: "http", Backends: []dump.Backend{
				backend(1, "10.1.1.4", "cluster1", 1, "active", 1), backend(2, "10.1.1.5", "cluster1", 1, "not ready", 0),
				backend(3, "10.2.1.6", "cluster2", 2, "active", 0), backend(4, "10.2.1.8", "cluster2", 2, "quarantined", 0),
				backend(5, "10.3.1.1", "cluster3", 3, "active", 0),
			}},
			{ID: 12, Address: "10.101.99.99", Port: 53, Protocol: "UDP", Namespace: "other", Name: "y"},
		},
	}
}

func TestNodeTable(t *testing.T) {
	facts := map[string]*explain.Cluster{"song/userlist-svc": someFacts(v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityLocal})}
	table := newNodeTable("ctx1", "node1", kernel(), facts, "song")
	golden.Print(t, "service-node", func(w io.Writer, width int) error { return writeNodeTable(w, width, table) })
	content, err := json.Marshal(table.Services[0].Backends[2])
	if err != nil {
		t.Fatal(err)
	}
	want := `{"address":"10.2.1.6:8181","cluster":"cluster2","state":"active","programmed":true,"preferred":false,"slots":0,"reason":"standby: affinity Local prefers cluster1"}`
	if string(content) != want {
		t.Errorf("got %s", content)
	}
}

// The objects say nothing of whether the agents balance load balancers' addresses, too: the
// kernel's table does.
func TestNodeTableOfLoadBalancer(t *testing.T) {
	c := someFacts(v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityLocal})
	c.Service.Spec.Type = corev1.ServiceTypeLoadBalancer
	c.Service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.7"}}
	document := kernel()
	another := document.Services[0]
	another.Address = "192.0.2.7"
	document.Services = append(document.Services, another)
	table := newNodeTable("ctx1", "node1", document, map[string]*explain.Cluster{"song/userlist-svc": c}, "song")
	if len(table.Services) != 2 || table.Services[1].Frontend != "192.0.2.7:80/TCP" {
		t.Fatalf("got %v", table.Services)
	}
	if got := table.Services[1].Backends[2].Reason; got != "standby: affinity Local prefers cluster1" {
		t.Errorf("a backend that is not preferred has the reason %q", got)
	}
}

// TestLongest has names of as many letters as they may have.
func TestLongest(t *testing.T) {
	namespace, service, node, here, there := longest(63, 'n'), longest(63, 's'), longest(63, 'm'), longest(32, 'c'), longest(32, 'd')
	document := kernel()
	document.LeftToKubeProxy[0].Service = namespace + "/" + service
	s := &document.Services[0]
	s.Namespace, s.Name, s.PortName, s.Address = namespace, service, longest(15, 'p'), "fd00:1234:5678:9abc:def0:1234:5678:9abc"
	for i := range s.Backends {
		s.Backends[i].Cluster, s.Backends[i].Address = there, "fd00:1234:5678:9abc:def0:1234:5678:9abc"
	}
	golden.Print(t, "longest-node", func(w io.Writer, width int) error {
		return writeNodeTable(w, width, newNodeTable(here, node, document, nil, ""))
	})
	facts := someFacts(v1alpha1.GlobalServiceSpec{Clusters: []v1alpha1.ClusterPolicy{{Name: "cluster2", Weight: ptr.To[int32](1000), Priority: ptr.To[int32](100)}}})
	was := newInEffect(someFacts(v1alpha1.GlobalServiceSpec{}))
	is := newInEffect(facts)
	e := newExplanation(&explain.Facts{
		Namespace: "song", Name: "userlist-svc", Now: clock, Here: *facts, Peers: []explain.Peer{{Name: "cluster2"}},
		Node: explain.Node{Name: "node1", Exists: true, Pod: &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning}}, Dump: kernel()},
	}, node)
	e.Namespace, e.Name, e.Cluster = namespace, service, here
	for i := range e.Links {
		e.Links[i].Cluster = here
		if e.Links[i].Peer != "" {
			e.Links[i].Peer = there
		}
	}
	golden.Print(t, "longest-explain", func(w io.Writer, width int) error { return writeExplanation(w, width, e, clock) })
	d := newClusterDetail(facts, nil)
	d.Cluster, d.Context = here, "arn:aws:eks:eu-central-1:123456789012:cluster/"+longest(63, 'k')
	for i := range d.Backends {
		d.Backends[i].Cluster, d.Backends[i].State = longest(32, byte('d'+i)), "identity conflict"
		d.Backends[i].Ready, d.Backends[i].Total = 1000, 1000
	}
	golden.Print(t, "longest-get", func(w io.Writer, width int) error {
		return writeServiceDetail(w, width, serviceDetail{Namespace: namespace, Name: service, Clusters: []clusterDetail{d}}, clock)
	})
	for _, in := range []*inEffect{&was, &is} {
		for i := range in.Clusters {
			in.Clusters[i].Cluster = longest(32, byte('d'+i))
		}
	}
	results := changeResults{Results: []changeResult{{
		Context: d.Context, Cluster: here, Namespace: namespace, Name: service, Changed: true, Before: was, After: &is,
		Nodes: &nodesOutcome{Programmed: 1, Total: 2, Unchecked: []string{node + ": its agent is not running"}},
	}}}
	golden.Print(t, "longest-change", func(w io.Writer, width int) error { return writeChanges(w, width, results) })
}

func TestServiceDetail(t *testing.T) {
	here := newClusterDetail(someFacts(v1alpha1.GlobalServiceSpec{
		Affinity: v1alpha1.AffinityLocal, LocalMinReady: ptr.To[int32](50), Clusters: []v1alpha1.ClusterPolicy{{Name: "cluster2", Weight: ptr.To[int32](25)}},
	}), []serviceEvent{{Type: "Warning", Reason: "InvalidAnnotation", Object: "Service", LastSeen: clock.Add(-time.Minute), Count: 3, Message: `annotation mesh.io/shared has the value "yes", which means nothing: use true or false; until then the default holds`}})
	there := newClusterDetail(&explain.Cluster{Context: "cluster2", Name: "cluster2", MeshProblem: "the mesh API of cluster2 does not answer: connection refused"}, nil)
	detail := serviceDetail{Namespace: "song", Name: "userlist-svc", Clusters: []clusterDetail{here, there}}
	golden.Print(t, "service-get", func(w io.Writer, width int) error { return writeServiceDetail(w, width, detail, clock) })
}

func TestExplanation(t *testing.T) {
	facts := &explain.Facts{
		Namespace: "song", Name: "userlist-svc", Now: clock, Here: *someFacts(v1alpha1.GlobalServiceSpec{}),
		Peers: []explain.Peer{{Name: "cluster2"}}, Node: explain.Node{Name: "node1", Exists: true, Pod: &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning}}, Dump: kernel()},
	}
	e := newExplanation(facts, "node1")
	if e.FirstBroken != "import of cluster2 in cluster1" {
		t.Errorf("the first broken link is %q", e.FirstBroken)
	}
	golden.Print(t, "service-explain", func(w io.Writer, width int) error { return writeExplanation(w, width, e, clock) })
}

func TestChanges(t *testing.T) {
	was := newInEffect(someFacts(v1alpha1.GlobalServiceSpec{}))
	is := newInEffect(someFacts(v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityLocal, Clusters: []v1alpha1.ClusterPolicy{{Name: "cluster2", Weight: new(int32)}}}))
	results := changeResults{Results: []changeResult{
		{Context: "ctx1", Cluster: "cluster1", Namespace: "song", Name: "userlist-svc", Changed: true, Before: was, After: &is, Nodes: &nodesOutcome{Programmed: 1, Total: 2, Unchecked: []string{"node2: its agent is not running"}}},
		{Context: "ctx2", Cluster: "cluster2", Namespace: "song", Name: "userlist-svc", Before: was},
		{Context: "ctx3", Cluster: "cluster3", Namespace: "song", Name: "userlist-svc", Error: "it is dead"},
	}}
	golden.Print(t, "service-change", func(w io.Writer, width int) error { return writeChanges(w, width, results) })
}

func TestShows(t *testing.T) {
	c := someFacts(v1alpha1.GlobalServiceSpec{})
	name := serviceName{"song", "userlist-svc"}
	document := kernel()
	if shows(document, c, name) {
		t.Error("a table without a backend is as it should be")
	}
	b := &document.Services[0].Backends
	(*b)[2].Slots, (*b)[2].Preferred = 1, true
	(*b)[3].Address, (*b)[3].State, (*b)[3].Slots = "10.2.1.7", "active", 1
	if !shows(document, c, name) {
		t.Error("a table that has everything is not as it should be")
	}
	(*b)[3].Slots = 2
	if shows(document, c, name) {
		t.Error("another share is as it should be")
	}
}

// Each edit starts from this; what it does not touch has to stay, also what is unknown.
const editedObject = `{"metadata":{"resourceVersion":"7","annotations":{"a":"b"%s}},"spec":{"future":1,"affinity":"Remote","clusters":[{"name":"x","weight":5,"new":true},{"name":"y","priority":3},{"name":"z","weight":0}]}}`

func TestGlobalEdit(t *testing.T) {
	for name, test := range map[string]struct {
		drained string
		edit    func(*globalEdit) error
		want    string // empty: nothing to do
	}{
		"drain": {"", func(g *globalEdit) error { return g.drain("x") },
			`{"metadata":{"annotations":{"mesh.io/weights-before-drain":"{\"x\":5}"},"resourceVersion":"7"},"spec":{"clusters":[{"name":"x","new":true,"weight":0},{"name":"y","priority":3},{"name":"z","weight":0}]}}`},
		"drain one with a priority only": {"", func(g *globalEdit) error { return g.drain("y") },
			`{"metadata":{"resourceVersion":"7"},"spec":{"clusters":[{"name":"x","new":true,"weight":5},{"name":"y","priority":3,"weight":0},{"name":"z","weight":0}]}}`},
		"drain one that is not there": {"", func(g *globalEdit) error { return g.drain("w") },
			`{"metadata":{"resourceVersion":"7"},"spec":{"clusters":[{"name":"x","new":true,"weight":5},{"name":"y","priority":3},{"name":"z","weight":0},{"name":"w","weight":0}]}}`},
		"drain twice": {"", func(g *globalEdit) error { return g.drain("z") }, ""},
		"undo":        {"", func(g *globalEdit) error { return g.undrain("z") }, `{"metadata":{"resourceVersion":"7"},"spec":{"clusters":[{"name":"x","new":true,"weight":5},{"name":"y","priority":3}]}}`},
		"undo to what was": {`,"mesh.io/weights-before-drain":"{\"z\":30}"`, func(g *globalEdit) error { return g.undrain("z") },
			`{"metadata":{"annotations":{"mesh.io/weights-before-drain":null},"resourceVersion":"7"},"spec":{"clusters":[{"name":"x","new":true,"weight":5},{"name":"y","priority":3},{"name":"z","weight":30}]}}`},
		"undo with nonsense remembered": {`,"mesh.io/weights-before-drain":"null"`, func(g *globalEdit) error { return g.undrain("z") },
			`{"metadata":{"annotations":{"mesh.io/weights-before-drain":null},"resourceVersion":"7"},"spec":{"clusters":[{"name":"x","new":true,"weight":5},{"name":"y","priority":3}]}}`},
		"undo what is not drained": {"", func(g *globalEdit) error { return g.undrain("x") }, ""},
		"weigh": {`,"mesh.io/weights-before-drain":"{\"z\":30}"`, func(g *globalEdit) error { return g.weigh("z", ptr.To[int64](9)) },
			`{"metadata":{"annotations":{"mesh.io/weights-before-drain":null},"resourceVersion":"7"},"spec":{"clusters":[{"name":"x","new":true,"weight":5},{"name":"y","priority":3},{"name":"z","weight":9}]}}`},
		"weigh the same": {"", func(g *globalEdit) error { return g.weigh("x", ptr.To[int64](5)) }, ""},
		"unset nothing":  {"", func(g *globalEdit) error { return g.weigh("y", nil) }, ""},
		"affinity":       {"", func(g *globalEdit) error { g.prefer("Local"); return nil }, `{"metadata":{"resourceVersion":"7"},"spec":{"affinity":"Local"}}`},
		"affinity unset": {"", func(g *globalEdit) error { g.prefer(""); return nil }, `{"metadata":{"resourceVersion":"7"},"spec":{"affinity":null}}`},
		"affinity again": {"", func(g *globalEdit) error { g.prefer("Remote"); return nil }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := newGlobalEdit([]byte(strings.Replace(editedObject, "%s", test.drained, 1)))
			if err != nil {
				t.Fatal(err)
			}
			if err := test.edit(g); err != nil {
				t.Fatal(err)
			}
			got := ""
			if g.changed {
				patch, err := g.patch()
				if err != nil {
					t.Fatal(err)
				}
				got = string(patch)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	// The last entry takes the list with it.
	g, err := newGlobalEdit([]byte(`{"metadata":{"resourceVersion":"7"},"spec":{"clusters":[{"name":"z","weight":0}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	_ = g.undrain("z")
	if patch, _ := g.patch(); string(patch) != `{"metadata":{"resourceVersion":"7"},"spec":{"clusters":null}}` {
		t.Errorf("got %s", patch)
	}
}

func TestServiceCommandLine(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "config")
	content := "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: c, cluster: {server: \"https://127.0.0.1:1\"}}]\ncontexts: [{name: a, context: {cluster: c}}, {name: b, context: {cluster: c}}]\n"
	if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{
		"service get userlist", "service get A/b", "service get", "service list -n a -A", "service list --context a --contexts a,b", "service list --contexts a,a",
		"service list --contexts nowhere", "service list -A --node n --contexts a,b", "service explain a/b", "service explain a/b --from c", "service drain a/b",
		"service weight a/b --cluster x 1001", "service weight a/b --cluster x", "service weight a/b --cluster x 5 --unset", "service affinity a/b near", "service affinity a/b",
		"service list -o wide",
	} {
		var errOut bytes.Buffer
		code := Run(t.Context(), append([]string{"meshctl", "--kubeconfig", kubeconfig}, strings.Fields(args)...), Streams{In: strings.NewReader(""), Out: io.Discard, Err: &errOut})
		if code != ExitUsage {
			t.Errorf("%s: exit code %d: %s", args, code, &errOut)
		}
	}
	// A cluster that does not answer is an error, and not a wait without end.
	var errOut bytes.Buffer
	if code := Run(t.Context(), []string{"meshctl", "--kubeconfig", kubeconfig, "service", "list"}, Streams{Out: io.Discard, Err: &errOut}); code != ExitFailure || !strings.Contains(errOut.String(), "listing global services of a") {
		t.Errorf("exit code %d: %s", code, &errOut)
	}
}
