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
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"

	"mesh.io/clustermesh/artifacts/chart"
	"mesh.io/clustermesh/test/integration/controlplane"
)

const taintKey = "mesh.io/agent-not-ready"

// installs applies one file of the chart, as the values make it.
func (c *cluster) installs(name string, values map[string]any) {
	c.Helper()
	values["cluster"] = map[string]any{"name": "cluster1", "id": 1}
	files, err := chart.Render(values, chart.Namespace, nil)
	if err != nil {
		c.Fatal(err)
	}
	for _, file := range files {
		if filepath.Base(file.Name) != name {
			continue
		}
		path := filepath.Join(c.TempDir(), name)
		if err := os.WriteFile(path, []byte(file.Content), 0o600); err != nil {
			c.Fatal(err)
		}
		c.plane.MustKubectl(c, "apply", "-f", path)
		return
	}
	c.Fatalf("the chart has no %s", name)
}

// agentOn returns the access of the agent's pod on a node: a token that is bound to it.
func (c *cluster) agentOn(node string) *rest.Config {
	c.Helper()
	accounts := c.kube.CoreV1().ServiceAccounts(chart.Namespace)
	_, err := accounts.Create(c.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "mesh-agent"}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		c.Fatal(err)
	}
	pod := must[*corev1.Pod](c)(c.kube.CoreV1().Pods(chart.Namespace).Create(c.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "mesh-agent-" + node},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: "mesh-agent",
			Containers: []corev1.Container{{Name: "mesh-agent", Image: "mesh-agent"}},
		},
	}, metav1.CreateOptions{}))
	request := must[*authenticationv1.TokenRequest](c)(accounts.CreateToken(c.Context(), "mesh-agent", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}},
	}, metav1.CreateOptions{}))
	config := rest.AnonymousClientConfig(c.plane.Kube)
	config.BearerToken = request.Status.Token
	return config
}

// taint puts taints on a node, which it makes if there is none.
func (c *cluster) taint(node string, keys ...string) {
	c.Helper()
	nodes := c.kube.CoreV1().Nodes()
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		n, err := nodes.Get(c.Context(), node, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			n, err = nodes.Create(c.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, metav1.CreateOptions{})
		}
		if err != nil {
			return err
		}
		n.Spec.Taints = nil
		for _, key := range keys {
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule})
		}
		_, err = nodes.Update(c.Context(), n, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) tainted(node string) []string {
	c.Helper()
	n := must[*corev1.Node](c)(c.kube.CoreV1().Nodes().Get(c.Context(), node, metav1.GetOptions{}))
	var keys []string
	for _, taint := range n.Spec.Taints {
		keys = append(keys, taint.Key)
	}
	return keys
}

func (c *cluster) untainted(node string, want ...string) {
	c.Helper()
	controlplane.Eventually(c, timeout, "the startup taint to go", func(context.Context) error {
		if got := c.tainted(node); !slices.Equal(got, want) {
			return fmt.Errorf("node %s has the taints %q, want %q; the agent says:\n%s", node, got, want, c.agent.Log())
		}
		return nil
	})
}

// TestStartupTaint shows that a node is kept free of pods until the other clusters'
// backends are programmed, and that the agent can do nothing else to nodes.
func TestStartupTaint(t *testing.T) {
	requireNode(t)
	c := newCluster(t)
	defer func() {
		_ = c.agent.Stop()
		if output, err := c.run("cleanup"); err != nil {
			t.Errorf("cleanup: %v: %s", err, output)
		}
	}()
	c.installs("startuptaint.yaml", map[string]any{"agent": map[string]any{"startupTaint": taintKey}})
	c.flags = []string{"--startup-taint=" + taintKey}
	c.taint("node1", "example.com/first", taintKey, "example.com/last")
	c.taint("node2", taintKey)
	access := c.agentOn("node1")
	c.access = c.plane.Kubeconfig(t, access)

	must[*corev1.Namespace](c)(c.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "song"}}, metav1.CreateOptions{}))
	for _, name := range []string{"cluster1", "cluster2"} {
		c.member(name, true)
	}
	c.makeService(map[string]string{"mesh.io/global": "true"})
	c.local("10.1.0.1")
	c.imported("cluster2", "10.2.0.1")

	// A node's first start, with the mesh API down.
	if err := c.plane.MeshAPIServer.Stop(); err != nil {
		t.Logf("mesh-apiserver ended with %v", err)
	}
	c.start()
	c.ready("503\n", "[-]mesh-api: not in sync yet", "[-]table: without the other clusters' backends yet",
		"[+]startup-taint ok: "+taintKey+" stays on the node, for want of: mesh-api, table")
	if got := c.tainted("node1"); len(got) != 3 {
		t.Errorf("without the other clusters' backends the node has the taints %q", got)
	}
	c.plane.StartMesh(t)
	c.untainted("node1", "example.com/first", "example.com/last")
	if got, err := c.has(); err != nil || got != "userlist: 10.1.0.1 10.2.0.1" {
		t.Errorf("the taint is gone, and the table has %q, %v", got, err)
	}
	c.ready("200\n", "[+]startup-taint ok\n")

	// Somebody taints it again; then the node starts again, with its taint.
	c.taint("node1", taintKey)
	c.untainted("node1")
	c.agent.Kill()
	if output, err := c.run("cleanup"); err != nil {
		t.Fatalf("cleanup: %v: %s", err, output)
	}
	c.taint("node1", "example.com/first", taintKey)
	c.start()
	c.untainted("node1", "example.com/first")
	if got, err := c.has(); err != nil || got != "userlist: 10.1.0.1 10.2.0.1" {
		t.Errorf("the taint is gone, and the table has %q, %v", got, err)
	}
	if got := c.tainted("node2"); !slices.Equal(got, []string{taintKey}) {
		t.Errorf("another node has the taints %q", got)
	}

	// What its account may do beyond that: nothing. The policy takes a moment.
	nodes := kubernetes.NewForConfigOrDie(access).CoreV1().Nodes()
	for what, try := range map[string]struct{ node, patch, says string }{
		"another taint":         {"node1", `[{"op":"remove","path":"/spec/taints/0"}]`, "and no other"},
		"a taint more":          {"node1", `[{"op":"add","path":"/spec/taints/-","value":{"key":"x","effect":"NoExecute"}}]`, "and no other"},
		"a label":               {"node1", `[{"op":"add","path":"/metadata/labels/x","value":"y"}]`, "nothing of their node"},
		"an annotation":         {"node1", `[{"op":"add","path":"/metadata/annotations","value":{"x":"y"}}]`, "nothing of their node"},
		"cordoning":             {"node1", `[{"op":"add","path":"/spec/unschedulable","value":true}]`, "nothing of their node"},
		"another node's":        {"node2", `[{"op":"remove","path":"/spec/taints/0"}]`, "its own node only"},
		"the status of its own": {"node1", `[{"op":"add","path":"/status/phase","value":"Running"}]`, ""},
	} {
		before := must[*corev1.Node](c)(c.kube.CoreV1().Nodes().Get(t.Context(), try.node, metav1.GetOptions{}))
		if what == "a label" && before.Labels == nil {
			try.patch = `[{"op":"add","path":"/metadata/labels","value":{"x":"y"}}]`
		}
		var subresources []string
		if strings.Contains(try.patch, "/status/") {
			subresources = []string{"status"}
		}
		_, err := nodes.Patch(t.Context(), try.node, types.JSONPatchType, []byte(try.patch), metav1.PatchOptions{}, subresources...)
		if err == nil || !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), try.says) {
			t.Errorf("%s: %v, want it to be refused with %q", what, err, try.says)
		}
		after := must[*corev1.Node](c)(c.kube.CoreV1().Nodes().Get(t.Context(), try.node, metav1.GetOptions{}))
		if after.ResourceVersion != before.ResourceVersion {
			t.Errorf("%s: the node has changed", what)
		}
	}
	// The account without a node, as somebody would use it who has stolen the right to
	// make tokens.
	request := must[*authenticationv1.TokenRequest](c)(c.kube.CoreV1().ServiceAccounts(chart.Namespace).CreateToken(t.Context(), "mesh-agent", &authenticationv1.TokenRequest{}, metav1.CreateOptions{}))
	config := rest.AnonymousClientConfig(c.plane.Kube)
	config.BearerToken = request.Status.Token
	if _, err := kubernetes.NewForConfigOrDie(config).CoreV1().Nodes().Patch(t.Context(), "node2", types.JSONPatchType, []byte(`[{"op":"remove","path":"/spec/taints/0"}]`), metav1.PatchOptions{}); err == nil {
		t.Error("a token that is of no node changes one")
	}
	// It is not a problem of the agent's that it may not.
	c.plane.MustKubectl(t, "delete", "clusterrolebinding", "mesh-agent-startup-taint")
	c.taint("node1", taintKey)
	c.ready("200\n", "[+]startup-taint ok: "+taintKey+" cannot be taken from the node: ", "forbidden")
}
