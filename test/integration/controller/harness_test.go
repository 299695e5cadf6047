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
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
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

// cluster is one cluster of the test: a control plane and a controller.
type cluster struct {
	root       testing.TB // outlives the parts, as the processes must
	name       string
	id         int32
	plane      *controlplane.ControlPlane
	kube       kubernetes.Interface
	mesh       mesh.Interface
	etcd       *clientv3.Client // of the mesh API, if that is external
	binary     string
	controller *controlplane.Process
}

// startCluster starts a control plane whose store the test can open, without the
// controller.
func startCluster(t testing.TB, name string, id int32, binary string) *cluster {
	t.Helper()
	c := startClusterOn(t, name, id, binary, controlplane.Options{ExternalMeshEtcd: true})
	c.etcd = openStore(t, c.plane.MeshEtcd)
	return c
}

// startClusterOn starts a control plane, without the controller.
func startClusterOn(t testing.TB, name string, id int32, binary string, options controlplane.Options) *cluster {
	t.Helper()
	plane := controlplane.Start(t, options)
	c := &cluster{
		root: t, name: name, id: id, plane: plane, binary: binary,
		kube: kubernetes.NewForConfigOrDie(plane.Kube), mesh: mesh.NewForConfigOrDie(plane.Mesh),
	}
	// The account that peers use. Its certificate stands for a token.
	_, err := c.kube.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "mesh-peer"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "mesh-peer"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "peer"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start starts a controller and returns it. Without more flags it becomes the
// cluster's.
func (c *cluster) start(t testing.TB, flags ...string) *controlplane.Process {
	t.Helper()
	kube, mesh := c.plane.ServiceAccount(t, "mesh-controller")
	process := controlplane.Run(c.root, c.plane.Dir, c.binary, append([]string{
		"--cluster-name=" + c.name, fmt.Sprintf("--cluster-id=%d", c.id),
		"--kubeconfig=" + c.plane.Kubeconfig(t, kube),
		"--mesh-server=" + mesh.Host, "--mesh-tls-server-name=" + controlplane.MeshServerName,
		"--metrics-bind-address=", "--keep-global-services=5s", "-v=2",
	}, flags...)...)
	c.controller = process
	return process
}

// startMesh starts the cluster's mesh API again.
func (c *cluster) startMesh(t testing.TB) {
	t.Helper()
	c.plane.StartMesh(c.root)
}

// kubeconfig is an inline kubeconfig for reaching the cluster's mesh API as a user.
func (c *cluster) kubeconfig(t testing.TB, user string) []byte {
	t.Helper()
	_, config := c.plane.User(t, user)
	return inline(t, config)
}

func inline(t testing.TB, config *rest.Config) []byte {
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
	kubeconfig := clientcmdapi.NewConfig()
	kubeconfig.Clusters["c"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData, TLSServerName: config.ServerName}
	kubeconfig.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: read(config.CertFile), ClientKeyData: read(config.KeyFile)}
	kubeconfig.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	kubeconfig.CurrentContext = "x"
	content, err := clientcmd.Write(*kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// setSecret writes the Secret with a peer's kubeconfig.
func (c *cluster) setSecret(t testing.TB, name string, kubeconfig []byte) {
	t.Helper()
	secrets := c.kube.CoreV1().Secrets(controlplane.Namespace)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{"kubeconfig": kubeconfig}}
	_, err := secrets.Update(t.Context(), secret, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = secrets.Create(t.Context(), secret, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// join makes a peer's MeshCluster here, whose Secret has the peer's name.
func (c *cluster) join(t testing.TB, name string, id int32, change ...func(*v1alpha1.MeshCluster)) {
	t.Helper()
	member := &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.MeshClusterSpec{ID: id, KubeconfigSecretRef: &v1alpha1.SecretReference{Name: name}},
	}
	for _, f := range change {
		f(member)
	}
	if _, err := c.mesh.MeshV1alpha1().MeshClusters().Create(t.Context(), member, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// leave deletes a peer's MeshCluster and waits until it is gone.
func (c *cluster) leave(t testing.TB, name string) {
	t.Helper()
	if err := c.mesh.MeshV1alpha1().MeshClusters().Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	controlplane.Eventually(t, timeout, "MeshCluster "+name+" to go", func(ctx context.Context) error {
		_, err := c.mesh.MeshV1alpha1().MeshClusters().Get(ctx, name, metav1.GetOptions{})
		return gone(err)
	})
}

// gone wants an object not to be found.
func gone(err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err == nil:
		return errors.New("it is still there")
	}
	return err
}

// change updates a peer's MeshCluster.
func (c *cluster) change(t testing.TB, name string, f func(*v1alpha1.MeshCluster)) {
	t.Helper()
	controlplane.Eventually(t, timeout, "changing MeshCluster "+name, func(ctx context.Context) error {
		member, err := c.mesh.MeshV1alpha1().MeshClusters().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		f(member)
		_, err = c.mesh.MeshV1alpha1().MeshClusters().Update(ctx, member, metav1.UpdateOptions{})
		return err
	})
}

// condition waits until a MeshCluster has a condition with a status and a reason.
func (c *cluster) condition(t testing.TB, name, kind string, status metav1.ConditionStatus, reason string) *v1alpha1.MeshCluster {
	t.Helper()
	var member *v1alpha1.MeshCluster
	controlplane.Eventually(t, timeout, fmt.Sprintf("%s=%s (%s) of %s in %s", kind, status, reason, name, c.name), func(ctx context.Context) error {
		var err error
		if member, err = c.mesh.MeshV1alpha1().MeshClusters().Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		found := meta.FindStatusCondition(member.Status.Conditions, kind)
		if found == nil || found.Status != status || reason != "" && found.Reason != reason {
			return fmt.Errorf("it is %+v", member.Status.Conditions)
		}
		return nil
	})
	return member
}

func (c *cluster) namespace(t testing.TB, name string, annotations map[string]string) {
	t.Helper()
	_, err := c.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

var global = map[string]string{"mesh.io/global": "true"}

// service makes a Service without a selector.
func (c *cluster) service(t testing.TB, namespace, name string, annotations map[string]string, change ...func(*corev1.Service)) *corev1.Service {
	t.Helper()
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: annotations},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{
			Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8181),
		}}},
	}
	for _, f := range change {
		f(service)
	}
	made, err := c.kube.CoreV1().Services(namespace).Create(t.Context(), service, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// slice makes an EndpointSlice as the EndpointSlice controller would.
func (c *cluster) slice(t testing.TB, namespace, service, name string, addresses ...string) *discoveryv1.EndpointSlice {
	t.Helper()
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{
			discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io",
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8181), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	for _, address := range addresses {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{address}, Zone: ptr.To("z1"), NodeName: ptr.To("n1")})
	}
	made, err := c.kube.DiscoveryV1().EndpointSlices(namespace).Create(t.Context(), slice, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// addresses lists what is imported of a service from a cluster.
func (c *cluster) addresses(ctx context.Context, namespace, service, from string) (map[string]bool, error) {
	list, err := c.mesh.MeshV1alpha1().ImportedEndpointSlices(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: v1alpha1.LabelServiceName + "=" + service + "," + v1alpha1.LabelCluster + "=" + from,
	})
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for _, slice := range list.Items {
		for _, endpoint := range slice.Spec.Endpoints {
			found[endpoint.Address] = true
		}
	}
	return found, nil
}

// imports waits until exactly these addresses are imported.
func (c *cluster) imports(t testing.TB, namespace, service, from string, want ...string) {
	t.Helper()
	controlplane.Eventually(t, timeout, fmt.Sprintf("%s of %s/%s from %s in %s", want, namespace, service, from, c.name), func(ctx context.Context) error {
		return c.hasImported(ctx, namespace, service, from, want...)
	})
}

func (c *cluster) hasImported(ctx context.Context, namespace, service, from string, want ...string) error {
	found, err := c.addresses(ctx, namespace, service, from)
	if err != nil {
		return err
	}
	if len(found) != len(want) {
		return fmt.Errorf("there are %v", found)
	}
	for _, address := range want {
		if !found[address] {
			return fmt.Errorf("there are %v", found)
		}
	}
	return nil
}

// stays checks for a while that exactly these addresses stay imported.
func (c *cluster) stays(t testing.TB, d time.Duration, namespace, service, from string, want ...string) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err := c.hasImported(t.Context(), namespace, service, from, want...); err != nil {
			t.Fatalf("%v of %s/%s from %s should stay: %v", want, namespace, service, from, err)
		}
	}
}

// event waits for an Event about an object.
func (c *cluster) event(t testing.TB, kind, namespace, name, reason, text string) {
	t.Helper()
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	controlplane.Eventually(t, timeout, fmt.Sprintf("Event %s about %s %s/%s", reason, kind, namespace, name), func(ctx context.Context) error {
		events, err := c.kube.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var seen []string
		for _, event := range events.Items {
			if event.InvolvedObject.Kind == kind && event.InvolvedObject.Name == name {
				if event.Reason == reason && strings.Contains(event.Message, text) {
					return nil
				}
				seen = append(seen, event.Reason+": "+event.Message)
			}
		}
		return fmt.Errorf("there are %q", seen)
	})
}

// globalService waits until a GlobalService fulfils a condition.
func (c *cluster) globalService(t testing.TB, namespace, name string, check func(*v1alpha1.GlobalService) error) *v1alpha1.GlobalService {
	t.Helper()
	var found *v1alpha1.GlobalService
	controlplane.Eventually(t, timeout, fmt.Sprintf("GlobalService %s/%s in %s", namespace, name, c.name), func(ctx context.Context) error {
		var err error
		if found, err = c.mesh.MeshV1alpha1().GlobalServices(namespace).Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		if err := check(found); err != nil {
			return fmt.Errorf("%w: %+v", err, found.Status)
		}
		return nil
	})
	return found
}

func (c *cluster) annotate(t testing.TB, namespace, name, annotations string) {
	t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"annotations":%s}}`, annotations)
	if _, err := c.kube.CoreV1().Services(namespace).Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// build builds the controller, with MESH_BIN_DIR as the folder where it may be already.
func build(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("MESH_BIN_DIR"); dir != "" {
		if path := filepath.Join(dir, "mesh-controller"); exec.Command(path, "--version").Run() == nil {
			return path
		}
	}
	return controlplane.Build(t, "mesh-controller")
}
