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

package controller

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	kubefake "k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/view"
	meshfake "mesh.io/clustermesh/pkg/generated/clientset/versioned/fake"
	meshinformers "mesh.io/clustermesh/pkg/generated/informers/externalversions"
)

func TestDue(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for name, test := range map[string]struct {
		last time.Time
		want bool
	}{
		"never written": {time.Time{}, true},
		"just written":  {now, false},
		"a while ago":   {now.Add(-heartbeat + 2*time.Second), false},
		"long ago":      {now.Add(-heartbeat), true},
		"still to come": {now.Add(time.Hour), true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := due(test.last, now); got != test.want {
				t.Errorf("due: %v, want %v", got, test.want)
			}
		})
	}
}

// newView is a view whose caches are filled by hand.
func newView(t *testing.T, mesh *meshfake.Clientset) *view.View {
	t.Helper()
	v, err := view.New(view.Config{
		Kube: informers.NewSharedInformerFactory(kubefake.NewClientset(), 0), Mesh: meshinformers.NewSharedInformerFactory(mesh, 0),
		MeshNamespace: "mesh-system", ClusterName: "cluster1",
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestRestoredStoreIsProvenAnew(t *testing.T) {
	mesh := meshfake.NewClientset()
	v := newView(t, mesh)
	resyncs := 0
	m := &member{
		view: v, client: mesh, events: record.NewFakeRecorder(10), id: 1, uid: "uid-1", run: "run", wake: make(chan struct{}, 1),
		synced: func() (bool, string, string) { return true, "Synced", "" }, resync: func() { resyncs++ },
	}
	local := &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: "cluster1", UID: "a", ResourceVersion: "100"}, Spec: v1alpha1.MeshClusterSpec{ID: 1},
		Status: v1alpha1.MeshClusterStatus{StoreEpoch: "e", ControllerRun: "run"},
	}
	if err := mesh.Tracker().Add(local.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	exported := &v1alpha1.ExportedService{ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "web", UID: types.UID("s"), ResourceVersion: "90"}}
	if err := mesh.Tracker().Add(exported.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	if err := v.ExportedServices.GetStore().Add(exported.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	// write has it write the status of the MeshCluster in the given version, as the
	// cache shows it.
	write := func(version string) bool {
		t.Helper()
		current := local.DeepCopy()
		current.ResourceVersion = version
		if err := v.Clusters.GetStore().Add(current); err != nil {
			t.Fatal(err)
		}
		if err := mesh.Tracker().Update(v1alpha1.SchemeGroupVersion.WithResource("meshclusters"), current.DeepCopy(), ""); err != nil {
			t.Fatal(err)
		}
		if err := m.write(t.Context()); err != nil {
			t.Fatal(err)
		}
		written, err := mesh.MeshV1alpha1().MeshClusters().Get(t.Context(), "cluster1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return meta.IsStatusConditionTrue(written.Status.Conditions, v1alpha1.MeshClusterExportsSynced)
	}
	if !write("100") || !write("110") || resyncs != 0 {
		t.Fatalf("exports are not vouched for, or looked at again %d times", resyncs)
	}

	// The store is put back: the MeshCluster is older, and so is the export.
	old := exported.DeepCopy()
	old.ResourceVersion = "50"
	if err := mesh.Tracker().Update(v1alpha1.SchemeGroupVersion.WithResource("exportedservices"), old, "song"); err != nil {
		t.Fatal(err)
	}
	if write("60") || resyncs == 0 {
		t.Errorf("a restored store that has an older export is vouched for; looked at again %d times", resyncs)
	}
	if err := v.ExportedServices.GetStore().Update(old); err != nil {
		t.Fatal(err)
	}
	if !write("61") {
		t.Error("a store that is proven is not vouched for")
	}
}
