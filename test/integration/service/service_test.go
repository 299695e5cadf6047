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
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	mesh "mesh.io/clustermesh/pkg/generated/clientset/versioned"
	"mesh.io/clustermesh/test/integration/controlplane"
)

const timeout = 30 * time.Second

type cluster struct {
	name  string
	id    int
	plane *controlplane.ControlPlane
	kube  kubernetes.Interface
	mesh  mesh.Interface
}

func start(t *testing.T, name string, id int) *cluster {
	t.Helper()
	plane := controlplane.Start(t, controlplane.Options{})
	c := &cluster{name: name, id: id, plane: plane, kube: kubernetes.NewForConfigOrDie(plane.Kube), mesh: mesh.NewForConfigOrDie(plane.Mesh)}
	if _, err := c.kube.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "mesh-peer"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "mesh-peer"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "peer"}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	kube, mesh := plane.ServiceAccount(t, "mesh-controller")
	controlplane.Run(t, plane.Dir, controlplane.Build(t, "mesh-controller"),
		"--cluster-name="+name, fmt.Sprintf("--cluster-id=%d", id), "--kubeconfig="+plane.Kubeconfig(t, kube),
		"--mesh-server="+mesh.Host, "--mesh-tls-server-name="+controlplane.MeshServerName, "--metrics-bind-address=")
	if _, err := c.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "song"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return c
}

// add adds a way to a cluster to a kubeconfig, with everything inline.
func add(t *testing.T, to *clientcmdapi.Config, name string, config *rest.Config) {
	t.Helper()
	read := func(file string) []byte {
		if file == "" {
			return nil
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	ca := config.CAData
	if len(ca) == 0 {
		ca = read(config.CAFile)
	}
	to.Clusters[name] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: ca, TLSServerName: config.ServerName}
	to.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: read(config.CertFile), ClientKeyData: read(config.KeyFile)}
	to.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	to.CurrentContext = name
}

// connect makes a cluster import what another exports.
func (c *cluster) connect(t *testing.T, other *cluster) {
	t.Helper()
	_, config := other.plane.User(t, "peer")
	kubeconfig := clientcmdapi.NewConfig()
	add(t, kubeconfig, other.name, config)
	content, err := clientcmd.Write(*kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.kube.CoreV1().Secrets(controlplane.Namespace).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: other.name}, Data: map[string][]byte{"kubeconfig": content},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.mesh.MeshV1alpha1().MeshClusters().Create(t.Context(), &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: other.name},
		Spec:       v1alpha1.MeshClusterSpec{ID: int32(other.id), KubeconfigSecretRef: &v1alpha1.SecretReference{Name: other.name}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	controlplane.Eventually(t, timeout, other.name+" is in sync in "+c.name, func(ctx context.Context) error {
		member, err := c.mesh.MeshV1alpha1().MeshClusters().Get(ctx, other.name, metav1.GetOptions{})
		if err == nil && !meta.IsStatusConditionTrue(member.Status.Conditions, v1alpha1.MeshClusterSynced) {
			err = fmt.Errorf("its conditions are %v", member.Status.Conditions)
		}
		return err
	})
}

// service makes a global Service with one ready endpoint.
func (c *cluster) service(t *testing.T, address string) {
	t.Helper()
	if _, err := c.kube.CoreV1().Services("song").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "userlist-svc", Annotations: map[string]string{"mesh.io/global": "true"}},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.kube.DiscoveryV1().EndpointSlices("song").Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "userlist-1", Labels: map[string]string{
			discoveryv1.LabelServiceName: "userlist-svc", discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io",
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8181), Protocol: ptr.To(corev1.ProtocolTCP)}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// meshctl runs the program on both clusters.
type meshctl struct{ binary, kubeconfig string }

func (m meshctl) run(t *testing.T, args ...string) (out, errOut string, code int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(t.Context(), m.binary, args...)
	command.Env = append(os.Environ(), "KUBECONFIG="+m.kubeconfig)
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	t.Logf("meshctl %s (%d)\n%s%s", strings.Join(args, " "), command.ProcessState.ExitCode(), &stdout, &stderr)
	return stdout.String(), stderr.String(), command.ProcessState.ExitCode()
}

// says runs meshctl and wants an exit code, and words in what it prints.
func (m meshctl) says(t *testing.T, code int, words []string, args ...string) {
	t.Helper()
	out, errOut, got := m.run(t, args...)
	if got != code {
		t.Errorf("meshctl %s: exit code %d, not %d", strings.Join(args, " "), got, code)
	}
	plain := strings.Join(strings.Fields(out+errOut), " ")
	for _, word := range words {
		if !strings.Contains(plain, word) {
			t.Errorf("meshctl %s does not say %q", strings.Join(args, " "), word)
		}
	}
}

func TestService(t *testing.T) {
	controlplane.Binary(t, "kube-apiserver") // skips before anything is built
	one, two := start(t, "cluster1", 1), start(t, "cluster2", 2)
	for _, c := range []*cluster{one, two} {
		controlplane.Eventually(t, timeout, "the controller of "+c.name+" works", func(ctx context.Context) error {
			_, err := c.mesh.MeshV1alpha1().MeshClusters().Get(ctx, c.name, metav1.GetOptions{})
			return err
		})
	}
	kubeconfig := clientcmdapi.NewConfig()
	add(t, kubeconfig, "ctx2", two.plane.Kube)
	add(t, kubeconfig, "ctx1", one.plane.Kube)
	m := meshctl{controlplane.Build(t, "meshctl"), filepath.Join(t.TempDir(), "config")}
	if err := clientcmd.WriteToFile(*kubeconfig, m.kubeconfig); err != nil {
		t.Fatal(err)
	}
	both := "--contexts=ctx1,ctx2"
	explain := []string{"service", "explain", "song/userlist-svc", "--from=cluster1/node1", both}

	m.says(t, 0, []string{"There is no global service in any namespace."}, "service", "list", "-A")
	m.says(t, 1, []string{"there is no service song/userlist-svc in ctx1, ctx2"}, "service", "get", "song/userlist-svc", both)
	one.service(t, "10.1.1.4")
	m.says(t, 3, []string{"First broken: export in cluster2: there is no Service song/userlist-svc in cluster2"}, explain...)
	two.service(t, "10.2.1.4")
	controlplane.Eventually(t, timeout, "cluster2 exports it", func(ctx context.Context) error {
		_, err := two.mesh.MeshV1alpha1().ExportedServices("song").Get(ctx, "userlist-svc", metav1.GetOptions{})
		return err
	})
	m.says(t, 3, []string{"First broken: peer of cluster2 in cluster1: cluster1 has no MeshCluster cluster2", "meshctl connect --context ctx1 --destination-context ctx2"}, explain...)

	one.connect(t, two)
	two.connect(t, one)
	for _, c := range []*cluster{one, two} {
		controlplane.Eventually(t, timeout, c.name+" has both", func(ctx context.Context) error {
			g, err := c.mesh.MeshV1alpha1().GlobalServices("song").Get(ctx, "userlist-svc", metav1.GetOptions{})
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
		m.says(t, 0, []string{"NAMESPACE NAME CLUSTERS BACKENDS LOCAL REMOTE AFFINITY SHARED song userlist-svc 2/2 2/2 1/1 1/1 None true"}, "service", "list", "-n", "song", "--context=ctx1")
		m.says(t, 0, []string{"song userlist-svc cluster1 2/2 2/2 1/1 1/1 None true song userlist-svc cluster2 2/2"}, "service", "list", "-A", both)
		m.says(t, 0, []string{"in namespace default; -A lists all namespaces"}, "service", "list")
		out, _, _ := m.run(t, "service", "list", "-A", both, "-o", "json")
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
		m.says(t, 0, []string{
			"In cluster1 (context ctx1):", `Takes part: yes: mesh.io/global: "true" on the Service`, "Affinity: None (default)",
			"cluster1 1/1 100 0 this cluster", "cluster2 1/1 100 0 synced", "Ready=True (BackendsReady", "In cluster2 (context ctx2):",
		}, "service", "get", "song/userlist-svc", both)
	})
	t.Run("explain", func(t *testing.T) {
		// Everything is in order but for the node, which there is none of.
		m.says(t, 3, []string{
			"ok export cluster2 1/1 endpoints ready, in 1 slice", "ok peer cluster1 < cluster2 connected and in sync", "ok import cluster1 < cluster2 1/1 endpoints ready",
			"ok merge", "First broken: agent in cluster1: cluster1 has no node node1",
		}, explain...)
		m.says(t, 2, []string{"--from names cluster \"cluster9\""}, "service", "explain", "song/userlist-svc", "--from=cluster9/node1", both)
		annotate(t, two, "no")
		m.says(t, 3, []string{`First broken: export in cluster2: not global there: mesh.io/global: "no" on the Service means nothing`}, explain...)
		annotate(t, two, "true")
		// What the peer says of itself stays unknown without its context.
		m.says(t, 3, []string{"no context of cluster2 was given"}, explain[:4]...)
	})
	t.Run("drain", func(t *testing.T) {
		// Somebody else's entry, and an own one with more than the weight.
		patch(t, one, `{"spec":{"clusters":[{"name":"cluster1","weight":70},{"name":"cluster2","weight":30,"priority":4}]}}`)
		m.says(t, 0, []string{"cluster1 70", "cluster2 30 -> 0", "No node has an agent."}, "service", "drain", "song/userlist-svc", "--cluster=cluster2")
		spec(t, one, `{"clusters":[{"name":"cluster1","weight":70},{"name":"cluster2","weight":0,"priority":4}]}`)
		m.says(t, 0, []string{"it was so already"}, "service", "drain", "song/userlist-svc", "--cluster=cluster2")
		m.says(t, 3, []string{"broken share cluster1 < cluster2 weight 0 (spec)", "First broken: share of cluster2 in cluster1", "service drain song/userlist-svc --context ctx1 --cluster cluster2 --undo"}, explain...)
		m.says(t, 0, []string{"cluster2 0 -> 30"}, "service", "drain", "song/userlist-svc", "--cluster=cluster2", "--undo")
		spec(t, one, `{"clusters":[{"name":"cluster1","weight":70},{"name":"cluster2","weight":30,"priority":4}]}`)
		m.says(t, 2, []string{`cluster1 knows no cluster "cluster7": it has cluster1, cluster2`}, "service", "drain", "song/userlist-svc", "--cluster=cluster7")
		m.says(t, 1, []string{"cluster1 has no global service song/nothing"}, "service", "drain", "song/nothing", "--cluster=cluster2")
	})
	t.Run("weight", func(t *testing.T) {
		m.says(t, 0, []string{"cluster2 30 -> 7"}, "service", "weight", "song/userlist-svc", "--cluster=cluster2", "7")
		m.says(t, 0, []string{"changed; not waited for"}, "service", "weight", "song/userlist-svc", "--cluster=cluster1", "--unset", "--no-wait")
		spec(t, one, `{"clusters":[{"name":"cluster2","weight":7,"priority":4}]}`)
	})
	t.Run("affinity", func(t *testing.T) {
		m.says(t, 0, []string{"for clients of cluster1: Affinity: None (default) -> Local (spec)", "for clients of cluster2: Affinity: None (default) -> Local (spec)"}, "service", "affinity", "song/userlist-svc", "local", both)
		spec(t, two, `{"affinity":"Local"}`)
		m.says(t, 0, []string{"Local (spec) -> None (default)"}, "service", "affinity", "song/userlist-svc", "--unset", both)
		spec(t, two, `{}`)
	})
	t.Run("a person without rights", func(t *testing.T) {
		nobody := clientcmdapi.NewConfig()
		config, _ := one.plane.User(t, "nobody")
		add(t, nobody, "ctx1", config)
		n := meshctl{m.binary, filepath.Join(t.TempDir(), "config")}
		if err := clientcmd.WriteToFile(*nobody, n.kubeconfig); err != nil {
			t.Fatal(err)
		}
		n.says(t, 1, []string{"listing global services of ctx1", "forbidden"}, "service", "list", "-A")
		n.says(t, 1, []string{"forbidden"}, "service", "drain", "song/userlist-svc", "--cluster=cluster2")
		// It is known that nothing is known: no link is said to be broken that is not seen.
		n.says(t, 2, []string{"--from names cluster"}, "service", "explain", "song/userlist-svc", "--from=cluster1/node1")
		n.says(t, 0, []string{"unknown annotation", "No link is broken as far as could be seen"}, "service", "explain", "song/userlist-svc", "--from=ctx1/node1", "--to=cluster2")
	})
	t.Run("completion", func(t *testing.T) {
		m.says(t, 0, []string{"song/userlist-svc"}, "__complete", "service", "get", "--context=ctx1", "")
		m.says(t, 0, []string{"cluster1 cluster2"}, "__complete", "service", "drain", "song/userlist-svc", "--context=ctx1", "--cluster", "")
	})
	t.Run("a cluster that is gone", func(t *testing.T) {
		two.plane.KubeAPIServer.Kill()
		m.says(t, 1, []string{"song userlist-svc cluster1 2/2", "listing global services of ctx2"}, "service", "list", "-A", both)
		m.says(t, 3, []string{"First broken: agent in cluster1"}, explain...)
		m.says(t, 1, []string{"for clients of cluster1: Affinity: None (default) -> Remote (spec)", "of ctx2 does not answer"}, "service", "affinity", "song/userlist-svc", "Remote", both)
	})
}

// annotate sets the annotation that makes the Service global, and waits for the export.
func annotate(t *testing.T, c *cluster, value string) {
	t.Helper()
	change := fmt.Sprintf(`{"metadata":{"annotations":{"mesh.io/global":%q}}}`, value)
	if _, err := c.kube.CoreV1().Services("song").Patch(t.Context(), "userlist-svc", types.MergePatchType, []byte(change), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	controlplane.Eventually(t, timeout, "the export of "+c.name+" follows", func(ctx context.Context) error {
		list, err := c.mesh.MeshV1alpha1().ExportedServices("song").List(ctx, metav1.ListOptions{})
		if err == nil && (len(list.Items) == 1) != (value == "true") {
			err = fmt.Errorf("%d are exported", len(list.Items))
		}
		return err
	})
}

func patch(t *testing.T, c *cluster, patch string) {
	t.Helper()
	if _, err := c.mesh.MeshV1alpha1().GlobalServices("song").Patch(t.Context(), "userlist-svc", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// spec wants a spec of the GlobalService.
func spec(t *testing.T, c *cluster, want string) {
	t.Helper()
	g, err := c.mesh.MeshV1alpha1().GlobalServices("song").Get(t.Context(), "userlist-svc", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := json.Marshal(g.Spec); err != nil || string(got) != want {
		t.Errorf("the spec in %s is %s, not %s", c.name, got, want)
	}
}
