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
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	meshclient "mesh.io/clustermesh/pkg/generated/clientset/versioned"
	"mesh.io/clustermesh/test/integration/controlplane"
)

// longOutage is longer than the etcd client keeps a connection that is silent.
const longOutage = 50 * time.Second

// TestWithoutQuorum takes etcd away and looks at what goes on.
func TestWithoutQuorum(t *testing.T) {
	plane := controlplane.Start(t, controlplane.Options{ExternalMeshEtcd: true, MeshEtcdTLS: true})
	f := &fixture{
		ControlPlane: plane,
		core:         kubernetes.NewForConfigOrDie(plane.Kube),
		direct:       meshclient.NewForConfigOrDie(plane.Mesh).MeshV1alpha1(),
	}
	namespace := f.namespace(t, "quorum")
	services := f.direct.GlobalServices(namespace)
	_, err := services.Create(t.Context(), globalService("one"), metav1.CreateOptions{})
	must(t, err)
	list, err := services.List(t.Context(), metav1.ListOptions{})
	must(t, err)
	before, err := services.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	must(t, err)
	defer before.Stop()

	must(t, f.MeshEtcd.Pause())
	outage := time.Now()
	reads := func(when string) {
		t.Helper()
		begin := time.Now()
		got, err := services.List(t.Context(), metav1.ListOptions{ResourceVersion: "0"})
		if err != nil || len(got.Items) != 1 {
			t.Errorf("%s: a list with resourceVersion=0: %v, %v", when, got, err)
		}
		if _, err := services.Get(t.Context(), "one", metav1.GetOptions{ResourceVersion: "0"}); err != nil {
			t.Errorf("%s: a get with resourceVersion=0: %v", when, err)
		}
		again, err := services.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
		if err != nil {
			t.Errorf("%s: a watch from a known version: %v", when, err)
		} else {
			again.Stop()
		}
		// What informers do: a watch that begins with a list.
		listing, err := services.Watch(t.Context(), metav1.ListOptions{
			ResourceVersion: "0", ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
			SendInitialEvents: ptr.To(true), AllowWatchBookmarks: true,
		})
		if err != nil {
			t.Errorf("%s: a watch that begins with a list: %v", when, err)
		} else {
			expectEvent(t, listing, watch.Added, "one")
			select {
			case event := <-listing.ResultChan():
				if event.Type != watch.Bookmark {
					t.Errorf("%s: after the list comes %v", when, event)
				}
			case <-time.After(5 * time.Second):
				t.Errorf("%s: the list has no end", when)
			}
			listing.Stop()
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("%s: reads from memory took %s", when, took)
		}
		for _, path := range []string{"/livez", "/readyz"} {
			if err := f.direct.RESTClient().Get().AbsPath(path).Do(t.Context()).Error(); err != nil {
				t.Errorf("%s: %s: %v", when, path, err)
			}
		}
	}
	reads("at once")

	t.Run("all else is answered in time", func(t *testing.T) {
		for what, try := range map[string]func(context.Context) error{
			"a create": func(ctx context.Context) error {
				_, err := services.Create(ctx, globalService("two"), metav1.CreateOptions{})
				return err
			},
			"a patch": func(ctx context.Context) error {
				_, err := services.Patch(ctx, "one", types.MergePatchType, []byte(`{"spec":{"affinity":"Local"}}`), metav1.PatchOptions{})
				return err
			},
			"a delete": func(ctx context.Context) error { return services.Delete(ctx, "one", metav1.DeleteOptions{}) },
			"a consistent get": func(ctx context.Context) error {
				_, err := services.Get(ctx, "one", metav1.GetOptions{})
				return err
			},
			"a consistent list": func(ctx context.Context) error {
				_, err := services.List(ctx, metav1.ListOptions{})
				return err
			},
			"a consistent watch": func(ctx context.Context) error {
				watcher, err := services.Watch(ctx, metav1.ListOptions{
					ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, SendInitialEvents: ptr.To(true), AllowWatchBookmarks: true,
				})
				if err != nil {
					return err
				}
				defer watcher.Stop()
				if event, ok := <-watcher.ResultChan(); ok && event.Type != watch.Error {
					return nil
				}
				return errors.New("it ended")
			},
		} {
			t.Run(what, func(t *testing.T) {
				t.Parallel()
				begin := time.Now()
				err := try(t.Context())
				took := time.Since(begin)
				t.Logf("answered after %s: %v", took.Round(10*time.Millisecond), err)
				if err == nil {
					t.Error("it succeeded without etcd")
				}
				if took > 10*time.Second {
					t.Errorf("it took %s", took)
				}
			})
		}
	})
	t.Run("the loss is told", func(t *testing.T) {
		controlplane.Eventually(t, 10*time.Second, "the loss to be noticed", func(ctx context.Context) error {
			body, err := f.direct.RESTClient().Get().AbsPath("/readyz").Param("verbose", "").DoRaw(ctx)
			if err != nil || !strings.Contains(string(body), "[+]etcd (no quorum for ") {
				return fmt.Errorf("error %w: %s", err, body)
			}
			metrics, err := f.direct.RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
			if err != nil || !strings.Contains(string(metrics), "mesh_apiserver_etcd_up 0") {
				return fmt.Errorf("the metric does not tell: %w", err)
			}
			if err := f.direct.RESTClient().Get().AbsPath("/readyz/etcd").Do(ctx).Error(); err == nil {
				return errors.New("/readyz/etcd succeeds")
			}
			return nil
		})
	})
	t.Run("a long outage", func(t *testing.T) {
		if testing.Short() {
			t.Skip("it takes a minute")
		}
		time.Sleep(time.Until(outage.Add(longOutage)))
		reads("after " + longOutage.String())
	})

	must(t, f.MeshEtcd.Resume())
	controlplane.Eventually(t, 30*time.Second, "writes to work again", func(ctx context.Context) error {
		_, err := services.Patch(ctx, "one", types.MergePatchType, []byte(`{"metadata":{"labels":{"after":"outage"}}}`), metav1.PatchOptions{})
		return err
	})
	// The watch that was open all the time gets what happened after it.
	deadline := time.After(20 * time.Second)
	for {
		select {
		case event, ok := <-before.ResultChan():
			if !ok {
				t.Fatal("the watch that was open before the outage has ended")
			}
			if object, ok := event.Object.(metav1.Object); ok && object.GetLabels()["after"] == "outage" {
				return
			}
		case <-deadline:
			t.Fatal("the watch that was open before the outage is silent")
		}
	}
}
