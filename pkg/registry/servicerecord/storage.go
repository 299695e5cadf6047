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
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/names"

	"mesh.io/clustermesh/pkg/apis/mesh"
)

// Storage serves exportedservices or importedservices.
type Storage struct {
	*genericregistry.Store
	shortName string
}

// ShortNames are what kubectl accepts for the resource.
func (s *Storage) ShortNames() []string { return []string{s.shortName} }

// Categories are the groups of resources that kubectl lists this one with.
func (*Storage) Categories() []string { return []string{"mesh"} }

// NewExported returns the storage of exportedservices.
func NewExported(scheme *runtime.Scheme, getter generic.RESTOptionsGetter) (*Storage, error) {
	store := &genericregistry.Store{
		NewFunc:                   func() runtime.Object { return &mesh.ExportedService{} },
		NewListFunc:               func() runtime.Object { return &mesh.ExportedServiceList{} },
		DefaultQualifiedResource:  mesh.Resource("exportedservices"),
		SingularQualifiedResource: mesh.Resource("exportedservice"),
	}
	return complete(store, scheme, getter, false, "expsvc")
}

// NewImported returns the storage of importedservices.
func NewImported(scheme *runtime.Scheme, getter generic.RESTOptionsGetter) (*Storage, error) {
	store := &genericregistry.Store{
		NewFunc:                   func() runtime.Object { return &mesh.ImportedService{} },
		NewListFunc:               func() runtime.Object { return &mesh.ImportedServiceList{} },
		DefaultQualifiedResource:  mesh.Resource("importedservices"),
		SingularQualifiedResource: mesh.Resource("importedservice"),
	}
	return complete(store, scheme, getter, true, "impsvc")
}

func complete(store *genericregistry.Store, scheme *runtime.Scheme, getter generic.RESTOptionsGetter, imported bool, shortName string) (*Storage, error) {
	rules := strategy{rest.DeclarativeValidation{Scheme: scheme}, names.SimpleNameGenerator, imported}
	store.CreateStrategy, store.UpdateStrategy, store.DeleteStrategy = rules, rules, rules
	store.TableConvertor = newTable()
	if err := store.CompleteWithOptions(&generic.StoreOptions{RESTOptions: getter}); err != nil {
		return nil, err
	}
	return &Storage{store, shortName}, nil
}
