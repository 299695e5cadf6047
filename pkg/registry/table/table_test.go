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

package table

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"mesh.io/clustermesh/pkg/apis/mesh"
)

func TestConvertToTable(t *testing.T) {
	columns := []metav1.TableColumnDefinition{Name(), Wide("Zone", "Somewhere.")}
	convertor := New(columns, func(object runtime.Object) []any {
		return []any{object.(*mesh.MeshCluster).Name, "z"}
	})
	one := mesh.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: "one", ResourceVersion: "3"}}
	two := mesh.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: "two", ResourceVersion: "4"}}
	left := int64(7)
	tests := []struct {
		name    string
		object  runtime.Object
		options runtime.Object
		columns int
		rows    [][]any
		meta    metav1.ListMeta
	}{
		{"one object", &one, &metav1.TableOptions{}, 2, [][]any{{"one", "z"}}, metav1.ListMeta{ResourceVersion: "3"}},
		{"no headers", &one, &metav1.TableOptions{NoHeaders: true}, 0, [][]any{{"one", "z"}}, metav1.ListMeta{ResourceVersion: "3"}},
		{
			"a page of a list",
			&mesh.MeshClusterList{
				ListMeta: metav1.ListMeta{ResourceVersion: "9", Continue: "more", RemainingItemCount: &left},
				Items:    []mesh.MeshCluster{one, two},
			},
			nil, 2, [][]any{{"one", "z"}, {"two", "z"}},
			metav1.ListMeta{ResourceVersion: "9", Continue: "more", RemainingItemCount: &left},
		},
		{"an empty list", &mesh.MeshClusterList{}, nil, 2, nil, metav1.ListMeta{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := convertor.ConvertToTable(t.Context(), test.object, test.options)
			if err != nil {
				t.Fatal(err)
			}
			var rows [][]any
			for _, row := range got.Rows {
				rows = append(rows, row.Cells)
				if row.Object.Object == nil {
					t.Error("a row has no object")
				}
			}
			if diff := cmp.Diff(test.rows, rows); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.meta, got.ListMeta); diff != "" {
				t.Errorf("metadata (-want +got):\n%s", diff)
			}
			if len(got.ColumnDefinitions) != test.columns {
				t.Errorf("%d columns, want %d", len(got.ColumnDefinitions), test.columns)
			}
		})
	}
}

func TestAge(t *testing.T) {
	if got := Age(metav1.Time{}); got != Unknown {
		t.Errorf("the age of an unset time is %q", got)
	}
	if got := Age(metav1.NewTime(time.Now().Add(-3 * time.Minute))); got != "3m" {
		t.Errorf("the age of a time 3 minutes ago is %q", got)
	}
}
