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
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	kubefake "k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/apply"
	"mesh.io/clustermesh/pkg/controller/view"
	"mesh.io/clustermesh/pkg/generated/clientset/versioned/fake"
	meshinformers "mesh.io/clustermesh/pkg/generated/informers/externalversions"
	"mesh.io/clustermesh/pkg/peer"
	"mesh.io/clustermesh/pkg/policy"
)

// bench is a session of peer cluster2 whose parts a test calls one by one: nothing
// runs by itself, and the caches hold what the test puts there.
type bench struct {
	*session
	t      *testing.T
	client *fake.Clientset
	events *record.FakeRecorder
}

func newBench(t *testing.T, objects ...runtime.Object) *bench {
	t.Helper()
	kube, client := kubefake.NewClientset(), fake.NewClientset(objects...)
	factory := informers.NewSharedInformerFactory(kube, 0)
	v, err := view.New(view.Config{
		Kube: factory, Mesh: meshinformers.NewSharedInformerFactory(client, 0),
		MeshNamespace: "mesh-system", ClusterName: "cluster1", Reader: policy.Reader{},
	})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, client: client, events: record.NewFakeRecorder(100)}
	l := New(Config{View: v, Client: client, Kube: kube, Secrets: factory.Core().V1().Secrets().Informer(), Events: b.events, UID: "own", Workers: 1})
	b.cache(v.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "song"}})
	b.cache(v.Services, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "web", Annotations: map[string]string{policy.AnnotationGlobal: "true"}},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP},
	})
	b.cache(v.Clusters, &v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: "cluster1"}, Spec: v1alpha1.MeshClusterSpec{ID: 1}})
	b.cache(v.Clusters, &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: "cluster2", UID: "m2"},
		Spec:       v1alpha1.MeshClusterSpec{ID: 2, KubeconfigSecretRef: &v1alpha1.SecretReference{Name: "cluster2"}},
	})
	b.session = newSession(l, "cluster2")
	l.setRules(b.session)
	b.store.setLimits(wide)
	l.sessions["cluster2"] = b.session
	return b
}

func (b *bench) cache(informer cache.SharedIndexInformer, obj any) {
	b.t.Helper()
	if err := informer.GetStore().Add(obj); err != nil {
		b.t.Fatal(err)
	}
}

// work writes everything that is in the queue.
func (b *bench) work() {
	b.t.Helper()
	for b.queue.Len() > 0 {
		b.next(b.t.Context())
	}
}

// wrote counts the writes of a kind so far.
func (b *bench) wrote(verb, resource string) (n int) {
	for _, action := range b.client.Actions() {
		if action.Matches(verb, resource) {
			n++
		}
	}
	return n
}

// imported is a slice of Service web as it is imported, under its name at the peer.
func imported(name string) *v1alpha1.ImportedEndpointSlice {
	from := exportedSlice("10.2.0.1")
	from.Name = name
	slice, _ := rules().Slice(from)
	return slice
}

func exportedService() *v1alpha1.ExportedService {
	return &v1alpha1.ExportedService{
		ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "web"},
		Spec: v1alpha1.ServiceRecord{
			Cluster: "cluster2", ClusterID: 2, Type: v1alpha1.ServiceTypeClusterIP, SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []v1alpha1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

func TestLateCacheRemovesNothing(t *testing.T) {
	late := imported("late")
	for _, listed := range []bool{false, true} {
		b := newBench(t, late.DeepCopy())
		if listed { // by a peer that has just lost its store
			(&sliceSink{b.session}).Begin()
			(&sliceSink{b.session}).End()
		}
		b.cache(b.loop.View.ImportedSlices, late)
		i := item{sliceKind, apply.Key{Namespace: late.Namespace, Name: late.Name}}
		b.queue.Add(i)
		b.work()
		if n := b.wrote("delete", "importedendpointslices"); n > 0 {
			t.Fatalf("listed %v: an import is removed because the cache showed it late", listed)
		}
		if _, held := b.store.get(i); !held {
			t.Errorf("listed %v: it is not held", listed)
		}
		if doubt := len(b.prove) > 0; doubt != listed {
			t.Errorf("listed %v: the peer is asked: %v", listed, doubt)
		}
		// Proof removes it, and so does the peer's word.
		if listed {
			b.store.sweep(sliceKind, b.store.doubtful(sliceKind))
		} else {
			from := exportedSlice()
			from.Name = "late"
			(&sliceSink{b.session}).Delete(from)
		}
		b.work()
		if n := b.wrote("delete", "importedendpointslices"); n != 1 {
			t.Errorf("listed %v: it is removed %d times", listed, n)
		}
		// Until the cache shows that it is gone, its update is no news.
		b.queue.Add(i)
		b.work()
		if _, held := b.store.get(i); held {
			t.Errorf("listed %v: what was removed has come back", listed)
		}
		_ = b.loop.View.ImportedSlices.GetStore().Delete(late)
		b.queue.Add(i)
		if b.work(); len(b.store.gone) != 0 {
			t.Errorf("listed %v: %v are remembered for ever", listed, b.store.gone)
		}
	}
}

func TestHeldIsBare(t *testing.T) {
	b := newBench(t)
	from, service := exportedSlice("10.2.0.1"), exportedService()
	from.Annotations = map[string]string{"x": strings.Repeat("x", 1<<20)}
	from.Finalizers, service.Annotations = []string{"x"}, from.Annotations
	(&sliceSink{b.session}).Put(from, true)
	(&serviceSink{b.session}).Put(service, true)
	for _, i := range b.store.items("") {
		obj, _ := b.store.get(i)
		if size := obj.(interface{ Size() int }).Size(); size > 1024 {
			t.Errorf("%s is held with %d bytes", i, size)
		}
	}
	// What is too large, or nothing at all, is not held.
	from = exportedSlice("10.2.0.1")
	from.Name, from.Spec.Zones = "large", []string{strings.Repeat("z", 100_000)}
	(&sliceSink{b.session}).Put(from, true)
	from = exportedSlice("10.2.0.1")
	from.Name, from.Namespace = strings.Repeat("n", 100_000), strings.Repeat("\x00", 100_000)
	(&sliceSink{b.session}).Put(from, true)
	if held := len(b.store.items("")); held != 2 {
		t.Errorf("%d objects are held", held)
	}
	for i, refusal := range b.store.atArrival {
		if len(i.Namespace)+len(i.Name)+len(refusal.Message) > 1024 {
			t.Errorf("%d bytes are kept of what is refused", len(i.Namespace)+len(i.Name)+len(refusal.Message))
		}
	}
	if got := b.store.summary(); got.refused != 2 || !strings.Contains(strings.Join(got.refusals, " "), "limit of 65536") {
		t.Errorf("refused are %q", got.refusals)
	}
	(&sliceSink{b.session}).Delete(from)
	if got := b.store.summary(); got.refused != 1 {
		t.Errorf("refused are %q", got.refusals)
	}
}

func TestRejectedByAPI(t *testing.T) {
	old := imported("web-x")
	b := newBench(t, old.DeepCopy())
	b.cache(b.loop.View.ImportedSlices, old)
	b.client.PrependReactor("update", "importedendpointslices", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewInvalid(v1alpha1.SchemeGroupVersion.WithKind("ImportedEndpointSlice").GroupKind(), "x", nil)
	})
	(&serviceSink{b.session}).Put(exportedService(), true)
	(&sliceSink{b.session}).Put(exportedSlice("10.2.0.9"), true)
	b.work()
	// As where our own rules refuse it, no stale one stays.
	if got := b.store.summary(); got.byReason[RefusedByAPI] != 1 || b.wrote("delete", "importedendpointslices") != 1 {
		t.Errorf("the refusals are %q, %d are removed", got.refusals, b.wrote("delete", "importedendpointslices"))
	}
}

func TestSameStore(t *testing.T) {
	b := newBench(t)
	at := Identity{Name: "cluster2", ID: 2, UID: "u2", StoreEpoch: "e", ControllerRun: "r", ResourceVersion: 10}
	b.state.identity = at
	b.history.restart(at)
	at.ResourceVersion = 12
	if err := b.same(at); err != nil {
		t.Fatal(err)
	}
	at.ResourceVersion = 11
	if err := b.same(at); !errors.Is(err, errAnew) {
		t.Errorf("a store that is back at an earlier version: %v", err)
	}
}

func TestConsumersWiden(t *testing.T) {
	b := newBench(t)
	services, slices := &serviceSink{b.session}, &sliceSink{b.session}
	slices.Put(exportedSlice("10.2.0.1"), true)
	b.work()
	if n := b.wrote("create", "importedendpointslices"); n != 0 {
		t.Fatal("a slice is imported before it is known to whom its Service is offered")
	}
	elsewhere := exportedService()
	elsewhere.Spec.Consumers = []string{"cluster9"}
	services.Put(elsewhere, true)
	b.work()
	if n := b.wrote("create", "importedendpointslices"); n != 0 {
		t.Fatal("a slice is imported of a Service that is offered to another cluster")
	}
	services.Put(exportedService(), false) // to all
	b.work()
	if n := b.wrote("create", "importedendpointslices"); n != 1 {
		t.Errorf("%d slices are imported of a Service that is offered to all by now", n)
	}
	services.Put(exportedService(), false)
	if b.queue.Len() != 1 {
		t.Errorf("%d objects are looked at for a Service with the same consumers", b.queue.Len())
	}
}

func TestSliceWaitsForServices(t *testing.T) {
	old := imported("web-x")
	old.Spec.Endpoints[0].Ready = false
	b := newBench(t, old.DeepCopy())
	b.cache(b.loop.View.ImportedSlices, old)
	(&serviceSink{b.session}).Begin()
	(&sliceSink{b.session}).Put(exportedSlice("10.2.0.1"), true)
	b.work()
	if n := b.wrote("delete", "importedendpointslices") + b.wrote("update", "importedendpointslices"); n != 0 {
		t.Fatalf("%d writes before the Services are listed", n)
	}
	(&serviceSink{b.session}).End()
	b.work()
	if n := b.wrote("update", "importedendpointslices"); n != 1 {
		t.Errorf("%d writes after the Services are listed", n)
	}
	// One that goes while it waits is not remembered.
	(&serviceSink{b.session}).Begin()
	for _, change := range []func(*v1alpha1.ExportedEndpointSlice){
		func(from *v1alpha1.ExportedEndpointSlice) { (&sliceSink{b.session}).Put(from, false) }, (&sliceSink{b.session}).Delete,
	} {
		change(exportedSlice("10.2.0.1"))
		b.work()
	}
	if len(b.parked) > 0 {
		t.Errorf("%v wait for ever", b.parked)
	}
}

func TestRoomIsPaced(t *testing.T) {
	var p pace
	now := time.Now()
	if got := p.wait(now); got != roomFirst {
		t.Errorf("the first listing waits %v", got)
	}
	for _, want := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 10 * time.Minute, 10 * time.Minute} {
		p.done(now)
		if got := p.wait(now); got != want {
			t.Errorf("the next listing waits %v, want %v", got, want)
		}
		now = now.Add(p.wait(now))
	}
	now = now.Add(time.Hour)
	if got := p.wait(now); got != roomFirst {
		t.Errorf("after an hour it waits %v", got)
	}
	if p.done(now); p.wait(now) != roomEvery {
		t.Errorf("after that it waits %v", p.wait(now))
	}

	b := newBench(t)
	b.room.done(time.Now())
	notify(b.relist)
	done := make(chan error, 1)
	go func() { done <- b.heed(t.Context()) }()
	time.Sleep(20 * time.Millisecond)
	b.poke(true, false) // is not kept waiting
	select {
	case err := <-done:
		if !errors.Is(err, errAnew) || b.anew.Load() || len(b.relist) != 1 {
			t.Errorf("heed() = %v, anew %v, %d wishes kept", err, b.anew.Load(), len(b.relist))
		}
	case <-time.After(5 * time.Second):
		t.Fatal("nothing is heeded while a listing waits")
	}
}

func TestWhatListsAnew(t *testing.T) {
	tests := map[string]struct {
		change        func(*v1alpha1.MeshCluster)
		connect, list bool
	}{
		"weight":     {func(m *v1alpha1.MeshCluster) { m.Spec.Weight = ptr.To[int32](7) }, false, false},
		"pod CIDRs":  {func(m *v1alpha1.MeshCluster) { m.Spec.PodCIDRs = []string{"10.2.0.0/16"} }, false, false},
		"Secret":     {func(m *v1alpha1.MeshCluster) { m.Spec.KubeconfigSecretRef = &v1alpha1.SecretReference{Name: "x"} }, true, false},
		"limits":     {func(m *v1alpha1.MeshCluster) { m.Spec.Import.Limits.Slices = ptr.To[int32](7) }, false, true},
		"namespaces": {func(m *v1alpha1.MeshCluster) { m.Spec.Import.Namespaces = []string{"song"} }, false, true},
		"made anew":  {func(m *v1alpha1.MeshCluster) { m.UID, m.Generation = "another", 1 }, false, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			cached, _ := view.Get[*v1alpha1.MeshCluster](b.loop.View.Clusters, "", "cluster2")
			before := cached.DeepCopy()
			before.Generation = 1
			now := before.DeepCopy()
			now.Generation = 2
			test.change(now)
			b.loop.clusterChanged(before, now)
			if b.reconnect.Load() != test.connect || b.anew.Load() != test.list {
				t.Errorf("reconnect %v, anew %v", b.reconnect.Load(), b.anew.Load())
			}
			if len(b.wake) != 1 {
				t.Error("the session is not woken")
			}
		})
	}
}

func TestNodesAreGathered(t *testing.T) {
	b := newBench(t)
	(&sliceSink{b.session}).Put(exportedSlice("10.2.0.1"), true)
	b.work()
	before := b.rules.Load()
	go b.loop.followNodes(t.Context())
	for range 100 {
		notify(b.loop.nodes)
		time.Sleep(time.Millisecond)
	}
	if b.rules.Load() != before {
		t.Error("each change of a Node is looked at alone")
	}
	deadline := time.Now().Add(5 * time.Second)
	for b.rules.Load() == before || b.queue.Len() == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the changes of Nodes are not looked at")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestIdentifyAsksTheStore(t *testing.T) {
	b := newBench(t)
	b.history.restart(Identity{StoreEpoch: "e", ResourceVersion: 10})
	cached, stored := "10", ""
	b.client.PrependWatchReactor("meshclusters", func(action clienttesting.Action) (bool, watch.Interface, error) {
		version := cached
		if action.(clienttesting.WatchActionImpl).ListOptions.ResourceVersion == "" {
			version = stored
		}
		if version == "" {
			return true, nil, errors.New("there is no quorum")
		}
		w := watch.NewFakeWithChanSize(1, false)
		w.Add(&v1alpha1.MeshCluster{
			ObjectMeta: metav1.ObjectMeta{Name: "cluster2", ResourceVersion: version},
			Status:     v1alpha1.MeshClusterStatus{StoreEpoch: "e"},
		})
		return true, w, nil
	})
	for _, test := range []struct {
		cached, stored string
		want           uint64
	}{
		{"10", "", 10},  // all is well: the store is not asked
		{"9", "11", 11}, // one server lags
		{"9", "9", 9},   // the store was restored
		{"9", "", 9},    // nobody knows
	} {
		cached, stored = test.cached, test.stored
		identity, err := b.identify(t.Context(), b.client, false)
		if err != nil || identity.ResourceVersion != test.want {
			t.Errorf("cached %q, stored %q: version %d, %v", cached, stored, identity.ResourceVersion, err)
		}
	}
}

// TestCredentialsInDoubtAreRead has the cache show a Secret that was replaced long ago.
func TestCredentialsInDoubtAreRead(t *testing.T) {
	b := newBench(t)
	secret := func(content string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "mesh-system", Name: "cluster2"}, Data: map[string][]byte{"kubeconfig": []byte(content)}}
	}
	got := func() string {
		found, ok := b.secret(t.Context(), "cluster2")
		if !ok {
			return "none"
		}
		return string(found.Data["kubeconfig"])
	}
	for _, test := range []struct {
		failure error
		want    string
	}{
		{nil, "old"},
		{&reasonError{reason: "IdentityConflict"}, "old"},
		{context.DeadlineExceeded, "old"},
		{apierrors.NewUnauthorized("who?"), "none"},
		{&reasonError{reason: peer.ReasonKubeconfigInvalid}, "none"},
	} {
		b.cache(b.loop.Secrets, secret("old"))
		if b.doubted = doubtful(test.failure); got() != test.want {
			t.Errorf("after %v it is %s", test.failure, got())
		}
	}
	if _, err := b.loop.Kube.CoreV1().Secrets("mesh-system").Create(t.Context(), secret("new"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got() != "new" {
		t.Errorf("it is %s", got())
	}
	// An API server that does not answer is no reason to forget what is known.
	b.loop.Kube.(*kubefake.Clientset).PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewServiceUnavailable("not now")
	})
	if got() != "old" {
		t.Errorf("it is %s", got())
	}
}

// TestSilence cuts a peer off: within ten seconds it is known to be silent, and after
// a second question the connection ends.
func TestSilence(t *testing.T) {
	b := newBench(t)
	synctest.Test(t, func(t *testing.T) {
		answers := true
		b.client.PrependWatchReactor("meshclusters", func(clienttesting.Action) (bool, watch.Interface, error) {
			w := watch.NewFakeWithChanSize(1, false)
			if answers {
				w.Add(&v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: "cluster2", ResourceVersion: "1"}})
			}
			return true, w, nil
		})
		silent := func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.state.silent
		}
		b.state.connected, b.state.identity = true, Identity{Name: "cluster2", ResourceVersion: 1}
		b.alive()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- b.keepAsking(ctx, b.client) }()

		time.Sleep(time.Minute)
		synctest.Wait()
		if heard := time.Since(time.Unix(0, b.contact.Load())); heard > silence+2*lookEvery || silent() {
			t.Errorf("a peer that answers was last heard of %v ago, silent %t", heard, silent())
		}
		answers = false
		time.Sleep(10*time.Second + lookEvery)
		synctest.Wait()
		if !silent() {
			t.Error("it is not noticed that the peer is silent")
		}
		// While it sends anything it is there, whatever becomes of the questions.
		for range 30 {
			b.alive()
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if silent() || len(ended) > 0 {
			t.Errorf("a peer that sends something counts as silent: %t, and the connection ended: %d", silent(), len(ended))
		}
		time.Sleep(silence + 2*identifyTimeout + 2*lookEvery)
		synctest.Wait()
		select {
		case err := <-ended:
			if reason, _ := peer.Reason(err); reason != peer.ReasonUnreachable {
				t.Errorf("it ends with %v", err)
			}
		default:
			t.Error("the connection does not end")
		}
	})
}
