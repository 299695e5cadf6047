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

package preflight

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

func node(name, kernel string) corev1.Node {
	return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
		NodeInfo:   corev1.NodeSystemInfo{KernelVersion: kernel, OperatingSystem: "linux"},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
	}}
}

func member(name string, id int32, local bool, uid string) v1alpha1.MeshCluster {
	m := v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MeshClusterSpec{ID: id}, Status: v1alpha1.MeshClusterStatus{UID: uid}}
	if !local {
		m.Spec.KubeconfigSecretRef = &v1alpha1.SecretReference{Name: "mesh-peer-" + name}
	}
	return m
}

func registration(namespace, service string) apiregistrationv1.APIService {
	s := apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: "v1alpha1.mesh.io"}, Spec: apiregistrationv1.APIServiceSpec{Group: "mesh.io", Version: "v1alpha1"}}
	if service != "" {
		s.Spec.Service = &apiregistrationv1.ServiceReference{Namespace: namespace, Name: service}
	}
	return s
}

func TestChecks(t *testing.T) {
	now := metav1.Now()
	for name, c := range map[string]struct {
		change func(*Facts)
		check  string
		level  Level
		says   string
	}{
		"a name that is none":         {func(f *Facts) { f.Wanted.Name = "Cluster_1" }, "identity", Problem, "no name for a cluster"},
		"the name default":            {func(f *Facts) { f.Wanted.Name = "default" }, "identity", Problem, "could be called so"},
		"an ID that is none":          {func(f *Facts) { f.Wanted.ID = 65536 }, "identity", Problem, "from 1 to 65535"},
		"an old Kubernetes":           {func(f *Facts) { f.Kubernetes = "v1.29.6" }, "Kubernetes version", Problem, "needs 1.30 or newer"},
		"a Kubernetes of a provider":  {func(f *Facts) { f.Kubernetes = "v1.33.1-gke.100" }, "Kubernetes version", Good, "v1.33.1-gke.100"},
		"a missing permission":        {func(f *Facts) { f.Denied = "create clusterroles" }, "permissions", Problem, "you may not create clusterroles"},
		"an old kernel, named":        {func(f *Facts) { f.Nodes = append(f.Nodes, node("n2", "4.18.0-477.el8.x86_64")) }, "nodes' kernels", Problem, "1 of 2 nodes have a kernel older than 5.10: n2 (4.18.0-477.el8.x86_64)"},
		"a node that is not ready":    {func(f *Facts) { f.Nodes[0].Status.Conditions = nil }, "nodes", Note, "1 of 1 nodes are not ready: n1"},
		"a kind that is not there":    {func(f *Facts) { f.NoAPI = []string{"ServiceMonitor (monitoring.coreos.com/v1)"} }, "kinds of objects", Problem, "ServiceMonitor (monitoring.coreos.com/v1)"},
		"a port that is taken":        {func(f *Facts) { f.PeerPort, f.PortTakenBy = 32443, "web/ingress" }, "port for the peers", Problem, "port 32443 of the nodes, for the peers, belongs to Service web/ingress"},
		"a stranger of our name":      {func(f *Facts) { f.Strangers = []string{"clusterrole mesh-view"} }, "objects of the same name", Problem, "clusterrole mesh-view"},
		"a kernel of exactly 5.10":    {func(f *Facts) { f.Nodes = []corev1.Node{node("n", "5.10.0-8-amd64")} }, "nodes' kernels", Good, "1 nodes"},
		"a kernel nobody understands": {func(f *Facts) { f.Nodes[0].Status.NodeInfo.KernelVersion = "custom" }, "nodes' kernels", Note, `n1 ("custom")`},
		"an old kernel of Windows": {func(f *Facts) {
			f.Nodes = append(f.Nodes, node("w", "4.0"))
			f.Nodes[1].Status.NodeInfo.OperatingSystem = "windows"
		}, "nodes' kernels", Good, "1 nodes"},
		"a foreign API":                          {func(f *Facts) { f.APIServices = append(f.APIServices, registration("other", "api")) }, "API group mesh.io", Problem, "served by Service other/api"},
		"an API of a CustomResourceDefinition":   {func(f *Facts) { f.APIServices = append(f.APIServices, registration("", "")) }, "API group mesh.io", Problem, "CustomResourceDefinition"},
		"our own API":                            {func(f *Facts) { f.APIServices = append(f.APIServices, registration("mesh-system", "mesh-apiserver")) }, "API group mesh.io", Good, ""},
		"CustomResourceDefinitions of the group": {func(f *Facts) { f.CustomResources = []string{"things.mesh.io"} }, "API group mesh.io", Problem, "things.mesh.io"},
		"a namespace that is going": {func(f *Facts) {
			f.NamespaceObject = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}}
		}, "namespace", Problem, "is being deleted"},
		"a namespace that lets no agent run": {func(f *Facts) {
			f.NamespaceObject = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}}
		}, "namespace", Problem, "only restricted pods"},
		"the same installation":  {func(f *Facts) { f.Installed, f.InstalledBy = &Identity{"cluster1", 1}, "meshctl" }, "existing installation", Good, "the same"},
		"another identity":       {func(f *Facts) { f.Installed, f.InstalledBy = &Identity{"old", 1}, "meshctl" }, "existing installation", Problem, "as old with the ID 1"},
		"installed by manifests": {func(f *Facts) { f.Installed, f.InstalledBy = &Identity{"cluster1", 1}, "manifests" }, "existing installation", Problem, "not by meshctl or Helm"},
		"the ID of a peer":       {func(f *Facts) { f.Members = []v1alpha1.MeshCluster{member("cluster2", 1, false, "u2")} }, "taken names and IDs", Problem, "the ID 1 is taken"},
		"the name of another cluster of the mesh": {func(f *Facts) {
			f.Others = []Other{{Context: "c2", Members: []v1alpha1.MeshCluster{member("cluster1", 9, true, "u9")}}}
		}, "taken names and IDs", Problem, "the name cluster1 is taken"},
		"another cluster knows this one": {func(f *Facts) {
			f.Others = []Other{{Context: "c2", Members: []v1alpha1.MeshCluster{member("cluster1", 1, false, "u1")}}}
		}, "taken names and IDs", Good, ""},
		"another cluster knows this one as another": {func(f *Facts) {
			f.Others = []Other{{Context: "c2", Members: []v1alpha1.MeshCluster{member("x", 7, false, "u1")}}}
		}, "taken names and IDs", Problem, "this cluster as x with the ID 7"},
		"another cluster that does not answer": {func(f *Facts) { f.Others = []Other{{Context: "c2", Error: "refused"}} }, "taken names and IDs", Problem, "could not be asked: refused"},
		"no default StorageClass":              {func(f *Facts) { f.NeedsVolume = true }, "volume for the store", Problem, "no default StorageClass"},
		"a StorageClass that is not there":     {func(f *Facts) { f.NeedsVolume, f.StorageClass = true, "fast" }, "volume for the store", Problem, "no StorageClass fast"},
		"StorageClasses that may not be read":  {func(f *Facts) { f.NeedsVolume, f.StorageError = true, "forbidden" }, "volume for the store", Note, "forbidden"},
		"a default StorageClass": {func(f *Facts) {
			f.NeedsVolume = true
			f.StorageClasses = []storagev1.StorageClass{{ObjectMeta: metav1.ObjectMeta{Name: "std", Annotations: map[string]string{defaultClass: "true"}}}}
		}, "volume for the store", Good, "std"},
		"Cilium's cluster mesh": {func(f *Facts) { f.CiliumMesh = true }, "Cilium", Note, "left to it"},
	} {
		f := &Facts{Wanted: Identity{"cluster1", 1}, Namespace: "mesh-system", Kubernetes: "v1.37.2", Nodes: []corev1.Node{node("n1", "6.1.0")}, UID: "u1"}
		c.change(f)
		findings := Run(f)
		for _, found := range findings {
			if found.Level != Good && (found.Check != c.check || found.Do == "") {
				t.Errorf("%s: also %+v", name, found)
			}
			if found.Check == c.check && (found.Level != c.level || !strings.Contains(found.Message, c.says)) {
				t.Errorf("%s: got %s: %s", name, found.Level, found.Message)
			}
		}
		if Failed(findings) != (c.level == Problem) {
			t.Errorf("%s: failed is %t", name, Failed(findings))
		}
	}
}

func TestExcuse(t *testing.T) {
	findings := []Finding{{Check: "nodes' kernels", Level: Problem}, {Check: "permissions", Level: Problem}}
	if err := Excuse(findings, []string{"nodes' kernels"}); err != nil || findings[0].Level != Note || findings[1].Level != Problem {
		t.Errorf("got %v, %v", findings, err)
	}
	if err := Excuse(findings, []string{"weather"}); err == nil || !strings.Contains(err.Error(), `"permissions"`) {
		t.Errorf("an unknown check: %v", err)
	}
}
