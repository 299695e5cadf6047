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

package permission

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const manifest = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: mesh}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules:
- apiGroups: [""]
  resources: [nodes, services/status]
  verbs: [list]
- nonResourceURLs: [/metrics]
  verbs: [get]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: keeper, namespace: mesh}
rules:
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [ca]
  verbs: [update]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: who-calls, namespace: kube-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: extension-apiserver-authentication-reader}
`

func plan(t *testing.T) *Plan {
	t.Helper()
	var objects []*unstructured.Unstructured
	for document := range strings.SplitSeq(manifest, "---") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(document), &o.Object); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	p := &Plan{}
	if err := p.Apply(objects); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestWhatIsLacking(t *testing.T) {
	const rbac = "rbac.authorization.k8s.io"
	for name, c := range map[string]struct {
		not  func(Access) bool
		want string
	}{
		"nothing": {func(a Access) bool { return a.Verb == "escalate" || a.Verb == "bind" }, ""},
		"one verb on one object": {
			func(a Access) bool { return a.Verb == "patch" && a.Resource == "configmaps" },
			"patch configmaps settings in mesh",
		},
		"all verbs on a kind": {
			func(a Access) bool { return a.Group == rbac && a.Resource == "clusterroles" && a.Verb != "escalate" },
			"get, create and patch clusterroles reader",
		},
		"a right that is given by a role and a binding": {
			func(a Access) bool {
				return a.Verb == "escalate" || a.Verb == "bind" || a.Resource == "services/status"
			},
			"pass on the right to list services/status, which you don't have (to ClusterRole reader)",
		},
		"a right that may be given all the same": {func(a Access) bool { return a.Resource == "services/status" }, ""},
		"a path": {
			func(a Access) bool { return a.Verb == "escalate" || a.Path != "" },
			"pass on the right to get /metrics, which you don't have (to ClusterRole reader)",
		},
		"a right on one name only": {
			func(a Access) bool { return a.Verb == "escalate" || a.Verb == "bind" || a.Resource == "secrets" },
			"pass on the right to update secrets ca in mesh, which you don't have (to Role keeper)",
		},
		"a right of a role that every cluster has": {
			func(a Access) bool {
				return a.Verb == "bind" || a.Resource == "configmaps" && a.Namespace == "kube-system"
			},
			"pass on the right to get, list and watch configmaps extension-apiserver-authentication in kube-system, which you don't have (to Role extension-apiserver-authentication-reader)",
		},
		"everything": {
			func(Access) bool { return true },
			"get, create and patch configmaps settings in mesh; get, create and patch clusterroles reader; get, create and patch roles keeper in mesh; " +
				"get, create and patch clusterrolebindings reader; get, create and patch rolebindings who-calls in kube-system; and 5 more",
		},
	} {
		p, allowed := plan(t), map[Access]bool{}
		for _, a := range p.Asked() {
			allowed[a] = !c.not(a)
		}
		if diff := cmp.Diff(c.want, p.Lacking(allowed)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestEachIsAskedOnce(t *testing.T) {
	asked := plan(t).Asked()
	for i, a := range asked {
		if slices.Contains(asked[:i], a) {
			t.Errorf("%+v is asked twice", a)
		}
	}
	if len(asked) < 15 {
		t.Errorf("only %d are asked", len(asked))
	}
}

func TestReplace(t *testing.T) {
	object := func(name string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name, "namespace": "mesh"}}}
	}
	p := &Plan{}
	p.Replace([]*unstructured.Unstructured{object("stays"), object("goes")}, []*unstructured.Unstructured{object("stays"), object("comes")})
	want := []Access{{Verb: "delete", Resource: "configmaps", Namespace: "mesh", Name: "goes"}}
	if diff := cmp.Diff(want, p.Needs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
