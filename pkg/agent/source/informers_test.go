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

package source

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	meshfake "mesh.io/clustermesh/pkg/generated/clientset/versioned/fake"
)

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// background runs until the test ends.
func background(t *testing.T, run func(context.Context)) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// watching waits until a fake API server is watched: what changes between the list and
// that would be lost.
func watching(t *testing.T, api *clienttesting.Fake, resource string) {
	t.Helper()
	eventually(t, "a watch of "+resource, func() bool {
		return slices.ContainsFunc(api.Actions(), func(a clienttesting.Action) bool {
			return a.GetVerb() == "watch" && a.GetResource().Resource == resource
		})
	})
	time.Sleep(50 * time.Millisecond) // it is noted before it begins
}

// TestTheWitnessReadsOnceInAPeriod wakes it all the time, while what it reads does not
// help.
func TestTheWitnessReadsOnceInAPeriod(t *testing.T) {
	const period = 100 * time.Millisecond
	n := newNode(t)
	n.SetMember(n.says("e1")["cluster1"])
	n.SyncedMesh()
	if n.Settled() {
		t.Fatal("it would not ask at all")
	}
	mesh := meshfake.NewClientset()
	var reads atomic.Int32
	mesh.PrependReactor("list", "meshclusters", func(clienttesting.Action) (bool, runtime.Object, error) {
		reads.Add(1)
		return true, nil, errors.New("connection refused")
	})
	w := NewMesh(n.State, mesh)
	begin := time.Now()
	background(t, func(ctx context.Context) { w.RunWitness(ctx, n.State, mesh, period) })
	wake := func(during time.Duration) {
		for begin := time.Now(); time.Since(begin) < during; time.Sleep(time.Millisecond) {
			select {
			case w.missed <- struct{}{}:
			default:
			}
		}
	}
	wake(10 * period)
	if got, most := reads.Load(), int32(time.Since(begin)/period)+1; got < 3 || got > most {
		t.Errorf("it read %d times, want at most %d", got, most)
	}

	w.watched[0].note(errors.New("connection refused"))
	wake(2 * period)
	before := reads.Load()
	wake(3 * period)
	if got := reads.Load(); got != before {
		t.Error("it judges by lists that may be of another store")
	}
	w.watched[0].note(nil)
	eventually(t, "it reads again once contact is back", func() bool { return reads.Load() > before })

	n.Resolve(n.says("e1"), n.Revision())
	wake(2 * period)
	before = reads.Load()
	wake(3 * period)
	if got := reads.Load(); got != before {
		t.Errorf("it read %d times though nothing is in doubt", got-before)
	}
}

// TestTheWitnessAsksEverLessOften keeps something in doubt that no reading settles.
func TestTheWitnessAsksEverLessOften(t *testing.T) {
	const period = 20 * time.Millisecond
	n := known(t)
	n.MissImported("song", "cluster2.a")
	mesh := meshfake.NewClientset()
	var reads atomic.Int32
	mesh.PrependReactor("list", "meshclusters", func(clienttesting.Action) (bool, runtime.Object, error) {
		reads.Add(1)
		return true, &v1alpha1.MeshClusterList{}, nil
	})
	w := NewMesh(n.State, mesh)
	background(t, func(ctx context.Context) { w.RunWitness(ctx, n.State, mesh, period) })
	// Of 200 periods it takes the first few, and then every twelfth.
	time.Sleep(200 * period)
	if got := reads.Load(); got < 5 || got > 30 {
		t.Errorf("it read %d times in 200 periods", got)
	}
	before := reads.Load()
	w.missed <- struct{}{}
	eventually(t, "it reads at once when something is missed", func() bool { return reads.Load() > before })
}

func TestSpecsFollowTheView(t *testing.T) {
	policies := v1alpha1.SchemeGroupVersion.WithResource("servicepolicies")
	policyOf := func(version string, spec v1alpha1.GlobalServiceSpec) *v1alpha1.ServicePolicy {
		return &v1alpha1.ServicePolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "userlist", ResourceVersion: version},
			Spec:       spec,
		}
	}
	n := newNode(t)
	mesh := meshfake.NewClientset()
	if err := mesh.Tracker().Add(policyOf("1", v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityLocal})); err != nil {
		t.Fatal(err)
	}
	w := NewMesh(n.State, mesh)
	background(t, w.Run)
	eventually(t, "the spec of a person", func() bool { return n.affinity() == v1alpha1.AffinityLocal })
	eventually(t, "in sync", func() bool { _, synced := n.Synced(); return synced })
	eventually(t, "that wakes the witness", func() bool { return len(w.missed) > 0 })
	watching(t, &mesh.Fake, ServicePolicies)

	if err := mesh.Tracker().Update(policies, policyOf("7", v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityRemote}), "song"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the person changed it", func() bool { return n.affinity() == v1alpha1.AffinityRemote })
	if got := n.Revision(); got != 7 {
		t.Errorf("the highest revision seen is %d", got)
	}
	if err := mesh.Tracker().Delete(policies, "song", "userlist"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the person took it back", func() bool { return n.affinity() == "" && !n.Doubt().Any() })
}

func TestTheMeshsOwnServicesAreFollowed(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	kube := fake.NewClientset()
	var calls atomic.Int32
	w := NewLocal(n.State, kube, metadatafake.NewSimpleMetadataClient(scheme), "mesh-system", func() { calls.Add(1) })
	background(t, w.Run)
	eventually(t, "in sync", func() bool { local, _ := n.Synced(); return local })
	watching(t, &kube.Fake, Services)

	service := func(namespace string) {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "mesh-apiserver"}}
		s.Spec.ClusterIPs, s.Spec.Ports = []string{"10.96.0.9"}, []corev1.ServicePort{{Port: 443}}
		if _, err := kube.CoreV1().Services(namespace).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	name := desired.Name{Namespace: "mesh-system", Name: "mesh-apiserver"}
	service("song")
	service("mesh-system")
	eventually(t, "a call for the new Service", func() bool { return calls.Load() == 1 && len(n.MeshService(name)) == 1 })
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "mesh-system", Name: "x"}}
	if _, err := kube.DiscoveryV1().EndpointSlices("mesh-system").Create(t.Context(), slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := kube.CoreV1().Services("mesh-system").Delete(t.Context(), "mesh-apiserver", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a call when it goes", func() bool { return calls.Load() == 2 && len(n.MeshService(name)) == 0 })
}
