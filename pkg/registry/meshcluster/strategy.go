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

// Package meshcluster stores MeshClusters: who may write which part of one, what
// the server itself says in the local one, and how they are printed.
package meshcluster

import (
	"context"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/names"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/validation"
	"mesh.io/clustermesh/pkg/registry/meshmember"
	"mesh.io/clustermesh/pkg/registry/projection"
	"mesh.io/clustermesh/pkg/registry/status"
)

// local says whether the object is the cluster that this server belongs to.
func local(cluster *mesh.MeshCluster) bool { return cluster.Spec.KubeconfigSecretRef == nil }

// strategy rules the spec, which people write.
type strategy struct {
	rest.DeclarativeValidation
	names.NameGenerator
	// storeEpoch is the epoch of the store that the objects are in.
	storeEpoch string
}

func (strategy) NamespaceScoped() bool                         { return false }
func (strategy) AllowCreateOnUpdate(context.Context) bool      { return false }
func (strategy) AllowUnconditionalUpdate(context.Context) bool { return true }
func (strategy) Canonicalize(runtime.Object)                   {}

func (strategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return status.ResetFields("status")
}

func (s strategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	cluster := obj.(*mesh.MeshCluster)
	cluster.Status = mesh.MeshClusterStatus{}
	if local(cluster) {
		cluster.Status.StoreEpoch = s.storeEpoch
	}
	cluster.Generation = 1
}

func (s strategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	cluster, oldCluster := obj.(*mesh.MeshCluster), old.(*mesh.MeshCluster)
	cluster.Status = oldCluster.Status
	cluster.Generation = oldCluster.Generation
	if !apiequality.Semantic.DeepEqual(cluster.Spec, oldCluster.Spec) {
		cluster.Generation++
	}
	if meshmember.Changed(cluster, oldCluster) {
		cluster.Status.PolicyResourceVersion = ""
	}
}

func (strategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validation.MeshCluster(obj.(*mesh.MeshCluster))
}

func (strategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.MeshClusterUpdate(obj.(*mesh.MeshCluster), old.(*mesh.MeshCluster))
}

func (strategy) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	return warnings(obj.(*mesh.MeshCluster))
}

func (strategy) WarningsOnUpdate(_ context.Context, obj, _ runtime.Object) []string {
	return warnings(obj.(*mesh.MeshCluster))
}

// warnings names what is legal and has no effect.
func warnings(cluster *mesh.MeshCluster) []string {
	var found []string
	imports := !apiequality.Semantic.DeepEqual(cluster.Spec.Import, mesh.ImportPolicy{})
	exports := !apiequality.Semantic.DeepEqual(cluster.Spec.Export, mesh.ExportPolicy{})
	if local(cluster) && imports {
		found = append(found, "spec.import: has no effect on the local cluster; set it on the peers")
	}
	if !local(cluster) && exports {
		found = append(found, "spec.export: has no effect on a peer; set it on the local cluster")
	}
	return found
}

// statusStrategy rules the status, which the controller writes.
type statusStrategy struct {
	runtime.ObjectTyper
	names.NameGenerator
	storeEpoch string
}

func (statusStrategy) NamespaceScoped() bool                         { return false }
func (statusStrategy) AllowCreateOnUpdate(context.Context) bool      { return false }
func (statusStrategy) AllowUnconditionalUpdate(context.Context) bool { return true }
func (statusStrategy) Canonicalize(runtime.Object)                   {}

func (statusStrategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return status.ResetFields("spec", "metadata")
}

func (s statusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	cluster, oldCluster := obj.(*mesh.MeshCluster), old.(*mesh.MeshCluster)
	metav1.ResetObjectMetaForStatus(cluster, oldCluster)
	cluster.Spec = oldCluster.Spec
	if local(cluster) {
		// Every heartbeat carries the epoch of the store that it is written to.
		cluster.Status.StoreEpoch = s.storeEpoch
	}
	cluster.Status.PolicyResourceVersion = projection.Version(meshmember.Changed(cluster, oldCluster),
		oldCluster.ResourceVersion, oldCluster.Status.PolicyResourceVersion)
}

func (statusStrategy) ValidateUpdate(_ context.Context, obj, _ runtime.Object) field.ErrorList {
	return validation.MeshClusterStatus(obj.(*mesh.MeshCluster))
}

func (statusStrategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}
