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

package source

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

// Objects are the API objects that one Service's part of the table is built from, for
// those who ask what an agent with the same objects would do, on any node.
type Objects struct {
	// Cluster is the name of the cluster, MeshNamespace the mesh's own.
	Cluster, MeshNamespace string
	Policy                 policy.Reader
	Members                []v1alpha1.MeshCluster
	// Service, Namespace and Global are nil where there is none.
	Service   *corev1.Service
	Namespace *corev1.Namespace
	Global    *v1alpha1.GlobalService
	Slices    []discoveryv1.EndpointSlice
	Imported  []v1alpha1.ImportedEndpointSlice
}

// Input is what an agent makes of the objects.
func (o Objects) Input() (desired.Mesh, desired.ServiceInput) {
	mesh := desired.Mesh{
		Cluster: o.Cluster, Namespace: o.MeshNamespace, Policy: o.Policy, Members: map[string]desired.Member{},
		AnyNode: true,
	}
	for i := range o.Members {
		m := &o.Members[i]
		if m.DeletionTimestamp == nil {
			mesh.Members[m.Name] = desired.Member{Name: m.Name, ID: uint16(m.Spec.ID), Spec: m.Spec}
		}
	}
	var in desired.ServiceInput
	if o.Service != nil {
		in.Service = convertService(o.Service)
	}
	if o.Namespace != nil {
		in.NamespaceAnnotations = o.Namespace.Annotations
	}
	if o.Global != nil {
		in.Spec = &o.Global.Spec
	}
	for i := range o.Slices {
		if slice := convertSlice(&o.Slices[i]); slice != nil {
			in.Local = append(in.Local, slice)
		}
	}
	for i := range o.Imported {
		in.Remote = append(in.Remote, convertImported(&o.Imported[i]))
	}
	return mesh, in
}
