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

package invitation

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clocktesting "k8s.io/utils/clock/testing"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// invitation is a Secret that was made five minutes ago.
func invitation(name, expires, used string) *corev1.Secret {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
		Namespace: "mesh-system", Name: name, UID: "u", ResourceVersion: "1", CreationTimestamp: metav1.NewTime(now.Add(-5 * time.Minute)),
	}, Data: map[string][]byte{}}
	if expires != "" {
		secret.Data[v1alpha1.InvitationExpires] = []byte(expires)
	}
	if used != "" {
		secret.Data[v1alpha1.InvitationUsed] = []byte(used)
	}
	return secret
}

func TestOver(t *testing.T) {
	at := func(d time.Duration) string { return now.Add(d).Format(time.RFC3339) }
	deleted := invitation("mesh-invite-cluster2", at(0), "")
	deleted.DeletionTimestamp = &metav1.Time{Time: now}
	for name, test := range map[string]struct {
		secret *corev1.Secret
		want   time.Duration // from now; 0: never
	}{
		"open":              {invitation("mesh-invite-cluster2", at(10*time.Minute), ""), 11 * time.Minute},
		"expired":           {invitation("mesh-invite-cluster2", at(-2*time.Minute), ""), -time.Minute},
		"used":              {invitation("mesh-invite-cluster2", at(10*time.Minute), at(-3*time.Second)), 57 * time.Second},
		"being made":        {invitation("mesh-invite-cluster2", "", ""), 55 * time.Minute},
		"with a broken end": {invitation("mesh-invite-cluster2", "soon", ""), 55 * time.Minute},
		"being deleted":     {deleted, 0},
		"a peer's":          {invitation("mesh-peer-cluster2", at(-time.Hour), ""), 0},
	} {
		over, ok := Over(test.secret)
		if got := over.Sub(now); ok != (test.want != 0) || ok && got != test.want {
			t.Errorf("%s: %v, %t", name, got, ok)
		}
	}
}

func TestLoop(t *testing.T) {
	open := invitation("mesh-invite-open", now.Add(10*time.Minute).Format(time.RFC3339), "")
	client := fake.NewClientset(open,
		invitation("mesh-invite-expired", now.Add(-time.Hour).Format(time.RFC3339), ""),
		invitation("mesh-peer-cluster2", now.Add(-time.Hour).Format(time.RFC3339), ""))
	factory := informers.NewSharedInformerFactory(client, 0)
	secrets := factory.Core().V1().Secrets().Informer()
	factory.Start(t.Context().Done())
	factory.WaitForCacheSync(t.Context().Done())
	clock := clocktesting.NewFakeClock(now)
	ctx, cancel := context.WithCancel(t.Context())
	loop := New(Config{Kube: client, Secrets: secrets, Namespace: "mesh-system", Clock: clock})
	done := make(chan error, 1)
	go func() { done <- loop.Run(ctx) }()
	gone := func(name string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			_, err := client.CoreV1().Secrets("mesh-system").Get(t.Context(), name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("Secret %s stays: %v", name, err)
			}
		}
	}
	gone("mesh-invite-expired")
	for deadline := time.Now().Add(10 * time.Second); !clock.HasWaiters(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody waits for the end of the one that is open")
		}
	}
	for _, name := range []string{"mesh-invite-open", "mesh-peer-cluster2"} {
		if _, err := client.CoreV1().Secrets("mesh-system").Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			t.Fatalf("Secret %s: %v", name, err)
		}
	}
	clock.Step(12 * time.Minute)
	gone("mesh-invite-open")
	if _, err := client.CoreV1().Secrets("mesh-system").Get(t.Context(), "mesh-peer-cluster2", metav1.GetOptions{}); err != nil {
		t.Errorf("a peer's Secret: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
