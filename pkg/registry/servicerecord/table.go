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

package servicerecord

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"

	"mesh.io/clustermesh/pkg/registry/table"
)

func newTable() rest.TableConvertor {
	return table.New([]metav1.TableColumnDefinition{
		table.Name(),
		table.Column("Cluster", "The cluster that the Service is in."),
		table.Column("Type", "ClusterIP or Headless."),
		table.Column("Ports", "The Service's ports."),
		table.Column("Age", "How long the object exists."),
	}, func(object runtime.Object) []any {
		meta, record := parts(object)
		var ports []string
		for _, port := range record.Ports {
			ports = append(ports, fmt.Sprintf("%d/%s", port.Port, port.Protocol))
		}
		return []any{meta.Name, record.Cluster, string(record.Type), table.Join(ports), table.Age(meta.CreationTimestamp)}
	})
}
