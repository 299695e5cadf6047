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

package renewal

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	kubefake "k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-base/metrics/legacyregistry"
	clocktesting "k8s.io/utils/clock/testing"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/metrics"
	"mesh.io/clustermesh/pkg/controller/view"
	"mesh.io/clustermesh/pkg/generated/clientset/versioned/fake"
	meshinformers "mesh.io/clustermesh/pkg/generated/informers/externalversions"
	"mesh.io/clustermesh/pkg/policy"
)

// TestExpiryIsTheLeadersToTell: what is no longer kept up to date here is not shown.
func TestExpiryIsTheLeadersToTell(t *testing.T) {
	metrics.Register()
	shown := func() int {
		families, err := legacyregistry.DefaultGatherer.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if family.GetName() == "mesh_controller_peer_credentials_expiry_timestamp_seconds" {
				return len(family.GetMetric())
			}
		}
		return 0
	}
	kube := kubefake.NewClientset(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "mesh-system", Name: "mesh-peer-cluster2"},
		Data:       map[string][]byte{"kubeconfig": kubeconfig(t, map[string]string{"peer": token(own, start, start.Add(time.Hour))})},
	})
	client := fake.NewClientset(&v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: "cluster2"},
		Spec:       v1alpha1.MeshClusterSpec{ID: 2, KubeconfigSecretRef: &v1alpha1.SecretReference{Name: "mesh-peer-cluster2", Key: "kubeconfig"}},
	})
	factory, meshFactory := informers.NewSharedInformerFactory(kube, 0), meshinformers.NewSharedInformerFactory(client, 0)
	v, err := view.New(view.Config{Kube: factory, Mesh: meshFactory, MeshNamespace: "mesh-system", ClusterName: "cluster1", Reader: policy.Reader{}})
	if err != nil {
		t.Fatal(err)
	}
	secrets := factory.Core().V1().Secrets().Informer()
	factory.Start(t.Context().Done())
	meshFactory.Start(t.Context().Done())
	factory.WaitForCacheSync(t.Context().Done())
	meshFactory.WaitForCacheSync(t.Context().Done())

	loop := New(Config{
		View: v, Client: client, Kube: kube, Secrets: secrets, Namespace: "mesh-system",
		Events: record.NewFakeRecorder(10), Clock: clocktesting.NewFakePassiveClock(start.Add(time.Minute)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- loop.Run(ctx) }()
	for deadline := time.Now().Add(10 * time.Second); shown() == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the leader does not tell when the credentials expire")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := shown(); n != 0 {
		t.Errorf("after that %d are shown", n)
	}
}
