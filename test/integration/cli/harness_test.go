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
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	mesh "mesh.io/clustermesh/pkg/generated/clientset/versioned"
	"mesh.io/clustermesh/test/integration/controlplane"
)

const timeout = 30 * time.Second

// cluster is a control plane with a controller, and with a Service and a Node by which
// others reach its mesh API.
type cluster struct {
	name       string
	id         int
	plane      *controlplane.ControlPlane
	kube       kubernetes.Interface
	mesh       mesh.Interface
	controller *controlplane.Process
}

func startCluster(t testing.TB, name string, id int) *cluster {
	t.Helper()
	plane := controlplane.Start(t, controlplane.Options{
		KubeArgs: []string{"--service-node-port-range=1024-65535"},
		MeshArgs: []string{"--allow-local-peers"}, // everything is on the loopback
	})
	c := &cluster{name: name, id: id, plane: plane, kube: kubernetes.NewForConfigOrDie(plane.Kube), mesh: mesh.NewForConfigOrDie(plane.Mesh)}
	c.offer(t)
	c.startController(t, t)
	return c
}

// offer makes the Service for peers, and the Nodes: one that answers, and one that does not.
func (c *cluster) offer(t testing.TB) {
	t.Helper()
	address, err := url.Parse(c.plane.Mesh.Host)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseInt(address.Port(), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.kube.CoreV1().Services(controlplane.Namespace).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "mesh-apiserver-peer"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Name: "https", Port: 443, NodePort: int32(port)}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, ip := range map[string]string{"node1": "127.0.0.1", "node2": "127.0.0.2"} {
		node, err := c.kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
		if _, err := c.kube.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// startController runs the controller for as long as root's test, and waits until it
// has introduced the cluster.
func (c *cluster) startController(t, root testing.TB) {
	t.Helper()
	kube, direct := c.plane.ServiceAccount(t, "mesh-controller")
	c.controller = controlplane.Run(root, c.plane.Dir, controlplane.Build(t, "mesh-controller"),
		"--cluster-name="+c.name, fmt.Sprintf("--cluster-id=%d", c.id), "--kubeconfig="+c.plane.Kubeconfig(t, kube),
		"--mesh-server="+direct.Host, "--mesh-tls-server-name="+controlplane.MeshServerName, "--metrics-bind-address=", "-v=2")
	controlplane.Eventually(t, timeout, "the MeshCluster of "+c.name, func(ctx context.Context) error {
		own, err := c.mesh.MeshV1alpha1().MeshClusters().Get(ctx, c.name, metav1.GetOptions{})
		if err == nil && own.Status.UID == "" {
			err = errors.New("it has no UID yet")
		}
		return err
	})
}

// contexts writes a kubeconfig with a context for each access.
func contexts(t testing.TB, configs map[string]*rest.Config) string {
	t.Helper()
	all := clientcmdapi.NewConfig()
	for name, config := range configs {
		all.Clusters[name] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthority: config.CAFile}
		all.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificate: config.CertFile, ClientKey: config.KeyFile}
		all.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*all, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// meshctl is how the program is run. after, if not empty, is what it has to have
// printed before it is sent the signal.
type meshctl struct {
	kubeconfig string
	input      string
	signal     syscall.Signal
	after      string
}

type result struct {
	code        int
	out, errors string
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\n%s\n%s", r.code, r.out, r.errors)
}

// trigger sends a signal once a text was written.
type trigger struct {
	content bytes.Buffer
	text    string
	fire    func()
}

func (w *trigger) Write(p []byte) (int, error) {
	n, err := w.content.Write(p)
	if w.text != "" && strings.Contains(w.content.String(), w.text) {
		w.text = ""
		w.fire()
	}
	return n, err
}

func (m meshctl) run(t testing.TB, args ...string) result {
	t.Helper()
	command := exec.CommandContext(t.Context(), controlplane.Build(t, "meshctl"), append([]string{"--kubeconfig=" + m.kubeconfig}, args...)...)
	var out bytes.Buffer
	errs := &trigger{text: m.after, fire: func() { _ = command.Process.Signal(m.signal) }}
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(m.input), &out, errs
	command.Env = os.Environ()
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{command.ProcessState.ExitCode(), out.String(), errs.content.String()}
}

// want checks how meshctl ended and that it said something.
func (r result) want(t testing.TB, code int, texts ...string) {
	t.Helper()
	if r.code != code {
		t.Fatalf("want exit code %d, got %s", code, r)
	}
	for _, text := range texts {
		if !strings.Contains(r.out+r.errors, text) {
			t.Fatalf("want %q, got %s", text, r)
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
	accounts, err := c.kube.CoreV1().ServiceAccounts(controlplane.Namespace).List(ctx, all)
	fail(err)
	for _, o := range accounts.Items {
		add("ServiceAccount", o.ObjectMeta, nil)
	}
	secrets, err := c.kube.CoreV1().Secrets(controlplane.Namespace).List(ctx, all)
	fail(err)
	for _, o := range secrets.Items {
		add("Secret", o.ObjectMeta, o.Data)
	}
	bindings, err := c.kube.RbacV1().ClusterRoleBindings().List(ctx, all)
	fail(err)
	for _, o := range bindings.Items {
		add("ClusterRoleBinding", o.ObjectMeta, o.Subjects)
	}
	roles, err := c.kube.RbacV1().Roles(controlplane.Namespace).List(ctx, all)
	fail(err)
	for _, o := range roles.Items {
		add("Role", o.ObjectMeta, o.Rules)
	}
	roleBindings, err := c.kube.RbacV1().RoleBindings(controlplane.Namespace).List(ctx, all)
	fail(err)
	for _, o := range roleBindings.Items {
		add("RoleBinding", o.ObjectMeta, o.Subjects)
	}
	members, err := c.mesh.MeshV1alpha1().MeshClusters().List(ctx, all)
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
			t.Errorf("%s: %s is left", c.name, name)
		} else if was != content {
			t.Errorf("%s: %s has changed", c.name, name)
		}
	}
	for name := range before {
		if _, ok := now[name]; !ok {
			t.Errorf("%s: %s is gone", c.name, name)
		}
	}
}

// secretless checks that no token of a Secret is in what meshctl printed.
func (c *cluster) secretless(t testing.TB, results ...result) {
	t.Helper()
	secrets, err := c.kube.CoreV1().Secrets(controlplane.Namespace).List(t.Context(), metav1.ListOptions{})
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
			if strings.Contains(r.out+r.errors, signature) {
				t.Errorf("the token of Secret %s of %s was printed", secret.Name, c.name)
			}
		}
	}
	if checked == 0 {
		t.Errorf("%s has no Secret with a token", c.name)
	}
}

func writeFile(file, content string) error { return os.WriteFile(file, []byte(content), 0o600) }
