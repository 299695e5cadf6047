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

package contact

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func member(name string, heard time.Duration, connected metav1.ConditionStatus) *v1alpha1.MeshCluster {
	m := &v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if heard != never {
		m.Status.LastContactTime = metav1.NewTime(now.Add(-heard))
	}
	if connected != "" {
		m.Status.Conditions = []metav1.Condition{{Type: v1alpha1.MeshClusterConnected, Status: connected}}
	}
	return m
}

const never = time.Duration(1<<63 - 1)

func TestOf(t *testing.T) {
	for name, test := range map[string]struct {
		own, peer time.Duration
		connected metav1.ConditionStatus
		want      Link
	}{
		"just heard of": {own: 3 * time.Second, peer: 2 * time.Second, connected: "True", want: Link{Heard: 2 * time.Second}},
		"the oldest that a live link can be": {own: 11 * time.Second, peer: 21 * time.Second, connected: "True",
			want: Link{Heard: 21 * time.Second}},
		"not refreshed any more": {own: 3 * time.Second, peer: 31 * time.Second, connected: "True",
			want: Link{Heard: 31 * time.Second, Doubt: "last heard of 31s ago, while a link that stands is heard of every 10 seconds"}},
		"silent": {own: 3 * time.Second, peer: 9 * time.Second, connected: "Unknown",
			want: Link{Heard: 9 * time.Second, Doubt: "last heard of 9s ago, and it has not answered when it was asked since"}},
		"nobody looks": {own: 5 * time.Minute, peer: 5 * time.Minute, connected: "True", want: Link{Heard: 5 * time.Minute, Blind: true,
			Doubt: "last heard of 5m ago; the mesh-controller of cluster1, which would notice, was last alive 5m ago"}},
		"nobody looks, and it was never heard of": {own: 5 * time.Minute, peer: never, connected: "False", want: Link{Heard: -1, Blind: true,
			Doubt: "the mesh-controller of cluster1, which would notice, was last alive 5m ago"}},
		"not connected": {own: 3 * time.Second, peer: 12 * time.Second, connected: "False", want: Link{Heard: 12 * time.Second}},
		// Of what was never written, the conditions tell.
		"never heard of":               {own: 3 * time.Second, peer: never, want: Link{Heard: -1}},
		"no controller has led yet":    {own: never, peer: never, want: Link{Heard: -1}},
		"clocks differ":                {own: -time.Hour, peer: -time.Hour, connected: "True", want: Link{}},
		"there is no own one":          {own: -1, peer: 3 * time.Second, connected: "True", want: Link{Heard: 3 * time.Second}},
		"there is no own one, and old": {own: -1, peer: time.Minute, connected: "True", want: Link{Heard: time.Minute, Doubt: "last heard of 60s ago, while a link that stands is heard of every 10 seconds"}},
	} {
		t.Run(name, func(t *testing.T) {
			own := member("cluster1", test.own, "")
			if test.own == -1 {
				own = nil
			}
			if got := Of(now, own, member("cluster2", test.peer, test.connected)); got != test.want {
				t.Errorf("it is %+v, not %+v", got, test.want)
			}
		})
	}
}

func TestEnded(t *testing.T) {
	for age, want := range map[time.Duration]bool{0: false, 12 * time.Second: false, 31 * time.Second: true, never: false} {
		if got := Ended(now, member("cluster1", age, "")); got != want {
			t.Errorf("%v: %t", age, got)
		}
	}
	if Ended(now, nil) {
		t.Error("what has never been has ended")
	}
}
