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

package controlplane

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	meshclient "mesh.io/clustermesh/pkg/generated/clientset/versioned"
)

func TestBothDoors(t *testing.T) {
	plane := Start(t, Options{})
	for name, config := range map[string]*rest.Config{"through the aggregator": plane.Kube, "directly": plane.Mesh} {
		t.Run(name, func(t *testing.T) {
			if _, err := meshclient.NewForConfigOrDie(config).MeshV1alpha1().GlobalServices("").List(t.Context(), metav1.ListOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
}
