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
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/test/integration/controlplane"
	"mesh.io/clustermesh/test/integration/member"
)

// exported waits until a Service is exported, or is not.
func (c *cluster) exported(t *testing.T, namespace, name string, want bool) {
	t.Helper()
	controlplane.Eventually(t, timeout, fmt.Sprintf("export of %s/%s to be %v", namespace, name, want), func(ctx context.Context) error {
		_, err := c.Mesh.MeshV1alpha1().ExportedServices(namespace).Get(ctx, name, metav1.GetOptions{})
		if !want {
			return member.Gone(err)
		}
		return err
	})
}

func testSharing(t *testing.T, one, two *cluster) {
	for _, c := range []*cluster{one, two} {
		c.MakeNamespace(t, "share", nil)
		c.MakeService(t, "share", "web", map[string]string{"service.cilium.io/global": "true"})
	}
	slice := one.MakeSlice(t, "share", "web", "web-1", "10.1.1.1")
	two.MakeSlice(t, "share", "web", "web-2", "10.2.1.1")
	one.imports(t, "share", "web", "cluster2", "10.2.1.1")
	two.imports(t, "share", "web", "cluster1", "10.1.1.1")

	// A changed endpoint, and a removed slice.
	slice.Endpoints[0].Addresses = []string{"10.1.1.2"}
	if _, err := one.Kube.DiscoveryV1().EndpointSlices("share").Update(t.Context(), slice, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	two.imports(t, "share", "web", "cluster1", "10.1.1.2")

	// Out for an upgrade: the others lose it, it keeps the others.
	two.annotate(t, "share", "web", `{"service.cilium.io/shared":"false"}`)
	one.imports(t, "share", "web", "cluster2")
	two.stays(t, time.Second, "share", "web", "cluster1", "10.1.1.2")
	two.annotate(t, "share", "web", `{"service.cilium.io/shared":null}`)
	one.imports(t, "share", "web", "cluster2", "10.2.1.1")

	// By the GlobalService's spec.
	patch := []byte(`{"spec":{"shared":false}}`)
	if _, err := two.Mesh.MeshV1alpha1().GlobalServices("share").Patch(t.Context(), "web", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	one.imports(t, "share", "web", "cluster2")
	patch = []byte(`{"spec":{"shared":null}}`)
	if _, err := two.Mesh.MeshV1alpha1().GlobalServices("share").Patch(t.Context(), "web", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	one.imports(t, "share", "web", "cluster2", "10.2.1.1")

	// Not global here: no slices here, but the Service is known.
	one.annotate(t, "share", "web", `{"service.cilium.io/global":"false"}`)
	one.imports(t, "share", "web", "cluster2")
	two.imports(t, "share", "web", "cluster1")
	if _, err := one.Mesh.MeshV1alpha1().ImportedServices("share").Get(t.Context(), "cluster2.web", metav1.GetOptions{}); err != nil {
		t.Errorf("the peer's Service is no longer known: %v", err)
	}
	one.globalService(t, "share", "web", func(g *v1alpha1.GlobalService) error {
		found := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.GlobalServiceLocalService)
		if found == nil || found.Reason != "NotGlobal" {
			return errors.New("LocalService should be False, NotGlobal")
		}
		return nil
	})
	// By its Namespace.
	one.annotate(t, "share", "web", `{"service.cilium.io/global":null}`)
	patch = []byte(`{"metadata":{"annotations":{"mesh.io/global":"true"}}}`)
	if _, err := one.Kube.CoreV1().Namespaces().Patch(t.Context(), "share", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	one.imports(t, "share", "web", "cluster2", "10.2.1.1")
	two.imports(t, "share", "web", "cluster1", "10.1.1.2")

	// Only some namespaces.
	two.Change(t, "cluster1", func(m *v1alpha1.MeshCluster) { m.Spec.Import.Namespaces = []string{"song"} })
	two.imports(t, "share", "web", "cluster1")
	two.Change(t, "cluster1", func(m *v1alpha1.MeshCluster) { m.Spec.Import.Namespaces = nil })
	two.imports(t, "share", "web", "cluster1", "10.1.1.2")
	one.Change(t, "cluster1", func(m *v1alpha1.MeshCluster) { m.Spec.Export.Namespaces = []string{"song"} })
	one.exported(t, "share", "web", false)
	two.imports(t, "share", "web", "cluster1")
	one.event(t, "Service", "share", "web", "NamespaceNotExported", "share")
	one.Change(t, "cluster1", func(m *v1alpha1.MeshCluster) { m.Spec.Export.Namespaces = nil })
	two.imports(t, "share", "web", "cluster1", "10.1.1.2")

	// Somebody deletes what is ours.
	if err := two.Mesh.MeshV1alpha1().ImportedEndpointSlices("share").Delete(t.Context(), "cluster1.web-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	two.imports(t, "share", "web", "cluster1", "10.1.1.2")
	if err := one.Mesh.MeshV1alpha1().ExportedServices("share").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	one.exported(t, "share", "web", true)
}

func testAnnotations(t *testing.T, one, _ *cluster) {
	one.MakeNamespace(t, "typo", nil)
	for i, annotation := range []string{
		"mesh.io/global", "mesh.io/shared", "mesh.io/affinity", "mesh.io/export-manual",
		"service.cilium.io/global", "service.cilium.io/shared", "service.cilium.io/affinity",
		"io.cilium/global-service", "io.cilium/shared-service", "io.cilium/service-affinity",
	} {
		name := fmt.Sprintf("typo-%d", i)
		one.MakeService(t, "typo", name, map[string]string{annotation: "yes"})
		one.event(t, "Service", "typo", name, "InvalidAnnotation", annotation)
	}
	one.MakeNamespace(t, "typo-namespace", map[string]string{"mesh.io/global": "yes"})
	one.MakeService(t, "typo-namespace", "web", nil)
	one.event(t, "Namespace", "", "typo-namespace", "InvalidAnnotation", "mesh.io/global")
	one.MakeService(t, "typo", "name", global, func(s *corev1.Service) {
		s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org"}
	})
	one.event(t, "Service", "typo", "name", "ExternalName", "")

	// The other values hold while one means nothing, and the condition says which.
	one.MakeService(t, "typo", "half", map[string]string{"mesh.io/global": "true", "mesh.io/affinity": "nearby"})
	one.globalService(t, "typo", "half", func(g *v1alpha1.GlobalService) error {
		if !meta.IsStatusConditionFalse(g.Status.Conditions, v1alpha1.GlobalServiceAnnotationsValid) || g.Status.Affinity.Value != v1alpha1.AffinityNone {
			return errors.New("AnnotationsValid should be False, and the affinity None")
		}
		return nil
	})
	one.annotate(t, "typo", "half", `{"mesh.io/affinity":"local"}`)
	one.globalService(t, "typo", "half", func(g *v1alpha1.GlobalService) error {
		if !meta.IsStatusConditionTrue(g.Status.Conditions, v1alpha1.GlobalServiceAnnotationsValid) || g.Status.Affinity.Value != v1alpha1.AffinityLocal {
			return errors.New("AnnotationsValid should be True, and the affinity Local")
		}
		return nil
	})
}

func testReserved(t *testing.T, one, two *cluster) {
	one.annotate(t, "default", "kubernetes", `{"mesh.io/global":"true"}`)
	one.MakeService(t, "kube-system", "dns", global)
	one.MakeService(t, controlplane.Namespace, "own", global)
	for namespace, name := range map[string]string{"default": "kubernetes", "kube-system": "dns", controlplane.Namespace: "own"} {
		one.event(t, "Service", namespace, name, "Reserved", "never be global")
		one.exported(t, namespace, name, false)
		if _, err := two.Mesh.MeshV1alpha1().ImportedServices(namespace).Get(t.Context(), "cluster1."+name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("%s/%s reached the other cluster: %v", namespace, name, err)
		}
	}
	// Made by hand: only with the Service's consent.
	one.MakeNamespace(t, "manual", nil)
	two.MakeNamespace(t, "manual", nil)
	one.MakeService(t, "manual", "web", global)
	two.MakeService(t, "manual", "web", global)
	manual := one.MakeSlice(t, "manual", "web", "by-hand", "10.1.9.1")
	manual.Labels["endpointslice.kubernetes.io/managed-by"] = "a-person"
	if _, err := one.Kube.DiscoveryV1().EndpointSlices("manual").Update(t.Context(), manual, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	two.imports(t, "manual", "web", "cluster1")
	one.annotate(t, "manual", "web", `{"mesh.io/export-manual":"true"}`)
	two.imports(t, "manual", "web", "cluster1", "10.1.9.1")
}

func testMerge(t *testing.T, one, two *cluster) {
	one.MakeNamespace(t, "merge", nil)
	two.MakeNamespace(t, "merge", nil)
	// A GlobalService ahead of any Service.
	ahead := &v1alpha1.GlobalService{ObjectMeta: metav1.ObjectMeta{Namespace: "merge", Name: "ahead"}, Spec: v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityLocal}}
	if _, err := one.Mesh.MeshV1alpha1().GlobalServices("merge").Create(t.Context(), ahead, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	one.globalService(t, "merge", "ahead", func(g *v1alpha1.GlobalService) error {
		found := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.GlobalServiceLocalService)
		if found == nil || found.Reason != "NotFound" || g.Status.ObservedGeneration != g.Generation || g.Status.Affinity.Value != v1alpha1.AffinityLocal {
			return errors.New("LocalService should be False, NotFound")
		}
		return nil
	})
	// Clusters that disagree.
	one.MakeService(t, "merge", "web", global)
	one.exported(t, "merge", "web", true)
	time.Sleep(1100 * time.Millisecond) // the time of export has whole seconds
	two.MakeService(t, "merge", "web", global, func(s *corev1.Service) { s.Spec.Ports[0].Port = 8080 })
	for _, c := range []*cluster{one, two} {
		c.globalService(t, "merge", "web", func(g *v1alpha1.GlobalService) error {
			found := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.GlobalServiceConflict)
			want := map[*cluster]string{
				one: `What differs: in cluster2 port "http" (80/TCP) is 8080/TCP.`,
				two: `What differs: in cluster1 port "http" (8080/TCP) is 80/TCP.`,
			}[c]
			if found == nil || found.Status != metav1.ConditionTrue || !strings.HasSuffix(found.Message, want) {
				return errors.New("Conflict should be True")
			}
			return nil
		})
		c.event(t, "GlobalService", "merge", "web", "Conflict", "What differs")
	}
	// It goes once nobody has exported it for a while; the person's stays.
	for _, c := range []*cluster{one, two} {
		if err := c.Kube.CoreV1().Services("merge").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	controlplane.Eventually(t, timeout, "the GlobalService to go", func(ctx context.Context) error {
		_, err := one.Mesh.MeshV1alpha1().GlobalServices("merge").Get(ctx, "web", metav1.GetOptions{})
		return member.Gone(err)
	})
	if _, err := one.Mesh.MeshV1alpha1().GlobalServices("merge").Get(t.Context(), "ahead", metav1.GetOptions{}); err != nil {
		t.Errorf("the GlobalService that a person made is gone: %v", err)
	}
}

func testWaiting(t *testing.T, one, two *cluster) {
	one.MakeNamespace(t, "later", nil)
	one.MakeService(t, "later", "web", global)
	one.MakeSlice(t, "later", "web", "web-1", "10.1.2.1")
	controlplane.Eventually(t, timeout, "the namespace to be waited for", func(ctx context.Context) error {
		member, err := two.Mesh.MeshV1alpha1().MeshClusters().Get(ctx, "cluster1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, namespace := range member.Status.WaitingNamespaces {
			if namespace == "later" {
				return nil
			}
		}
		return fmt.Errorf("waiting for %v", member.Status.WaitingNamespaces)
	})
	two.MakeNamespace(t, "later", nil)
	two.MakeService(t, "later", "web", global)
	two.imports(t, "later", "web", "cluster1", "10.1.2.1")
	controlplane.Eventually(t, timeout, "the namespace to be waited for no longer", func(ctx context.Context) error {
		member, err := two.Mesh.MeshV1alpha1().MeshClusters().Get(ctx, "cluster1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, namespace := range member.Status.WaitingNamespaces {
			if namespace == "later" {
				return errors.New("it is")
			}
		}
		return nil
	})
}
