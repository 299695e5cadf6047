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
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	meshfake "mesh.io/clustermesh/pkg/generated/clientset/versioned/fake"
)

func TestBehind(t *testing.T) {
	at := func(name, version string) *v1alpha1.GlobalService {
		return &v1alpha1.GlobalService{ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: name, ResourceVersion: version}}
	}
	store := content{version: 100, objects: map[string]uint64{"song/a": 50, "song/b": 60}}
	for name, test := range map[string]struct {
		cached []*v1alpha1.GlobalService
		want   int
	}{
		"empty":                 {nil, 2},
		"one is missing":        {[]*v1alpha1.GlobalService{at("a", "50")}, 1},
		"one is old":            {[]*v1alpha1.GlobalService{at("a", "50"), at("b", "59")}, 1},
		"one is not deleted":    {[]*v1alpha1.GlobalService{at("a", "50"), at("b", "60"), at("c", "70")}, 1},
		"as the store":          {[]*v1alpha1.GlobalService{at("a", "50"), at("b", "60")}, 0},
		"newer than it":         {[]*v1alpha1.GlobalService{at("a", "101"), at("b", "60"), at("c", "102")}, 0},
		"old, and not deleted":  {[]*v1alpha1.GlobalService{at("a", "1"), at("c", "70")}, 3},
		"all is to be deleted":  {[]*v1alpha1.GlobalService{at("c", "70"), at("d", "70")}, 4},
		"missing, and made new": {[]*v1alpha1.GlobalService{at("a", "50"), at("c", "102")}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			v := newView(t, meshfake.NewClientset())
			for _, cached := range test.cached {
				if err := v.GlobalServices.GetStore().Add(cached); err != nil {
					t.Fatal(err)
				}
			}
			if got := store.behind(v.GlobalServices); got != test.want {
				t.Errorf("%d are behind, want %d", got, test.want)
			}
		})
	}
}

func TestCatchUpWaitsForTheCaches(t *testing.T) {
	exported := &v1alpha1.ExportedService{ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "web", ResourceVersion: "7"}}
	client := meshfake.NewClientset(exported)
	c := &controller{mesh: client, view: newView(t, client)}
	began := time.Now()
	catchUp(t.Context(), c.kinds(), 200*time.Millisecond)
	if took := time.Since(began); took < 200*time.Millisecond || took > 5*time.Second {
		t.Errorf("a cache that never catches up is waited for for %v", took)
	}

	time.AfterFunc(50*time.Millisecond, func() { _ = c.view.ExportedServices.GetStore().Add(exported) })
	began = time.Now()
	catchUp(t.Context(), c.kinds(), time.Minute)
	if took := time.Since(began); took < 50*time.Millisecond || took > 30*time.Second {
		t.Errorf("a cache that catches up is waited for for %v", took)
	}
}
