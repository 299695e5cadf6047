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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/registry/table"
)

// localMark stands in the column Connected for the cluster itself.
const localMark = "<local>"

func newTable() rest.TableConvertor {
	return table.New([]metav1.TableColumnDefinition{
		table.Name(),
		{Name: "ID", Type: "integer", Description: "The member's number in the mesh."},
		table.Column("Connected", "Whether the member's mesh API answers."),
		table.Column("Synced", "Whether all that the member offers is here; for the local cluster, whether all is offered."),
		{Name: "Services", Type: "integer", Description: "Services imported from the member; exported by the local cluster."},
		{Name: "Endpoints", Type: "integer", Description: "Endpoints imported from the member; exported by the local cluster."},
		table.Column("Age", "How long the object exists."),
		table.Wide("Version", "The version of the member's controller."),
		table.Wide("Last-Contact", "How long ago the member last answered."),
		table.Wide("UID", "What identifies the cluster, whatever it is called."),
		{Name: "Refused", Type: "integer", Priority: 1, Description: "How much of what the member offers is refused."},
	}, cells)
}

func cells(object runtime.Object) []any {
	cluster := object.(*mesh.MeshCluster)
	status := cluster.Status
	connected := condition(status.Conditions, v1alpha1.MeshClusterConnected)
	synced := condition(status.Conditions, v1alpha1.MeshClusterSynced)
	if local(cluster) {
		connected = localMark
		synced = condition(status.Conditions, v1alpha1.MeshClusterExportsSynced)
	}
	return []any{
		cluster.Name, int64(cluster.Spec.ID), connected, synced, int64(status.Services), int64(status.Endpoints),
		table.Age(cluster.CreationTimestamp), orUnknown(status.Version), table.Age(status.LastContactTime),
		orUnknown(status.UID), int64(status.Refused),
	}
}

func condition(conditions []metav1.Condition, name string) string {
	for _, c := range conditions {
		if c.Type == name {
			return string(c.Status)
		}
	}
	return string(metav1.ConditionUnknown)
}

func orUnknown(text string) string {
	if text == "" {
		return table.Unknown
	}
	return text
}
