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

// Package slicerecord stores ExportedEndpointSlices and ImportedEndpointSlices:
// two resources with one shape and the same rules.
package slicerecord

import (
	"context"
	"fmt"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/names"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/apis/mesh/validation"
)

// strategy rules both resources, which only the controller writes.
type strategy struct {
	rest.DeclarativeValidation
	names.NameGenerator
	imported bool
}

func (strategy) NamespaceScoped() bool                         { return true }
func (strategy) AllowCreateOnUpdate(context.Context) bool      { return false }
func (strategy) AllowUnconditionalUpdate(context.Context) bool { return true }
func (strategy) Canonicalize(runtime.Object)                   {}

func (strategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	meta, record := parts(obj)
	meta.Generation = 1
	label(meta, record)
}

func (strategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	meta, record := parts(obj)
	oldMeta, oldRecord := parts(old)
	meta.Generation = oldMeta.Generation
	if !apiequality.Semantic.DeepEqual(record, oldRecord) {
		meta.Generation++
	}
	label(meta, record)
}

func (s strategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	meta, record := parts(obj)
	return validation.SliceRecord(meta, record, s.imported)
}

func (s strategy) ValidateUpdate(ctx context.Context, obj, _ runtime.Object) field.ErrorList {
	return s.Validate(ctx, obj)
}

func (strategy) WarningsOnCreate(context.Context, runtime.Object) []string { return nil }

func (strategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

// label makes the object selectable by its cluster and its Service. Set here, the
// labels cannot contradict the record.
func label(meta *metav1.ObjectMeta, record *mesh.SliceRecord) {
	if meta.Labels == nil {
		meta.Labels = map[string]string{}
	}
	meta.Labels[v1alpha1.LabelCluster] = record.Cluster
	meta.Labels[v1alpha1.LabelServiceName] = record.Service
}

// parts are what the two kinds consist of.
func parts(obj runtime.Object) (*metav1.ObjectMeta, *mesh.SliceRecord) {
	switch slice := obj.(type) {
	case *mesh.ExportedEndpointSlice:
		return &slice.ObjectMeta, &slice.Spec
	case *mesh.ImportedEndpointSlice:
		return &slice.ObjectMeta, &slice.Spec
	}
	panic(fmt.Sprintf("slicerecord: unexpected type %T", obj))
}
