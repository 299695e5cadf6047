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

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"
)

// etcdTimeout bounds one operation, so that its failure is told before the request's
// time is over and its answer cut off.
const etcdTimeout = requestTimeout - 2*time.Second

// storeGetter gives each resource a store that answers clearly, and in time, what
// etcd does not take: the generic one reports internal errors, and lets a watch that
// asks for the newest state wait for etcd without an end.
type storeGetter struct{ generic.RESTOptionsGetter }

func (g storeGetter) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (generic.RESTOptions, error) {
	options, err := g.RESTOptionsGetter.GetRESTOptions(resource, example)
	if err != nil {
		return options, err
	}
	next := options.Decorator
	options.Decorator = func(config *storagebackend.ConfigForResource, resourcePrefix string, keyFunc func(runtime.Object) (string, error),
		newFunc, newListFunc func() runtime.Object, attrs storage.AttrFunc, triggers storage.IndexerFuncs, indexers *cache.Indexers,
	) (storage.Interface, factory.DestroyFunc, error) {
		store, destroy, err := next(config, resourcePrefix, keyFunc, newFunc, newListFunc, attrs, triggers, indexers)
		return clearStore{store, resource}, destroy, err
	}
	return options, nil
}

type clearStore struct {
	storage.Interface
	resource schema.GroupResource
}

func (s clearStore) Create(ctx context.Context, key string, obj, out runtime.Object, ttl uint64) error {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	return s.explain(key, s.Interface.Create(ctx, key, obj, out, ttl))
}

func (s clearStore) GuaranteedUpdate(ctx context.Context, key string, destination runtime.Object, ignoreNotFound bool,
	preconditions *storage.Preconditions, tryUpdate storage.UpdateFunc, cached runtime.Object,
) error {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	return s.explain(key, s.Interface.GuaranteedUpdate(ctx, key, destination, ignoreNotFound, preconditions, tryUpdate, cached))
}

func (s clearStore) Get(ctx context.Context, key string, options storage.GetOptions, out runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	return s.explain(key, s.Interface.Get(ctx, key, options, out))
}

func (s clearStore) GetList(ctx context.Context, key string, options storage.ListOptions, out runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	return s.explain(key, s.Interface.GetList(ctx, key, options, out))
}

func (s clearStore) Delete(ctx context.Context, key string, out runtime.Object, preconditions *storage.Preconditions,
	validate storage.ValidateObjectFunc, cached runtime.Object, options storage.DeleteOptions,
) error {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	return s.explain(key, s.Interface.Delete(ctx, key, out, preconditions, validate, cached, options))
}

// Watch begins at the newest version, where the client asks for that, or fails.
func (s clearStore) Watch(ctx context.Context, key string, options storage.ListOptions) (watch.Interface, error) {
	if options.ResourceVersion == "" && options.SendInitialEvents != nil {
		bounded, cancel := context.WithTimeout(ctx, etcdTimeout)
		defer cancel()
		version, err := s.GetCurrentResourceVersion(bounded)
		if err != nil {
			return nil, s.explain(key, err)
		}
		options.ResourceVersion = strconv.FormatUint(version, 10)
	}
	return s.Interface.Watch(ctx, key, options)
}

func (s clearStore) explain(key string, err error) error {
	if err == nil {
		return nil
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return apierrors.NewServiceUnavailable(fmt.Sprintf("the store of %s does not answer, a change may or may not have been made: %v", s.resource, err))
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return apierrors.NewServiceUnavailable(fmt.Sprintf("the store of %s does not answer in time, a change may or may not have been made", s.resource))
	}
	var etcdError rpctypes.EtcdError
	refused := errors.As(err, &etcdError) && etcdError.Error() == rpctypes.ErrRequestTooLarge.Error()
	unsent := status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "larger than max")
	if !refused && !unsent {
		return err
	}
	name := key[strings.LastIndex(key, "/")+1:]
	return tooLarge{error: err, code: etcdError.Code(), status: metav1.Status{
		Status: metav1.StatusFailure,
		Code:   http.StatusRequestEntityTooLarge,
		Reason: metav1.StatusReasonRequestEntityTooLarge,
		Message: fmt.Sprintf("%s %q is too large to be stored: with its metadata an object may have about 1.5 MiB",
			s.resource, name),
		Details: &metav1.StatusDetails{Group: s.resource.Group, Kind: s.resource.Resource, Name: name},
	}}
}

// tooLarge is still the store's error, by which the handlers know that they may try
// again without the managed fields, and tells the client what was wrong.
type tooLarge struct {
	error
	code   codes.Code
	status metav1.Status
}

func (e tooLarge) Status() metav1.Status      { return e.status }
func (e tooLarge) Code() codes.Code           { return e.code }
func (e tooLarge) GRPCStatus() *status.Status { return status.Convert(e.error) }
