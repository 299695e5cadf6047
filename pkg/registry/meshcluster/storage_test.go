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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

func TestWhichLocalObjectStays(t *testing.T) {
	object := func(name, uid string, peer bool, conflict metav1.ConditionStatus) mesh.MeshCluster {
		c := mesh.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: mesh.MeshClusterStatus{UID: uid}}
		if peer {
			c.Spec.KubeconfigSecretRef = &mesh.SecretReference{Name: name}
		}
		c.Status.Conditions = []metav1.Condition{{Type: v1alpha1.MeshClusterIdentityConflict, Status: conflict}}
		return c
	}
	itself := object("cluster1", "uid-1", false, metav1.ConditionFalse)
	peer := object("cluster2", "", true, metav1.ConditionFalse)
	for name, test := range map[string]struct {
		cluster mesh.MeshCluster
		others  []mesh.MeshCluster
		stays   bool
	}{
		"the cluster itself":                       {itself, []mesh.MeshCluster{itself, peer}, true},
		"a peer that lacks its kubeconfig":         {object("cluster2", "", false, metav1.ConditionFalse), nil, false},
		"the cluster under a mistaken name":        {object("clutser1", "uid-1", false, metav1.ConditionTrue), nil, false},
		"one of two, made at the very same moment": {itself, []mesh.MeshCluster{itself, object("cluster2", "", false, metav1.ConditionFalse)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := !mistaken(&test.cluster) && onlyLocal(&test.cluster, test.others); got != test.stays {
				t.Errorf("stays: %v, want %v", got, test.stays)
			}
		})
	}
}
