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

package merge

import (
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/apply"
	meshfake "mesh.io/clustermesh/pkg/generated/clientset/versioned/fake"
)

func TestConflictIsToldOnceItIsWritten(t *testing.T) {
	in := input(global)
	in.Imported = []*v1alpha1.ImportedService{imported("cluster2", 2, time.Hour, func(r *v1alpha1.ServiceRecord) { r.Ports[0].Port = 8080 })}
	client := meshfake.NewClientset(in.Global.DeepCopy())
	fails := true
	client.PrependReactor("update", "globalservices", func(clienttesting.Action) (bool, runtime.Object, error) {
		if fails {
			return true, nil, apierrors.NewConflict(v1alpha1.Resource("globalservices"), "web", nil)
		}
		return false, nil, nil
	})
	events := record.NewFakeRecorder(10)
	l := New(Config{Client: client, Events: events, ID: 1, Clock: clock.RealClock{}})
	defer l.queue.ShutDown()
	key := apply.Key{Namespace: "song", Name: "web"}
	for range 3 {
		if err := l.writeStatus(t.Context(), key, in); !apierrors.IsConflict(err) {
			t.Fatalf("writing gives %v, want a conflict", err)
		}
	}
	if n := len(events.Events); n != 0 {
		t.Errorf("%d Events of a status that is not written", n)
	}
	fails = false
	if err := l.writeStatus(t.Context(), key, in); err != nil {
		t.Fatal(err)
	}
	if n := len(events.Events); n != 1 {
		t.Errorf("%d Events of a status that is written, want 1", n)
	}
}
