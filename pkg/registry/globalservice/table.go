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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/registry/table"
)

func newTable() rest.TableConvertor {
	return table.New([]metav1.TableColumnDefinition{
		table.Name(),
		table.Column("Clusters", "Clusters with a ready backend, of those that offer the service; \"-\" where their backends are not known, as the service is not global here."),
		table.Column("Backends", "Ready backends, of all; \"-\" where they are not known."),
		table.Column("Local", "Ready backends in this cluster, of all there."),
		table.Column("Remote", "Ready backends in the other clusters, of all there; \"-\" where they are not known."),
		table.Column("Affinity", "The side that this cluster's clients prefer."),
		table.Column("Shared", "Whether this cluster offers its backends to the others."),
		table.Column("Age", "How long the object exists."),
		table.Wide("Cluster-Names", "The clusters that offer the service."),
		table.Wide("Conflict", "Why the clusters' Services contradict each other."),
	}, cells)
}

// uncounted stands for a number of backends that is not known here.
const uncounted = "-"

func cells(object runtime.Object) []any {
	service := object.(*mesh.GlobalService)
	age := table.Age(service.CreationTimestamp)
	status := service.Status
	if status.ObservedGeneration == 0 && len(status.Clusters) == 0 {
		// No controller has seen it yet.
		return []any{
			service.Name, table.Unknown, table.Unknown, table.Unknown, table.Unknown, table.Unknown, table.Unknown,
			age, table.Unknown, table.Unknown,
		}
	}

	var clusters, all, local, remote count
	var names []string
	unknown := false
	for _, cluster := range status.Clusters {
		names = append(names, cluster.Name)
		if !cluster.Local && notGlobalHere(status.Conditions) {
			// Its endpoints are not imported, so what the status counts is nothing.
			unknown = true
			clusters.add(count{present: true, total: 1})
			continue
		}
		one := count{present: true, ready: cluster.Endpoints.Ready, total: cluster.Endpoints.Total}
		all.add(one)
		if cluster.Local {
			local.add(one)
		} else {
			remote.add(one)
		}
		ready := int32(0)
		if one.ready > 0 {
			ready = 1
		}
		clusters.add(count{present: true, ready: ready, total: 1})
	}
	if unknown {
		return []any{
			service.Name, fmt.Sprintf("%s/%d", uncounted, clusters.total), uncounted, local.String(), uncounted,
			string(status.Affinity.Value), fmt.Sprint(status.Shared.Value), age, table.Join(names), conflict(status.Conditions),
		}
	}
	return []any{
		service.Name, clusters.String(), all.String(), local.String(), remote.String(),
		string(status.Affinity.Value), fmt.Sprint(status.Shared.Value), age, table.Join(names), conflict(status.Conditions),
	}
}

// notGlobalHere says whether the service does not take part here: then no endpoints of
// other clusters are brought here.
func notGlobalHere(conditions []metav1.Condition) bool {
	for _, condition := range conditions {
		if condition.Type == v1alpha1.GlobalServiceLocalService {
			return condition.Status == metav1.ConditionFalse
		}
	}
	return false
}

func conflict(conditions []metav1.Condition) string {
	for _, condition := range conditions {
		if condition.Type == v1alpha1.GlobalServiceConflict && condition.Status == metav1.ConditionTrue {
			return condition.Reason
		}
	}
	return table.None
}

// count is so many ready of so many, where there is anything to count.
type count struct {
	present      bool
	ready, total int32
}

func (c *count) add(other count) {
	c.present = c.present || other.present
	c.ready += other.ready
	c.total += other.total
}

func (c count) String() string {
	if !c.present {
		return table.None
	}
	return fmt.Sprintf("%d/%d", c.ready, c.total)
}
