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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/test/integration/controlplane"
)

// TestPeerIsRestored restores a peer's store while nobody looks: the leader that
// starts afterwards has not seen what the store had before.
func TestPeerIsRestored(t *testing.T) {
	controlplane.Binary(t, "kube-apiserver") // skips before anything is built
	one := startClusterOn(t, "cluster1", 1, controlplane.Options{})
	two := startClusterOn(t, "cluster2", 2, controlplane.Options{})
	one.start(t)
	two.start(t)
	one.SetSecret(t, "cluster2", two.Kubeconfig(t, "peer"))
	for _, c := range []*cluster{one, two} {
		c.AwaitCondition(t, c.Name, v1alpha1.MeshClusterExportsSynced, metav1.ConditionTrue, "")
		c.MakeNamespace(t, "song", nil)
	}
	one.Join(t, "cluster2", 2)

	export := func(name, address string) {
		t.Helper()
		one.MakeService(t, "song", name, global)
		two.MakeService(t, "song", name, global)
		two.MakeSlice(t, "song", name, name, address)
		one.imports(t, "song", name, "cluster2", address)
	}
	export("early", "10.2.0.1")
	before := one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "Synced").Status.StoreEpoch
	dataDir := "--data-dir=" + two.Plane.MeshDataDir
	snapshot, messages, err := two.Plane.MeshCommand(t, nil, "snapshot", "save", "-", dataDir)
	if err != nil {
		t.Fatalf("saving a snapshot: %v\n%s", err, messages)
	}
	export("late", "10.2.0.2")
	export("gone", "10.2.0.3")

	_ = one.Controller.Stop() // so that the next one need not wait to lead
	_ = two.Controller.Stop()
	if err := two.Plane.MeshAPIServer.Stop(); err != nil {
		t.Errorf("mesh-apiserver ended with %v", err)
	}
	if _, messages, err := two.Plane.MeshCommand(t, snapshot, "snapshot", "restore", "-", dataDir); err != nil {
		t.Fatalf("restoring the snapshot: %v\n%s", err, messages)
	}
	if err := two.Kube.CoreV1().Services("song").Delete(t.Context(), "gone", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	two.StartMesh(t)
	waitLog(t, one.start(t), "Peer is connected")
	one.stays(t, 5*time.Second, "song", "late", "cluster2", "10.2.0.2")
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, metav1.ConditionFalse, "Unconfirmed")
	one.stays(t, time.Second, "song", "early", "cluster2", "10.2.0.1")

	// The peer's controller exports what the store lacks, and then vouches for it.
	two.start(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		one.imports(t, "song", "gone", "cluster2")
	}()
	for ended := false; !ended; {
		for name, address := range map[string]string{"early": "10.2.0.1", "late": "10.2.0.2"} {
			if err := one.hasImported(t.Context(), "song", name, "cluster2", address); err != nil {
				t.Errorf("%s, which the peer has all the time: %v", name, err)
			}
		}
		select {
		case <-done:
			ended = true
		case <-time.After(20 * time.Millisecond):
		}
	}
	after := one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "Synced").Status.StoreEpoch
	if after == before || after == "" {
		t.Errorf("the epoch was %q and is %q", before, after)
	}
}
