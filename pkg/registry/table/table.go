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

// Package table turns objects into the rows that kubectl prints.
package table

import (
	"context"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apiserver/pkg/registry/rest"
)

const (
	// Unknown stands for what nobody has reported yet.
	Unknown = "<unknown>"
	// None stands for what does not exist.
	None = "<none>"
)

// Column is a column that every output has. The name of the object needs Name.
func Column(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "string", Description: description}
}

// Name is the column with the object's name.
func Name() metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name", Description: "Name of the object."}
}

// Wide is a column of the wide output only.
func Wide(name, description string) metav1.TableColumnDefinition {
	column := Column(name, description)
	column.Priority = 1
	return column
}

// New returns a convertor to a table with the given columns. cells returns one
// object's values in the order of the columns.
func New(columns []metav1.TableColumnDefinition, cells func(runtime.Object) []any) rest.TableConvertor {
	return convertor{columns: columns, cells: cells}
}

type convertor struct {
	columns []metav1.TableColumnDefinition
	cells   func(runtime.Object) []any
}

func (c convertor) ConvertToTable(_ context.Context, object, options runtime.Object) (*metav1.Table, error) {
	table := &metav1.Table{}
	if o, ok := options.(*metav1.TableOptions); !ok || !o.NoHeaders {
		table.ColumnDefinitions = c.columns
	}
	row := func(item runtime.Object) error {
		table.Rows = append(table.Rows, metav1.TableRow{Cells: c.cells(item), Object: runtime.RawExtension{Object: item}})
		return nil
	}
	if list, err := meta.ListAccessor(object); err == nil {
		table.ResourceVersion = list.GetResourceVersion()
		table.Continue = list.GetContinue()
		table.RemainingItemCount = list.GetRemainingItemCount()
		return table, meta.EachListItem(object, row)
	}
	item, err := meta.CommonAccessor(object)
	if err != nil {
		return nil, err
	}
	table.ResourceVersion = item.GetResourceVersion()
	return table, row(object)
}

// Age is the time since t as kubectl prints it.
func Age(t metav1.Time) string {
	if t.IsZero() {
		return Unknown
	}
	return duration.HumanDuration(time.Since(t.Time))
}

// Join lists what there is, or says that there is nothing.
func Join(items []string) string {
	if len(items) == 0 {
		return None
	}
	return strings.Join(items, ",")
}
