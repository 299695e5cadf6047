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
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// shipped decodes every object of a manifest.
func shipped[T any](t *testing.T, name string) []T {
	t.Helper()
	file, err := os.Open(filepath.Join("..", "..", "artifacts", "manifests", name))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	decoder := yaml.NewYAMLOrJSONDecoder(file, 4096)
	var objects []T
	for {
		var object T
		switch err := decoder.Decode(&object); {
		case errors.Is(err, io.EOF):
			return objects
		case err != nil:
			t.Fatal(err)
		}
		objects = append(objects, object)
	}
}

func TestShippedRightsAreThoseUsed(t *testing.T) {
	verbs := map[string][]string{}
	for _, role := range shipped[rbacv1.ClusterRole](t, "rbac.yaml") {
		if role.Kind != "ClusterRole" || role.Name != "mesh-controller" {
			continue
		}
		for _, rule := range role.Rules {
			if !slices.Equal(rule.APIGroups, []string{"mesh.io"}) {
				continue
			}
			for _, resource := range rule.Resources {
				verbs[resource] = append(verbs[resource], rule.Verbs...)
			}
		}
	}
	for resource, want := range map[string][]string{
		"exportedservices":       {"get", "list", "watch", "create", "update", "delete"},
		"exportedendpointslices": {"get", "list", "watch", "create", "update", "delete"},
		"importedservices":       {"get", "list", "watch", "create", "update", "delete"},
		"importedendpointslices": {"get", "list", "watch", "create", "update", "delete"},
		"globalservices":         {"get", "list", "watch", "create", "delete"},
		"globalservices/status":  {"get", "update"},
		"meshclusters":           {"get", "list", "watch", "create", "update"},
		"meshclusters/status":    {"get", "update"},
	} {
		if !slices.Equal(verbs[resource], want) {
			t.Errorf("the controller may %v %s, want %v", verbs[resource], resource, want)
		}
	}
}

func TestShippedNamespaceTakesTheAgents(t *testing.T) {
	namespace := shipped[corev1.Namespace](t, "namespace.yaml")[0]
	if got := namespace.Labels["pod-security.kubernetes.io/enforce"]; got != "privileged" {
		t.Errorf("pods are held to %q", got)
	}
}

func TestTheAuthorityIsNotRead(t *testing.T) {
	var options metav1.ListOptions
	withoutAuthority(&options)
	if want := "metadata.name!=mesh-apiserver-ca"; options.FieldSelector != want {
		t.Errorf("Secrets are selected by %q, want %q", options.FieldSelector, want)
	}
}
