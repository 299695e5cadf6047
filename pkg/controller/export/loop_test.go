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
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	kubefake "k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/apply"
	"mesh.io/clustermesh/pkg/controller/view"
	meshfake "mesh.io/clustermesh/pkg/generated/clientset/versioned/fake"
	meshinformers "mesh.io/clustermesh/pkg/generated/informers/externalversions"
)

// fixture is a cluster with the global Service song/web, whose slice is web-x.
type fixture struct {
	*Loop
	kube   *kubefake.Clientset
	mesh   *meshfake.Clientset
	events *record.FakeRecorder
	// refuse says which ExportedEndpointSlices the mesh API does not take.
	refuse func(*v1alpha1.ExportedEndpointSlice) bool
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	own := slice("10.0.0.1", "10.0.0.2")
	own.Labels[discoveryv1.LabelManagedBy] = ownSlices
	own.Ports = []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080)}}
	f := &fixture{
		kube: kubefake.NewClientset(
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "song"}},
			&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "web", Annotations: map[string]string{"mesh.io/global": "true"}}},
			own),
		mesh: meshfake.NewClientset(&v1alpha1.MeshCluster{
			ObjectMeta: metav1.ObjectMeta{Name: self.Name}, Spec: v1alpha1.MeshClusterSpec{ID: self.ID},
		}),
		events: record.NewFakeRecorder(100),
		refuse: func(*v1alpha1.ExportedEndpointSlice) bool { return false },
	}
	f.mesh.PrependReactor("*", "exportedendpointslices", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if write, ok := action.(clienttesting.CreateAction); ok {
			if exported := write.GetObject().(*v1alpha1.ExportedEndpointSlice); f.refuse(exported) {
				return true, nil, apierrors.NewInvalid(v1alpha1.SchemeGroupVersion.WithKind("ExportedEndpointSlice").GroupKind(), exported.Name, nil)
			}
		}
		return false, nil, nil
	})
	kubeFactory := informers.NewSharedInformerFactory(f.kube, 0)
	meshFactory := meshinformers.NewSharedInformerFactory(f.mesh, 0)
	v, err := view.New(view.Config{Kube: kubeFactory, Mesh: meshFactory, MeshNamespace: "mesh-system", ClusterName: self.Name})
	if err != nil {
		t.Fatal(err)
	}
	kubeFactory.Start(t.Context().Done())
	meshFactory.Start(t.Context().Done())
	eventually(t, "the caches to be filled", v.Synced)
	f.Loop = New(Config{View: v, Client: f.mesh, Events: f.events, Self: self}, func() {})
	f.started = true
	return f
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

// sync exports song/web-x once.
func (f *fixture) sync(t *testing.T) {
	t.Helper()
	key := item{true, apply.Key{Namespace: "song", Name: "web-x"}}
	f.queue.Add(key)
	f.next(t.Context())
}

// exported lists the addresses in the store and waits until the cache shows them.
func (f *fixture) exported(t *testing.T) string {
	t.Helper()
	list, err := f.mesh.MeshV1alpha1().ExportedEndpointSlices("song").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for _, exported := range list.Items {
		for _, endpoint := range exported.Spec.Endpoints {
			addresses = append(addresses, endpoint.Address)
		}
	}
	eventually(t, "the cache to show the exports", func() bool {
		cached := view.List[*v1alpha1.ExportedEndpointSlice](f.View.ExportedSlices)
		for i := range list.Items {
			found, ok := view.Get[*v1alpha1.ExportedEndpointSlice](f.View.ExportedSlices, "song", list.Items[i].Name)
			if !ok || !equal(found.Spec, list.Items[i].Spec) {
				return false
			}
		}
		return len(cached) == len(list.Items)
	})
	return strings.Join(addresses, " ")
}

// change writes the slice anew and waits until the cache shows it.
func (f *fixture) change(t *testing.T, change func(*discoveryv1.EndpointSlice)) {
	t.Helper()
	own, err := f.kube.DiscoveryV1().EndpointSlices("song").Get(t.Context(), "web-x", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	change(own)
	if _, err := f.kube.DiscoveryV1().EndpointSlices("song").Update(t.Context(), own, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cache to show the slice", func() bool {
		cached, ok := view.Get[*discoveryv1.EndpointSlice](f.View.EndpointSlices, "song", "web-x")
		return ok && equal(cached.Endpoints, own.Endpoints) && equal(cached.Ports, own.Ports)
	})
}

func TestRefusedExport(t *testing.T) {
	f := newFixture(t)
	f.sync(t)
	if got := f.exported(t); got != "10.0.0.1 10.0.0.2" {
		t.Fatalf("exported are %s", got)
	}
	if synced, reason, _ := f.Synced(); !synced || reason != "Synced" {
		t.Errorf("synced: %v, %s", synced, reason)
	}

	// A slice with 10.0.0.3 is refused: what it says of the others holds all the same.
	f.refuse = func(exported *v1alpha1.ExportedEndpointSlice) bool {
		for _, endpoint := range exported.Spec.Endpoints {
			if endpoint.Address == "10.0.0.3" {
				return true
			}
		}
		return false
	}
	f.change(t, func(own *discoveryv1.EndpointSlice) {
		own.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.2"}}, {Addresses: []string{"10.0.0.3"}}}
	})
	f.sync(t)
	if got := f.exported(t); got != "10.0.0.2" {
		t.Errorf("after a refusal, exported are %q", got)
	}
	synced, reason, message := f.Synced()
	if !synced || reason != "SyncedWithRefusals" || !strings.Contains(message, "song/web-x") {
		t.Errorf("after a refusal: %v, %s, %s", synced, reason, message)
	}
	f.sync(t)
	if n := len(f.events.Events); n != 1 {
		t.Errorf("%d Events of one refusal", n)
	}

	// Where the ports have changed, too, nothing of the old export is right.
	f.change(t, func(own *discoveryv1.EndpointSlice) { own.Ports[0].Port = ptr.To[int32](9090) })
	f.sync(t)
	if got := f.exported(t); got != "" {
		t.Errorf("with other ports, exported are %q", got)
	}

	f.change(t, func(own *discoveryv1.EndpointSlice) { own.Endpoints = own.Endpoints[:1] })
	f.sync(t)
	if got := f.exported(t); got != "10.0.0.2" {
		t.Errorf("after the correction, exported are %q", got)
	}
	if synced, reason, _ := f.Synced(); !synced || reason != "Synced" {
		t.Errorf("after the correction: %v, %s", synced, reason)
	}
}

func TestSyncedSaysTheSameTwice(t *testing.T) {
	l := &Loop{started: true, failing: map[item]error{}, rejected: map[item]string{}}
	for _, name := range []string{"c", "a", "b"} {
		l.rejected[item{true, apply.Key{Namespace: "song", Name: name}}] = strings.Repeat("x", 5000)
		l.failing[item{false, apply.Key{Namespace: "song", Name: name}}] = errors.New(strings.Repeat("ü", 5000))
	}
	for range 20 {
		if synced, _, message := l.Synced(); synced || !strings.Contains(message, "song/a") || len(message) > 1024 {
			t.Fatalf("failing: %v, %d bytes: %s", synced, len(message), message)
		}
	}
	clear(l.failing)
	if synced, _, message := l.Synced(); !synced || !strings.Contains(message, "song/a") || len(message) > 1024 {
		t.Errorf("refused: %v, %d bytes: %s", synced, len(message), message)
	}
}

func TestPartsAfterAGapGo(t *testing.T) {
	f := newFixture(t)
	f.change(t, func(own *discoveryv1.EndpointSlice) {
		own.Endpoints = nil
		for i := range 250 {
			own.Endpoints = append(own.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.0.%d.%d", i/100, i%100+1)}})
		}
	})
	f.sync(t)
	if n := len(strings.Fields(f.exported(t))); n != 250 {
		t.Fatalf("%d endpoints are exported, want 250", n)
	}
	// Somebody deletes the second of three parts, and then the slice goes.
	if err := f.mesh.MeshV1alpha1().ExportedEndpointSlices("song").Delete(t.Context(), PartName("web-x", 1), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.exported(t)
	f.slices.Forget(apply.Key{Namespace: "song", Name: PartName("web-x", 1)}, "")
	if err := f.kube.DiscoveryV1().EndpointSlices("song").Delete(t.Context(), "web-x", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the slice to go", func() bool {
		_, there := view.Get[*discoveryv1.EndpointSlice](f.View.EndpointSlices, "song", "web-x")
		return !there
	})
	f.sync(t)
	if got := f.exported(t); got != "" {
		t.Errorf("what is left of a slice that is gone: %s", got)
	}
}
