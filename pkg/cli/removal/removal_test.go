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
	"k8s.io/apimachinery/pkg/runtime/schema"
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
			if resource != "apiservices" && !Ours(resource, &o, "mesh-system") {
				t.Errorf("%s: %s %s would be left behind", f.Name, o.GetKind(), o.GetName())
			}
		}
	}
	if objects < 30 {
		t.Errorf("only %d objects were rendered", objects)
	}
}

func TestOursAndForeign(t *testing.T) {
	object := func(namespace, name string, labels map[string]string) *metav1.ObjectMeta {
		return &metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}
	}
	part := map[string]string{partOfLabel: partOf}
	release := func(name string) map[string]string { return map[string]string{"owner": "helm", "name": name} }
	made := object("mesh-system", "mesh-controller-7d", nil)
	made.OwnerReferences = []metav1.OwnerReference{{Kind: "Deployment", Name: "mesh-controller"}}
	token := object("mesh-system", "default-token-x", nil)
	token.Annotations = map[string]string{corev1.ServiceAccountNameKey: "default"}
	helm := object("mesh-system", "mesh-config", nil)
	helm.Annotations = map[string]string{"meta.helm.sh/release-name": "clustermesh", "meta.helm.sh/release-namespace": "mesh-system"}
	for name, c := range map[string]struct {
		resource      string
		o             *metav1.ObjectMeta
		ours, foreign bool
	}{
		"what connect made":                  {"secrets", object("mesh-system", "mesh-peer-x", part), true, false},
		"the authority of the API":           {"secrets", object("mesh-system", "mesh-apiserver-ca", nil), true, false},
		"of the Helm release":                {"configmaps", helm, true, false},
		"the binding in kube-system":         {"rolebindings", object("kube-system", "mesh-apiserver-authentication-reader", part), true, false},
		"a ClusterRole called like ours":     {"clusterroles", object("", "mesh-view", nil), false, true},
		"the record of the release":          {"secrets", object("mesh-system", "sh.helm.release.v1.clustermesh.v1", release("clustermesh")), false, false},
		"the record of another release":      {"secrets", object("mesh-system", "sh.helm.release.v1.other.v1", release("other")), false, true},
		"somebody's Secret":                  {"secrets", object("mesh-system", "etcd-tls", nil), false, true},
		"the token of the default account":   {"secrets", token, false, false},
		"somebody's lease in kube-system":    {"leases", object("kube-system", "mesh-controller", nil), false, true},
		"the namespace's own ConfigMap":      {"configmaps", object("mesh-system", "kube-root-ca.crt", nil), false, false},
		"a Service in kube-system, labelled": {"services", object("kube-system", "x", part), false, true},
		"what another object made":           {"replicasets", made, false, false},
		"somebody's object of any kind":      {"widgets", object("mesh-system", "w", nil), false, true},
		"an event":                           {"events", object("mesh-system", "e", nil), false, false},
	} {
		if got := Ours(c.resource, c.o, "mesh-system"); got != c.ours {
			t.Errorf("%s: ours is %t", name, got)
		}
		if got := Foreign(schema.GroupVersionResource{Resource: c.resource}, c.o, "mesh-system"); got != c.foreign {
			t.Errorf("%s: foreign is %t", name, got)
		}
	}
}

func TestNodeTrouble(t *testing.T) {
	node := func(system string, ready corev1.ConditionStatus) *corev1.Node {
		n := &corev1.Node{Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{OperatingSystem: system}}}
		if ready != "" {
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
		}
		return n
	}
	for name, c := range map[string]struct {
		node *corev1.Node
		want string
	}{
		"ready":               {node("linux", corev1.ConditionTrue), ""},
		"not ready":           {node("linux", corev1.ConditionFalse), NotReady},
		"not heard of":        {node("linux", corev1.ConditionUnknown), NotReady},
		"without any kubelet": {node("", ""), NotReady},
		"Windows":             {node("windows", corev1.ConditionTrue), NotLinux},
	} {
		if got := NodeTrouble(c.node); got != c.want {
			t.Errorf("%s: got %q", name, got)
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
	template.Spec.Containers[0].Args = []string{"--state-dir=/x", "--state-dir", "/var/lib/mesh-agent/a", "--bpffs=/sys/fs/bpf/b/"}
	elsewhere := CleanupPod(template, "mesh-system", node, "").Spec
	if args := elsewhere.Containers[0].Args; !slices.Equal(args, []string{"cleanup", "--state-dir=/host/state/a", "--bpffs=/sys/fs/bpf"}) {
		t.Errorf("with folders of its own it runs %q", args)
	}
	if a, b := elsewhere.Volumes[0].HostPath.Path, elsewhere.Volumes[1].HostPath.Path; a != "/var/lib/mesh-agent" || b != "/sys/fs/bpf/b" {
		t.Errorf("with folders of its own it sees %s and %s", a, b)
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
