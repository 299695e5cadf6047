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

// Package peertoken gives a peer another token in the place of the one that it has.
// Nothing is stored.
package peertoken

import (
	"context"
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/operation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/registry/account"
)

var resource = mesh.Resource("peertokens")

// Storage serves peertokens.
type Storage struct {
	rules    rest.DeclarativeValidation
	accounts account.Accounts
}

var (
	_ rest.Scoper               = &Storage{}
	_ rest.SingularNameProvider = &Storage{}
)

// NewStorage returns the storage of the resource.
func NewStorage(scheme *runtime.Scheme, accounts account.Accounts) *Storage {
	return &Storage{rules: rest.DeclarativeValidation{Scheme: scheme}, accounts: accounts}
}

// New returns an empty request.
func (*Storage) New() runtime.Object { return &mesh.PeerToken{} }

// Destroy has nothing to give up.
func (*Storage) Destroy() {}

// NamespaceScoped says that the resource belongs to no namespace.
func (*Storage) NamespaceScoped() bool { return false }

// GetSingularName is what one of them is called.
func (*Storage) GetSingularName() string { return "peertoken" }

// Create answers the request. Who gets a token follows from who asks, never from what
// is asked.
func (s *Storage) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	request := obj.(*mesh.PeerToken)
	caller, err := s.accounts.Caller(ctx, v1alpha1.PeerPrefix)
	if err != nil {
		return nil, apierrors.NewForbidden(resource, "", err)
	}
	if errs := s.rules.ValidateDeclaratively(ctx, request, nil, nil, operation.Create, s.rules.DeclarativeValidationConfig(ctx, request, nil)); len(errs) > 0 {
		return nil, apierrors.NewInvalid(mesh.Kind("PeerToken"), caller.Name, errs)
	}
	if err := validate(ctx, request.DeepCopy()); err != nil {
		return nil, err
	}
	answer := &mesh.PeerToken{ObjectMeta: metav1.ObjectMeta{Name: caller.Name, CreationTimestamp: metav1.Now()}, Spec: request.Spec}
	if len(options.DryRun) > 0 {
		return answer, nil
	}
	made, err := s.accounts.Token(ctx, caller.Name, caller.UID, ptr.Deref(request.Spec.ExpirationSeconds, account.Life))
	if err != nil {
		var answered apierrors.APIStatus
		if errors.As(err, &answered) {
			return nil, err
		}
		return nil, apierrors.NewForbidden(resource, caller.Name, err)
	}
	answer.Status = mesh.PeerTokenStatus{Token: made.Token, ExpirationTimestamp: made.ExpirationTimestamp}
	return answer, nil
}
