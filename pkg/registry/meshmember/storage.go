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

// Package meshmember serves what agents are told of MeshClusters.
package meshmember

import (
	"strconv"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/registry/projection"
	"mesh.io/clustermesh/pkg/registry/table"
)

// Storage serves meshmembers.
type Storage struct {
	*projection.Storage[*mesh.MeshCluster, *mesh.MeshMember]
}

// ShortNames are what kubectl accepts for the resource.
func (Storage) ShortNames() []string { return []string{"mm"} }

// NewStorage returns the storage of meshmembers over that of meshclusters.
func NewStorage(meshClusters *genericregistry.Store) Storage {
	return Storage{projection.New(meshClusters, projection.Config[*mesh.MeshCluster, *mesh.MeshMember]{
		Resource: mesh.Resource("meshmembers"),
		Singular: mesh.Resource("meshmember"),
		New:      func() *mesh.MeshMember { return &mesh.MeshMember{} },
		List: func(meta metav1.ListMeta, parts []*mesh.MeshMember) runtime.Object {
			list := &mesh.MeshMemberList{ListMeta: meta, Items: make([]mesh.MeshMember, 0, len(parts))}
			for _, part := range parts {
				list.Items = append(list.Items, *part)
			}
			return list
		},
		Of:      of,
		Version: func(cluster *mesh.MeshCluster) string { return cluster.Status.PolicyResourceVersion },
		Table: table.New([]metav1.TableColumnDefinition{
			table.Name(),
			{Name: "ID", Type: "integer", Description: "The member's number in the mesh."},
			table.Column("Drained", "Whether none of the member's backends is used."),
			table.Column("Weight", "The weight of the member's backends, where the MeshCluster sets one."),
			table.Column("Priority", "The priority of the member's backends, where the MeshCluster sets one."),
			table.Column("Age", "How long the MeshCluster exists."),
		}, func(object runtime.Object) []any {
			member := object.(*mesh.MeshMember)
			return []any{
				member.Name, int64(member.Spec.ID), strconv.FormatBool(member.Spec.Drained), number(member.Spec.Weight),
				number(member.Spec.Priority), table.Age(member.CreationTimestamp),
			}
		}),
	})}
}

func number(n *int32) string {
	if n == nil {
		return table.None
	}
	return strconv.Itoa(int(*n))
}

// of is what agents are told of a member: nothing of one that somebody has deleted,
// though its finalizer may keep it for a while.
func of(cluster *mesh.MeshCluster) (*mesh.MeshMember, bool) {
	if cluster.DeletionTimestamp != nil {
		return nil, false
	}
	return &mesh.MeshMember{ObjectMeta: projection.Meta(&cluster.ObjectMeta), Spec: spec(cluster)}, true
}

func spec(cluster *mesh.MeshCluster) mesh.MeshMemberSpec {
	return mesh.MeshMemberSpec{
		ID:         cluster.Spec.ID,
		Drained:    cluster.Spec.Drained,
		Weight:     cluster.Spec.Weight,
		Priority:   cluster.Spec.Priority,
		StoreEpoch: cluster.Status.StoreEpoch,
	}
}

// Changed says whether a write of a MeshCluster changes what agents are told of it.
func Changed(cluster, old *mesh.MeshCluster) bool {
	return !apiequality.Semantic.DeepEqual(spec(cluster), spec(old)) ||
		!apiequality.Semantic.DeepEqual(cluster.Labels, old.Labels) ||
		(cluster.DeletionTimestamp == nil) != (old.DeletionTimestamp == nil)
}
