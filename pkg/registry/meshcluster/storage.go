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
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/names"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/registry/status"
)

var resource = mesh.Resource("meshclusters")

// errDeleteLocal answers an attempt to delete the cluster's own object.
var errDeleteLocal = errors.New("it is the cluster that this mesh API belongs to; " +
	"to leave the mesh, delete this cluster's MeshCluster in each peer, then uninstall clustermesh here; " +
	"if its name or ID is wrong, start the controller with the right ones: it refuses this object then, and it can be deleted")

// Storage serves meshclusters.
type Storage struct{ *genericregistry.Store }

// ShortNames are what kubectl accepts for the resource.
func (*Storage) ShortNames() []string { return []string{"mc"} }

// Categories are the groups of resources that kubectl lists this one with.
func (*Storage) Categories() []string { return []string{"mesh"} }

// NewStorage returns the storage of the resource and of its status. storeEpoch is
// what the local cluster's status says of the store.
func NewStorage(scheme *runtime.Scheme, getter generic.RESTOptionsGetter, storeEpoch string) (*Storage, *status.Storage, error) {
	rules := strategy{rest.DeclarativeValidation{Scheme: scheme}, names.SimpleNameGenerator, storeEpoch}
	store := &genericregistry.Store{
		NewFunc:                   func() runtime.Object { return &mesh.MeshCluster{} },
		NewListFunc:               func() runtime.Object { return &mesh.MeshClusterList{} },
		DefaultQualifiedResource:  resource,
		SingularQualifiedResource: mesh.Resource("meshcluster"),
		CreateStrategy:            rules,
		UpdateStrategy:            rules,
		DeleteStrategy:            rules,
		ResetFieldsStrategy:       rules,
		TableConvertor:            newTable(),
	}
	if err := store.CompleteWithOptions(&generic.StoreOptions{RESTOptions: currentGetter{getter, storeEpoch}}); err != nil {
		return nil, nil, err
	}
	return &Storage{store}, status.NewStorage(store, statusStrategy{scheme, names.SimpleNameGenerator, storeEpoch}), nil
}

// Create stores a new member, unless it is a second local one. Two that are created
// at once can both pass; the controller then refuses to work and says why.
func (s *Storage) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	return s.Store.Create(ctx, obj, func(ctx context.Context, obj runtime.Object) error {
		if cluster, ok := obj.(*mesh.MeshCluster); ok && local(cluster) {
			if err := s.refuseSecondLocal(ctx, cluster.Name); err != nil {
				return err
			}
		}
		return validate(ctx, obj)
	}, options)
}

func (s *Storage) refuseSecondLocal(ctx context.Context, name string) error {
	list, err := s.List(ctx, &internalversion.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.(*mesh.MeshClusterList).Items {
		if other := &list.(*mesh.MeshClusterList).Items[i]; local(other) && other.Name != name {
			return apierrors.NewForbidden(resource, name, fmt.Errorf(
				"%q is already the local cluster; a peer needs spec.kubeconfigSecretRef (if %q was meant to be one, delete it first)", other.Name, other.Name))
		}
	}
	return nil
}

// Delete removes a peer. The local cluster cannot be removed, unless it is none.
func (s *Storage) Delete(ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions) (runtime.Object, bool, error) {
	return s.Store.Delete(ctx, name, s.keepLocal(validate), options)
}

// DeleteCollection removes peers. It reports the local cluster, if that is among
// them, and keeps it.
func (s *Storage) DeleteCollection(ctx context.Context, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions,
	listOptions *internalversion.ListOptions,
) (runtime.Object, error) {
	return s.Store.DeleteCollection(ctx, s.keepLocal(validate), options, listOptions)
}

func (s *Storage) keepLocal(validate rest.ValidateObjectFunc) rest.ValidateObjectFunc {
	return func(ctx context.Context, obj runtime.Object) error {
		if cluster, ok := obj.(*mesh.MeshCluster); ok && local(cluster) && !mistaken(cluster) {
			list, err := s.List(ctx, &internalversion.ListOptions{})
			if err != nil {
				return err
			}
			if onlyLocal(cluster, list.(*mesh.MeshClusterList).Items) {
				return apierrors.NewForbidden(resource, cluster.Name, errDeleteLocal)
			}
		}
		return validate(ctx, obj)
	}
}

// mistaken says whether an object without a kubeconfig is not the local cluster: the
// controller has never taken it for itself, or says that it is another. Nothing but
// deleting such an object lets the controller work.
func mistaken(cluster *mesh.MeshCluster) bool {
	return cluster.Status.UID == "" || meta.IsStatusConditionTrue(cluster.Status.Conditions, v1alpha1.MeshClusterIdentityConflict)
}

// onlyLocal says whether no other object could be the local cluster.
func onlyLocal(cluster *mesh.MeshCluster, all []mesh.MeshCluster) bool {
	for i := range all {
		if other := &all[i]; local(other) && other.Name != cluster.Name {
			return false
		}
	}
	return true
}
