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
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/test/integration/controlplane"
	"mesh.io/clustermesh/test/integration/member"
)

func TestConnect(t *testing.T) {
	root := t
	one, two := startCluster(t, "cluster1", 1), startCluster(t, "cluster2", 2)
	someone, _ := two.Plane.User(t, "someone")
	_, err := two.Kube.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "someone"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "mesh-cluster-view"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "someone"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m := member.Meshctl{Kubeconfig: member.Contexts(t, map[string]*rest.Config{
		"one": one.Plane.Kube, "two": two.Plane.Kube, "again": one.Plane.Kube, "someone": someone,
	})}
	clean := [2]map[string]string{one.objects(t), two.objects(t)}
	unchanged := func(t *testing.T) {
		t.Helper()
		one.same(t, clean[0])
		two.same(t, clean[1])
	}
	both := []string{"--context=one", "--destination-context=two"}
	connect := func(more ...string) []string { return append(append([]string{"connect"}, both...), more...) }
	part := func(t *testing.T) {
		t.Helper()
		m.Run(t, append([]string{"disconnect"}, both...)...).Want(t, 0)
		unchanged(t)
	}

	t.Run("wrong command lines", func(t *testing.T) {
		m.Run(t, "connect", "--context=one").Want(t, 2, "--destination-context")
		m.Run(t, "connect", "--context=one", "--destination-context=one").Want(t, 2, "give two clusters")
		m.Run(t, "connect", "--context=one", "--destination-context=nowhere").Want(t, 2, "no context")
		m.Run(t, connect("--endpoint=a b")...).Want(t, 2, "no address")
		m.Run(t, "disconnect", "--context=one").Want(t, 2, "--peer")
		m.Run(t, "disconnect", "--context=one", "--peer=cluster1").Want(t, 2, "itself")
		unchanged(t)
	})

	t.Run("the same cluster by two contexts", func(t *testing.T) {
		m.Run(t, "connect", "--context=one", "--destination-context=again").Want(t, 1, "are the same cluster")
		unchanged(t)
	})

	t.Run("without the rights", func(t *testing.T) {
		m.Run(t, "connect", "--context=one", "--destination-context=someone").Want(t, 1, `"someone"`, "ConfigMap mesh-ca")
		unchanged(t)
	})

	t.Run("both directions and twice", func(t *testing.T) {
		first := m.Run(t, connect()...)
		first.Want(t, 0, "cluster1 is importing from cluster2", "cluster2 is importing from cluster1")
		one.export(t, "10.1.0.1")
		two.imports(t, "cluster1", "10.1.0.1")
		connected := [2]map[string]string{one.objects(t), two.objects(t)}

		second := m.Run(t, connect()...)
		second.Want(t, 0, "already connected")
		one.same(t, connected[0])
		two.same(t, connected[1])

		renewed := m.Run(t, connect("--renew")...)
		renewed.Want(t, 0)
		if now := one.objects(t); now["Secret/mesh-peer-cluster2"] == connected[0]["Secret/mesh-peer-cluster2"] {
			t.Error("--renew has left the Secret as it was")
		}
		one.secretless(t, first, second, renewed)
		two.secretless(t, first, second, renewed)
		part(t)
		m.Run(t, append([]string{"disconnect"}, both...)...).Want(t, 0, "nothing to remove")
	})

	t.Run("one way", func(t *testing.T) {
		m.Run(t, connect("--one-way")...).Want(t, 0, "cluster1 is importing from cluster2")
		one.secretless(t)
		if _, there := two.objects(t)["MeshCluster/cluster1"]; there {
			t.Error("cluster2 imports, too")
		}
		part(t)
	})

	t.Run("a taken name and a taken ID", func(t *testing.T) {
		for _, member := range []struct {
			name string
			id   int32
			want string
		}{{"cluster2", 7, "with the ID 7"}, {"cluster9", 2, "the ID 2"}} {
			_, err := one.Mesh.MeshV1alpha1().MeshClusters().Create(t.Context(), &v1alpha1.MeshCluster{
				ObjectMeta: metav1.ObjectMeta{Name: member.name},
				Spec:       v1alpha1.MeshClusterSpec{ID: member.id, KubeconfigSecretRef: &v1alpha1.SecretReference{Name: "none"}},
			}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			m.Run(t, connect()...).Want(t, 1, member.want, "meshctl disconnect --context one --peer "+member.name)
			two.same(t, clean[1])
			m.Run(t, "disconnect", "--context=one", "--peer="+member.name).Want(t, 0, "is parted from "+member.name)
			unchanged(t)
		}
	})

	t.Run("an unreachable peer", func(t *testing.T) {
		closed := fmt.Sprintf("127.0.0.1:%d", controlplane.FreePort(t))
		r := m.Run(t, connect("--destination-endpoint="+closed, "--timeout=4s")...)
		r.Want(t, 4, "Unreachable", closed, "What this run had made is undone")
		unchanged(t)
	})

	t.Run("new credentials by which the peer is unreachable", func(t *testing.T) {
		m.Run(t, connect()...).Want(t, 0)
		connected := [2]map[string]string{one.objects(t), two.objects(t)}
		closed := fmt.Sprintf("127.0.0.1:%d", controlplane.FreePort(t))
		m.Run(t, connect("--destination-endpoint="+closed, "--timeout=14s")...).Want(t, 4, closed, "What this run had made is undone")
		one.same(t, connected[0])
		two.same(t, connected[1])
		part(t)
	})

	t.Run("a write that is refused", func(t *testing.T) {
		refuseMembers(t, two)
		r := m.Run(t, connect()...)
		r.Want(t, 1, "not today", "What this run had made is undone")
		unchanged(t)
		allowMembers(t, two)
	})

	t.Run("Ctrl-C", func(t *testing.T) {
		for _, after := range []string{"ServiceAccount mesh-peer-cluster1", "MeshCluster cluster2", "... Waiting"} {
			stopped := m
			stopped.Signal, stopped.After = syscall.SIGINT, after
			stopped.Run(t, connect("--destination-endpoint=127.0.0.2:1")...).Want(t, 130, "stopped")
			unchanged(t)
		}
	})

	t.Run("killed in the middle", func(t *testing.T) {
		for _, after := range []string{
			"ServiceAccount mesh-peer-cluster1", "ClusterRoleBinding mesh-peer-cluster1", "Secret mesh-peer-cluster2",
			"MeshCluster cluster2", "RoleBinding mesh-peer-cluster2", "Secret mesh-peer-cluster1", "... Waiting",
		} {
			killed := m
			killed.Signal, killed.After = syscall.SIGKILL, after
			if r := killed.Run(t, connect()...); r.Code != -1 {
				t.Fatalf("it was not killed: %s", r)
			}
			m.Run(t, connect()...).Want(t, 0, "importing from")
			part(t)
		}
		killed := m
		killed.Signal, killed.After = syscall.SIGKILL, "MeshCluster cluster2"
		killed.Run(t, connect()...)
		part(t)
	})

	t.Run("parted with the peer dead", func(t *testing.T) {
		m.Run(t, connect()...).Want(t, 0)
		two.Plane.MeshAPIServer.Kill()
		m.Run(t, "disconnect", "--context=one", "--peer=cluster2").Want(t, 0, "is parted from cluster2", "--peer cluster1")
		one.same(t, clean[0])
		two.Plane.StartMesh(root)
		two.Plane.WaitAvailable(t)
		m.Run(t, "disconnect", "--context=two", "--peer=cluster1").Want(t, 0)
		unchanged(t)
	})

	t.Run("parted with the controller down", func(t *testing.T) {
		m.Run(t, connect()...).Want(t, 0)
		if err := one.Controller.Stop(); err != nil {
			t.Fatal(err)
		}
		m.Run(t, "disconnect", "--context=one", "--peer=cluster2", "--timeout=2s").Want(t, 4, "mesh-controller deletes it")
		if _, there := one.objects(t)["ServiceAccount/mesh-peer-cluster2"]; there {
			t.Error("the peer's account is still there")
		}
		one.StartController(t)
		m.Run(t, "disconnect", "--context=one", "--peer=cluster2").Want(t, 0)
		m.Run(t, "disconnect", "--context=two", "--peer=cluster1").Want(t, 0)
		unchanged(t)
	})
}

func TestConnectNotInstalled(t *testing.T) {
	bare := controlplane.Start(t, controlplane.Options{WithoutMesh: true})
	m := member.Meshctl{Kubeconfig: member.Contexts(t, map[string]*rest.Config{"bare": bare.Kube, "other": bare.Kube})}
	m.Run(t, "connect", "--context=bare", "--destination-context=other").Want(t, 1, `"bare": run "meshctl install --context bare`, `"other": run`)
	m.Run(t, "disconnect", "--context=bare", "--peer=cluster2").Want(t, 0, "nothing to remove")
}

// export offers an endpoint of the Service song/list.
func (c *cluster) export(t testing.TB, address string) {
	t.Helper()
	c.mustKubectl(t, `apiVersion: v1
kind: Namespace
metadata: {name: song}
---
apiVersion: v1
kind: Service
metadata: {name: list, namespace: song, annotations: {mesh.io/global: "true"}}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: list-1, namespace: song, labels: {kubernetes.io/service-name: list, endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints: [{addresses: [`+address+`]}]
`)
}

func (c *cluster) mustKubectl(t testing.TB, manifest string) {
	t.Helper()
	file := t.TempDir() + "/manifest.yaml"
	if err := writeFile(file, manifest); err != nil {
		t.Fatal(err)
	}
	c.Plane.MustKubectl(t, "apply", "-f", file)
}

// imports waits until the service that a peer exports is known here.
func (c *cluster) imports(t testing.TB, from, address string) {
	t.Helper()
	c.mustKubectl(t, `apiVersion: v1
kind: Namespace
metadata: {name: song}
---
apiVersion: v1
kind: Service
metadata: {name: list, namespace: song, annotations: {mesh.io/global: "true"}}
spec: {ports: [{name: http, port: 80}]}
`)
	controlplane.Eventually(t, timeout, address+" from "+from+" in "+c.Name, func(ctx context.Context) error {
		list, err := c.Mesh.MeshV1alpha1().ImportedEndpointSlices("song").List(ctx, metav1.ListOptions{LabelSelector: v1alpha1.LabelCluster + "=" + from})
		if err != nil {
			return err
		}
		for _, slice := range list.Items {
			for _, endpoint := range slice.Spec.Endpoints {
				if endpoint.Address == address {
					return nil
				}
			}
		}
		return fmt.Errorf("there are %d slices", len(list.Items))
	})
}

// refuseMembers has the kube-apiserver of a cluster refuse the Secrets of peers.
func refuseMembers(t testing.TB, c *cluster) {
	t.Helper()
	policies := c.Kube.AdmissionregistrationV1()
	_, err := policies.ValidatingAdmissionPolicies().Create(t.Context(), &admissionv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "not-today"},
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			FailurePolicy: ptr.To(admissionv1.Fail),
			MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"secrets"}},
			}}}},
			Validations: []admissionv1.Validation{{Expression: "!object.metadata.name.startsWith('mesh-peer-')", Message: "not today"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = policies.ValidatingAdmissionPolicyBindings().Create(t.Context(), &admissionv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "not-today"},
		Spec:       admissionv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: "not-today", ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.secretsRefused(t, true)
}

func allowMembers(t testing.TB, c *cluster) {
	t.Helper()
	if err := c.Kube.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Delete(t.Context(), "not-today", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.secretsRefused(t, false)
}

func (c *cluster) secretsRefused(t testing.TB, want bool) {
	t.Helper()
	controlplane.Eventually(t, timeout, "the policy about Secrets", func(ctx context.Context) error {
		_, err := c.Kube.CoreV1().Secrets(controlplane.Namespace).Create(ctx,
			&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "mesh-peer-probe"}}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if refused := err != nil && strings.Contains(err.Error(), "not today"); refused != want {
			return fmt.Errorf("refused: %t, %w", refused, err)
		}
		return nil
	})
}
