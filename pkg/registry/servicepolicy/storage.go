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

// Package servicepolicy serves what agents are told of GlobalServices.
package servicepolicy

import (
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/registry/projection"
	"mesh.io/clustermesh/pkg/registry/table"
)

// Storage serves servicepolicies.
type Storage struct {
	*projection.Storage[*mesh.GlobalService, *mesh.ServicePolicy]
}

// ShortNames are what kubectl accepts for the resource.
func (Storage) ShortNames() []string { return []string{"svcpolicy"} }

// NewStorage returns the storage of servicepolicies over that of globalservices.
func NewStorage(globalServices *genericregistry.Store) Storage {
	return Storage{projection.New(globalServices, projection.Config[*mesh.GlobalService, *mesh.ServicePolicy]{
		Resource: mesh.Resource("servicepolicies"),
		Singular: mesh.Resource("servicepolicy"),
		New:      func() *mesh.ServicePolicy { return &mesh.ServicePolicy{} },
		List: func(meta metav1.ListMeta, parts []*mesh.ServicePolicy) runtime.Object {
			list := &mesh.ServicePolicyList{ListMeta: meta, Items: make([]mesh.ServicePolicy, 0, len(parts))}
			for _, part := range parts {
				list.Items = append(list.Items, *part)
			}
			return list
		},
		Of:      of,
		Version: func(service *mesh.GlobalService) string { return service.Status.PolicyResourceVersion },
		Table: table.New([]metav1.TableColumnDefinition{
			table.Name(),
			table.Column("Affinity", "The preferred side, where the GlobalService sets one."),
			{Name: "Clusters", Type: "integer", Description: "Clusters that have a weight or a priority of their own."},
			table.Column("Age", "How long the GlobalService exists."),
		}, func(object runtime.Object) []any {
			policy := object.(*mesh.ServicePolicy)
			affinity := string(policy.Spec.Affinity)
			if affinity == "" {
				affinity = table.None
			}
			return []any{policy.Name, affinity, int64(len(policy.Spec.Clusters)), table.Age(policy.CreationTimestamp)}
		}),
	})}
}

// of is what agents are told of a service: nothing of one that the controller made and
// nobody wrote into.
func of(service *mesh.GlobalService) (*mesh.ServicePolicy, bool) {
	made := service.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByController
	if made && apiequality.Semantic.DeepEqual(service.Spec, mesh.GlobalServiceSpec{}) {
		return nil, false
	}
	return &mesh.ServicePolicy{ObjectMeta: projection.Meta(&service.ObjectMeta), Spec: service.Spec}, true
}

// Changed says whether a write of a GlobalService changes what agents are told of it.
func Changed(service, old *mesh.GlobalService) bool {
	_, is := of(service)
	_, was := of(old)
	if is != was {
		return true
	}
	return is && (!apiequality.Semantic.DeepEqual(service.Spec, old.Spec) || !apiequality.Semantic.DeepEqual(service.Labels, old.Labels))
}
