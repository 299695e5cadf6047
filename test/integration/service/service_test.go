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

// Package service tests `meshctl service` against two real control planes with their
// controllers, and no nodes.
package service

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"mesh.io/clustermesh/test/integration/controlplane"
	"mesh.io/clustermesh/test/integration/member"
)

const timeout = member.Timeout

// start runs a cluster with a controller and a namespace.
func start(t *testing.T, name string, id int32) *member.Cluster {
	t.Helper()
	c := member.Start(t, name, id, controlplane.Options{})
	c.LetPeersIn(t)
	c.StartController(t)
	c.MakeNamespace(t, "song", nil)
	return c
}

// offer makes a global Service with one ready endpoint.
func offer(t *testing.T, c *member.Cluster, address string) {
	t.Helper()
	c.MakeService(t, "song", "userlist-svc", member.Global)
	c.MakeSlice(t, "song", "userlist-svc", "userlist-1", address)
}

func TestService(t *testing.T) {
	controlplane.Binary(t, "kube-apiserver") // skips before anything is built
	one, two := start(t, "cluster1", 1), start(t, "cluster2", 2)
	for _, c := range []*member.Cluster{one, two} {
		controlplane.Eventually(t, timeout, "the controller of "+c.Name+" works", func(ctx context.Context) error {
			_, err := c.Mesh.MeshV1alpha1().MeshClusters().Get(ctx, c.Name, metav1.GetOptions{})
			return err
		})
	}
	m := member.Meshctl{Kubeconfig: member.Contexts(t, map[string]*rest.Config{"ctx1": one.Plane.Kube, "ctx2": two.Plane.Kube}, "ctx1")}
	both := "--contexts=ctx1,ctx2"
	explain := []string{"service", "explain", "song/userlist-svc", "--from=cluster1/node1", both}

	m.Run(t, "service", "list", "-A").Want(t, 0, "There is no global service in any namespace.")
	m.Run(t, "service", "get", "song/userlist-svc", both).Want(t, 1, "there is no service song/userlist-svc in ctx1, ctx2")
	offer(t, one, "10.1.1.4")
	m.Run(t, explain...).Want(t, 3, "First broken: export in cluster2: there is no Service song/userlist-svc in cluster2")
	offer(t, two, "10.2.1.4")
	controlplane.Eventually(t, timeout, "cluster2 exports it", func(ctx context.Context) error {
		_, err := two.Mesh.MeshV1alpha1().ExportedServices("song").Get(ctx, "userlist-svc", metav1.GetOptions{})
		return err
	})
	m.Run(t, explain...).Want(t, 3, "First broken: peer of cluster2 in cluster1: cluster1 has no MeshCluster cluster2", "meshctl connect --context ctx1 --destination-context ctx2")

	one.Import(t, two)
	two.Import(t, one)
	for _, c := range []*member.Cluster{one, two} {
		controlplane.Eventually(t, timeout, c.Name+" has both", func(ctx context.Context) error {
			g, err := c.Mesh.MeshV1alpha1().GlobalServices("song").Get(ctx, "userlist-svc", metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, s := range g.Status.Clusters {
				if s.Endpoints.Ready != 1 || len(g.Status.Clusters) != 2 {
					return fmt.Errorf("it is %+v", g.Status.Clusters)
				}
			}
			return nil
		})
	}

	t.Run("list", func(t *testing.T) {
		m.Run(t, "service", "list", "-n", "song", "--context=ctx1").Want(t, 0, "NAMESPACE NAME CLUSTERS BACKENDS LOCAL REMOTE AFFINITY SHARED song userlist-svc 2/2 2/2 1/1 1/1 None true")
		m.Run(t, "service", "list", "-A", both).Want(t, 0, "song userlist-svc cluster1 2/2 2/2 1/1 1/1 None true song userlist-svc cluster2 2/2")
		m.Run(t, "service", "list").Want(t, 0, "in namespace default; -A lists all namespaces")
		out := m.Run(t, "service", "list", "-A", both, "-o", "json").Out
		var list struct {
			Services []struct {
				Name  string
				Views []struct{ Context, Cluster string }
			}
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Services) != 1 || len(list.Services[0].Views) != 2 || list.Services[0].Views[1].Cluster != "cluster2" {
			t.Errorf("got %+v, %v", list, err)
		}
	})
	t.Run("get", func(t *testing.T) {
		m.Run(t, "service", "get", "song/userlist-svc", both).Want(t, 0, "In cluster1 (context ctx1):", `Takes part: yes: mesh.io/global: "true" on the Service`, "Affinity: None (default)",
			"cluster1 1/1 100 0 this cluster", "cluster2 1/1 100 0 synced", "Ready=True (BackendsReady", "In cluster2 (context ctx2):")
	})
	t.Run("explain", func(t *testing.T) {
		// Everything is in order but for the node, which there is none of.
		m.Run(t, explain...).Want(t, 3, "ok export cluster2 1/1 endpoints ready, in 1 slice", "ok peer cluster1 < cluster2 connected and in sync", "ok import cluster1 < cluster2 1/1 endpoints ready",
			"ok merge", "First broken: agent in cluster1: cluster1 has no node node1")
		m.Run(t, "service", "explain", "song/userlist-svc", "--from=cluster9/node1", both).Want(t, 2, "--from names cluster \"cluster9\"")
		annotate(t, two, "no")
		m.Run(t, explain...).Want(t, 3, `First broken: export in cluster2: not global there: mesh.io/global: "no" on the Service means nothing`)
		annotate(t, two, "true")
		// What the peer says of itself stays unknown without its context.
		m.Run(t, explain[:4]...).Want(t, 3, "no context of cluster2 was given")
	})
	t.Run("drain", func(t *testing.T) {
		// Somebody else's entry, and an own one with more than the weight.
		patch(t, one, `{"spec":{"clusters":[{"name":"cluster1","weight":70},{"name":"cluster2","weight":30,"priority":4}]}}`)
		m.Run(t, "service", "drain", "song/userlist-svc", "--cluster=cluster2").Want(t, 0, "cluster1 70", "cluster2 30 -> 0", "No node has an agent.")
		spec(t, one, `{"clusters":[{"name":"cluster1","weight":70},{"name":"cluster2","weight":0,"priority":4}]}`)
		m.Run(t, "service", "drain", "song/userlist-svc", "--cluster=cluster2").Want(t, 0, "it was so already")
		m.Run(t, explain...).Want(t, 3, "broken share cluster1 < cluster2 weight 0 (spec)", "First broken: share of cluster2 in cluster1", "service drain song/userlist-svc --context ctx1 --cluster cluster2 --undo")
		m.Run(t, "service", "drain", "song/userlist-svc", "--cluster=cluster2", "--undo").Want(t, 0, "cluster2 0 -> 30")
		spec(t, one, `{"clusters":[{"name":"cluster1","weight":70},{"name":"cluster2","weight":30,"priority":4}]}`)
		m.Run(t, "service", "drain", "song/userlist-svc", "--cluster=cluster7").Want(t, 2, `cluster1 knows no cluster "cluster7": it has cluster1, cluster2`)
		m.Run(t, "service", "drain", "song/nothing", "--cluster=cluster2").Want(t, 1, "cluster1 has no global service song/nothing")
	})
	t.Run("weight", func(t *testing.T) {
		m.Run(t, "service", "weight", "song/userlist-svc", "--cluster=cluster2", "7").Want(t, 0, "cluster2 30 -> 7")
		m.Run(t, "service", "weight", "song/userlist-svc", "--cluster=cluster1", "--unset", "--no-wait").Want(t, 0, "changed; not waited for")
		spec(t, one, `{"clusters":[{"name":"cluster2","weight":7,"priority":4}]}`)
	})
	t.Run("affinity", func(t *testing.T) {
		m.Run(t, "service", "affinity", "song/userlist-svc", "local", both).Want(t, 0, "for clients of cluster1: Affinity: None (default) -> Local (spec)", "for clients of cluster2: Affinity: None (default) -> Local (spec)")
		spec(t, two, `{"affinity":"Local"}`)
		m.Run(t, "service", "affinity", "song/userlist-svc", "--unset", both).Want(t, 0, "Local (spec) -> None (default)")
		spec(t, two, `{}`)
	})
	t.Run("a person without rights", func(t *testing.T) {
		config, _ := one.Plane.User(t, "nobody")
		n := member.Meshctl{Kubeconfig: member.Contexts(t, map[string]*rest.Config{"ctx1": config})}
		n.Run(t, "service", "list", "-A").Want(t, 1, "listing global services of ctx1", "forbidden")
		n.Run(t, "service", "drain", "song/userlist-svc", "--cluster=cluster2").Want(t, 1, "forbidden")
		// It is known that nothing is known: no link is said to be broken that is not seen.
		n.Run(t, "service", "explain", "song/userlist-svc", "--from=cluster1/node1").Want(t, 2, "--from names cluster")
		n.Run(t, "service", "explain", "song/userlist-svc", "--from=ctx1/node1", "--to=cluster2").Want(t, 0, "unknown annotation", "No link is broken as far as could be seen")
	})
	t.Run("completion", func(t *testing.T) {
		m.Run(t, "__complete", "service", "get", "--context=ctx1", "").Want(t, 0, "song/userlist-svc")
		m.Run(t, "__complete", "service", "drain", "song/userlist-svc", "--context=ctx1", "--cluster", "").Want(t, 0, "cluster1 cluster2")
	})
	t.Run("a cluster that is gone", func(t *testing.T) {
		two.Plane.KubeAPIServer.Kill()
		m.Run(t, "service", "list", "-A", both).Want(t, 1, "song userlist-svc cluster1 2/2", "listing global services of ctx2")
		m.Run(t, explain...).Want(t, 3, "First broken: agent in cluster1")
		m.Run(t, "service", "affinity", "song/userlist-svc", "Remote", both).Want(t, 1, "for clients of cluster1: Affinity: None (default) -> Remote (spec)", "of ctx2 does not answer")
	})
}

// annotate sets the annotation that makes the Service global, and waits for the export.
func annotate(t *testing.T, c *member.Cluster, value string) {
	t.Helper()
	change := fmt.Sprintf(`{"metadata":{"annotations":{"mesh.io/global":%q}}}`, value)
	if _, err := c.Kube.CoreV1().Services("song").Patch(t.Context(), "userlist-svc", types.MergePatchType, []byte(change), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	controlplane.Eventually(t, timeout, "the export of "+c.Name+" follows", func(ctx context.Context) error {
		list, err := c.Mesh.MeshV1alpha1().ExportedServices("song").List(ctx, metav1.ListOptions{})
		if err == nil && (len(list.Items) == 1) != (value == "true") {
			err = fmt.Errorf("%d are exported", len(list.Items))
		}
		return err
	})
}

func patch(t *testing.T, c *member.Cluster, patch string) {
	t.Helper()
	if _, err := c.Mesh.MeshV1alpha1().GlobalServices("song").Patch(t.Context(), "userlist-svc", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// spec wants a spec of the GlobalService.
func spec(t *testing.T, c *member.Cluster, want string) {
	t.Helper()
	g, err := c.Mesh.MeshV1alpha1().GlobalServices("song").Get(t.Context(), "userlist-svc", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := json.Marshal(g.Spec); err != nil || string(got) != want {
		t.Errorf("the spec in %s is %s, not %s", c.Name, got, want)
	}
}
