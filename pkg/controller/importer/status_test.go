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

package importer

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	clienttesting "k8s.io/client-go/testing"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/view"
	"mesh.io/clustermesh/pkg/peer"
)

func TestClip(t *testing.T) {
	for in, want := range map[string]string{
		"":                     "",
		"short":                "short",
		"exactly 16 bytes":     "exactly 16 bytes",
		"17 bytes, just so":    "17 bytes, jus...",
		"a\nb\x00\u202e":       `a\nb\x00\u202e`,
		"\xff":                 `\xff`,
		"äöüäöüäöü":            "äöüäöü...",
		"\x01\x01\x01\x01\x01": `\x01\x01\x01...`,
	} {
		if got := clip(in, 16); got != want || !utf8.ValidString(got) {
			t.Errorf("clip(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestStatusIsBounded(t *testing.T) {
	long := strings.Repeat("\x00long", 20_000)
	peers := &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: long},
		Status:     v1alpha1.MeshClusterStatus{UID: long, Version: long, StoreEpoch: long, ControllerRun: long},
	}
	cluster := &v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: "cluster2"}, Status: v1alpha1.MeshClusterStatus{UID: "u2"}}
	f := facts{failing: 1, failure: long, listed: true, now: time.Now()}
	f.identity = IdentityOf(peers)
	f.connected, f.following, f.reason, f.message, f.doubt = true, true, peer.ReasonConnected, long, long
	f.conflictReason, f.conflictMessage = Conflict(cluster, nil, "own", &f.identity)
	status := Status(cluster, f)
	if errs := metav1validation.ValidateConditions(status.Conditions, field.NewPath("conditions")); len(errs) > 0 {
		t.Error(errs)
	}
	if size := status.Size(); size > 8192 {
		t.Errorf("the status has %d bytes", size)
	}
	for _, text := range []string{status.UID, status.Version, status.StoreEpoch, status.ControllerRun} {
		if len(text) > maxIdentity || strings.Contains(text, "\x00") {
			t.Errorf("it says %q", text)
		}
	}
}

func TestClockSetBack(t *testing.T) {
	now := time.Now()
	future := metav1.NewTime(now.Add(time.Hour))
	cluster := &v1alpha1.MeshCluster{Status: v1alpha1.MeshClusterStatus{LastContactTime: future}}
	f := facts{contact: now.Add(-time.Second), now: now}
	f.conflictReason = ConflictNone
	if got := Status(cluster, f).LastContactTime; got.After(now) {
		t.Errorf("the last contact is in %v", got.Sub(now))
	}

	b := newBench(t)
	b.contact.Store(now.UnixNano())
	known, _ := view.Get[*v1alpha1.MeshCluster](b.loop.View.Clusters, "", "cluster2")
	known = known.DeepCopy()
	known.Status = *Status(known, b.facts())
	known.Status.LastContactTime = future // all else is as it should be
	b.cache(b.loop.View.Clusters, known)
	_ = b.loop.status.write(t.Context(), "cluster2")
	if b.wrote("update", "meshclusters") != 1 {
		t.Error("a time of the future is not overwritten")
	}
}

func TestDue(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 500_000_000, time.UTC)
	at := func(d time.Duration) time.Time { return now.Add(-d) }
	for name, test := range map[string]struct {
		written, contact time.Time
		want             bool
	}{
		"never":                       {time.Time{}, at(0), true},
		"just now":                    {at(time.Second), at(0), false},
		"for a while":                 {at(9 * time.Second), at(0), true},
		"an answer that is older":     {at(9 * time.Second), at(4 * time.Second), true},
		"nothing has come since":      {at(time.Minute), at(time.Minute), false},
		"not since, to the second":    {at(time.Minute).Truncate(time.Second), at(time.Minute), false},
		"the clock has been put back": {at(-time.Hour), at(0), true},
	} {
		if got := Due(test.written, test.contact, now); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// TestNewConnectionIsToldAtOnce: whoever has renewed the credentials waits for it.
func TestNewConnectionIsToldAtOnce(t *testing.T) {
	known := &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: "cluster2"},
		Spec:       v1alpha1.MeshClusterSpec{ID: 2, KubeconfigSecretRef: &v1alpha1.SecretReference{Name: "cluster2"}},
	}
	b := newBench(t, known)
	b.contact.Store(time.Now().Add(-3 * time.Second).UnixNano())
	known.Status = *Status(known, b.facts())
	b.cache(b.loop.View.Clusters, known)
	b.contact.Store(time.Now().UnixNano())
	for _, want := range []struct{ connections, writes int }{{0, 0}, {1, 1}, {0, 1}, {1, 2}} {
		b.connections.Add(int64(want.connections))
		if err := b.loop.status.write(t.Context(), "cluster2"); err != nil {
			t.Fatal(err)
		}
		if got := b.wrote("update", "meshclusters"); got != want.writes {
			t.Errorf("%d connections more: %d writes, not %d", want.connections, got, want.writes)
		}
	}
}

func TestSilentPeer(t *testing.T) {
	cluster := &v1alpha1.MeshCluster{}
	f := facts{contact: time.Now().Add(-9 * time.Second), now: time.Now(), listed: true}
	f.conflictReason, f.connected, f.following, f.everSynced, f.reason = ConflictNone, true, true, true, peer.ReasonConnected
	f.identity = Identity{Name: "cluster2", UID: "u2", StoreEpoch: "e", ControllerRun: "r"}
	for _, want := range []struct {
		connected, silent bool
		status            metav1.ConditionStatus
		reason            string
		synced            metav1.ConditionStatus
	}{
		{true, false, metav1.ConditionTrue, peer.ReasonConnected, metav1.ConditionTrue},
		// What was imported is as current as it was: only that it stays so is not known.
		{true, true, metav1.ConditionUnknown, peer.ReasonSilent, metav1.ConditionTrue},
		{false, false, metav1.ConditionFalse, peer.ReasonUnreachable, metav1.ConditionFalse},
	} {
		if f.connected, f.silent = want.connected, want.silent; !f.connected {
			f.reason = peer.ReasonUnreachable
		}
		status := Status(cluster, f)
		connected := meta.FindStatusCondition(status.Conditions, v1alpha1.MeshClusterConnected)
		synced := meta.FindStatusCondition(status.Conditions, v1alpha1.MeshClusterSynced)
		if connected.Status != want.status || connected.Reason != want.reason || synced.Status != want.synced {
			t.Errorf("connected %t, silent %t: Connected=%s (%s), Synced=%s", f.connected, f.silent, connected.Status, connected.Reason, synced.Status)
		}
		// The same facts change nothing, or they would be written every second.
		cluster.Status = *status
		if again := Status(cluster, f); !equal(*again, cluster.Status) {
			t.Errorf("connected %t, silent %t: it changes by itself", f.connected, f.silent)
		}
	}
}

func TestEventsFollowTheStatus(t *testing.T) {
	b := newBench(t)
	b.set(func(st *state) { st.reason, st.message = peer.ReasonSecretMissing, "There is none." })
	fails := true
	b.client.PrependReactor("update", "meshclusters", func(clienttesting.Action) (bool, runtime.Object, error) {
		if fails {
			return true, nil, errors.New("not now")
		}
		return true, &v1alpha1.MeshCluster{}, nil
	})
	for range 3 {
		if err := b.loop.status.write(t.Context(), "cluster2"); err == nil {
			t.Fatal("the write succeeded")
		}
	}
	if n := len(b.events.Events); n > 0 {
		t.Errorf("%d Events tell of what is not written", n)
	}
	fails = false
	if err := b.loop.status.write(t.Context(), "cluster2"); err != nil || len(b.events.Events) != 1 {
		t.Errorf("%d Events, %v", len(b.events.Events), err)
	}
}
