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
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/test/integration/controlplane"
)

// TestController runs everything between the same two clusters, one part after the
// other, as starting them takes longest.
func TestController(t *testing.T) {
	controlplane.Binary(t, "kube-apiserver") // skips before anything is built
	one := startCluster(t, "cluster1", 1)
	two := startCluster(t, "cluster2", 2)
	one.start(t)
	two.start(t)
	one.SetSecret(t, "cluster2", two.Kubeconfig(t, "peer"))
	two.SetSecret(t, "cluster1", one.Kubeconfig(t, "peer"))
	for _, c := range []*cluster{one, two} {
		c.AwaitCondition(t, c.Name, v1alpha1.MeshClusterExportsSynced, metav1.ConditionTrue, "")
	}
	one.Join(t, "cluster2", 2)
	two.Join(t, "cluster1", 1)
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "Synced")
	two.AwaitCondition(t, "cluster1", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "Synced")

	for _, part := range []struct {
		name string
		run  func(t *testing.T, one, two *cluster)
	}{
		{"a service goes both ways", testBothWays},
		{"a large slice", testLarge},
		{"bytes to each agent", testBytes},
		{"sharing, scope and order", testSharing},
		{"annotations", testAnnotations},
		{"what is never global", testReserved},
		{"conflicts and GlobalServices of people", testMerge},
		{"namespace that comes later", testWaiting},
		{"Secrets", testSecrets},
		{"identities", testIdentities},
		{"peer down and up", testPeerDown},
		{"leader crashes or stops", testLeader},
		{"hostile peer", testHostile},
		{"limits", testLimits},
		{"peer's store is emptied", testEmptied},
		{"member deleted with the peer dead", testDeleted},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.run(t, one, two) }) {
			for _, c := range []*cluster{one, two} {
				t.Logf("controller of %s:\n%s", c.Name, c.Controller.Log())
			}
		}
	}
}

func testBothWays(t *testing.T, one, two *cluster) {
	for _, c := range []*cluster{one, two} {
		c.MakeNamespace(t, "song", nil)
		c.MakeService(t, "song", "web", global)
	}
	one.MakeSlice(t, "song", "web", "web-a", "10.1.0.1", "10.1.0.2")
	two.MakeSlice(t, "song", "web", "web-b", "10.2.0.1")
	one.imports(t, "song", "web", "cluster2", "10.2.0.1")
	two.imports(t, "song", "web", "cluster1", "10.1.0.1", "10.1.0.2")
	one.globalService(t, "song", "web", func(g *v1alpha1.GlobalService) error {
		if !meta.IsStatusConditionTrue(g.Status.Conditions, v1alpha1.GlobalServiceReady) || len(g.Status.Clusters) != 2 {
			return fmt.Errorf("not ready with two clusters")
		}
		local, remote := g.Status.Clusters[0], g.Status.Clusters[1]
		if !local.Local || local.Endpoints.Ready != 2 || remote.Name != "cluster2" || remote.Endpoints.Ready != 1 || remote.ID != 2 {
			return fmt.Errorf("counts")
		}
		return nil
	})
}

// testLarge exports a slice that is larger than an exported one may be.
func testLarge(t *testing.T, one, two *cluster) {
	var addresses []string
	for i := range 250 {
		addresses = append(addresses, fmt.Sprintf("10.1.%d.%d", 100+i/200, i%200+1))
	}
	one.MakeService(t, "song", "large", global)
	two.MakeService(t, "song", "large", global)
	large := one.MakeSlice(t, "song", "large", "large", addresses...)
	two.imports(t, "song", "large", "cluster1", addresses...)
	large.Endpoints = large.Endpoints[:3]
	if _, err := one.Kube.DiscoveryV1().EndpointSlices("song").Update(t.Context(), large, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	two.imports(t, "song", "large", "cluster1", addresses[:3]...)
	two.globalService(t, "song", "large", func(g *v1alpha1.GlobalService) error {
		for _, cluster := range g.Status.Clusters {
			if cluster.Name == "cluster1" && cluster.Endpoints.Total == 3 {
				return nil
			}
		}
		return fmt.Errorf("counts")
	})
	exported, err := one.Mesh.MeshV1alpha1().ExportedEndpointSlices("song").List(t.Context(), metav1.ListOptions{LabelSelector: v1alpha1.LabelServiceName + "=large"})
	if err != nil || len(exported.Items) != 1 {
		t.Errorf("%d parts are left (%v)", len(exported.Items), err)
	}
	// A Service that goes takes everything with it.
	if err := one.Kube.CoreV1().Services("song").Delete(t.Context(), "large", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	two.imports(t, "song", "large", "cluster1")
	one.exported(t, "song", "large", false)
}
