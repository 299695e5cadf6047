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

// Package globalservice stores GlobalServices: who may write which part of one,
// and how it is printed.
package globalservice

import (
	"context"
	"fmt"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/names"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/apis/mesh/validation"
	"mesh.io/clustermesh/pkg/registry/projection"
	"mesh.io/clustermesh/pkg/registry/servicepolicy"
	"mesh.io/clustermesh/pkg/registry/status"
)

// strategy rules the spec, which people write.
type strategy struct {
	rest.DeclarativeValidation
	names.NameGenerator
}

func (strategy) NamespaceScoped() bool                         { return true }
func (strategy) AllowCreateOnUpdate(context.Context) bool      { return false }
func (strategy) AllowUnconditionalUpdate(context.Context) bool { return true }
func (strategy) Canonicalize(runtime.Object)                   {}

func (strategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return status.ResetFields("status")
}

func (strategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	service := obj.(*mesh.GlobalService)
	service.Status = mesh.GlobalServiceStatus{}
	service.Generation = 1
	disownIfWritten(service)
}

func (strategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	service, oldService := obj.(*mesh.GlobalService), old.(*mesh.GlobalService)
	service.Status = oldService.Status
	service.Generation = oldService.Generation
	if !apiequality.Semantic.DeepEqual(service.Spec, oldService.Spec) {
		service.Generation++
	}
	disownIfWritten(service)
	if servicepolicy.Changed(service, oldService) {
		service.Status.PolicyResourceVersion = ""
	}
}

// disownIfWritten takes away the label by which the controller may delete the
// object. The controller never writes a spec, so a spec is a person's.
func disownIfWritten(service *mesh.GlobalService) {
	if !apiequality.Semantic.DeepEqual(service.Spec, mesh.GlobalServiceSpec{}) {
		delete(service.Labels, v1alpha1.LabelManagedBy)
	}
}

func (strategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validation.GlobalService(obj.(*mesh.GlobalService))
}

func (strategy) ValidateUpdate(_ context.Context, obj, _ runtime.Object) field.ErrorList {
	return validation.GlobalService(obj.(*mesh.GlobalService))
}

func (strategy) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	return warnings(obj.(*mesh.GlobalService))
}

func (strategy) WarningsOnUpdate(_ context.Context, obj, _ runtime.Object) []string {
	return warnings(obj.(*mesh.GlobalService))
}

// warnings names what is legal and rarely meant.
func warnings(service *mesh.GlobalService) []string {
	var found []string
	spec := service.Spec
	drained := 0
	for _, cluster := range spec.Clusters {
		if cluster.Weight != nil && *cluster.Weight == 0 {
			drained++
		}
	}
	if len(spec.Clusters) > 0 && drained == len(spec.Clusters) {
		found = append(found, "spec.clusters: every cluster that is listed has weight 0; if no other has backends, the service has none")
	}
	if spec.LocalMinReady != nil && spec.Affinity != mesh.AffinityLocal {
		affinity := string(spec.Affinity)
		if affinity == "" {
			affinity = "that an annotation sets"
		}
		found = append(found, fmt.Sprintf("spec.localMinReady: acts with affinity Local only, not with the affinity %s", affinity))
	}
	return found
}

// statusStrategy rules the status, which the controller writes.
type statusStrategy struct {
	runtime.ObjectTyper
	names.NameGenerator
}

func (statusStrategy) NamespaceScoped() bool                         { return true }
func (statusStrategy) AllowCreateOnUpdate(context.Context) bool      { return false }
func (statusStrategy) AllowUnconditionalUpdate(context.Context) bool { return true }
func (statusStrategy) Canonicalize(runtime.Object)                   {}

func (statusStrategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return status.ResetFields("spec", "metadata")
}

func (statusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	service, oldService := obj.(*mesh.GlobalService), old.(*mesh.GlobalService)
	metav1.ResetObjectMetaForStatus(service, oldService)
	service.Spec = oldService.Spec
	service.Status.PolicyResourceVersion = projection.Version(false, oldService.ResourceVersion, oldService.Status.PolicyResourceVersion)
}

func (statusStrategy) ValidateUpdate(_ context.Context, obj, _ runtime.Object) field.ErrorList {
	return validation.GlobalServiceStatus(obj.(*mesh.GlobalService))
}

func (statusStrategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}
