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
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/test/integration/controlplane"
	"mesh.io/clustermesh/test/integration/member"
)

const timeout = member.Timeout

// cluster is one cluster of the test: a control plane and a controller.
type cluster struct {
	*member.Cluster
	etcd *clientv3.Client // of the mesh API, if that is external
}

// startCluster starts a control plane whose store the test can open, without the
// controller.
func startCluster(t testing.TB, name string, id int32) *cluster {
	t.Helper()
	c := startClusterOn(t, name, id, controlplane.Options{ExternalMeshEtcd: true})
	c.etcd = openStore(t, c.Plane.MeshEtcd)
	return c
}

// startClusterOn starts a control plane that lets peers in, without the controller.
func startClusterOn(t testing.TB, name string, id int32, options controlplane.Options) *cluster {
	t.Helper()
	c := &cluster{Cluster: member.Start(t, name, id, options)}
	c.LetPeersIn(t)
	return c
}

// start starts a controller that forgets fast.
func (c *cluster) start(t testing.TB, flags ...string) *controlplane.Process {
	t.Helper()
	return c.StartController(t, append([]string{"--keep-global-services=5s"}, flags...)...)
}

var global = member.Global

// addresses lists what is imported of a service from a cluster.
func (c *cluster) addresses(ctx context.Context, namespace, service, from string) (map[string]bool, error) {
	list, err := c.Mesh.MeshV1alpha1().ImportedEndpointSlices(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: v1alpha1.LabelServiceName + "=" + service + "," + v1alpha1.LabelCluster + "=" + from,
	})
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for _, slice := range list.Items {
		for _, endpoint := range slice.Spec.Endpoints {
			found[endpoint.Address] = true
		}
	}
	return found, nil
}

// imports waits until exactly these addresses are imported.
func (c *cluster) imports(t testing.TB, namespace, service, from string, want ...string) {
	t.Helper()
	controlplane.Eventually(t, timeout, fmt.Sprintf("%s of %s/%s from %s in %s", want, namespace, service, from, c.Name), func(ctx context.Context) error {
		return c.hasImported(ctx, namespace, service, from, want...)
	})
}

func (c *cluster) hasImported(ctx context.Context, namespace, service, from string, want ...string) error {
	found, err := c.addresses(ctx, namespace, service, from)
	if err != nil {
		return err
	}
	if len(found) != len(want) {
		return fmt.Errorf("there are %v", found)
	}
	for _, address := range want {
		if !found[address] {
			return fmt.Errorf("there are %v", found)
		}
	}
	return nil
}

// stays checks for a while that exactly these addresses stay imported.
func (c *cluster) stays(t testing.TB, d time.Duration, namespace, service, from string, want ...string) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err := c.hasImported(t.Context(), namespace, service, from, want...); err != nil {
			t.Fatalf("%v of %s/%s from %s should stay: %v", want, namespace, service, from, err)
		}
	}
}

// event waits for an Event about an object.
func (c *cluster) event(t testing.TB, kind, namespace, name, reason, text string) {
	t.Helper()
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	controlplane.Eventually(t, timeout, fmt.Sprintf("Event %s about %s %s/%s", reason, kind, namespace, name), func(ctx context.Context) error {
		events, err := c.Kube.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var seen []string
		for _, event := range events.Items {
			if event.InvolvedObject.Kind == kind && event.InvolvedObject.Name == name {
				if event.Reason == reason && strings.Contains(event.Message, text) {
					return nil
				}
				seen = append(seen, event.Reason+": "+event.Message)
			}
		}
		return fmt.Errorf("there are %q", seen)
	})
}

// globalService waits until a GlobalService fulfils a condition.
func (c *cluster) globalService(t testing.TB, namespace, name string, check func(*v1alpha1.GlobalService) error) *v1alpha1.GlobalService {
	t.Helper()
	var found *v1alpha1.GlobalService
	controlplane.Eventually(t, timeout, fmt.Sprintf("GlobalService %s/%s in %s", namespace, name, c.Name), func(ctx context.Context) error {
		var err error
		if found, err = c.Mesh.MeshV1alpha1().GlobalServices(namespace).Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		if err := check(found); err != nil {
			return fmt.Errorf("%w: %+v", err, found.Status)
		}
		return nil
	})
	return found
}

func (c *cluster) annotate(t testing.TB, namespace, name, annotations string) {
	t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"annotations":%s}}`, annotations)
	if _, err := c.Kube.CoreV1().Services(namespace).Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}
