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

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	registry "k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/rest"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/apiserver/certificate"
	"mesh.io/clustermesh/pkg/generated/clientset/versioned"
	"mesh.io/clustermesh/pkg/registry/globalservice"
	"mesh.io/clustermesh/pkg/registry/joinrequest"
	"mesh.io/clustermesh/pkg/registry/meshcluster"
	"mesh.io/clustermesh/pkg/registry/meshmember"
	"mesh.io/clustermesh/pkg/registry/peertoken"
	"mesh.io/clustermesh/pkg/registry/servicepolicy"
	"mesh.io/clustermesh/pkg/registry/servicerecord"
	"mesh.io/clustermesh/pkg/registry/slicerecord"
)

// Server is a mesh API that can be run once.
type Server struct {
	generic  *genericapiserver.GenericAPIServer
	storeErr <-chan error
}

// New makes the server.
func (c CompletedConfig) New() (*Server, error) {
	generic, err := c.generic.New(component, genericapiserver.NewEmptyDelegate())
	if err != nil {
		return nil, err
	}
	storage, filled, err := c.storage()
	if err != nil {
		return nil, err
	}
	group := genericapiserver.NewDefaultAPIGroupInfo(v1alpha1.GroupName, scheme, metav1.ParameterCodec, codecs)
	group.VersionedResourcesStorageMap[v1alpha1.SchemeGroupVersion.Version] = storage
	if err := generic.InstallAPIGroup(&group); err != nil {
		return nil, fmt.Errorf("installing the API: %w", err)
	}
	if err := generic.AddReadyzChecks(filled, c.authorities, c.health); err != nil {
		return nil, err
	}
	hooks := map[string]genericapiserver.PostStartHookFunc{
		"probe-etcd": func(hook genericapiserver.PostStartHookContext) error {
			go c.health.run(hook)
			return nil
		},
	}
	if c.keeper != nil {
		hooks["keep-certificates"] = func(hook genericapiserver.PostStartHookContext) error {
			go c.keeper.Run(hook)
			return nil
		}
	}
	for name, hook := range hooks {
		if err := generic.AddPostStartHook(name, hook); err != nil {
			return nil, err
		}
	}
	server := &Server{generic: generic}
	if c.store != nil {
		server.storeErr = c.store.Err()
	}
	return server, nil
}

// storage returns what serves each resource, and the check that all caches have
// been filled.
func (c CompletedConfig) storage() (map[string]registry.Storage, *cacheFilled, error) {
	getter := storeGetter{c.Config.generic.RESTOptionsGetter}
	globalServices, globalServicesStatus, err1 := globalservice.NewStorage(scheme, getter)
	clusters, clustersStatus, err2 := meshcluster.NewStorage(scheme, getter, c.storeEpoch)
	exportedServices, err3 := servicerecord.NewExported(scheme, getter)
	importedServices, err4 := servicerecord.NewImported(scheme, getter)
	exportedSlices, err5 := slicerecord.NewExported(scheme, getter)
	importedSlices, err6 := slicerecord.NewImported(scheme, getter)
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
		return nil, nil, fmt.Errorf("opening the store: %w", err)
	}
	joins, err := c.joins()
	if err != nil {
		return nil, nil, err
	}
	filled := &cacheFilled{ready: []func() error{
		globalServices.ReadinessCheck, clusters.ReadinessCheck,
		exportedServices.ReadinessCheck, importedServices.ReadinessCheck,
		exportedSlices.ReadinessCheck, importedSlices.ReadinessCheck,
	}}
	return map[string]registry.Storage{
		"globalservices":         globalServices,
		"globalservices/status":  globalServicesStatus,
		"meshclusters":           clusters,
		"meshclusters/status":    clustersStatus,
		"servicepolicies":        servicepolicy.NewStorage(globalServices.Store),
		"meshmembers":            meshmember.NewStorage(clusters.Store),
		"exportedservices":       exportedServices,
		"importedservices":       importedServices,
		"exportedendpointslices": exportedSlices,
		"importedendpointslices": importedSlices,
		"peertokens":             peertoken.NewStorage(scheme, c.accounts),
		"joinrequests":           joins,
	}, filled, nil
}

// joins returns what serves joinrequests.
func (c CompletedConfig) joins() (*joinrequest.Storage, error) {
	loopback := rest.CopyConfig(c.Config.generic.LoopbackClientConfig)
	loopback.UserAgent, loopback.QPS = component, -1
	own, err := versioned.NewForConfig(loopback)
	if err != nil {
		return nil, fmt.Errorf("making a client of this server: %w", err)
	}
	maps := c.accounts.Client.CoreV1().ConfigMaps(c.accounts.Namespace)
	return joinrequest.NewStorage(scheme, joinrequest.Config{
		Accounts: c.accounts,
		Members:  own.MeshV1alpha1(),
		Trust: func(ctx context.Context) ([]byte, error) {
			found, err := maps.Get(ctx, certificate.ConfigMapName, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			return []byte(found.Data[certificate.ConfigMapKey]), nil
		},
		ServerName: c.serverName, AllowLocal: c.allowLocal,
	}), nil
}

// Run serves until the context ends, then finishes what is under way. It returns an
// error if the server cannot begin, or if its store breaks.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case err := <-s.storeErr:
			cancel(fmt.Errorf("running etcd: %w", err))
		case <-ctx.Done():
		}
	}()
	if err := s.generic.PrepareRun().RunWithContext(ctx); err != nil {
		return err
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
