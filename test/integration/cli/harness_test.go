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
	"encoding/json"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"mesh.io/clustermesh/test/integration/controlplane"
	"mesh.io/clustermesh/test/integration/member"
)

const timeout = member.Timeout

// cluster is a control plane with a controller, and with a Service and a Node by which
// others reach its mesh API.
type cluster struct{ *member.Cluster }

func startCluster(t testing.TB, name string, id int32) *cluster {
	t.Helper()
	c := &cluster{member.Start(t, name, id, controlplane.Options{
		KubeArgs: []string{"--service-node-port-range=1024-65535"},
		MeshArgs: []string{"--allow-local-peers"}, // everything is on the loopback
	})}
	c.offer(t)
	c.StartController(t)
	c.AwaitIntroduced(t)
	return c
}

// offer makes the Service for peers, and the Nodes: one that answers, and one that does not.
func (c *cluster) offer(t testing.TB) {
	t.Helper()
	address, err := url.Parse(c.Plane.Mesh.Host)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseInt(address.Port(), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Kube.CoreV1().Services(controlplane.Namespace).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "mesh-apiserver-peer"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Name: "https", Port: 443, NodePort: int32(port)}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, ip := range map[string]string{"node1": "127.0.0.1", "node2": "127.0.0.2"} {
		node, err := c.Kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
		if _, err := c.Kube.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// objects is everything of a cluster that meshctl could change, without what changes
// by itself.
func (c *cluster) objects(t testing.TB) map[string]string {
	t.Helper()
	found := map[string]string{}
	add := func(kind string, meta metav1.ObjectMeta, content any) {
		encoded, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		found[kind+"/"+meta.Name] = string(meta.UID) + " " + string(encoded)
	}
	ctx, all := t.Context(), metav1.ListOptions{}
	fail := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	accounts, err := c.Kube.CoreV1().ServiceAccounts(controlplane.Namespace).List(ctx, all)
	fail(err)
	for _, o := range accounts.Items {
		add("ServiceAccount", o.ObjectMeta, nil)
	}
	secrets, err := c.Kube.CoreV1().Secrets(controlplane.Namespace).List(ctx, all)
	fail(err)
	for _, o := range secrets.Items {
		add("Secret", o.ObjectMeta, o.Data)
	}
	bindings, err := c.Kube.RbacV1().ClusterRoleBindings().List(ctx, all)
	fail(err)
	for _, o := range bindings.Items {
		add("ClusterRoleBinding", o.ObjectMeta, o.Subjects)
	}
	roles, err := c.Kube.RbacV1().Roles(controlplane.Namespace).List(ctx, all)
	fail(err)
	for _, o := range roles.Items {
		add("Role", o.ObjectMeta, o.Rules)
	}
	roleBindings, err := c.Kube.RbacV1().RoleBindings(controlplane.Namespace).List(ctx, all)
	fail(err)
	for _, o := range roleBindings.Items {
		add("RoleBinding", o.ObjectMeta, o.Subjects)
	}
	members, err := c.Mesh.MeshV1alpha1().MeshClusters().List(ctx, all)
	fail(err)
	for _, o := range members.Items {
		add("MeshCluster", o.ObjectMeta, o.Spec)
	}
	return found
}

// same wants the objects of a cluster to be what they were.
func (c *cluster) same(t testing.TB, before map[string]string) {
	t.Helper()
	now := c.objects(t)
	for name, content := range now {
		if was, ok := before[name]; !ok {
			t.Errorf("%s: %s is left", c.Name, name)
		} else if was != content {
			t.Errorf("%s: %s has changed", c.Name, name)
		}
	}
	for name := range before {
		if _, ok := now[name]; !ok {
			t.Errorf("%s: %s is gone", c.Name, name)
		}
	}
}

// secretless checks that no token of a Secret is in what meshctl printed.
func (c *cluster) secretless(t testing.TB, results ...member.Result) {
	t.Helper()
	secrets, err := c.Kube.CoreV1().Secrets(controlplane.Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, secret := range secrets.Items {
		config, err := clientcmd.Load(secret.Data["kubeconfig"])
		if err != nil || config.AuthInfos["peer"] == nil {
			continue
		}
		token := config.AuthInfos["peer"].Token
		// The signature is what nobody else could know.
		signature := token[strings.LastIndex(token, ".")+1:]
		if len(signature) < 20 {
			t.Fatalf("Secret %s has no token", secret.Name)
		}
		checked++
		for _, r := range results {
			if strings.Contains(r.Out+r.Errs, signature) {
				t.Errorf("the token of Secret %s of %s was printed", secret.Name, c.Name)
			}
		}
	}
	if checked == 0 {
		t.Errorf("%s has no Secret with a token", c.Name)
	}
}

func writeFile(file, content string) error { return os.WriteFile(file, []byte(content), 0o600) }
