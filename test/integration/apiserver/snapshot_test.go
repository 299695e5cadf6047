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

package apiserver

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	meshclient "mesh.io/clustermesh/pkg/generated/clientset/versioned"
	"mesh.io/clustermesh/test/integration/controlplane"
)

func startSnapshot(t *testing.T, options controlplane.Options) *fixture {
	t.Helper()
	plane := controlplane.Start(t, options)
	f := &fixture{
		ControlPlane: plane,
		core:         kubernetes.NewForConfigOrDie(plane.Kube),
		direct:       meshclient.NewForConfigOrDie(plane.Mesh).MeshV1alpha1(),
	}
	_, err := f.direct.MeshClusters().Create(t.Context(), &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: "cluster1"}, Spec: v1alpha1.MeshClusterSpec{ID: 1},
	}, metav1.CreateOptions{})
	must(t, err)
	return f
}

// vouch says in the local cluster what its controller says once all exports are in
// the store.
func (f *fixture) vouch(t *testing.T) *v1alpha1.MeshCluster {
	t.Helper()
	local, err := f.direct.MeshClusters().Get(t.Context(), "cluster1", metav1.GetOptions{})
	must(t, err)
	local.Status.ControllerRun = "run-1"
	meta.SetStatusCondition(&local.Status.Conditions, metav1.Condition{Type: v1alpha1.MeshClusterExportsSynced, Status: metav1.ConditionTrue, Reason: "Synced"})
	local, err = f.direct.MeshClusters().UpdateStatus(t.Context(), local, metav1.UpdateOptions{})
	must(t, err)
	return local
}

// restart stops the server, lets happen what is to happen then, and starts it.
func (f *fixture) restart(t *testing.T, meanwhile func()) {
	t.Helper()
	must(t, f.MeshAPIServer.Stop())
	meanwhile()
	f.StartMesh(t)
	f.refreshClients(t)
}

func synced(cluster *v1alpha1.MeshCluster) bool {
	return meta.IsStatusConditionTrue(cluster.Status.Conditions, v1alpha1.MeshClusterExportsSynced)
}

func revision(t *testing.T, object metav1.Object) uint64 {
	t.Helper()
	version, err := strconv.ParseUint(object.GetResourceVersion(), 10, 64)
	must(t, err)
	return version
}

// TestSnapshot saves and restores an embedded store.
func TestSnapshot(t *testing.T) {
	f := startSnapshot(t, controlplane.Options{})
	dataDir := "--data-dir=" + f.MeshDataDir
	namespace := f.namespace(t, "snapshot")
	services := func() []string {
		t.Helper()
		list, err := f.direct.GlobalServices(namespace).List(t.Context(), metav1.ListOptions{})
		must(t, err)
		var found []string
		for _, service := range list.Items {
			found = append(found, service.Name+" "+string(service.Spec.Affinity))
		}
		return found
	}
	create := func(name string) *v1alpha1.GlobalService {
		t.Helper()
		made, err := f.direct.GlobalServices(namespace).Create(t.Context(), globalService(name), metav1.CreateOptions{})
		must(t, err)
		return made
	}
	kept := create("kept")
	create("deleted")
	before := f.vouch(t)
	saved, messages, err := f.MeshCommand(t, nil, "snapshot", "save", "-", dataDir)
	if err != nil || !strings.Contains(messages, fmt.Sprintf("Saved a snapshot of %d bytes", len(saved))) {
		t.Fatalf("saving: %v: %s", err, messages)
	}
	want := services()

	must(t, f.direct.GlobalServices(namespace).Delete(t.Context(), "deleted", metav1.DeleteOptions{}))
	kept.Spec.Affinity = v1alpha1.AffinityLocal
	_, err = f.direct.GlobalServices(namespace).Update(t.Context(), kept, metav1.UpdateOptions{})
	must(t, err)
	last := create("late")
	if _, messages, err := f.MeshCommand(t, saved, "snapshot", "restore", "-", dataDir); err == nil || !strings.Contains(messages, "is in use by another process") {
		t.Errorf("restoring while the server runs: %v: %s", err, messages)
	}

	f.restart(t, func() {
		for what, content := range map[string][]byte{"half of it": saved[:len(saved)/2], "a text": []byte("not a snapshot")} {
			if _, messages, err := f.MeshCommand(t, content, "snapshot", "restore", "-", dataDir); err == nil || !strings.Contains(messages, "reading the snapshot: ") {
				t.Errorf("restoring %s: %v: %s", what, err, messages)
			}
		}
		output, messages, err := f.MeshCommand(t, saved, "snapshot", "restore", "-", dataDir)
		if err != nil || len(output) > 0 || !strings.Contains(messages, "is kept in") {
			t.Fatalf("restoring: %v: %s", err, messages)
		}
	})
	if got := services(); !slices.Equal(got, want) {
		t.Errorf("restored are %q, want %q", got, want)
	}
	if made := create("new"); revision(t, made) <= revision(t, last) {
		t.Errorf("a new object has resource version %s, one from before had %s", made.ResourceVersion, last.ResourceVersion)
	}
	expectExpired(t, f, namespace, last.ResourceVersion)

	// Before any controller writes: the store is another, and nobody vouches for it.
	clusters := f.direct.MeshClusters()
	reads := map[string]func() (*v1alpha1.MeshCluster, error){
		"a get": func() (*v1alpha1.MeshCluster, error) {
			return clusters.Get(t.Context(), "cluster1", metav1.GetOptions{})
		},
		"a get from memory": func() (*v1alpha1.MeshCluster, error) {
			return clusters.Get(t.Context(), "cluster1", metav1.GetOptions{ResourceVersion: "0"})
		},
		"a list": func() (*v1alpha1.MeshCluster, error) {
			list, err := clusters.List(t.Context(), metav1.ListOptions{})
			if err != nil || len(list.Items) != 1 {
				return nil, fmt.Errorf("listed %v: %w", list, err)
			}
			return &list.Items[0], nil
		},
		"a watch": func() (*v1alpha1.MeshCluster, error) {
			watcher, err := clusters.Watch(t.Context(), metav1.ListOptions{})
			if err != nil {
				return nil, err
			}
			defer watcher.Stop()
			select {
			case event := <-watcher.ResultChan():
				return event.Object.(*v1alpha1.MeshCluster), nil
			case <-time.After(10 * time.Second):
				return nil, errors.New("it hears nothing")
			}
		},
	}
	for what, read := range reads {
		local, err := read()
		must(t, err)
		if local.Status.StoreEpoch == before.Status.StoreEpoch || local.Status.StoreEpoch == "" || synced(local) || local.Status.ControllerRun != "run-1" {
			t.Errorf("%s shows %+v, before it was %+v", what, local.Status, before.Status)
		}
	}

	after := f.vouch(t)
	if after.Status.StoreEpoch == before.Status.StoreEpoch || !synced(after) {
		t.Errorf("after a heartbeat: %+v", after.Status)
	}
	f.restart(t, func() {})
	clusters = f.direct.MeshClusters()
	for what, read := range reads {
		local, err := read()
		must(t, err)
		if local.Status.StoreEpoch != after.Status.StoreEpoch || !synced(local) {
			t.Errorf("after a restart, %s shows %+v, before it was %+v", what, local.Status, after.Status)
		}
	}
}

// expectExpired wants a watch from a version to be told that it is too old.
func expectExpired(t *testing.T, f *fixture, namespace, version string) {
	t.Helper()
	watcher, err := f.direct.GlobalServices(namespace).Watch(t.Context(), metav1.ListOptions{ResourceVersion: version})
	if err == nil {
		defer watcher.Stop()
		select {
		case event := <-watcher.ResultChan():
			if event.Type != watch.Error {
				t.Errorf("a watch from before is served %v", event)
			}
			err = apierrors.FromObject(event.Object)
		case <-time.After(10 * time.Second):
			err = errors.New("it hears nothing")
		}
	}
	if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		t.Errorf("a watch from before: %v, want it to be expired", err)
	}
}

// TestSnapshotOfExternalEtcd saves the store of an external etcd, and says that it
// was restored.
func TestSnapshotOfExternalEtcd(t *testing.T) {
	f := startSnapshot(t, controlplane.Options{ExternalMeshEtcd: true, MeshEtcdTLS: true})
	before := f.vouch(t)
	arguments := func(words ...string) []string { return append(words, f.MeshArgs()...) }
	saved, messages, err := f.MeshCommand(t, nil, arguments("snapshot", "save", "-")...)
	if err != nil || len(saved) == 0 {
		t.Fatalf("saving: %v: %s", err, messages)
	}
	f.restart(t, func() {
		if _, messages, err := f.MeshCommand(t, nil, arguments("snapshot", "restored")...); err != nil {
			t.Fatalf("saying that it was restored: %v: %s", err, messages)
		}
	})
	local, err := f.direct.MeshClusters().Get(t.Context(), "cluster1", metav1.GetOptions{})
	must(t, err)
	if local.Status.StoreEpoch == before.Status.StoreEpoch || synced(local) {
		t.Errorf("it shows %+v, before it was %+v", local.Status, before.Status)
	}

	// What was saved of an external store can become an embedded one.
	if _, messages, err := f.MeshCommand(t, saved, "snapshot", "restore", "-", "--data-dir="+f.Dir+"/moved"); err != nil {
		t.Fatalf("restoring: %v: %s", err, messages)
	}
}
