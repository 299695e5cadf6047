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

package servicepolicy

import (
	"testing"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

func TestChanged(t *testing.T) {
	service := func(affinity mesh.Affinity, made bool) *mesh.GlobalService {
		s := &mesh.GlobalService{Spec: mesh.GlobalServiceSpec{Affinity: affinity}}
		if made {
			s.Labels = map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByController}
		}
		return s
	}
	counted := service(mesh.AffinityLocal, false)
	counted.Status.Clusters = []mesh.ClusterStatus{{Name: "cluster2", Endpoints: mesh.EndpointCount{Ready: 1, Total: 1}}}
	for name, test := range map[string]struct {
		from, to *mesh.GlobalService
		want     bool
	}{
		"a person writes into what the controller made": {service("", true), service(mesh.AffinityLocal, false), true},
		"a person changes the spec":                     {service(mesh.AffinityRemote, false), service(mesh.AffinityLocal, false), true},
		"a person empties it":                           {service(mesh.AffinityRemote, false), service("", false), true},
		"a person gives it back to the controller":      {service("", false), service("", true), true},
		"the status changes":                            {service(mesh.AffinityLocal, false), counted, false},
		"nothing but what no agent sees changes":        {service("", true), service("", true), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Changed(test.to, test.from); got != test.want {
				t.Errorf("changed: %v, want %v", got, test.want)
			}
		})
	}
}
