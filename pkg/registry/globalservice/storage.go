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
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/names"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/registry/status"
)

// Storage serves globalservices.
type Storage struct{ *genericregistry.Store }

// ShortNames are what kubectl accepts for the resource.
func (Storage) ShortNames() []string { return []string{"gsvc"} }

// Categories are the groups of resources that kubectl lists this one with.
func (Storage) Categories() []string { return []string{"mesh"} }

// NewStorage returns the storage of the resource and of its status.
func NewStorage(scheme *runtime.Scheme, getter generic.RESTOptionsGetter) (*Storage, *status.Storage, error) {
	rules := strategy{rest.DeclarativeValidation{Scheme: scheme}, names.SimpleNameGenerator}
	store := &genericregistry.Store{
		NewFunc:                   func() runtime.Object { return &mesh.GlobalService{} },
		NewListFunc:               func() runtime.Object { return &mesh.GlobalServiceList{} },
		DefaultQualifiedResource:  mesh.Resource("globalservices"),
		SingularQualifiedResource: mesh.Resource("globalservice"),
		CreateStrategy:            rules,
		UpdateStrategy:            rules,
		DeleteStrategy:            rules,
		ResetFieldsStrategy:       rules,
		TableConvertor:            newTable(),
	}
	if err := store.CompleteWithOptions(&generic.StoreOptions{RESTOptions: getter}); err != nil {
		return nil, nil, err
	}
	return &Storage{store}, status.NewStorage(store, statusStrategy{scheme, names.SimpleNameGenerator}), nil
}
