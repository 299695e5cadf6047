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
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/test/integration/controlplane"
	"mesh.io/clustermesh/test/integration/member"
)

func testSecrets(t *testing.T, one, two *cluster) {
	const name = "cluster5"
	one.Join(t, name, 5)
	defer one.Leave(t, name)
	expect := func(reason, text string) {
		t.Helper()
		controlplane.Eventually(t, timeout, reason+" with "+text, func(ctx context.Context) error {
			member, err := one.Mesh.MeshV1alpha1().MeshClusters().Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			found := meta.FindStatusCondition(member.Status.Conditions, v1alpha1.MeshClusterConnected)
			if found == nil || found.Status != metav1.ConditionFalse || found.Reason != reason || !strings.Contains(found.Message, text) {
				return fmt.Errorf("it is %+v", found)
			}
			return nil
		})
		one.event(t, "MeshCluster", "", name, reason, text)
	}
	expect("SecretMissing", "There is no Secret")
	one.SetSecret(t, name, []byte("}{"))
	expect("KubeconfigInvalid", "cannot be used")
	one.SetSecret(t, name, []byte(strings.ReplaceAll(string(two.Kubeconfig(t, "peer")), "certificate-authority-data", "certificate-authority")))
	expect("KubeconfigInvalid", "names a file")
	one.SetSecret(t, name, two.Kubeconfig(t, "stranger"))
	expect("Forbidden", "403")
	_, config := two.Plane.User(t, "peer")
	token := inlineToken(t, config, "not-a-token")
	one.SetSecret(t, name, token)
	expect("Unauthorized", "401")
	stranger := rest.CopyConfig(config)
	stranger.CAData = one.Plane.MeshCA()
	one.SetSecret(t, name, member.Inline(t, stranger))
	expect("CertificateNotTrusted", "certificate")
	nobody := rest.CopyConfig(config)
	nobody.Host = fmt.Sprintf("https://127.0.0.1:%d", controlplane.FreePort(t))
	one.SetSecret(t, name, member.Inline(t, nobody))
	expect("Unreachable", "cannot be reached")
	// All the while the others go on.
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "")
}

func inlineToken(t *testing.T, config *rest.Config, token string) []byte {
	t.Helper()
	bare := rest.CopyConfig(config)
	bare.CertFile, bare.KeyFile, bare.BearerToken = "", "", token
	return member.Inline(t, bare)
}

func testIdentities(t *testing.T, one, two *cluster) {
	const yes = metav1.ConditionTrue
	kind := v1alpha1.MeshClusterIdentityConflict

	// Another name for the same cluster, and its own.
	one.SetSecret(t, "cluster6", two.Kubeconfig(t, "peer"))
	one.Join(t, "cluster6", 6)
	one.AwaitCondition(t, "cluster6", kind, yes, "NameDiffers")
	one.event(t, "MeshCluster", "", "cluster6", "NameDiffers", "cluster2")
	one.SetSecret(t, "cluster6", one.Kubeconfig(t, "peer"))
	one.AwaitCondition(t, "cluster6", kind, yes, "SameCluster")
	one.Leave(t, "cluster6")

	// An ID that is taken: neither is exchanged with, and what is here stays.
	one.imports(t, "song", "web", "cluster2", "10.2.0.1")
	one.Join(t, "cluster7", 2)
	one.AwaitCondition(t, "cluster7", kind, yes, "DuplicateID")
	one.AwaitCondition(t, "cluster2", kind, yes, "DuplicateID")
	two.MakeSlice(t, "song", "web", "web-c", "10.2.0.9")
	one.stays(t, 2*time.Second, "song", "web", "cluster2", "10.2.0.1")
	one.Leave(t, "cluster7")
	one.AwaitCondition(t, "cluster2", kind, metav1.ConditionFalse, "")
	one.imports(t, "song", "web", "cluster2", "10.2.0.1", "10.2.0.9")
	if err := two.Kube.DiscoveryV1().EndpointSlices("song").Delete(t.Context(), "web-c", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	one.imports(t, "song", "web", "cluster2", "10.2.0.1")
	one.Join(t, "cluster8", 1)
	one.AwaitCondition(t, "cluster8", kind, yes, "DuplicateID")
	one.Leave(t, "cluster8")

	// A UID that another member has.
	uid := one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, yes, "").Status.UID
	one.Join(t, "cluster9", 9)
	setUID(t, one, "cluster9", uid)
	one.AwaitCondition(t, "cluster2", kind, yes, "DuplicateUID")
	one.stays(t, time.Second, "song", "web", "cluster2", "10.2.0.1")
	one.Leave(t, "cluster9")
	one.AwaitCondition(t, "cluster2", kind, metav1.ConditionFalse, "")

	// Another cluster answers under a known name: its backends are kept.
	_ = two.Controller.Stop()
	setUID(t, two, "cluster2", "another")
	one.AwaitCondition(t, "cluster2", kind, yes, "UIDChanged")
	one.stays(t, 2*time.Second, "song", "web", "cluster2", "10.2.0.1")
	two.start(t)
	one.AwaitCondition(t, "cluster2", kind, metav1.ConditionFalse, "")
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, yes, "")

	// A controller with the wrong ID does nothing.
	_ = two.Controller.Stop()
	wrong := &cluster{Cluster: two.As("cluster2", 3)}
	wrong.start(t)
	two.AwaitCondition(t, "cluster2", kind, yes, "Contradiction")
	_ = wrong.Controller.Stop()
	two.start(t)
	two.AwaitCondition(t, "cluster2", kind, metav1.ConditionFalse, "")
}

func setUID(t *testing.T, c *cluster, name, uid string) {
	t.Helper()
	controlplane.Eventually(t, timeout, "changing the UID", func(ctx context.Context) error {
		member, err := c.Mesh.MeshV1alpha1().MeshClusters().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		member.Status.UID = uid
		_, err = c.Mesh.MeshV1alpha1().MeshClusters().UpdateStatus(ctx, member, metav1.UpdateOptions{})
		return err
	})
}

// testPeerDown takes the peer's mesh API away, and has this cluster's controller
// start without it.
func testPeerDown(t *testing.T, one, two *cluster) {
	two.Plane.MeshAPIServer.Kill()
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterConnected, metav1.ConditionFalse, "Unreachable")
	one.stays(t, 2*time.Second, "song", "web", "cluster2", "10.2.0.1")
	one.Controller.Kill()
	one.start(t)
	one.AwaitCondition(t, one.Name, v1alpha1.MeshClusterExportsSynced, metav1.ConditionTrue, "")
	one.stays(t, 3*time.Second, "song", "web", "cluster2", "10.2.0.1")
	two.StartMesh(t)
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "")
	two.MakeSlice(t, "song", "web", "web-d", "10.2.0.4")
	one.imports(t, "song", "web", "cluster2", "10.2.0.1", "10.2.0.4")

	// One that is there and says nothing: noticed, and nothing is removed.
	if err := two.Plane.MeshAPIServer.Pause(); err != nil {
		t.Fatal(err)
	}
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterConnected, metav1.ConditionFalse, "Unreachable")
	one.stays(t, time.Second, "song", "web", "cluster2", "10.2.0.1", "10.2.0.4")
	if err := two.Plane.MeshAPIServer.Resume(); err != nil {
		t.Fatal(err)
	}
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "")

	// What goes while nobody looks is noticed afterwards.
	_ = one.Controller.Stop()
	if err := two.Kube.DiscoveryV1().EndpointSlices("song").Delete(t.Context(), "web-d", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	controlplane.Eventually(t, timeout, "the export to go", func(ctx context.Context) error {
		_, err := two.Mesh.MeshV1alpha1().ExportedEndpointSlices("song").Get(ctx, "web-d", metav1.GetOptions{})
		return member.Gone(err)
	})
	one.start(t)
	one.imports(t, "song", "web", "cluster2", "10.2.0.1")
}

// testLeader has a second replica take over.
func testLeader(t *testing.T, one, _ *cluster) {
	holder := func(ctx context.Context) string {
		lease, err := one.Kube.CoordinationV1().Leases(controlplane.Namespace).Get(ctx, "mesh-controller", metav1.GetOptions{})
		if err != nil {
			return ""
		}
		return ptr.Deref(lease.Spec.HolderIdentity, "")
	}
	takeover := func(name string) time.Duration {
		t.Helper()
		began := time.Now()
		controlplane.Eventually(t, 20*time.Second, name+" to lead", func(ctx context.Context) error {
			if found := holder(ctx); found != name {
				return fmt.Errorf("it is %q", found)
			}
			return nil
		})
		return time.Since(began)
	}
	_ = one.Controller.Stop()
	first := one.start(t, "--leader-elect-identity=first")
	takeover("first")
	second := one.start(t, "--leader-elect-identity=second")
	waitLog(t, second, "standing for election")
	first.Kill()
	if took := takeover("second"); took > 10*time.Second {
		t.Errorf("a crashed leader was replaced after %v", took)
	} else {
		t.Logf("a crashed leader was replaced after %v", took)
	}
	address := fmt.Sprintf("127.0.0.1:%d", controlplane.FreePort(t))
	third := one.start(t, "--leader-elect-identity=third", "--metrics-bind-address="+address)
	waitLog(t, third, "standing for election")
	time.Sleep(2 * time.Second)
	if err := second.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if took := takeover("third"); took > time.Second {
		t.Errorf("a leader that was stopped was replaced after %v", took)
	} else {
		t.Logf("a leader that was stopped was replaced after %v", took)
	}
	one.AwaitCondition(t, one.Name, v1alpha1.MeshClusterExportsSynced, metav1.ConditionTrue, "")
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "")
	for path, texts := range map[string][]string{
		"/healthz": {"ok"}, "/readyz": {"ok"},
		"/metrics": {"mesh_controller_leader 1", `mesh_controller_peer_connected{cluster="cluster2"} 1`, `workqueue_depth{name="export"`},
	} {
		controlplane.Eventually(t, timeout, path, func(context.Context) error {
			answer, err := http.Get("http://" + address + path)
			if err != nil {
				return err
			}
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			if err != nil {
				return err
			}
			for _, text := range texts {
				if answer.StatusCode != http.StatusOK || !strings.Contains(string(body), text) {
					return fmt.Errorf("it answers %d without %q", answer.StatusCode, text)
				}
			}
			return nil
		})
	}
}

func waitLog(t *testing.T, process *controlplane.Process, text string) {
	t.Helper()
	controlplane.Eventually(t, timeout, fmt.Sprintf("%q in the log", text), func(context.Context) error {
		if !strings.Contains(process.Log(), text) {
			return errors.New("it is not there")
		}
		return nil
	})
}

// testEmptied empties the peer's store: nothing is removed until the peer's
// controller has exported everything anew.
func testEmptied(t *testing.T, one, two *cluster) {
	two.MakeNamespace(t, "empty", nil)
	one.MakeNamespace(t, "empty", nil)
	for _, name := range []string{"stays", "goes"} {
		one.MakeService(t, "empty", name, global)
		two.MakeService(t, "empty", name, global)
		two.MakeSlice(t, "empty", name, name, "10.2.5.1")
		one.imports(t, "empty", name, "cluster2", "10.2.5.1")
	}
	epoch := one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "").Status.StoreEpoch
	_ = two.Controller.Stop()
	two.Plane.MeshAPIServer.Kill()
	if _, err := two.etcd.Delete(t.Context(), "/registry/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	if err := two.Kube.CoreV1().Services("empty").Delete(t.Context(), "goes", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	two.StartMesh(t)
	one.stays(t, 4*time.Second, "empty", "goes", "cluster2", "10.2.5.1")
	one.stays(t, time.Second, "empty", "stays", "cluster2", "10.2.5.1")

	done := make(chan struct{})
	go func() { // all the time while the exports come back
		defer close(done)
		one.imports(t, "empty", "goes", "cluster2")
	}()
	two.start(t)
	for {
		if err := one.hasImported(t.Context(), "empty", "stays", "cluster2", "10.2.5.1"); err != nil {
			t.Fatalf("what stays was removed: %v", err)
		}
		select {
		case <-done:
		case <-time.After(20 * time.Millisecond):
			continue
		}
		break
	}
	after := one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "")
	if after.Status.StoreEpoch == epoch || epoch == "" {
		t.Errorf("the epoch was %q and is %q", epoch, after.Status.StoreEpoch)
	}
	one.stays(t, time.Second, "empty", "stays", "cluster2", "10.2.5.1")
	two.Join(t, "cluster1", 1) // it was in the store, too
	two.AwaitCondition(t, "cluster1", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "")
}

// testDeleted disconnects from a peer that is dead.
func testDeleted(t *testing.T, one, two *cluster) {
	_ = two.Controller.Stop()
	two.Plane.MeshAPIServer.Kill()
	one.Leave(t, "cluster2")
	options := metav1.ListOptions{LabelSelector: v1alpha1.LabelCluster + "=cluster2"}
	services, err := one.Mesh.MeshV1alpha1().ImportedServices("").List(t.Context(), options)
	if err != nil || len(services.Items) > 0 {
		t.Errorf("%d services are left (%v)", len(services.Items), err)
	}
	slices, err := one.Mesh.MeshV1alpha1().ImportedEndpointSlices("").List(t.Context(), options)
	if err != nil || len(slices.Items) > 0 {
		t.Errorf("%d slices are left (%v)", len(slices.Items), err)
	}
}
