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

// Package apiserver composes and runs the mesh API: the aggregated API server of
// the group mesh.io, with its store.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	aggregator "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/scheme"

	apiopenapi "k8s.io/apiserver/pkg/endpoints/openapi"

	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/apiserver/certificate"
	"mesh.io/clustermesh/pkg/etcd"
	"mesh.io/clustermesh/pkg/generated/openapi"
	"mesh.io/clustermesh/pkg/registry/account"
	"mesh.io/clustermesh/pkg/version"
)

// component names the server in the events that it writes.
const component = "mesh-apiserver"

// Config is everything that the server is made of, ready for use.
type Config struct {
	generic     *genericapiserver.RecommendedConfig
	authorities *clientAuthorities
	store       *etcd.Server
	storeEpoch  string
	health      *etcdHealth
	keeper      *certificate.Keeper
	// accounts are those that other clusters have here.
	accounts account.Accounts
	// allowLocal lets clusters join by addresses that lead nowhere else.
	allowLocal bool
	// serverName is the first name in the serving certificate.
	serverName string
}

type completedConfig struct {
	*Config
	generic genericapiserver.CompletedConfig
}

// CompletedConfig can be made by Complete only, so nothing incomplete is ever run.
type CompletedConfig struct{ *completedConfig }

// Config starts the store and makes what the server needs. The caller must Close it.
func (o *Options) Config(ctx context.Context) (config *Config, err error) {
	config = &Config{generic: genericapiserver.NewRecommendedConfig(codecs)}
	defer func() {
		if err != nil {
			config.Close()
		}
	}()
	generic := config.generic
	generic.EffectiveVersion = compatibility.DefaultBuildEffectiveVersion()
	generic.RequestTimeout = requestTimeout
	generic.ShutdownDelayDuration = o.shutdownDelay
	generic.ShutdownWatchTerminationGracePeriod = watchDrainTimeout
	// Caches may take their time to fill: that is what readiness is for, not liveness.
	generic.LivezGracePeriod = 2 * generic.StorageInitializationTimeout
	setOpenAPI(generic)

	// First what can be wrong, before the store is touched.
	if err := o.coreAPI.ApplyTo(generic); err != nil {
		return nil, fmt.Errorf("connecting to the cluster: %w", err)
	}
	client, err := kubernetes.NewForConfig(generic.ClientConfig)
	if err != nil {
		return nil, fmt.Errorf("making a client of the cluster: %w", err)
	}
	// Not the client that keeps the certificate, whose few requests a second peers would
	// use up. The cluster's own server bounds what it is asked.
	prompt := rest.CopyConfig(generic.ClientConfig)
	prompt.QPS = -1
	if config.accounts.Client, err = kubernetes.NewForConfig(prompt); err != nil {
		return nil, fmt.Errorf("making a client of the cluster: %w", err)
	}
	config.accounts.Namespace, config.allowLocal = o.namespace, o.allowLocal
	names, _ := o.certificateNames()
	config.serverName = names[0]
	if o.ownsCertificate() {
		if config.keeper, err = o.newKeeper(ctx, generic, client); err != nil {
			return nil, err
		}
		o.serving.ServerCert.GeneratedCert = config.keeper
	}
	if err := o.serving.ApplyToConfig(&generic.Config); err != nil {
		return nil, fmt.Errorf("preparing to serve: %w", err)
	}
	if config.authorities, err = newClientAuthorities(ctx, client); err != nil {
		return nil, err
	}
	o.authn.ClientCert.CAContentProvider = config.authorities.provider
	if err := o.authn.ApplyTo(&generic.Authentication, generic.SecureServing, generic.OpenAPIConfig); err != nil {
		return nil, fmt.Errorf("preparing authentication: %w", err)
	}
	if err := o.authz.ApplyTo(&generic.Authorization); err != nil {
		return nil, fmt.Errorf("preparing authorization: %w", err)
	}
	if err := o.audit.ApplyTo(&generic.Config); err != nil {
		return nil, fmt.Errorf("preparing audit: %w", err)
	}
	if policy := generic.AuditPolicyRuleEvaluator; policy != nil {
		generic.AuditPolicyRuleEvaluator = withoutSecrets{policy}
	}
	if err := applyAdmission(generic, client); err != nil {
		return nil, fmt.Errorf("preparing admission: %w", err)
	}
	return config, o.openStore(ctx, config)
}

// openStore starts the embedded etcd, or finds the external one.
func (o *Options) openStore(ctx context.Context, config *Config) (err error) {
	if o.dataDir != "" {
		if config.store, err = etcd.Start(ctx, o.dataDir); err != nil {
			return err
		}
		o.etcd.StorageConfig.Transport.ServerList = config.store.Endpoints()
	}
	if config.storeEpoch, err = storeEpoch(ctx, o.etcd.StorageConfig.Transport); err != nil {
		return err
	}
	if config.health, err = newEtcdHealth(o.etcd.StorageConfig); err != nil {
		return err
	}
	if err := o.etcd.ApplyTo(&config.generic.Config); err != nil {
		return fmt.Errorf("preparing the store: %w", err)
	}
	return nil
}

func (o *Options) newKeeper(ctx context.Context, generic *genericapiserver.RecommendedConfig, client kubernetes.Interface) (*certificate.Keeper, error) {
	registration, err := aggregator.NewForConfig(generic.ClientConfig)
	if err != nil {
		return nil, fmt.Errorf("making a client of the aggregator: %w", err)
	}
	names, addresses := o.certificateNames()
	gv := v1alpha1.SchemeGroupVersion
	keeper, err := certificate.New(ctx, certificate.Config{
		Namespace:  o.namespace,
		Service:    o.service,
		APIService: gv.Version + "." + gv.Group,
		Names:      names,
		Addresses:  addresses,
		Client:     client,
		Aggregator: registration,
		Events:     newRecorder(ctx, client),
	})
	if err != nil {
		return nil, fmt.Errorf("getting a serving certificate: %w", err)
	}
	return keeper, nil
}

func newRecorder(ctx context.Context, client kubernetes.Interface) record.EventRecorder {
	events := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(events))
	utilruntime.Must(aggregatorscheme.AddToScheme(events))
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return broadcaster.NewRecorder(events, corev1.EventSource{Component: component})
}

func setOpenAPI(generic *genericapiserver.RecommendedConfig) {
	namer := apiopenapi.NewDefinitionNamer(scheme)
	generic.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(openapi.GetOpenAPIDefinitions, namer)
	generic.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(openapi.GetOpenAPIDefinitions, namer)
	release, _, _ := strings.Cut(version.String(), "-")
	generic.OpenAPIConfig.Info.Title, generic.OpenAPIConfig.Info.Version = "clustermesh", release
	generic.OpenAPIV3Config.Info.Title, generic.OpenAPIV3Config.Info.Version = "clustermesh", release
}

// Complete fills in what follows from the rest.
func (c *Config) Complete() CompletedConfig {
	return CompletedConfig{&completedConfig{Config: c, generic: c.generic.Complete()}}
}

// Close gives up what Config started, after the server has stopped.
func (c *Config) Close() {
	if c.health != nil {
		if err := c.health.close(); err != nil && !errors.Is(err, context.Canceled) {
			klog.ErrorS(err, "Could not close the probe of the store")
		}
	}
	if c.store != nil {
		c.store.Stop()
	}
}
