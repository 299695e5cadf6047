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

// Package apiserver tests mesh-apiserver as it is shipped: the built program, beside
// a real kube-apiserver, with a real etcd.
package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	applyv1alpha1 "mesh.io/clustermesh/pkg/generated/applyconfiguration/mesh/v1alpha1"
	meshclient "mesh.io/clustermesh/pkg/generated/clientset/versioned"
	typed "mesh.io/clustermesh/pkg/generated/clientset/versioned/typed/mesh/v1alpha1"
	"mesh.io/clustermesh/test/integration/controlplane"
)

// fixture is one control plane for all tests of the API, which take several
// namespaces and names to keep out of each other's way.
type fixture struct {
	*controlplane.ControlPlane
	core   kubernetes.Interface
	people typed.MeshV1alpha1Interface
	direct typed.MeshV1alpha1Interface
}

func TestAPI(t *testing.T) {
	plane := controlplane.Start(t, controlplane.Options{})
	f := &fixture{
		ControlPlane: plane,
		core:         kubernetes.NewForConfigOrDie(plane.Kube),
		people:       meshclient.NewForConfigOrDie(plane.Kube).MeshV1alpha1(),
		direct:       meshclient.NewForConfigOrDie(plane.Mesh).MeshV1alpha1(),
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *fixture)
	}{
		{"resources are discovered with their short names", testDiscovery},
		{"explain reads well", testExplain},
		{"objects are created, watched, changed and deleted", testCRUD},
		{"protobuf is spoken and stored", testProtobuf},
		{"spec and status have different writers", testStatus},
		{"server-side apply keeps owners apart", testApply},
		{"a written spec is nobody's to delete", testManagedBy},
		{"what is wrong is refused", testValidation},
		{"what is too large is refused", testOversize},
		{"what is rarely meant is warned of", testWarnings},
		{"the local cluster is one and stays", testLocalCluster},
		{"agents are told of specs", testServicePolicies},
		{"agents are told of members", testMeshMembers},
		{"roles give what they say", testRoles},
		{"tables", testTables},
		{"admission", testAdmission},
		{"endpoints of the server itself", testEndpoints},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, f) })
	}
}

func (f *fixture) namespace(t *testing.T, name string) string {
	t.Helper()
	_, err := f.core.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	// mesh-apiserver learns of namespaces by its own watch, and asks if it has not.
	return name
}

func globalService(name string) *v1alpha1.GlobalService {
	return &v1alpha1.GlobalService{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func exportedService(name string) *v1alpha1.ExportedService {
	return &v1alpha1.ExportedService{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.ServiceRecord{
			Cluster: "cluster1", ClusterID: 1, Type: v1alpha1.ServiceTypeClusterIP,
			Ports: []v1alpha1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

func sliceRecord(cluster string, addresses ...string) v1alpha1.SliceRecord {
	record := v1alpha1.SliceRecord{
		Cluster: cluster, ClusterID: 2, Service: "userlist-svc", AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []v1alpha1.EndpointPort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 8181}},
	}
	for _, address := range addresses {
		record.Endpoints = append(record.Endpoints, v1alpha1.Endpoint{Address: address, Ready: true, Serving: true})
	}
	return record
}

func testDiscovery(t *testing.T, f *fixture) {
	_, lists, err := f.core.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, list := range lists {
		if list.GroupVersion != v1alpha1.SchemeGroupVersion.String() {
			continue
		}
		for _, r := range list.APIResources {
			got[r.Name] = fmt.Sprintf("%s %s %v %v %v", r.SingularName, r.Kind, r.Namespaced, r.ShortNames, r.Categories)
		}
	}
	want := map[string]string{
		"globalservices":         "globalservice GlobalService true [gsvc] [mesh]",
		"globalservices/status":  "globalservice GlobalService true [] []",
		"exportedservices":       "exportedservice ExportedService true [expsvc] [mesh]",
		"importedservices":       "importedservice ImportedService true [impsvc] [mesh]",
		"exportedendpointslices": "exportedendpointslice ExportedEndpointSlice true [expslice] [mesh]",
		"importedendpointslices": "importedendpointslice ImportedEndpointSlice true [impslice] [mesh]",
		"meshclusters":           "meshcluster MeshCluster false [mc] [mesh]",
		"meshclusters/status":    "meshcluster MeshCluster false [] []",
		"servicepolicies":        "servicepolicy ServicePolicy true [svcpolicy] []",
		"meshmembers":            "meshmember MeshMember false [mm] []",
		"peertokens":             "peertoken PeerToken false [] []",
		"joinrequests":           "joinrequest JoinRequest false [] []",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
}

func testExplain(t *testing.T, f *fixture) {
	controlplane.Eventually(t, time.Minute, "the aggregated OpenAPI document", func(context.Context) error {
		output, err := f.Kubectl(t, f.Kube, "explain", "globalservice.spec.clusters")
		if err != nil {
			return fmt.Errorf("%w: %s", err, output)
		}
		for _, want := range []string{"FIELD: clusters <[]ClusterPolicy>", "name\t<string> -required-", "0 drains the cluster"} {
			if !strings.Contains(output, want) {
				return fmt.Errorf("no %q in:\n%s", want, output)
			}
		}
		return nil
	})
	output, err := f.Kubectl(t, f.Kube, "explain", "joinrequest.spec")
	if err != nil || !strings.Contains(output, "The invitation must be for it") {
		t.Errorf("explain joinrequest.spec: %v: %s", err, output)
	}
	// Server-side dry run with validation uses the same document.
	output, err = f.Kubectl(t, f.Kube, "create", "--dry-run=server", "--validate=strict", "-f", manifest(t, f, `
apiVersion: mesh.io/v1alpha1
kind: GlobalService
metadata: {name: typo, namespace: default}
spec: {afinity: Local}`))
	if err == nil || !strings.Contains(output, `unknown field "spec.afinity"`) {
		t.Errorf("a mistyped field is answered with %v: %s", err, output)
	}
}

func manifest(t *testing.T, f *fixture, content string) string {
	t.Helper()
	file, err := os.CreateTemp(f.Dir, "manifest-*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return file.Name()
}

func testCRUD(t *testing.T, f *fixture) {
	for door, client := range map[string]typed.MeshV1alpha1Interface{"aggregated": f.people, "direct": f.direct} {
		t.Run(door, func(t *testing.T) {
			services := client.GlobalServices(f.namespace(t, "crud-"+door))
			watcher, err := services.Watch(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer watcher.Stop()
			created, err := services.Create(t.Context(), globalService("one"), metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			expectEvent(t, watcher, watch.Added, "one")
			created.Spec.Affinity = v1alpha1.AffinityLocal
			updated, err := services.Update(t.Context(), created, metav1.UpdateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if created.Generation != 1 || updated.Generation != 2 {
				t.Errorf("generations are %d and %d, want 1 and 2", created.Generation, updated.Generation)
			}
			expectEvent(t, watcher, watch.Modified, "one")
			if _, err := services.Update(t.Context(), created, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
				t.Errorf("an update of an old version: %v, want a conflict", err)
			}
			updated.Labels = map[string]string{"a": "b"}
			labelled, err := services.Update(t.Context(), updated, metav1.UpdateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if labelled.Generation != 2 {
				t.Errorf("a label raised the generation to %d", labelled.Generation)
			}
			expectEvent(t, watcher, watch.Modified, "one")
			list, err := services.List(t.Context(), metav1.ListOptions{LabelSelector: "a=b"})
			if err != nil || len(list.Items) != 1 {
				t.Errorf("listed %v, error %v", list, err)
			}
			if err := services.Delete(t.Context(), "one", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			expectEvent(t, watcher, watch.Deleted, "one")
			if _, err := services.Get(t.Context(), "one", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("after the deletion: %v", err)
			}
		})
	}
}

func expectEvent(t *testing.T, watcher watch.Interface, kind watch.EventType, name string) {
	t.Helper()
	select {
	case event := <-watcher.ResultChan():
		object, ok := event.Object.(metav1.Object)
		if event.Type != kind || !ok || object.GetName() != name {
			t.Fatalf("event is %s %v, want %s %s", event.Type, event.Object, kind, name)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("no event %s %s", kind, name)
	}
}

func testProtobuf(t *testing.T, f *fixture) {
	namespace := f.namespace(t, "protobuf")
	var types []string
	config := rest.CopyConfig(f.Mesh)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(request *http.Request) (*http.Response, error) {
			answer, err := next.RoundTrip(request)
			if err == nil {
				types = append(types, request.Header.Get("Content-Type"), answer.Header.Get("Content-Type"))
			}
			return answer, err
		})
	})
	client := meshclient.NewForConfigOrDie(config).MeshV1alpha1()
	if _, err := client.ExportedServices(namespace).Create(t.Context(), exportedService("one"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	const protobuf = "application/vnd.kubernetes.protobuf"
	if want := []string{protobuf, protobuf}; !slices.Equal(types, want) {
		t.Errorf("content types of request and answer are %q", types)
	}

	// The store is mesh-apiserver's alone; only a test looks into it.
	store, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + f.MeshDataDir + "/client.sock"}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	got, err := store.Get(t.Context(), "/registry/mesh.io/exportedservices/"+namespace+"/one")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Kvs) != 1 || !strings.HasPrefix(string(got.Kvs[0].Value), "k8s\x00") {
		t.Errorf("stored is %q", got.Kvs)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (r roundTripper) RoundTrip(request *http.Request) (*http.Response, error) { return r(request) }

func readyStatus() v1alpha1.GlobalServiceStatus {
	return v1alpha1.GlobalServiceStatus{
		ObservedGeneration: 1,
		Shared:             v1alpha1.EffectiveShared{Value: true, Source: v1alpha1.SourceAnnotation},
		Affinity:           v1alpha1.EffectiveAffinity{Value: v1alpha1.AffinityNone, Source: v1alpha1.SourceDefault},
		Clusters: []v1alpha1.ClusterStatus{
			{Name: "cluster1", ID: 1, Local: true, Shared: true, Type: v1alpha1.ServiceTypeClusterIP, Endpoints: v1alpha1.EndpointCount{Ready: 1, Total: 2}},
			{Name: "cluster2", ID: 2, Shared: true, Type: v1alpha1.ServiceTypeClusterIP, Endpoints: v1alpha1.EndpointCount{Ready: 0, Total: 3}},
		},
		Conditions: []metav1.Condition{{
			Type: v1alpha1.GlobalServiceConflict, Status: metav1.ConditionTrue, Reason: "PortsDiffer", Message: "cluster2 has other ports",
			LastTransitionTime: metav1.NewTime(time.Now().Truncate(time.Second)),
		}},
	}
}

func testStatus(t *testing.T, f *fixture) {
	services := f.direct.GlobalServices(f.namespace(t, "status"))
	both := globalService("one")
	both.Spec.Shared = ptr.To(false)
	both.Status = readyStatus()
	created, err := services.Create(t.Context(), both, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(created.Status.Clusters) != 0 {
		t.Error("a create wrote the status")
	}
	created.Status = readyStatus()
	created.Spec.Shared = ptr.To(true)
	created.Labels = map[string]string{"a": "b"}
	updated, err := services.UpdateStatus(t.Context(), created, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if *updated.Spec.Shared || len(updated.Labels) > 0 || updated.Generation != 1 {
		t.Errorf("an update of the status changed the rest: %v", updated)
	}
	if len(updated.Status.Clusters) != 2 {
		t.Errorf("the status was not written: %v", updated.Status)
	}
	updated.Status = v1alpha1.GlobalServiceStatus{}
	updated.Spec.Affinity = v1alpha1.AffinityRemote
	updated, err = services.Update(t.Context(), updated, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(updated.Status.Clusters) != 2 || updated.Generation != 2 {
		t.Errorf("an update of the spec changed the status: %v", updated)
	}
	updated.Status.Conditions[0].Reason = "not a reason"
	if _, err := services.UpdateStatus(t.Context(), updated, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a malformed condition: %v", err)
	}
}

func testApply(t *testing.T, f *fixture) {
	namespace := f.namespace(t, "apply")
	services := f.people.GlobalServices(namespace)
	spec := applyv1alpha1.GlobalService("one", namespace).WithSpec(applyv1alpha1.GlobalServiceSpec().
		WithClusters(applyv1alpha1.ClusterPolicy().WithName("cluster2").WithWeight(0)))
	if _, err := services.Apply(t.Context(), spec, metav1.ApplyOptions{FieldManager: "git"}); err != nil {
		t.Fatal(err)
	}
	// Another writer adds an entry to the same list, and none takes the other's away.
	other := applyv1alpha1.GlobalService("one", namespace).WithSpec(applyv1alpha1.GlobalServiceSpec().
		WithClusters(applyv1alpha1.ClusterPolicy().WithName("cluster3").WithPriority(1))).
		WithStatus(applyv1alpha1.GlobalServiceStatus().WithObservedGeneration(9))
	merged, err := services.Apply(t.Context(), other, metav1.ApplyOptions{FieldManager: "person"})
	if err != nil {
		t.Fatal(err)
	}
	if len(merged.Spec.Clusters) != 2 || merged.Status.ObservedGeneration != 0 {
		t.Errorf("after two applies: %v", merged)
	}
	for _, entry := range merged.ManagedFields {
		if entry.Subresource == "" && strings.Contains(entry.FieldsV1.GetRawString(), "f:status") {
			t.Errorf("%s owns the status by an apply of the object: %s", entry.Manager, entry.FieldsV1.GetRawString())
		}
	}
	conflicting := applyv1alpha1.GlobalService("one", namespace).WithSpec(applyv1alpha1.GlobalServiceSpec().
		WithClusters(applyv1alpha1.ClusterPolicy().WithName("cluster2").WithWeight(5)))
	if _, err := services.Apply(t.Context(), conflicting, metav1.ApplyOptions{FieldManager: "person"}); !apierrors.IsConflict(err) {
		t.Errorf("a change of another writer's field: %v, want a conflict", err)
	}
	status := applyv1alpha1.GlobalService("one", namespace).WithStatus(applyv1alpha1.GlobalServiceStatus().WithObservedGeneration(2))
	applied, err := services.ApplyStatus(t.Context(), status, metav1.ApplyOptions{FieldManager: "mesh-controller"})
	if err != nil {
		t.Fatal(err)
	}
	if applied.Status.ObservedGeneration != 2 || len(applied.Spec.Clusters) != 2 {
		t.Errorf("after an apply of the status: %v", applied)
	}
}

func testManagedBy(t *testing.T, f *fixture) {
	services := f.direct.GlobalServices(f.namespace(t, "managed-by"))
	label := map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByController}
	made := globalService("made-by-controller")
	made.Labels = label
	created, err := services.Create(t.Context(), made, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if created.Labels[v1alpha1.LabelManagedBy] == "" {
		t.Error("the controller's label is gone after the create")
	}
	created.Annotations = map[string]string{"a": "b"}
	if created, err = services.Update(t.Context(), created, metav1.UpdateOptions{}); err != nil || created.Labels[v1alpha1.LabelManagedBy] == "" {
		t.Errorf("the label is gone after a write beside the spec: %v", err)
	}
	patched, err := services.Patch(t.Context(), created.Name, types.MergePatchType, []byte(`{"spec":{"affinity":"Local"}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, found := patched.Labels[v1alpha1.LabelManagedBy]; found {
		t.Error("the label is still there after a write to the spec")
	}
	written := globalService("written")
	written.Labels, written.Spec.Affinity = label, v1alpha1.AffinityLocal
	if written, err = services.Create(t.Context(), written, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, found := written.Labels[v1alpha1.LabelManagedBy]; found {
		t.Error("an object made with a spec has the label")
	}
}

func testValidation(t *testing.T, f *fixture) {
	namespace := f.namespace(t, "validation")
	dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	imported := func(name string, change func(*v1alpha1.SliceRecord)) error {
		slice := &v1alpha1.ImportedEndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: sliceRecord("cluster2", "10.0.0.1")}
		change(&slice.Spec)
		_, err := f.direct.ImportedEndpointSlices(namespace).Create(t.Context(), slice, dry)
		return err
	}
	tests := []struct {
		name string
		try  func() error
		want string
	}{
		{"an affinity that does not exist", func() error {
			service := globalService("a")
			service.Spec.Affinity = "Near"
			_, err := f.direct.GlobalServices(namespace).Create(t.Context(), service, dry)
			return err
		}, `spec.affinity: Unsupported value: "Near"`},
		{"a weight above 1000", func() error {
			service := globalService("a")
			service.Spec.Clusters = []v1alpha1.ClusterPolicy{{Name: "cluster2", Weight: ptr.To[int32](1001)}}
			_, err := f.direct.GlobalServices(namespace).Create(t.Context(), service, dry)
			return err
		}, "spec.clusters[0].weight: Invalid value: 1001"},
		{"a cluster that stands twice", func() error {
			service := globalService("a")
			service.Spec.Clusters = []v1alpha1.ClusterPolicy{{Name: "cluster2"}, {Name: "cluster2"}}
			_, err := f.direct.GlobalServices(namespace).Create(t.Context(), service, dry)
			return err
		}, "spec.clusters[1]: Duplicate value"},
		{"a cluster called default", func() error {
			_, err := f.direct.MeshClusters().Create(t.Context(), peer("default", 9), dry)
			return err
		}, `metadata.name: Invalid value: "default"`},
		{"an imported slice that is not named after its cluster", func() error {
			return imported("cluster1.a", func(*v1alpha1.SliceRecord) {})
		}, `must begin with the cluster's name and a dot, "cluster2."`},
		{"a loopback endpoint", func() error {
			return imported("cluster2.a", func(r *v1alpha1.SliceRecord) { r.Endpoints[0].Address = "127.0.0.1" })
		}, "must not be a loopback address"},
		{"more endpoints than 100", func() error {
			return imported("cluster2.a", func(r *v1alpha1.SliceRecord) {
				for i := range 101 {
					r.Endpoints = append(r.Endpoints, v1alpha1.Endpoint{Address: fmt.Sprintf("10.0.1.%d", i)})
				}
			})
		}, "spec.endpoints: Too many: 102: must have at most 100 items"},
		{"another cluster in an update", func() error {
			slices := f.direct.ImportedEndpointSlices(namespace)
			made, err := slices.Create(t.Context(), &v1alpha1.ImportedEndpointSlice{
				ObjectMeta: metav1.ObjectMeta{GenerateName: "cluster2."}, Spec: sliceRecord("cluster2", "10.0.0.1"),
			}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			made.Spec.ClusterID = 3
			_, err = slices.Update(t.Context(), made, metav1.UpdateOptions{})
			return err
		}, "field is immutable"},
		{"a field selector that nobody needs", func() error {
			_, err := f.direct.ImportedEndpointSlices(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "spec.cluster=a"})
			return err
		}, "is not a known field selector"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := test.try()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want it to contain %q", err, test.want)
			}
			if err != nil && !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) {
				t.Errorf("error is of the reason %q", apierrors.ReasonForError(err))
			}
		})
	}
}

func testOversize(t *testing.T, f *fixture) {
	services := f.direct.GlobalServices(f.namespace(t, "oversize"))
	for name, size := range map[string]int{"for the store": 2 << 20, "for a request": 4 << 20} {
		t.Run(name, func(t *testing.T) {
			service := globalService("large")
			service.Labels = map[string]string{}
			for i := 0; i*70 < size; i++ {
				service.Labels[fmt.Sprintf("label-%s-%07d", strings.Repeat("x", 40), i)] = "value"
			}
			_, err := services.Create(t.Context(), service, metav1.CreateOptions{})
			if !apierrors.IsRequestEntityTooLargeError(err) {
				t.Errorf("error is %v", err)
			}
		})
	}
	if _, err := services.Get(t.Context(), "large", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("it was stored: %v", err)
	}
}

func testWarnings(t *testing.T, f *fixture) {
	namespace := f.namespace(t, "warnings")
	output, err := f.Kubectl(t, f.Kube, "apply", "-f", manifest(t, f, fmt.Sprintf(`
apiVersion: mesh.io/v1alpha1
kind: GlobalService
metadata: {name: odd, namespace: %s}
spec:
  affinity: Remote
  localMinReady: 50
  clusters: [{name: cluster2, weight: 0}]`, namespace)))
	if err != nil {
		t.Fatal(err, output)
	}
	for _, want := range []string{
		"Warning: spec.clusters: every cluster that is listed has weight 0",
		"Warning: spec.localMinReady: acts with affinity Local only, not with the affinity Remote",
	} {
		if !strings.Contains(output, want) {
			t.Errorf("no %q in %q", want, output)
		}
	}
}

func peer(name string, id int32) *v1alpha1.MeshCluster {
	return &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.MeshClusterSpec{ID: id, KubeconfigSecretRef: &v1alpha1.SecretReference{Name: name}},
	}
}

func testLocalCluster(t *testing.T, f *fixture) {
	clusters := f.direct.MeshClusters()
	local := &v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: "cluster1"}, Spec: v1alpha1.MeshClusterSpec{ID: 1}}
	if _, err := clusters.Create(t.Context(), local, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// One that no controller has taken for its own can be corrected.
	if err := clusters.Delete(t.Context(), "cluster1", metav1.DeleteOptions{}); err != nil {
		t.Errorf("deleting a local cluster that nobody has adopted: %v", err)
	}
	created, err := clusters.Create(t.Context(), local, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	epoch := created.Status.StoreEpoch
	if epoch == "" {
		t.Error("the local cluster says nothing of the store")
	}
	created.Status.UID = "uid-1"
	created.Status.StoreEpoch = "forged"
	created.Status.Version = "v1"
	if created, err = clusters.UpdateStatus(t.Context(), created, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if created.Status.StoreEpoch != epoch || created.Status.Version != "v1" {
		t.Errorf("after a heartbeat: %v", created.Status)
	}

	second := local.DeepCopy()
	second.Name = "cluster9"
	if _, err := clusters.Create(t.Context(), second, metav1.CreateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `"cluster1" is already the local cluster`) {
		t.Errorf("a second local cluster: %v", err)
	}
	if err := clusters.Delete(t.Context(), "cluster1", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "to leave the mesh") {
		t.Errorf("deleting the local cluster: %v", err)
	}

	made, err := clusters.Create(t.Context(), peer("cluster2", 2), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if made.Spec.KubeconfigSecretRef.Key != "kubeconfig" {
		t.Errorf("the default of the Secret's entry is %q", made.Spec.KubeconfigSecretRef.Key)
	}
	made.Status.StoreEpoch = "theirs"
	if made, err = clusters.UpdateStatus(t.Context(), made, metav1.UpdateOptions{}); err != nil || made.Status.StoreEpoch != "theirs" {
		t.Errorf("a peer's epoch is the controller's to write: %v %v", made, err)
	}
	made.Spec.KubeconfigSecretRef = nil
	if _, err := clusters.Update(t.Context(), made, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a peer became local: %v", err)
	}
	if err := clusters.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("deleting all clusters: %v", err)
	}
	if _, err := clusters.Get(t.Context(), "cluster1", metav1.GetOptions{}); err != nil {
		t.Errorf("the local cluster is gone: %v", err)
	}
	if err := clusters.Delete(t.Context(), "cluster2", metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Errorf("deleting a peer: %v", err)
	}
}

// testRoles uses the roles as they are shipped, at both doors.
func testRoles(t *testing.T, f *fixture) {
	song, other := f.namespace(t, "song"), f.namespace(t, "other")
	bind := func(user, role, namespace string) {
		t.Helper()
		ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}
		subjects := []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: user}}
		meta := metav1.ObjectMeta{GenerateName: "test-"}
		var err error
		if namespace == "" {
			_, err = f.core.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: subjects}, metav1.CreateOptions{})
		} else {
			_, err = f.core.RbacV1().RoleBindings(namespace).Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: subjects}, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	bind("viewer", "mesh-view", song)
	bind("editor", "mesh-view", song)
	bind("editor", "mesh-edit", song)
	bind("peer", "mesh-peer", "")
	bind("invited", "mesh-invite", "")

	type access struct{ verb, resource, namespace string }
	tests := []struct {
		user           string
		account        bool
		allowed        []access
		forbidden      []access
		onlyAggregator bool
	}{{
		user:      "viewer",
		allowed:   []access{{"get", "globalservices", song}, {"get", "importedendpointslices", song}, {"get", "exportedservices", song}},
		forbidden: []access{{"get", "globalservices", other}, {"get", "globalservices", ""}, {"create", "globalservices", song}, {"get", "meshclusters", ""}},
	}, {
		user:      "editor",
		allowed:   []access{{"get", "globalservices", song}, {"create", "globalservices", song}},
		forbidden: []access{{"create", "globalservices", other}, {"create", "exportedservices", song}, {"create", "importedendpointslices", song}},
	}, {
		user:      "peer",
		allowed:   []access{{"get", "exportedservices", ""}, {"get", "exportedendpointslices", ""}, {"get", "meshclusters", ""}},
		forbidden: []access{{"get", "importedservices", ""}, {"get", "importedendpointslices", ""}, {"get", "globalservices", ""}, {"create", "exportedservices", song}, {"create", "joinrequests", ""}},
	}, {
		user:      "invited",
		forbidden: []access{{"get", "exportedservices", ""}, {"get", "meshclusters", ""}, {"create", "peertokens", ""}},
	}, {
		user: "mesh-controller", account: true,
		allowed: []access{
			{"create", "exportedservices", song}, {"create", "importedendpointslices", song}, {"create", "globalservices", song}, {"get", "meshclusters", ""},
		},
	}, {
		user: "mesh-agent", account: true,
		allowed:   []access{{"get", "servicepolicies", ""}, {"get", "meshmembers", ""}, {"get", "importedendpointslices", ""}, {"get", "meshclusters", ""}},
		forbidden: []access{{"get", "globalservices", ""}, {"get", "exportedendpointslices", ""}, {"create", "globalservices", song}},
	}}
	for _, test := range tests {
		kube, mesh := f.User(t, test.user)
		if test.account {
			kube, mesh = f.ServiceAccount(t, test.user)
		}
		for door, config := range map[string]*rest.Config{"aggregated": kube, "direct": mesh} {
			t.Run(test.user+" "+door, func(t *testing.T) {
				client := meshclient.NewForConfigOrDie(config).MeshV1alpha1().RESTClient()
				try := func(a access) error {
					if a.verb == "get" {
						return client.Get().NamespaceIfScoped(a.namespace, a.namespace != "").Resource(a.resource).Do(t.Context()).Error()
					}
					// An empty object gets past authorization and no further.
					body := fmt.Sprintf(`{"apiVersion":"mesh.io/v1alpha1","kind":%q}`, kinds[a.resource])
					return client.Post().NamespaceIfScoped(a.namespace, a.namespace != "").Resource(a.resource).
						SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(t.Context()).Error()
				}
				for _, a := range test.allowed {
					controlplane.Eventually(t, 10*time.Second, fmt.Sprint("access ", a), func(context.Context) error {
						if err := try(a); apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
							return err
						}
						return nil
					})
				}
				for _, a := range test.forbidden {
					if err := try(a); !apierrors.IsForbidden(err) {
						t.Errorf("%v is answered with %v", a, err)
					}
				}
			})
		}
	}

	t.Run("nobody", func(t *testing.T) {
		anonymous := rest.AnonymousClientConfig(f.Mesh)
		_, err := meshclient.NewForConfigOrDie(anonymous).MeshV1alpha1().MeshClusters().List(t.Context(), metav1.ListOptions{})
		if !apierrors.IsForbidden(err) {
			t.Errorf("without credentials: %v", err)
		}
		// Only the aggregator may say who somebody is.
		forged := rest.CopyConfig(anonymous)
		forged.Wrap(func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(request *http.Request) (*http.Response, error) {
				request = request.Clone(request.Context())
				request.Header.Set("X-Remote-User", "admin")
				request.Header.Set("X-Remote-Group", "system:masters")
				return next.RoundTrip(request)
			})
		})
		_, err = meshclient.NewForConfigOrDie(forged).MeshV1alpha1().MeshClusters().List(t.Context(), metav1.ListOptions{})
		if !apierrors.IsForbidden(err) {
			t.Errorf("with forged headers: %v", err)
		}
	})
	t.Run("a token", func(t *testing.T) {
		account, err := f.core.CoreV1().ServiceAccounts(song).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		bind("system:serviceaccount:"+song+":"+account.Name, "mesh-view", song)
		token, err := f.core.CoreV1().ServiceAccounts(song).CreateToken(t.Context(), account.Name, tokenRequest(), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		config := rest.AnonymousClientConfig(f.Mesh)
		config.BearerToken = token.Status.Token
		client := meshclient.NewForConfigOrDie(config).MeshV1alpha1()
		controlplane.Eventually(t, 10*time.Second, "the account's access", func(ctx context.Context) error {
			_, err := client.GlobalServices(song).List(ctx, metav1.ListOptions{})
			return err
		})
		config.BearerToken = "forged"
		if _, err := meshclient.NewForConfigOrDie(config).MeshV1alpha1().GlobalServices(song).List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
			t.Errorf("a forged token: %v", err)
		}
	})
}

var kinds = map[string]string{
	"globalservices": "GlobalService", "exportedservices": "ExportedService", "importedendpointslices": "ImportedEndpointSlice",
	"peertokens": "PeerToken", "joinrequests": "JoinRequest",
}

func testTables(t *testing.T, f *fixture) {
	namespace := f.namespace(t, "tables")
	services := f.direct.GlobalServices(namespace)
	service, err := services.Create(t.Context(), globalService("userlist-svc"), metav1.CreateOptions{})
	must(t, err)
	service.Status = readyStatus()
	_, err = services.UpdateStatus(t.Context(), service, metav1.UpdateOptions{})
	must(t, err)
	_, err = services.Create(t.Context(), globalService("waiting"), metav1.CreateOptions{})
	must(t, err)
	_, err = f.direct.ExportedServices(namespace).Create(t.Context(), exportedService("userlist-svc"), metav1.CreateOptions{})
	must(t, err)
	headless := &v1alpha1.ImportedService{ObjectMeta: metav1.ObjectMeta{Name: "cluster2.userlist-svc"}, Spec: exportedService("").Spec}
	headless.Spec.Cluster, headless.Spec.ClusterID, headless.Spec.Type, headless.Spec.Ports = "cluster2", 2, v1alpha1.ServiceTypeHeadless, nil
	_, err = f.direct.ImportedServices(namespace).Create(t.Context(), headless, metav1.CreateOptions{})
	must(t, err)
	record := sliceRecord("cluster2", "10.0.0.1", "10.0.0.2")
	record.Endpoints[1].Ready = false
	_, err = f.direct.ExportedEndpointSlices(namespace).Create(t.Context(), &v1alpha1.ExportedEndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "abc"}, Spec: record}, metav1.CreateOptions{})
	must(t, err)
	_, err = f.direct.ImportedEndpointSlices(namespace).Create(t.Context(), &v1alpha1.ImportedEndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "cluster2.abc"}, Spec: record}, metav1.CreateOptions{})
	must(t, err)
	cluster, err := f.direct.MeshClusters().Create(t.Context(), peer("cluster7", 7), metav1.CreateOptions{})
	must(t, err)
	cluster.Status = v1alpha1.MeshClusterStatus{
		UID: "11111111-2222", Version: "v0.1.0", Services: 3, Endpoints: 12, Refused: 1, LastContactTime: metav1.NewTime(time.Now().Add(-2 * time.Hour)),
		Conditions: []metav1.Condition{
			{Type: v1alpha1.MeshClusterConnected, Status: metav1.ConditionTrue, Reason: "Answers", LastTransitionTime: metav1.Now()},
			{Type: v1alpha1.MeshClusterSynced, Status: metav1.ConditionFalse, Reason: "Listing", LastTransitionTime: metav1.Now()},
		},
	}
	_, err = f.direct.MeshClusters().UpdateStatus(t.Context(), cluster, metav1.UpdateOptions{})
	must(t, err)

	tests := []struct {
		args string
		want string
	}{{"get gsvc -A", `
NAMESPACE NAME CLUSTERS BACKENDS LOCAL REMOTE AFFINITY SHARED AGE
tables userlist-svc 1/2 1/5 1/2 0/3 None true <age>
tables waiting <unknown> <unknown> <unknown> <unknown> <unknown> <unknown> <age>
`}, {"get gsvc userlist-svc -o wide", `
NAME CLUSTERS BACKENDS LOCAL REMOTE AFFINITY SHARED AGE CLUSTER-NAMES CONFLICT
userlist-svc 1/2 1/5 1/2 0/3 None true <age> cluster1,cluster2 PortsDiffer
`}, {"get expsvc", `
NAME CLUSTER TYPE PORTS AGE
userlist-svc cluster1 ClusterIP 80/TCP <age>
`}, {"get impsvc", `
NAME CLUSTER TYPE PORTS AGE
cluster2.userlist-svc cluster2 Headless <none> <age>
`}, {"get expslice", `
NAME CLUSTER SERVICE TYPE ENDPOINTS PORTS AGE
abc cluster2 userlist-svc IPv4 1/2 8181/TCP <age>
`}, {"get impslice -l mesh.io/cluster=cluster2,mesh.io/service-name=userlist-svc", `
NAME CLUSTER SERVICE TYPE ENDPOINTS PORTS AGE
cluster2.abc cluster2 userlist-svc IPv4 1/2 8181/TCP <age>
`}, {"get mc cluster1 cluster7", `
NAME ID CONNECTED SYNCED SERVICES ENDPOINTS AGE
cluster1 1 <local> Unknown 0 0 <age>
cluster7 7 True False 3 12 <age>
`}, {"get mc cluster7 -o wide", `
NAME ID CONNECTED SYNCED SERVICES ENDPOINTS AGE VERSION LAST-CONTACT UID REFUSED
cluster7 7 True False 3 12 <age> v0.1.0 120m 11111111-2222 1
`}}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			args := strings.Fields(test.args)
			if strings.HasSuffix(test.args, "-A") {
				args = append(args, "--field-selector=metadata.namespace="+namespace)
			} else {
				args = append(args, "--namespace="+namespace)
			}
			got := normalize(f.MustKubectl(t, args...))
			if diff := cmp.Diff(strings.TrimSpace(test.want), got); diff != "" {
				t.Errorf("kubectl %s (-want +got):\n%s", test.args, diff)
			}
		})
	}
	t.Run("wait and describe", func(t *testing.T) {
		f.MustKubectl(t, "wait", "gsvc/userlist-svc", "--for=condition=Conflict", "--timeout=5s", "--namespace="+namespace)
		if output := f.MustKubectl(t, "describe", "gsvc", "userlist-svc", "--namespace="+namespace); !strings.Contains(output, "PortsDiffer") {
			t.Errorf("described as:\n%s", output)
		}
	})
	t.Run("get mesh", func(t *testing.T) {
		output := f.MustKubectl(t, "get", "mesh", "--namespace="+namespace)
		for _, want := range []string{"globalservice.mesh.io/userlist-svc", "importedendpointslice.mesh.io/cluster2.abc", "meshcluster.mesh.io/cluster7"} {
			if !strings.Contains(output, want) {
				t.Errorf("no %s in:\n%s", want, output)
			}
		}
	})
}

// normalize makes columns one blank apart and ages, which are a few seconds, equal.
func normalize(output string) string {
	var lines []string
	for line := range strings.Lines(strings.TrimSpace(output)) {
		fields := strings.Fields(line)
		for i, field := range fields {
			if age, err := time.ParseDuration(field); err == nil && age < 2*time.Minute && field != "0" {
				fields[i] = "<age>"
			}
		}
		lines = append(lines, strings.Join(fields, " "))
	}
	return strings.Join(lines, "\n")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testAdmission(t *testing.T, f *fixture) {
	namespace := f.namespace(t, "admission")
	_, err := f.direct.ExportedServices("no-such-namespace").Create(t.Context(), exportedService("one"), metav1.CreateOptions{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("a create in a namespace that does not exist: %v", err)
	}
	f.MustKubectl(t, "apply", "-f", manifest(t, f, `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-odd-names}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{apiGroups: [mesh.io], apiVersions: ["*"], operations: [CREATE], resources: ["*"]}]
  validations: [{expression: "!object.metadata.name.contains('odd')", message: "that name is odd"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-odd-names}
spec: {policyName: no-odd-names, validationActions: [Deny]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: nobody-answers}
webhooks:
  - name: nobody.answers.io
    failurePolicy: Fail
    sideEffects: None
    admissionReviewVersions: [v1]
    timeoutSeconds: 1
    clientConfig: {url: "https://127.0.0.1:1/"}
    rules: [{apiGroups: [mesh.io], apiVersions: ["*"], operations: [CREATE], resources: ["*"]}]`))
	t.Cleanup(func() {
		f.MustKubectl(t, "delete", "validatingwebhookconfiguration", "nobody-answers")
		f.MustKubectl(t, "delete", "validatingadmissionpolicybinding", "no-odd-names")
		f.MustKubectl(t, "delete", "validatingadmissionpolicy", "no-odd-names")
	})
	dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	controlplane.Eventually(t, 20*time.Second, "the policy to act", func(ctx context.Context) error {
		_, err := f.direct.ExportedServices(namespace).Create(ctx, exportedService("odd"), dry)
		if err == nil || !strings.Contains(err.Error(), "that name is odd") {
			return fmt.Errorf("the answer is %w", err)
		}
		return nil
	})
	controlplane.Eventually(t, 20*time.Second, "the webhook to be asked about a GlobalService", func(ctx context.Context) error {
		_, err := f.direct.GlobalServices(namespace).Create(ctx, globalService("one"), dry)
		if err == nil || !strings.Contains(err.Error(), "nobody.answers.io") {
			return fmt.Errorf("the answer is %w", err)
		}
		return nil
	})
	if _, err := f.direct.ExportedServices(namespace).Create(t.Context(), exportedService("one"), dry); err != nil {
		t.Errorf("a webhook stands in the way of the controller's objects: %v", err)
	}
}

func testEndpoints(t *testing.T, f *fixture) {
	get := func(path string) string {
		t.Helper()
		body, err := f.direct.RESTClient().Get().AbsPath(strings.Split(path, "?")[0]).Param("verbose", "").DoRaw(t.Context())
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return string(body)
	}
	if live := get("/livez"); strings.Contains(live, "[+]etcd") || !strings.Contains(live, "[+]ping ok") {
		t.Errorf("livez looks at:\n%s", live)
	}
	ready := get("/readyz")
	for _, want := range []string{"[+]caches-filled ok", "[+]etcd ok", "[+]informer-sync ok", "[+]shutdown ok"} {
		if !strings.Contains(ready, want) {
			t.Errorf("no %q in readyz:\n%s", want, ready)
		}
	}
	metrics := get("/metrics")
	for _, want := range []string{"mesh_apiserver_etcd_up 1", "apiserver_request_total{"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %q in the metrics", want)
		}
	}
	var document struct {
		Paths map[string]any `json:"paths"`
	}
	if err := json.Unmarshal([]byte(get("/openapi/v3")), &document); err != nil || document.Paths["apis/mesh.io/v1alpha1"] == nil {
		t.Errorf("OpenAPI v3 does not list the group: %v", err)
	}
	if v2 := get("/openapi/v2"); !strings.Contains(v2, "io.mesh.clustermesh.pkg.apis.mesh.v1alpha1.GlobalService") {
		t.Error("OpenAPI v2 lacks GlobalService")
	}
	if _, err := os.Stat(filepath.Join(f.MeshDataDir, "client.sock")); err != nil {
		t.Errorf("the embedded etcd's socket: %v", err)
	}
}
