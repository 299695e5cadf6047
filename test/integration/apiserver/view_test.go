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

package apiserver

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/test/integration/controlplane"
)

// initial reads a watch to the end of its initial events, and returns their names.
func initial(t *testing.T, watcher watch.Interface) (names []string, version string) {
	t.Helper()
	for {
		select {
		case event := <-watcher.ResultChan():
			object, ok := event.Object.(metav1.Object)
			if !ok {
				t.Fatalf("event is %s %v", event.Type, event.Object)
			}
			if event.Type == watch.Bookmark && object.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
				return names, object.GetResourceVersion()
			}
			names = append(names, object.GetName())
		case <-time.After(10 * time.Second):
			t.Fatal("no end of the initial events")
		}
	}
}

// watchList is how informers begin.
func watchList() metav1.ListOptions {
	return metav1.ListOptions{
		SendInitialEvents: ptr.To(true), AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
	}
}

// testServicePolicies proves that agents are told of specs, and of nothing else that is
// written to GlobalServices.
func testServicePolicies(t *testing.T, f *fixture) {
	namespace := f.namespace(t, "policies")
	services, policies := f.direct.GlobalServices(namespace), f.direct.ServicePolicies(namespace)
	create := func(name string, labels map[string]string, affinity v1alpha1.Affinity) {
		t.Helper()
		g := globalService(name)
		g.Labels, g.Spec.Affinity = labels, affinity
		_, err := services.Create(t.Context(), g, metav1.CreateOptions{})
		must(t, err)
	}
	patch := func(name, content string, subresources ...string) *v1alpha1.GlobalService {
		t.Helper()
		g, err := services.Patch(t.Context(), name, types.MergePatchType, []byte(content), metav1.PatchOptions{}, subresources...)
		must(t, err)
		return g
	}
	count := func(name string, n int) {
		t.Helper()
		patch(name, fmt.Sprintf(`{"status":{"clusters":[{"name":"cluster2","shared":true,"endpoints":{"ready":%d,"total":9}}]}}`, n), "status")
	}
	made := map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByController}
	create("made", made, "")
	create("written", nil, v1alpha1.AffinityLocal)
	for _, name := range []string{"made", "written"} {
		count(name, 1)
	}

	// Three watches, as three kinds of clients begin them.
	list, err := policies.List(t.Context(), metav1.ListOptions{})
	must(t, err)
	if len(list.Items) != 1 || list.Items[0].Name != "written" || list.Items[0].Spec.Affinity != v1alpha1.AffinityLocal || len(list.Items[0].ManagedFields) > 0 {
		t.Errorf("listed are %v", list.Items)
	}
	listed, err := policies.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	must(t, err)
	defer listed.Stop()
	streamed, err := policies.Watch(t.Context(), watchList())
	must(t, err)
	defer streamed.Stop()
	names, version := initial(t, streamed)
	if strings.Join(names, " ") != "written" {
		t.Errorf("streamed are %v", names)
	}
	for n := range 5 {
		count("made", n)
		count("written", n)
	}
	resumed, err := policies.Watch(t.Context(), metav1.ListOptions{ResourceVersion: version})
	must(t, err)
	defer resumed.Stop()
	each := func(kind watch.EventType, name string, check func(*v1alpha1.ServicePolicy) bool) {
		t.Helper()
		for how, watcher := range map[string]watch.Interface{"listed": listed, "streamed": streamed, "resumed": resumed} {
			deadline := time.After(10 * time.Second)
			for told := false; !told; {
				select {
				case event := <-watcher.ResultChan():
					// The server sends bookmarks, to those that want them, whenever it likes.
					if told = event.Type != watch.Bookmark; !told {
						continue
					}
					policy, ok := event.Object.(*v1alpha1.ServicePolicy)
					if event.Type != kind || !ok || policy.Name != name || check != nil && !check(policy) {
						t.Fatalf("%s: event is %s %v, want %s %s", how, event.Type, event.Object, kind, name)
					}
				case <-deadline:
					t.Fatalf("%s: no event %s %s", how, kind, name)
				}
			}
		}
	}
	// Had a status been told, it would come first.
	patch("written", `{"spec":{"affinity":"Remote"}}`)
	each(watch.Modified, "written", func(p *v1alpha1.ServicePolicy) bool { return p.Spec.Affinity == v1alpha1.AffinityRemote })
	count("written", 7)
	patch("written", `{"metadata":{"annotations":{"a":"b"}}}`)
	patch("made", `{"spec":{"clusters":[{"name":"cluster2","weight":0}]}}`)
	each(watch.Modified, "made", func(p *v1alpha1.ServicePolicy) bool { return len(p.Spec.Clusters) == 1 })
	count("made", 8)
	patch("made", `{"spec":null}`)
	each(watch.Modified, "made", func(p *v1alpha1.ServicePolicy) bool { return len(p.Spec.Clusters) == 0 })
	patch("made", `{"metadata":{"labels":{"mesh.io/managed-by":"mesh-controller"}}}`)
	each(watch.Deleted, "made", nil)
	count("made", 9)
	must(t, services.Delete(t.Context(), "made", metav1.DeleteOptions{}))
	must(t, services.Delete(t.Context(), "written", metav1.DeleteOptions{}))
	each(watch.Deleted, "written", nil)

	create("made", made, "")
	if _, err := policies.Get(t.Context(), "made", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("what nobody wrote is answered with %v", err)
	}
	create("again", nil, v1alpha1.AffinityLocal)
	policy, err := policies.Get(t.Context(), "again", metav1.GetOptions{})
	must(t, err)
	if _, err := policies.Update(t.Context(), policy, metav1.UpdateOptions{}); !apierrors.IsMethodNotSupported(err) {
		t.Errorf("a write is answered with %v", err)
	}
	// A write that changes nothing stays none, whatever was written before it.
	before := patch("again", `{"metadata":{"labels":{"x":"y"}}}`)
	if after := patch("again", `{"metadata":{"labels":{"x":"y"}}}`); after.ResourceVersion != before.ResourceVersion {
		t.Error("a write that changes nothing made a version")
	}
	output := f.MustKubectl(t, "get", "servicepolicies", "-n", namespace)
	if want := "NAME AFFINITY CLUSTERS AGE\nagain Local 0"; !strings.HasPrefix(normalize(output), want) {
		t.Errorf("kubectl prints:\n%s", output)
	}
}

// testMeshMembers proves that agents are told who the members are, and neither of
// counts nor of freshness.
func testMeshMembers(t *testing.T, f *fixture) {
	clusters, members := f.direct.MeshClusters(), f.direct.MeshMembers()
	watcher, err := members.Watch(t.Context(), watchList())
	must(t, err)
	defer watcher.Stop()
	initial(t, watcher)
	member := peer("quiet", 77)
	member.Finalizers = []string{v1alpha1.FinalizerCluster}
	member, err = clusters.Create(t.Context(), member, metav1.CreateOptions{})
	must(t, err)
	expectEvent(t, watcher, watch.Added, "quiet")
	beat := func() {
		t.Helper()
		controlplane.Eventually(t, 10*time.Second, "a heartbeat", func(ctx context.Context) error {
			now, err := clusters.Get(ctx, "quiet", metav1.GetOptions{})
			if err != nil {
				return err
			}
			now.Status.LastContactTime = metav1.Now()
			now.Status.Endpoints++
			member, err = clusters.UpdateStatus(ctx, now, metav1.UpdateOptions{})
			return err
		})
	}
	for range 5 {
		beat()
	}
	member.Spec.Drained = true
	member, err = clusters.Update(t.Context(), member, metav1.UpdateOptions{})
	must(t, err)
	select {
	case event := <-watcher.ResultChan():
		if m, ok := event.Object.(*v1alpha1.MeshMember); !ok || event.Type != watch.Modified || !m.Spec.Drained || m.Spec.ID != 77 {
			t.Fatalf("event is %s %v, want the drain", event.Type, event.Object)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no event of the drain")
	}
	beat()
	// The epoch of the store is told, though it is in the status.
	member.Status.StoreEpoch = "another"
	member, err = clusters.UpdateStatus(t.Context(), member, metav1.UpdateOptions{})
	must(t, err)
	expectEvent(t, watcher, watch.Modified, "quiet")
	beat()
	// It is gone for agents once somebody deletes it, whatever keeps it.
	must(t, clusters.Delete(t.Context(), "quiet", metav1.DeleteOptions{}))
	expectEvent(t, watcher, watch.Deleted, "quiet")
	list, err := members.List(t.Context(), metav1.ListOptions{})
	must(t, err)
	for _, m := range list.Items {
		if m.Name == "quiet" {
			t.Error("a member that is being deleted is listed")
		}
	}
	_, err = clusters.Patch(t.Context(), "quiet", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	must(t, err)
}
