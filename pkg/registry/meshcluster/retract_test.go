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

package meshcluster

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

func TestRetract(t *testing.T) {
	synced := func(status metav1.ConditionStatus, reason string) []metav1.Condition {
		return []metav1.Condition{{Type: "Other", Status: metav1.ConditionTrue}, {Type: v1alpha1.MeshClusterExportsSynced, Status: status, Reason: reason}}
	}
	peer := mesh.MeshClusterSpec{KubeconfigSecretRef: &mesh.SecretReference{Name: "cluster2"}}
	for name, test := range map[string]struct {
		spec     mesh.MeshClusterSpec
		in, want mesh.MeshClusterStatus
	}{
		"what is said of this store": {
			in:   mesh.MeshClusterStatus{StoreEpoch: "e2", ControllerRun: "r", Conditions: synced(metav1.ConditionTrue, "Synced")},
			want: mesh.MeshClusterStatus{StoreEpoch: "e2", ControllerRun: "r", Conditions: synced(metav1.ConditionTrue, "Synced")},
		},
		"what is said of another": {
			in:   mesh.MeshClusterStatus{StoreEpoch: "e1", ControllerRun: "r", Conditions: synced(metav1.ConditionTrue, "Synced")},
			want: mesh.MeshClusterStatus{StoreEpoch: "e2", ControllerRun: "r", Conditions: synced(metav1.ConditionFalse, "StoreRestored")},
		},
		"what was not said of another either": {
			in:   mesh.MeshClusterStatus{StoreEpoch: "e1", Conditions: synced(metav1.ConditionFalse, "Exporting")},
			want: mesh.MeshClusterStatus{StoreEpoch: "e2", Conditions: synced(metav1.ConditionFalse, "Exporting")},
		},
		"one that no controller has written to": {
			in:   mesh.MeshClusterStatus{StoreEpoch: "e1"},
			want: mesh.MeshClusterStatus{StoreEpoch: "e2"},
		},
		"a peer, which has a store of its own": {
			spec: peer,
			in:   mesh.MeshClusterStatus{StoreEpoch: "theirs", Conditions: synced(metav1.ConditionTrue, "Synced")},
			want: mesh.MeshClusterStatus{StoreEpoch: "theirs", Conditions: synced(metav1.ConditionTrue, "Synced")},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := &mesh.MeshCluster{Spec: test.spec, Status: test.in}
			retract(cluster, "e2")
			for i := range cluster.Status.Conditions {
				cluster.Status.Conditions[i].Message = ""
			}
			if diff := cmp.Diff(test.want, cluster.Status); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
}
