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
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/test/integration/controlplane"
)

// storePrefix is where the mesh API keeps its objects.
const storePrefix = "/registry/mesh.io"

// openStore opens the etcd of a cluster's mesh API: what a peer that is up to no
// good may fill with what its API would never accept.
func openStore(t testing.TB, etcd *controlplane.Process) *clientv3.Client {
	t.Helper()
	arguments, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", etcd.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var endpoint string
	for _, argument := range strings.Split(string(arguments), "\x00") {
		if url, ok := strings.CutPrefix(argument, "--listen-client-urls="); ok {
			endpoint = url
		}
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// plant puts an exported object into a cluster's store past its API.
func (c *cluster) plant(t *testing.T, resource string, obj metav1.Object) {
	t.Helper()
	obj.SetUID(uuid.NewUUID())
	obj.SetCreationTimestamp(metav1.Now())
	content, err := json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	key := fmt.Sprintf("%s/%s/%s/%s", storePrefix, resource, obj.GetNamespace(), obj.GetName())
	if _, err := c.etcd.Put(t.Context(), key, string(content)); err != nil {
		t.Fatal(err)
	}
}

func exportedSlice(namespace, service, name string, addresses ...string) *v1alpha1.ExportedEndpointSlice {
	slice := &v1alpha1.ExportedEndpointSlice{
		TypeMeta:   metav1.TypeMeta{APIVersion: "mesh.io/v1alpha1", Kind: "ExportedEndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		// A peer that lies about who it is gains nothing by it.
		Spec: v1alpha1.SliceRecord{
			Cluster: "cluster1", ClusterID: 1, Service: service, AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []v1alpha1.EndpointPort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 8181}},
		},
	}
	for _, address := range addresses {
		slice.Spec.Endpoints = append(slice.Spec.Endpoints, v1alpha1.Endpoint{Address: address, Ready: true, Serving: true})
	}
	return slice
}

func exportedService(namespace, name string) *v1alpha1.ExportedService {
	return &v1alpha1.ExportedService{
		TypeMeta:   metav1.TypeMeta{APIVersion: "mesh.io/v1alpha1", Kind: "ExportedService"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: v1alpha1.ServiceRecord{
			Cluster: "cluster1", ClusterID: 1, Type: v1alpha1.ServiceTypeClusterIP, SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []v1alpha1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

// testHostile has the second cluster's store say what no honest one would.
func testHostile(t *testing.T, one, two *cluster) {
	_ = two.Controller.Stop() // it would tidy up
	defer two.start(t)
	one.MakeNamespace(t, "hostile", nil)
	two.MakeNamespace(t, "hostile", nil)
	one.MakeService(t, "hostile", "web", global)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.77.0.0/24"}, PodCIDR: "10.77.0.0/24"}}
	if _, err := one.Kube.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	patch := `{"status":{"addresses":[{"type":"InternalIP","address":"192.168.77.7"}]}}`
	if _, err := one.Kube.CoreV1().Nodes().Patch(t.Context(), "n1", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	service, err := one.Kube.CoreV1().Services("hostile").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}

	two.plant(t, "exportedservices", exportedService("hostile", "web"))
	two.plant(t, "exportedendpointslices", exportedSlice("hostile", "web", "mixed",
		"10.2.7.1", "127.0.0.1", "192.168.77.7", "10.77.0.9", "169.254.1.1", "224.0.0.1", "0.0.0.0", service.Spec.ClusterIP, "not-an-address"))
	one.imports(t, "hostile", "web", "cluster2", "10.2.7.1")

	// Objects that are wrong as a whole are refused alone.
	many := exportedSlice("hostile", "web", "many")
	for i := range 150 {
		many.Spec.Endpoints = append(many.Spec.Endpoints, v1alpha1.Endpoint{Address: fmt.Sprintf("10.2.8.%d", i), Ready: true})
	}
	two.plant(t, "exportedendpointslices", many)
	noPort := exportedSlice("hostile", "web", "no-port", "10.2.7.2")
	noPort.Spec.Ports[0].Port = 0
	two.plant(t, "exportedendpointslices", noPort)
	odd := exportedService("hostile", "odd")
	odd.Spec.Type = "Strange"
	two.plant(t, "exportedservices", odd)
	two.plant(t, "exportedservices", exportedService("kube-system", "kube-dns"))
	two.plant(t, "exportedendpointslices", exportedSlice("kube-system", "kube-dns", "dns", "10.2.7.3"))
	two.plant(t, "exportedservices", exportedService("default", "kubernetes"))
	two.plant(t, "exportedservices", exportedService(controlplane.Namespace, "mesh-apiserver"))
	// More text than one object of our API may have.
	big := exportedSlice("hostile", "web", "big", "10.2.7.4")
	big.Annotations = map[string]string{"x": strings.Repeat("x", 900_000)}
	two.plant(t, "exportedendpointslices", big)
	two.plant(t, "exportedendpointslices", exportedSlice("hostile", "web", "good", "10.2.7.5"))
	one.imports(t, "hostile", "web", "cluster2", "10.2.7.1", "10.2.7.4", "10.2.7.5")

	list, err := one.Mesh.MeshV1alpha1().ImportedEndpointSlices("hostile").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, slice := range list.Items {
		if slice.Spec.Cluster != "cluster2" || slice.Spec.ClusterID != 2 || len(slice.Annotations) > 0 {
			t.Errorf("slice %s says that it is from %s (%d), with %d annotations", slice.Name, slice.Spec.Cluster, slice.Spec.ClusterID, len(slice.Annotations))
		}
	}
	for _, namespace := range []string{"kube-system", "default", controlplane.Namespace} {
		services, err := one.Mesh.MeshV1alpha1().ImportedServices(namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil || len(services.Items) > 0 {
			t.Errorf("%d services are imported into %s (%v)", len(services.Items), namespace, err)
		}
	}
	const want = 8 + 2 + 1 + 4 // endpoints, slices, service, reserved
	controlplane.Eventually(t, timeout, "the refusals to be told", func(ctx context.Context) error {
		member, err := one.Mesh.MeshV1alpha1().MeshClusters().Get(ctx, "cluster2", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if member.Status.Refused != want || len(member.Status.Refusals) != 8 {
			return fmt.Errorf("%d are refused: %q", member.Status.Refused, member.Status.Refusals)
		}
		return nil
	})
	one.event(t, "MeshCluster", "", "cluster2", "Refused", "127.0.0.1")

	// The address that a node here gets later is taken away.
	patch = `{"status":{"addresses":[{"type":"InternalIP","address":"10.2.7.5"}]}}`
	if _, err := one.Kube.CoreV1().Nodes().Patch(t.Context(), "n1", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	one.imports(t, "hostile", "web", "cluster2", "10.2.7.1", "10.2.7.4", "192.168.77.7")
}

// testLimits has the second cluster export far more than it may.
func testLimits(t *testing.T, one, two *cluster) {
	_ = two.Controller.Stop()
	defer two.start(t)
	number := func(n int32) *int32 { return &n }
	one.MakeNamespace(t, "limits", nil)
	two.MakeNamespace(t, "limits", nil)
	one.MakeService(t, "limits", "web", global)
	one.Change(t, "cluster2", func(m *v1alpha1.MeshCluster) {
		m.Spec.Import.Namespaces = []string{"limits"}
		m.Spec.Import.Limits = v1alpha1.ImportLimits{Slices: number(100), Endpoints: number(150)}
	})
	defer one.Change(t, "cluster2", func(m *v1alpha1.MeshCluster) { m.Spec.Import = v1alpha1.ImportPolicy{} })
	for i := range 500 {
		two.plant(t, "exportedendpointslices", exportedSlice("limits", "web", fmt.Sprintf("s%03d", i), fmt.Sprintf("10.3.%d.%d", i/250, i%250), fmt.Sprintf("10.4.%d.%d", i/250, i%250)))
	}
	count := func(ctx context.Context) (slices, endpoints int, err error) {
		list, err := one.Mesh.MeshV1alpha1().ImportedEndpointSlices("limits").List(ctx, metav1.ListOptions{})
		if err != nil {
			return 0, 0, err
		}
		for _, slice := range list.Items {
			endpoints += len(slice.Spec.Endpoints)
		}
		return len(list.Items), endpoints, nil
	}
	controlplane.Eventually(t, timeout, "100 slices with 150 endpoints", func(ctx context.Context) error {
		slices, endpoints, err := count(ctx)
		if err != nil {
			return err
		}
		if slices != 100 || endpoints != 150 {
			return fmt.Errorf("there are %d with %d", slices, endpoints)
		}
		member, err := one.Mesh.MeshV1alpha1().MeshClusters().Get(ctx, "cluster2", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if member.Status.Refused < 400+50 {
			return fmt.Errorf("%d are refused", member.Status.Refused)
		}
		return nil
	})
	// After a restart the same ones stay, whichever the peer shows first.
	before, err := one.Mesh.MeshV1alpha1().ImportedEndpointSlices("limits").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	run := one.AwaitCondition(t, one.Name, v1alpha1.MeshClusterExportsSynced, metav1.ConditionTrue, "").Status.ControllerRun
	one.Controller.Kill()
	one.start(t)
	controlplane.Eventually(t, timeout, "the new controller to have its exports", func(ctx context.Context) error {
		member, err := one.Mesh.MeshV1alpha1().MeshClusters().Get(ctx, one.Name, metav1.GetOptions{})
		if err == nil && (member.Status.ControllerRun == run || !meta.IsStatusConditionTrue(member.Status.Conditions, v1alpha1.MeshClusterExportsSynced)) {
			err = errors.New("it has not")
		}
		return err
	})
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "SyncedWithRefusals")
	time.Sleep(2 * time.Second)
	for _, slice := range before.Items {
		if _, err := one.Mesh.MeshV1alpha1().ImportedEndpointSlices("limits").Get(t.Context(), slice.Name, metav1.GetOptions{}); err != nil {
			t.Fatalf("slice %s did not outlive a restart: %v", slice.Name, err)
		}
	}
	// Where there is room again, others come in.
	if _, err := two.etcd.Delete(t.Context(), storePrefix+"/exportedendpointslices/limits/"+strings.TrimPrefix(before.Items[0].Name, "cluster2.")); err != nil {
		t.Fatal(err)
	}
	controlplane.Eventually(t, timeout, "another slice to take the room", func(ctx context.Context) error {
		slices, _, err := count(ctx)
		if err != nil {
			return err
		}
		if slices != 100 {
			return fmt.Errorf("there are %d", slices)
		}
		if _, err := one.Mesh.MeshV1alpha1().ImportedEndpointSlices("limits").Get(ctx, before.Items[0].Name, metav1.GetOptions{}); err == nil {
			return fmt.Errorf("the deleted one is still there")
		}
		return nil
	})
	if _, err := two.etcd.Delete(t.Context(), storePrefix+"/exportedendpointslices/limits/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
}
