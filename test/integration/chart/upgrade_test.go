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

// Package chart tests the Helm chart against a real kube-apiserver.
package chart

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mesh.io/clustermesh/artifacts/chart"
	"mesh.io/clustermesh/test/integration/controlplane"
)

func values(id int, more map[string]any) map[string]any {
	v := map[string]any{"cluster": map[string]any{"name": "cluster1", "id": id}}
	for name, value := range more {
		v[name] = value
	}
	return v
}

// apply applies what values make, but for the Namespace, which is there.
func apply(t *testing.T, plane *controlplane.ControlPlane, v map[string]any, flags ...string) {
	t.Helper()
	files, err := chart.Render(v, chart.Namespace, plane.Kube)
	if err != nil {
		t.Fatal(err)
	}
	var stream strings.Builder
	for _, file := range files {
		if filepath.Ext(file.Name) == ".yaml" {
			stream.WriteString("---\n" + file.Content + "\n")
		}
	}
	name := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(name, []byte(stream.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	plane.MustKubectl(t, append([]string{"apply", "-f", name}, flags...)...)
}

// An upgrade keeps who the cluster is and where its data are, or says what to do.
func TestUpgradeKeepsIdentityAndData(t *testing.T) {
	plane := controlplane.Start(t, controlplane.Options{WithoutMesh: true})
	plane.MustKubectl(t, "apply", "-f", filepath.Join(controlplane.Root(t), "artifacts", "manifests", "namespace.yaml"))
	external := map[string]any{"etcd": map[string]any{"external": map[string]any{"servers": []any{"https://etcd:2379"}, "tlsSecret": "etcd"}}}
	apply(t, plane, values(1, external), "--dry-run=server")
	apply(t, plane, values(1, nil))
	apply(t, plane, values(1, map[string]any{"controller": map[string]any{"replicas": 3}}))

	for _, test := range []struct {
		name   string
		values map[string]any
		want   string
	}{
		{"another ID", values(2, nil), "this cluster is cluster1 with the ID 1 in the mesh (ConfigMap mesh-system/mesh-config) and cannot become cluster1 with the ID 2"},
		{"another name", values(1, map[string]any{"cluster": map[string]any{"name": "other", "id": 1}}), "cannot become other"},
		{"an external etcd", values(1, external), "keeps its data in its embedded etcd"},
		{"another volume", values(1, map[string]any{"persistence": map[string]any{"type": "emptyDir"}}), "would not be found in \"emptyDir\""},
	} {
		if _, err := chart.Render(test.values, chart.Namespace, plane.Kube); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
		// Without a cluster to look at, nothing stands against it.
		if _, err := chart.Render(test.values, chart.Namespace, nil); err != nil {
			t.Errorf("%s, offline: %v", test.name, err)
		}
	}
	// The way back from an external etcd would be an empty store, too.
	plane.MustKubectl(t, "-n", chart.Namespace, "delete", "statefulset", "mesh-apiserver")
	apply(t, plane, values(1, external))
	if _, err := chart.Render(values(1, nil), chart.Namespace, plane.Kube); err == nil || !strings.Contains(err.Error(), "keeps its data in an external etcd") {
		t.Errorf("the embedded etcd: %v", err)
	}
	if _, err := chart.Render(values(1, external), chart.Namespace, plane.Kube); err != nil {
		t.Errorf("the external etcd remains: %v", err)
	}
}
