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

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/agent/snapshot"
	"mesh.io/clustermesh/pkg/agent/source"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	meshfake "mesh.io/clustermesh/pkg/generated/clientset/versioned/fake"
)

// world is one node's surroundings, which outlive the agent.
type world struct {
	*testing.T
	kube     *fake.Clientset
	meta     *metadatafake.FakeMetadataClient
	mesh     *meshfake.Clientset
	kernel   *FakeKernel
	folder   string
	meshDown atomic.Bool
	meshErr  error // what it says then
	kubeDown atomic.Pointer[error]
	retry    time.Duration // the agent's; 5 ms if it is 0
}

func newWorld(t *testing.T) *world {
	scheme := runtime.NewScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	w := &world{
		T: t, kube: fake.NewClientset(),
		meta: metadatafake.NewSimpleMetadataClient(scheme, &metav1.PartialObjectMetadata{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
			ObjectMeta: metav1.ObjectMeta{Name: "song"},
		}),
		mesh: meshfake.NewClientset(), kernel: NewFakeKernel(), folder: t.TempDir(), meshErr: errors.New("connection refused"),
	}
	meshDown := func(clienttesting.Action) (bool, runtime.Object, error) {
		return w.meshDown.Load(), nil, w.meshErr
	}
	w.mesh.PrependReactor("list", "*", meshDown)
	w.mesh.PrependWatchReactor("*", func(clienttesting.Action) (bool, watch.Interface, error) {
		return w.meshDown.Load(), nil, w.meshErr
	})
	kubeDown := func(clienttesting.Action) (bool, runtime.Object, error) {
		if err := w.kubeDown.Load(); err != nil {
			return true, nil, *err
		}
		return false, nil, nil
	}
	w.kube.PrependReactor("list", "*", kubeDown)
	for i, name := range []string{"cluster1", "cluster2"} {
		c := &v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MeshClusterSpec{ID: int32(i + 1)}}
		if i == 0 {
			c.Status.StoreEpoch = "e1"
			c.Status.Conditions = []metav1.Condition{{Type: v1alpha1.MeshClusterExportsSynced, Status: metav1.ConditionTrue}}
		} else {
			c.Status.Conditions = []metav1.Condition{{Type: v1alpha1.MeshClusterSynced, Status: metav1.ConditionTrue}}
		}
		m := &v1alpha1.MeshMember{ObjectMeta: c.ObjectMeta, Spec: v1alpha1.MeshMemberSpec{ID: c.Spec.ID, StoreEpoch: c.Status.StoreEpoch}}
		if err := errors.Join(w.mesh.Tracker().Add(c), w.mesh.Tracker().Add(m)); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) service(name, ip string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: name, Annotations: map[string]string{"mesh.io/global": "true"}, ResourceVersion: "1"},
		Spec: corev1.ServiceSpec{
			ClusterIPs: []string{ip}, ClusterIP: ip,
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

func (w *world) local(name string, addrs ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "song", Name: name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: name}, ResourceVersion: "1"},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8181)}},
	}
	for _, addr := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr}})
	}
	return s
}

func (w *world) imported(name string, addrs ...string) *v1alpha1.ImportedEndpointSlice {
	s := &v1alpha1.ImportedEndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "cluster2." + name + "-x", ResourceVersion: "1"},
		Spec: v1alpha1.SliceRecord{
			Cluster: "cluster2", ClusterID: 2, Service: name, AddressType: discoveryv1.AddressTypeIPv4, ChangedAt: metav1.NowMicro(),
			Ports: []v1alpha1.EndpointPort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 8181}},
		},
	}
	for _, addr := range addrs {
		s.Spec.Endpoints = append(s.Spec.Endpoints, v1alpha1.Endpoint{Address: addr, Ready: true, Serving: true})
	}
	return s
}

// add puts objects into the API servers without an event.
func (w *world) add(objects ...runtime.Object) {
	w.Helper()
	for _, o := range objects {
		var err error
		if _, ok := o.(*v1alpha1.ImportedEndpointSlice); ok {
			err = w.mesh.Tracker().Add(o)
		} else {
			err = w.kube.Tracker().Add(o)
		}
		if err != nil {
			w.Fatal(err)
		}
	}
}

// start runs an agent until stop is called, or the test ends.
func (w *world) start() (agent *Agent, stop func()) {
	state := source.NewState(source.Config{Cluster: "cluster1", Namespace: "mesh-system"})
	if w.retry == 0 {
		w.retry = 5 * time.Millisecond
	}
	agent = New(Config{
		Cluster: "cluster1", StateDir: w.folder, Kernel: w.kernel, State: state,
		Local: source.NewLocal(state, w.kube, w.meta, "mesh-system", func() {}),
		Mesh:  source.NewMesh(state, w.mesh), MeshClient: w.mesh,
		Timing: Timing{Heartbeat: 10 * time.Millisecond, Retry: w.retry, Save: 10 * time.Millisecond, Witness: 20 * time.Millisecond},
	})
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		agent.Run(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	w.Cleanup(stop)
	return agent, stop
}

// has writes the kernel's table as "userlist: 10.1.0.1 10.2.0.1; ...".
func (w *world) has() string {
	table, _ := w.kernel.Held()
	var lines []string
	for _, s := range table.Services {
		line := s.Port.Name + ":"
		for _, b := range s.Backends {
			line += " " + b.Addr.Addr().String()
			if b.Slots == 0 {
				line += "(-)"
			}
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "; ")
}

func eventually[T comparable](t *testing.T, what string, want T, get func() T) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		got := get()
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s\n got %v\nwant %v", what, got, want)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (w *world) eventually(what, want string) {
	w.Helper()
	eventually(w.T, what, want, w.has)
}

func readyz(a *Agent) (code int, body string) {
	recorder := httptest.NewRecorder()
	a.Handler().ServeHTTP(recorder, httptest.NewRequest("GET", "/readyz?verbose", nil))
	return recorder.Code, recorder.Body.String()
}

func metricsOf(a *Agent) string {
	recorder := httptest.NewRecorder()
	a.Handler().ServeHTTP(recorder, httptest.NewRequest("GET", "/metrics", nil))
	return recorder.Body.String()
}

func TestChangesReachTheKernel(t *testing.T) {
	w := newWorld(t)
	w.add(w.service("userlist", "10.96.0.1"), w.local("userlist", "10.1.0.1"), w.imported("userlist", "10.2.0.1"))
	agent, _ := w.start()
	w.eventually("at first", "userlist: 10.1.0.1 10.2.0.1")
	eventually(t, "readiness", 200, func() int { code, _ := readyz(agent); return code })

	update := w.imported("userlist", "10.2.0.1", "10.2.0.2")
	update.ResourceVersion = "2"
	if err := w.mesh.Tracker().Update(v1alpha1.SchemeGroupVersion.WithResource("importedendpointslices"), update, "song"); err != nil {
		t.Fatal(err)
	}
	w.eventually("a remote endpoint comes", "userlist: 10.1.0.1 10.2.0.1 10.2.0.2")

	slice := w.local("userlist", "10.1.0.9")
	slice.ResourceVersion = "2"
	if _, err := w.kube.DiscoveryV1().EndpointSlices("song").Update(t.Context(), slice, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("a local pod moves", "userlist: 10.1.0.9 10.2.0.1 10.2.0.2")

	spec := &v1alpha1.ServicePolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "userlist", ResourceVersion: "1"},
		Spec:       v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityLocal},
	}
	if err := w.mesh.Tracker().Add(spec); err != nil {
		t.Fatal(err)
	}
	w.eventually("a person prefers the local side", "userlist: 10.1.0.9 10.2.0.1(-) 10.2.0.2(-)")

	if err := w.mesh.MeshV1alpha1().MeshMembers().Delete(t.Context(), "cluster2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("a person deletes the MeshCluster", "userlist: 10.1.0.9")

	if err := w.kube.CoreV1().Services("song").Delete(t.Context(), "userlist", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the Service goes", "")

	text := metricsOf(agent)
	for _, line := range []string{
		`mesh_agent_propagation_seconds_count{cluster="cluster2"} 1`, "mesh_agent_sync_seconds_count", "mesh_agent_services 0",
		`mesh_agent_stale_udp_sockets_total{result="destroyed"} 0`, `mesh_agent_stale_udp_sockets_total{result="failed"} 0`, "mesh_agent_stale_udp_sweeps_total 0", "mesh_agent_stale_udp_sweep_seconds 0",
		`mesh_agent_source_synced{resource="services",source="kube-apiserver"} 1`, "mesh_agent_snapshot_timestamp_seconds",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("metrics lack %q", line)
		}
	}
}

func TestADualStackService(t *testing.T) {
	w := newWorld(t)
	service := w.service("userlist", "10.96.0.1")
	service.Spec.ClusterIPs = append(service.Spec.ClusterIPs, "fd00:96::1")
	local6, imported6 := w.local("userlist", "fd00:1::1"), w.imported("userlist", "fd00:2::1")
	local6.Name, local6.AddressType = "userlist-6", discoveryv1.AddressTypeIPv6
	imported6.Name, imported6.Spec.AddressType = "cluster2.userlist-6", discoveryv1.AddressTypeIPv6
	w.add(service, w.local("userlist", "10.1.0.1"), local6, w.imported("userlist", "10.2.0.1"), imported6)
	agent, stop := w.start()
	const both = "userlist: 10.1.0.1 10.2.0.1; userlist: fd00:1::1 fd00:2::1"
	w.eventually("both families", both)
	if _, body := readyz(agent); !strings.Contains(body, "[+]left-to-kube-proxy ok\n") {
		t.Errorf("something is left: %s", body)
	}

	// From the snapshot and from the kernel's memory, too.
	eventually(t, "snapshot", true, func() bool {
		return strings.Contains(metricsOf(agent), "mesh_agent_snapshot_timestamp_seconds 1")
	})
	stop()
	w.meshDown.Store(true)
	agent, _ = w.start()
	eventually(t, "readiness without the mesh API", 200, func() int { code, _ := readyz(agent); return code })
	w.eventually("after a restart", both)
}

func TestAnAddressMayPassFromOneServiceToAnother(t *testing.T) {
	w := newWorld(t)
	w.add(w.service("old", "10.96.0.1"), w.local("old", "10.1.0.1"), w.local("new", "10.1.0.2"))
	w.start()
	w.eventually("at first", "old: 10.1.0.1")
	for range 20 {
		for _, names := range [][2]string{{"old", "new"}, {"new", "old"}} {
			if err := w.kube.CoreV1().Services("song").Delete(t.Context(), names[0], metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.kube.CoreV1().Services("song").Create(t.Context(), w.service(names[1], "10.96.0.1"), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			want := "old: 10.1.0.1"
			if names[1] == "new" {
				want = "new: 10.1.0.2"
			}
			w.eventually("after the change", want)
		}
	}
}

func TestUntilTheLocalSourceIsInSyncTheTableStays(t *testing.T) {
	w := newWorld(t)
	w.add(w.service("userlist", "10.96.0.1"), w.local("userlist", "10.1.0.1"), w.imported("userlist", "10.2.0.1"))
	_, stop := w.start()
	w.eventually("at first", "userlist: 10.1.0.1 10.2.0.1")
	stop()

	down := errors.New("connection refused")
	w.kubeDown.Store(&down)
	applied, beats := w.kernel.Applied(), w.kernel.Beats()
	agent, stop := w.start()
	eventually(t, "readiness", true, func() bool {
		code, body := readyz(agent)
		return code == 503 && strings.Contains(body, "[-]local-services: not in sync yet") && strings.Contains(body, "[-]table: not applied yet")
	})
	time.Sleep(100 * time.Millisecond)
	if w.kernel.Applied() != applied || w.kernel.Beats() != beats {
		t.Error("it wrote to the kernel")
	}
	if got := w.has(); got != "userlist: 10.1.0.1 10.2.0.1" {
		t.Errorf("the table is %s", got)
	}
	stop()
	if got := w.has(); got != "userlist: 10.1.0.1 10.2.0.1" {
		t.Errorf("once stopped the table is %s", got)
	}
}

func TestLocalChangesCountWhileTheMeshAPIIsDown(t *testing.T) {
	for _, lost := range []string{"the mesh API", "the snapshot too", "a snapshot that is corrupt"} {
		t.Run(lost, func(t *testing.T) {
			w := newWorld(t)
			w.add(w.service("userlist", "10.96.0.1"), w.local("userlist", "10.1.0.1"), w.imported("userlist", "10.2.0.1"))
			_, stop := w.start()
			w.eventually("at first", "userlist: 10.1.0.1 10.2.0.1")
			stop()
			path := filepath.Join(w.folder, snapshot.FileName)
			if _, err := os.Stat(path); err != nil {
				t.Fatal(err)
			}
			var err error
			switch lost {
			case "the snapshot too":
				err = os.Remove(path)
			case "a snapshot that is corrupt":
				err = os.WriteFile(path, []byte("mesh-agent-snapshot v1 what"), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			// While the agent is dead the local pod moves, and the mesh API goes away.
			w.meshDown.Store(true)
			slice := w.local("userlist", "10.1.0.2")
			slice.ResourceVersion = "2"
			if err := w.kube.Tracker().Update(discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), slice, "song"); err != nil {
				t.Fatal(err)
			}
			agent, _ := w.start()
			w.eventually("the next agent", "userlist: 10.1.0.2 10.2.0.1")
			code, body := readyz(agent)
			if lost == "the mesh API" && (code != 200 || !strings.Contains(body, "the snapshot stands in")) {
				t.Errorf("readiness %d:\n%s", code, body)
			}
			if lost != "the mesh API" && (code != 503 || !strings.Contains(body, "[-]mesh-api: not in sync yet, and there is no snapshot")) {
				t.Errorf("readiness %d:\n%s", code, body)
			}
			if lost == "a snapshot that is corrupt" && !strings.Contains(metricsOf(agent), `mesh_agent_snapshot_errors_total{operation="read"} 1`) {
				t.Error("no metric tells of the corrupt snapshot")
			}
			w.meshDown.Store(false)
			eventually(t, "readiness once the mesh API is back", true, func() bool {
				_, body := readyz(agent)
				return strings.Contains(body, "[+]mesh-api ok\n") && strings.Contains(body, "[+]doubt ok\n")
			})
			w.eventually("once the mesh API is back", "userlist: 10.1.0.2 10.2.0.1")
		})
	}
}

func TestLostContactTakesNothingAway(t *testing.T) {
	for name, err := range map[string]error{
		"nobody answers":                 errors.New("connection refused"),
		"an answer takes too long":       apierrors.NewTimeoutError("too long", 1),
		"our token is not accepted":      apierrors.NewUnauthorized("no"),
		"we are refused":                 apierrors.NewForbidden(v1alpha1.Resource("globalservices"), "", errors.New("no")),
		"the API is not there":           apierrors.NewNotFound(v1alpha1.Resource("globalservices"), ""),
		"our resource version is gone":   apierrors.NewResourceExpired("too old"),
		"the store has lost its quorum":  apierrors.NewInternalError(errors.New("etcdserver: no leader")),
		"the server is being overloaded": apierrors.NewTooManyRequests("later", 1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.meshErr = err
			watches := make(chan *watch.RaceFreeFakeWatcher, 100)
			w.mesh.PrependWatchReactor("*", func(clienttesting.Action) (bool, watch.Interface, error) {
				if w.meshDown.Load() {
					return true, nil, err
				}
				watcher := watch.NewRaceFreeFake()
				watches <- watcher
				return true, watcher, nil
			})
			w.add(w.service("userlist", "10.96.0.1"), w.local("userlist", "10.1.0.1"), w.imported("userlist", "10.2.0.1"))
			agent, _ := w.start()
			const all = "userlist: 10.1.0.1 10.2.0.1"
			w.eventually("at first", all)
			eventually(t, "readiness", 200, func() int { code, _ := readyz(agent); return code })
			w.meshDown.Store(true)
			for range 3 {
				(<-watches).Stop()
			}
			eventually(t, "readiness", true, func() bool {
				code, body := readyz(agent)
				return code == 200 && strings.Contains(body, "[+]mesh-api ok: no contact, the last known state stays") && w.has() == all
			})
			slice := w.local("userlist", "10.1.0.2")
			slice.ResourceVersion = "2"
			if err := w.kube.Tracker().Update(discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), slice, "song"); err != nil {
				t.Fatal(err)
			}
			w.eventually("local changes count", "userlist: 10.1.0.2 10.2.0.1")
		})
	}
}

func TestWhatTheKernelDoesNotTakeIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	w.add(w.service("userlist", "10.96.0.1"), w.local("userlist", "10.1.0.1"))
	w.kernel.Fail(errors.New("map is broken"))
	agent, _ := w.start()
	eventually(t, "readiness", true, func() bool {
		code, body := readyz(agent)
		return code == 503 && strings.Contains(body, "[-]table: the kernel did not take the last change: map is broken")
	})
	w.add(w.service("other", "10.96.0.2"), w.local("other", "10.1.0.2"))
	w.kernel.Fail(nil)
	w.eventually("once it takes it", "other: 10.1.0.2; userlist: 10.1.0.1")
	eventually(t, "readiness", 200, func() int { code, _ := readyz(agent); return code })

	// While it takes nothing its table grows old, and nobody says otherwise.
	eventually(t, "heartbeat", true, func() bool { return w.kernel.Beats() > 0 })
	w.kernel.Fail(errors.New("map is broken again"))
	w.add(w.service("third", "10.96.0.3"), w.local("third", "10.1.0.3"))
	eventually(t, "readiness", 503, func() int { code, _ := readyz(agent); return code })
	before := w.kernel.Beats()
	time.Sleep(100 * time.Millisecond) // ten heartbeats
	if got := w.kernel.Beats(); got != before {
		t.Errorf("%d heartbeats while the kernel takes nothing", got-before)
	}
}

func TestAServiceThatDoesNotFitKeepsNobodyOut(t *testing.T) {
	w := newWorld(t)
	w.add(w.service("userlist", "10.96.0.1"), w.local("userlist", "10.1.0.1"), w.service("other", "10.96.0.2"), w.local("other", "10.1.0.2"))
	w.kernel.Refuse(desired.ServicePort{Namespace: "song", Name: "other", Port: "http"}, errors.New("map is full"))
	agent, _ := w.start()
	w.eventually("at first", "userlist: 10.1.0.1")
	eventually(t, "readiness", true, func() bool {
		code, body := readyz(agent)
		return code == 200 && strings.Contains(body, "left-to-kube-proxy ok: song/other:http (map is full)")
	})
	eventually(t, "the status file", "song/other:http: map is full", func() string {
		reports, err := readReports(w.folder)
		if err != nil || len(reports.Left) != 1 {
			return fmt.Sprint(reports, err)
		}
		return reports.Left[0].Service + ": " + reports.Left[0].Reason
	})
	w.kernel.Refuse(desired.ServicePort{Namespace: "song", Name: "other", Port: "http"}, nil)
	w.eventually("once it fits", "other: 10.1.0.2; userlist: 10.1.0.1")
	eventually(t, "readiness", true, func() bool {
		_, body := readyz(agent)
		return strings.Contains(body, "[+]left-to-kube-proxy ok\n")
	})
}

func TestAServiceThatDidNotFitGetsInAsSoonAsOthersMakeRoom(t *testing.T) {
	room := map[string]func(w *world){
		"a service goes": func(w *world) {
			w.Helper()
			if err := w.kube.CoreV1().Services("song").Delete(w.Context(), "userlist", metav1.DeleteOptions{}); err != nil {
				w.Fatal(err)
			}
		},
		"a backend goes": func(w *world) {
			w.Helper()
			fewer := w.local("userlist", "10.1.0.1")
			fewer.ResourceVersion = "2"
			if _, err := w.kube.DiscoveryV1().EndpointSlices("song").Update(w.Context(), fewer, metav1.UpdateOptions{}); err != nil {
				w.Fatal(err)
			}
		},
	}
	for name, makeRoom := range room {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.retry = time.Hour // it is not tried again for no reason
			w.add(w.service("userlist", "10.96.0.1"), w.local("userlist", "10.1.0.1", "10.1.0.9"), w.service("other", "10.96.0.2"), w.local("other", "10.1.0.2"))
			port := desired.ServicePort{Namespace: "song", Name: "other", Port: "http"}
			w.kernel.Refuse(port, errors.New("map is full"))
			agent, _ := w.start()
			eventually(t, "readiness", true, func() bool {
				_, body := readyz(agent)
				return strings.Contains(body, "left-to-kube-proxy ok: song/other:http (map is full)") &&
					strings.Contains(body, "[+]mesh-api ok\n") && strings.Contains(body, "[+]doubt ok\n")
			})
			w.kernel.Refuse(port, nil)
			makeRoom(w)
			eventually(t, "the table", true, func() bool { return strings.Contains(w.has(), "other: 10.1.0.2") })
			eventually(t, "readiness", true, func() bool {
				_, body := readyz(agent)
				return strings.Contains(body, "[+]left-to-kube-proxy ok\n")
			})
		})
	}
}

func TestHeartbeat(t *testing.T) {
	for name, test := range map[string]struct {
		err   error
		beats bool
	}{
		"goes on while kube-apiserver answers nobody": {errors.New("connection refused"), true},
		"stops once kube-apiserver refuses us":        {apierrors.NewForbidden(corev1.Resource("services"), "", errors.New("no")), false},
		"stops once our token is not accepted":        {apierrors.NewUnauthorized("no"), false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.add(w.service("userlist", "10.96.0.1"), w.local("userlist", "10.1.0.1"))
			var watches atomic.Pointer[watch.FakeWatcher]
			w.kube.PrependWatchReactor("services", func(clienttesting.Action) (bool, watch.Interface, error) {
				if err := w.kubeDown.Load(); err != nil {
					return true, nil, *err
				}
				watcher := watch.NewFake()
				watches.Store(watcher)
				return true, watcher, nil
			})
			w.start()
			eventually(t, "the first heartbeat", true, func() bool { return w.kernel.Beats() > 0 && watches.Load() != nil })
			w.kubeDown.Store(&test.err)
			watches.Load().Stop()
			time.Sleep(2 * time.Second) // the watch is opened again after about one
			before := w.kernel.Beats()
			// News from the other clusters is no sign that ours is kept fresh.
			w.add(w.imported("userlist", "10.2.0.1"))
			w.eventually("the news arrive", "userlist: 10.1.0.1 10.2.0.1")
			time.Sleep(200 * time.Millisecond)
			if got := w.kernel.Beats() > before; got != test.beats {
				t.Errorf("heartbeat goes on: %v, want %v", got, test.beats)
			}
		})
	}
}

func TestOptionsNameAllThatIsWrong(t *testing.T) {
	o := NewOptions()
	o.ClusterName, o.Namespace, o.CiliumAnnotations, o.StateDir, o.MeshServer, o.StaleAfter = "default", "", "maybe", "here", "http://x", 0
	err := o.Validate()
	for _, flag := range []string{"--cluster-name", "--namespace", "--cilium-annotations", "--state-dir", "--mesh-server", "--stale-after"} {
		if err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s is not named: %v", flag, err)
		}
	}
	o = NewOptions()
	if err := o.Validate(); err == nil {
		t.Error("no cluster name is accepted")
	}
	o.ClusterName = "cluster1"
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
}

func TestServedCgroups(t *testing.T) {
	root := t.TempDir()
	if got, err := servedCgroups(root); err != nil || !slices.Equal(got, []string{root}) {
		t.Errorf("a root without children: %v, %v", got, err)
	}
	for _, name := range []string{"kubepods.slice", "system.slice"} {
		if err := os.Mkdir(filepath.Join(root, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "cgroup.procs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kernel := NewFakeKernel()
	a := attachment{root: root, kernel: kernel}
	if _, looked, err := a.keep(false); err != nil || !looked {
		t.Fatal(looked, err)
	}
	if _, looked, err := a.keep(false); err != nil || looked {
		t.Errorf("the kernel is looked at again though nothing has changed: %v", err)
	}
	want := []string{filepath.Join(root, "kubepods.slice"), filepath.Join(root, "system.slice")}
	if !slices.Equal(kernel.cgroups, want) {
		t.Errorf("served: %v, want %v", kernel.cgroups, want)
	}
	if _, err := findCgroupRoot([]string{root}); err == nil {
		t.Error("a folder that is no cgroup is taken for one")
	}
}

func TestServesProcess(t *testing.T) {
	const (
		root    = "/sys/fs/cgroup"
		plain   = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
		nested  = "30 23 0:26 /../../.. /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"
		covered = "30 29 0:26 /../../.. /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n29 28 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"
		hybrid  = "29 23 0:25 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n30 29 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
		subtree = "30 23 0:26 /lab/node1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	)
	served := func(root string) []string { return []string{root + "/kubepods.slice", root + "/system.slice"} }
	tests := map[string]struct {
		mounts, own, root string
		served            []string
		want              bool
		why               string
	}{
		"a pod in the host's namespace":                              {plain, "0::/kubepods.slice/pod1/c1\n", root, served(root), true, ""},
		"a pod in its own namespace":                                 {nested, "0::/\n", root, served(root), true, ""},
		"a pod over whose own part of the tree the whole is mounted": {covered, "0::/\n", root, served(root), true, ""},
		"a service of the host":                                      {plain, "0::/system.slice/mesh-agent.service\n", root, served(root), true, ""},
		"a slice of a longer name":                                   {plain, "0::/system.slice-2\n", root, served(root), false, "not served"},
		"the root":                                                   {plain, "0::/\n", root, served(root), false, "not served"},
		"the root, served itself":                                    {plain, "0::/init\n", root, []string{root}, true, ""},
		"beside version 1": {
			hybrid, "12:memory:/system.slice\n0::/system.slice/x\n", root + "/unified", served(root + "/unified"), true, "",
		},
		"a part of the tree":             {subtree, "0::/lab/node1/kubepods.slice/pod1\n", root, served(root), true, ""},
		"outside of the part":            {subtree, "0::/lab/node2/kubepods.slice/pod1\n", root, served(root), false, "outside"},
		"in its own namespace, a part":   {nested, "0::/\n", root + "/lab", served(root + "/lab"), false, "hides"},
		"a tree that is mounted nowhere": {"", "0::/\n", root, served(root), false, "not known"},
	}
	for name, test := range tests {
		got, why := servesProcess(test.mounts, 30, test.own, test.root, test.served)
		if got != test.want || !strings.Contains(why, test.why) {
			t.Errorf("%s: %t because %q", name, got, why)
		}
	}
}

func TestWatchFolder(t *testing.T) {
	folder := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	changed, done := make(chan struct{}, 100), make(chan error, 1)
	go func() { done <- watchFolder(ctx, folder, func() { changed <- struct{}{} }) }()
	told := func(what string, change func(path string) error) {
		t.Helper()
		// The watch begins some time after the call.
		for deadline := time.Now().Add(10 * time.Second); ; {
			if err := change(filepath.Join(folder, "kubepods")); err != nil && !errors.Is(err, os.ErrExist) {
				t.Fatal(err)
			}
			select {
			case <-changed:
				return
			case <-time.After(10 * time.Millisecond):
			}
			if time.Now().After(deadline) {
				t.Fatalf("not told of %s", what)
			}
			_ = os.Remove(filepath.Join(folder, "kubepods"))
		}
	}
	told("a new folder", func(path string) error { return os.Mkdir(path, 0o700) })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("it ends with %v", err)
	}
	if err := watchFolder(t.Context(), filepath.Join(folder, "absent"), func() {}); err == nil {
		t.Error("a folder that is not there can be watched")
	}
}

// TestManyServices measures, and proves that one change costs one service.
func TestManyServices(t *testing.T) {
	w := newWorld(t)
	const n = 2000
	for i := range n {
		name := fmt.Sprintf("s%d", i)
		ip := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()
		w.add(w.service(name, ip), w.local(name, "10.1.0.1"), w.imported(name, "10.2.0.1"))
	}
	agent, _ := w.start()
	eventually(t, "all of them", n, func() int { table, _ := w.kernel.Held(); return len(table.Services) })
	eventually(t, "readiness", 200, func() int { code, _ := readyz(agent); return code })
	last := desired.Frontend{Addr: netip.AddrFrom4([4]byte{10, 96, (n - 1) >> 8, (n - 1) & 0xff}), Port: 80, Protocol: desired.TCP}
	eventually(t, "what the mesh API has of them", 2, func() int { table, _ := w.kernel.Held(); return len(table.Services[last].Backends) })
	agent.mu.Lock()
	before := agent.table.Services[desired.Frontend{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Protocol: desired.TCP}].Backends
	agent.mu.Unlock()
	update := w.imported("s7", "10.2.0.1", "10.2.0.2")
	update.ResourceVersion = "2"
	if err := w.mesh.Tracker().Update(v1alpha1.SchemeGroupVersion.WithResource("importedendpointslices"), update, "song"); err != nil {
		t.Fatal(err)
	}
	frontend := desired.Frontend{Addr: netip.MustParseAddr("10.96.0.7"), Port: 80, Protocol: desired.TCP}
	eventually(t, "the change", 3, func() int { table, _ := w.kernel.Held(); return len(table.Services[frontend].Backends) })
	agent.mu.Lock()
	defer agent.mu.Unlock()
	after := agent.table.Services[desired.Frontend{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Protocol: desired.TCP}].Backends
	if &before[0] != &after[0] {
		t.Error("another service was built again")
	}
}
