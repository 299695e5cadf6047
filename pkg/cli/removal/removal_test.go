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

package removal

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"mesh.io/clustermesh/artifacts/chart"
)

// Every object of the chart has to be found again, by what it is called or labelled.
func TestEverythingOfTheChartIsFound(t *testing.T) {
	files, err := chart.Render(map[string]any{
		"cluster":        map[string]any{"name": "c", "id": 1},
		"serviceMonitor": map[string]any{"enabled": true, "prometheus": map[string]any{"serviceAccountName": "p", "namespace": "m"}},
	}, "mesh-system", nil)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{"apiservices": true} // removed first, by itself
	for _, k := range Kinds {
		kinds[k.Resource] = true
	}
	objects := 0
	for _, f := range files {
		if strings.HasSuffix(f.Name, ".txt") {
			continue
		}
		for document := range strings.SplitSeq(f.Content, "\n---") {
			var o unstructured.Unstructured
			if err := yaml.Unmarshal([]byte(document), &o.Object); err != nil {
				t.Fatalf("%s: %v", f.Name, err)
			}
			if o.Object == nil {
				continue
			}
			objects++
			resource := strings.ReplaceAll(strings.ToLower(o.GetKind())+"s", "policys", "policies")
			if !kinds[resource] {
				t.Errorf("%s: no %s are looked for", f.Name, resource)
			}
			if resource != "apiservices" && !Ours(&o, "mesh-system") {
				t.Errorf("%s: %s %s would be left behind", f.Name, o.GetKind(), o.GetName())
			}
		}
	}
	if objects < 30 {
		t.Errorf("only %d objects were rendered", objects)
	}
}

func TestOurs(t *testing.T) {
	object := func(kind, namespace, name string, labels map[string]string) *unstructured.Unstructured {
		o := &unstructured.Unstructured{Object: map[string]any{"kind": kind}}
		o.SetNamespace(namespace)
		o.SetName(name)
		o.SetLabels(labels)
		return o
	}
	part := map[string]string{partOfLabel: partOf}
	for name, c := range map[string]struct {
		o    *unstructured.Unstructured
		want bool
	}{
		"what connect made":                  {object("Secret", "mesh-system", "mesh-peer-x", part), true},
		"the authority of the API":           {object("Secret", "mesh-system", "mesh-apiserver-ca", nil), true},
		"the binding in kube-system":         {object("RoleBinding", "kube-system", "mesh-apiserver-authentication-reader", nil), true},
		"a ClusterRole with our name":        {object("ClusterRole", "", "mesh-peer", nil), true},
		"the record of the release":          {object("Secret", "mesh-system", "sh.helm.release.v1.clustermesh.v1", map[string]string{"owner": "helm", partOfLabel: partOf}), false},
		"somebody's Secret":                  {object("Secret", "mesh-system", "theirs", nil), false},
		"somebody's lease in kube-system":    {object("Lease", "kube-system", "mesh-controller", nil), false},
		"the namespace's own ConfigMap":      {object("ConfigMap", "mesh-system", "kube-root-ca.crt", nil), false},
		"a ClusterRole with another name":    {object("ClusterRole", "", "mesh-of-others", nil), false},
		"a Service in kube-system, labelled": {object("Service", "kube-system", "x", part), false},
	} {
		if got := Ours(c.o, "mesh-system"); got != c.want {
			t.Errorf("%s: got %t", name, got)
		}
	}
}

func TestCleanupPod(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	template := PlainAgent("mesh.io/mesh-agent:v1")
	template.Spec.NodeSelector = map[string]string{"agents": "yes"}
	template.Spec.ServiceAccountName = "mesh-agent"
	pod := CleanupPod(template, "mesh-system", node, "/var/lib/mesh-apiserver")
	c := pod.Spec.Containers[0]
	want := []string{"cleanup", "--state-dir=/host/state/mesh-agent", "--bpffs=/sys/fs/bpf", "--remove=/host/store/mesh-apiserver"}
	if !slices.Equal(c.Args, want) {
		t.Errorf("it runs %q, want %q", c.Args, want)
	}
	if pod.Spec.NodeName != "n1" || pod.Spec.NodeSelector != nil || pod.Spec.ServiceAccountName != "" {
		t.Errorf("it is kept off its node, or needs an account: %+v", pod.Spec)
	}
	if c.Image != "mesh.io/mesh-agent:v1" || !slices.Contains(c.SecurityContext.Capabilities.Add, "DAC_OVERRIDE") {
		t.Errorf("got %s with %v", c.Image, c.SecurityContext.Capabilities.Add)
	}
	plain := CleanupPod(template, "mesh-system", node, "")
	if slices.Contains(plain.Spec.Containers[0].SecurityContext.Capabilities.Add, "DAC_OVERRIDE") {
		t.Error("without a store to remove it needs no right to other users' files")
	}
	long := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: strings.Repeat("long.", 20) + "a"}}
	other := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: strings.Repeat("long.", 20) + "b"}}
	a, b := CleanupPod(template, "m", long, "").Name, CleanupPod(template, "m", other, "").Name
	if len(a) > 63 || a == b {
		t.Errorf("names of long nodes: %q, %q", a, b)
	}
}
