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

package globalservice

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

func TestCells(t *testing.T) {
	remote := mesh.ClusterStatus{Name: "cluster2", ID: 2, Endpoints: mesh.EndpointCount{Ready: 1, Total: 2}}
	uncountable := mesh.ClusterStatus{Name: "cluster3", ID: 3}
	local := mesh.ClusterStatus{Name: "cluster1", ID: 1, Local: true, Endpoints: mesh.EndpointCount{Ready: 2, Total: 2}}
	for name, test := range map[string]struct {
		here     metav1.ConditionStatus
		clusters []mesh.ClusterStatus
		want     string // clusters, backends, local, remote
	}{
		"global here":     {metav1.ConditionTrue, []mesh.ClusterStatus{local, remote}, "2/2 3/4 2/2 1/2"},
		"here alone":      {metav1.ConditionTrue, []mesh.ClusterStatus{local}, "1/1 2/2 2/2 <none>"},
		"not global here": {metav1.ConditionFalse, []mesh.ClusterStatus{{Name: "cluster2", ID: 2}, uncountable}, "-/2 - <none> -"},
		"nowhere":         {metav1.ConditionFalse, nil, "<none> <none> <none> <none>"},
	} {
		t.Run(name, func(t *testing.T) {
			service := &mesh.GlobalService{Status: mesh.GlobalServiceStatus{ObservedGeneration: 1, Clusters: test.clusters}}
			service.Status.Conditions = []metav1.Condition{{Type: v1alpha1.GlobalServiceLocalService, Status: test.here}}
			var got []string
			for _, cell := range cells(service)[1:5] {
				got = append(got, fmt.Sprint(cell))
			}
			if text := strings.Join(got, " "); text != test.want {
				t.Errorf("the row says %s, want %s", text, test.want)
			}
		})
	}
}
