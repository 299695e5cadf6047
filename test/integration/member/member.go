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

// Package member runs members of a mesh for a test: a control plane with this module's
// mesh-controller, and what two of them need to be connected. It also runs meshctl.
//
//	one, two := member.Start(t, "cluster1", 1, options), member.Start(t, "cluster2", 2, options)
//	one.StartController(t)
//	two.StartController(t)
//	one.Import(t, two)
package member

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

// Timeout is how long is waited for what a controller does.
const Timeout = 30 * time.Second

// Global is the annotation that makes a Service global.
var Global = map[string]string{"mesh.io/global": "true"}

// Cluster is a member of a mesh.
type Cluster struct {
	Name  string
	ID    int32
	Plane *controlplane.ControlPlane
	// Kube and Mesh are an administrator's access.
	Kube kubernetes.Interface
	Mesh mesh.Interface
	// Controller is the one that was started last.
	Controller *controlplane.Process

	root testing.TB // outlives the parts of a test, as the processes must
}

// Start runs a control plane, without the controller.
func Start(t testing.TB, name string, id int32, options controlplane.Options) *Cluster {
	t.Helper()
	plane := controlplane.Start(t, options)
	return &Cluster{
		root: t, Name: name, ID: id, Plane: plane,
		Kube: kubernetes.NewForConfigOrDie(plane.Kube), Mesh: mesh.NewForConfigOrDie(plane.Mesh),
	}
}

// As is the same control plane by another name or ID.
func (c *Cluster) As(name string, id int32) *Cluster {
	other := *c
	other.Name, other.ID, other.Controller = name, id, nil
	return &other
}

// StartController runs a controller until the test ends that the cluster was started in,
// and returns it.
func (c *Cluster) StartController(t testing.TB, flags ...string) *controlplane.Process {
	t.Helper()
	kube, mesh := c.Plane.ServiceAccount(t, "mesh-controller")
	c.Controller = controlplane.Run(c.root, c.Plane.Dir, controlplane.Build(t, "mesh-controller"), append([]string{
		"--cluster-name=" + c.Name, fmt.Sprintf("--cluster-id=%d", c.ID), "--kubeconfig=" + c.Plane.Kubeconfig(t, kube),
		"--mesh-server=" + mesh.Host, "--mesh-tls-server-name=" + controlplane.MeshServerName,
		"--metrics-bind-address=", "-v=2",
	}, flags...)...)
	return c.Controller
}

// StartMesh runs the mesh API again.
func (c *Cluster) StartMesh(t testing.TB) {
	t.Helper()
	c.Plane.StartMesh(c.root)
}

// AwaitIntroduced waits until the controller has introduced the cluster.
func (c *Cluster) AwaitIntroduced(t testing.TB) {
	t.Helper()
	controlplane.Eventually(t, Timeout, "the MeshCluster of "+c.Name, func(ctx context.Context) error {
		own, err := c.Mesh.MeshV1alpha1().MeshClusters().Get(ctx, c.Name, metav1.GetOptions{})
		if err == nil && own.Status.UID == "" {
			err = errors.New("it has no UID yet")
		}
		return err
	})
}

// LetPeersIn lets the user "peer" read what the cluster exports. Its certificate stands
// for a token.
func (c *Cluster) LetPeersIn(t testing.TB) {
	t.Helper()
	_, err := c.Kube.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "mesh-peer"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "mesh-peer"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "peer"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// Kubeconfig is a kubeconfig for reaching the cluster's mesh API as a user.
func (c *Cluster) Kubeconfig(t testing.TB, user string) []byte {
	t.Helper()
	_, config := c.Plane.User(t, user)
	return Inline(t, config)
}

// Inline is a kubeconfig with one context, and everything in it.
func Inline(t testing.TB, config *rest.Config) []byte {
	t.Helper()
	content, err := clientcmd.Write(*contexts(t, map[string]*rest.Config{"x": config}))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// Contexts writes a kubeconfig with a context for each access, and returns its path. The
// first of the names is the current one.
func Contexts(t testing.TB, configs map[string]*rest.Config, current ...string) string {
	t.Helper()
	all := contexts(t, configs)
	if len(current) > 0 {
		all.CurrentContext = current[0]
	}
	file := t.TempDir() + "/kubeconfig"
	if err := clientcmd.WriteToFile(*all, file); err != nil {
		t.Fatal(err)
	}
	return file
}

func contexts(t testing.TB, configs map[string]*rest.Config) *clientcmdapi.Config {
	t.Helper()
	read := func(data []byte, file string) []byte {
		if len(data) > 0 || file == "" {
			return data
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	all := clientcmdapi.NewConfig()
	for name, config := range configs {
		all.Clusters[name] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: read(config.CAData, config.CAFile), TLSServerName: config.ServerName}
		all.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: read(config.CertData, config.CertFile), ClientKeyData: read(config.KeyData, config.KeyFile), Token: config.BearerToken}
		all.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
		if len(configs) == 1 {
			all.CurrentContext = name
		}
	}
	return all
}

// Import makes the cluster import what another one exports, and waits until it is in
// sync. LetPeersIn must have been called there.
func (c *Cluster) Import(t testing.TB, other *Cluster) {
	t.Helper()
	c.SetSecret(t, other.Name, other.Kubeconfig(t, "peer"))
	c.Join(t, other.Name, other.ID)
	c.AwaitCondition(t, other.Name, v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "")
}

// SetSecret writes the Secret with a peer's kubeconfig.
func (c *Cluster) SetSecret(t testing.TB, name string, kubeconfig []byte) {
	t.Helper()
	secrets := c.Kube.CoreV1().Secrets(controlplane.Namespace)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{"kubeconfig": kubeconfig}}
	_, err := secrets.Update(t.Context(), secret, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = secrets.Create(t.Context(), secret, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Join makes a peer's MeshCluster here, whose Secret has the peer's name.
func (c *Cluster) Join(t testing.TB, name string, id int32, change ...func(*v1alpha1.MeshCluster)) {
	t.Helper()
	member := &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.MeshClusterSpec{ID: id, KubeconfigSecretRef: &v1alpha1.SecretReference{Name: name}},
	}
	for _, f := range change {
		f(member)
	}
	if _, err := c.Mesh.MeshV1alpha1().MeshClusters().Create(t.Context(), member, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// Leave deletes a peer's MeshCluster and waits until it is gone.
func (c *Cluster) Leave(t testing.TB, name string) {
	t.Helper()
	if err := c.Mesh.MeshV1alpha1().MeshClusters().Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	controlplane.Eventually(t, Timeout, "MeshCluster "+name+" to go", func(ctx context.Context) error {
		_, err := c.Mesh.MeshV1alpha1().MeshClusters().Get(ctx, name, metav1.GetOptions{})
		return Gone(err)
	})
}

// Gone wants an object not to be found.
func Gone(err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err == nil:
		return errors.New("it is still there")
	}
	return err
}

// Change updates a peer's MeshCluster.
func (c *Cluster) Change(t testing.TB, name string, f func(*v1alpha1.MeshCluster)) {
	t.Helper()
	controlplane.Eventually(t, Timeout, "changing MeshCluster "+name, func(ctx context.Context) error {
		member, err := c.Mesh.MeshV1alpha1().MeshClusters().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		f(member)
		_, err = c.Mesh.MeshV1alpha1().MeshClusters().Update(ctx, member, metav1.UpdateOptions{})
		return err
	})
}

// AwaitCondition waits until a MeshCluster has a condition with a status and a reason.
func (c *Cluster) AwaitCondition(t testing.TB, name, kind string, status metav1.ConditionStatus, reason string) *v1alpha1.MeshCluster {
	t.Helper()
	var member *v1alpha1.MeshCluster
	controlplane.Eventually(t, Timeout, fmt.Sprintf("%s=%s (%s) of %s in %s", kind, status, reason, name, c.Name), func(ctx context.Context) error {
		var err error
		if member, err = c.Mesh.MeshV1alpha1().MeshClusters().Get(ctx, name, metav1.GetOptions{}); err != nil {
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

// MakeNamespace makes a namespace, if there is none of that name.
func (c *Cluster) MakeNamespace(t testing.TB, name string, annotations map[string]string) {
	t.Helper()
	_, err := c.Kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// MakeService makes a Service without a selector.
func (c *Cluster) MakeService(t testing.TB, namespace, name string, annotations map[string]string, change ...func(*corev1.Service)) *corev1.Service {
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
	made, err := c.Kube.CoreV1().Services(namespace).Create(t.Context(), service, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// MakeSlice makes an EndpointSlice as the EndpointSlice controller would.
func (c *Cluster) MakeSlice(t testing.TB, namespace, service, name string, addresses ...string) *discoveryv1.EndpointSlice {
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
	made, err := c.Kube.DiscoveryV1().EndpointSlices(namespace).Create(t.Context(), slice, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}
