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
	"errors"
	"fmt"
	"net"
	"time"

	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	cliflag "k8s.io/component-base/cli/flag"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

const (
	// storagePrefix is the root of all keys in etcd.
	storagePrefix = "/registry"
	// requestTimeout lets a request that waits for etcd in vain be answered within 10 s.
	requestTimeout = 9 * time.Second
	// watchDrainTimeout bounds how long a stopping server spends on ending watches.
	watchDrainTimeout = 5 * time.Second
)

// Options is what a person sets with flags.
type Options struct {
	serving       *genericoptions.SecureServingOptionsWithLoopback
	etcd          *genericoptions.EtcdOptions
	authn         *genericoptions.DelegatingAuthenticationOptions
	authz         *genericoptions.DelegatingAuthorizationOptions
	coreAPI       *genericoptions.CoreAPIOptions
	audit         *genericoptions.AuditOptions
	dataDir       string
	names         []string
	service       string
	namespace     string
	shutdownDelay time.Duration
	allowLocal    bool
}

// NewOptions returns the defaults.
func NewOptions() *Options {
	backend := storagebackend.NewDefaultConfig(storagePrefix, storageCodec())
	// Without it, discovery has no hash of the version that is stored.
	backend.EncodeVersioner = runtime.NewMultiGroupVersioner(v1alpha1.SchemeGroupVersion, schema.GroupKind{Group: v1alpha1.GroupName})
	o := &Options{
		serving:   genericoptions.NewSecureServingOptions().WithLoopback(),
		etcd:      genericoptions.NewEtcdOptions(backend),
		authn:     genericoptions.NewDelegatingAuthenticationOptions(),
		authz:     genericoptions.NewDelegatingAuthorizationOptions(),
		coreAPI:   genericoptions.NewCoreAPIOptions(),
		audit:     genericoptions.NewAuditOptions(),
		service:   "mesh-apiserver",
		namespace: "mesh-system",
	}
	o.serving.BindPort = 6443
	o.serving.Required = true
	// A client of this server is often a proxy that many clients share.
	o.serving.HTTP2MaxStreamsPerConnection = 1000
	// The generic checks make the server not live and not ready without etcd; ours do not.
	o.etcd.SkipHealthEndpoints = true
	o.etcd.DefaultStorageMediaType = runtime.ContentTypeProtobuf
	o.etcd.DeleteCollectionWorkers = 4
	return o
}

// Flags returns the flags, by what they are about.
func (o *Options) Flags() cliflag.NamedFlagSets {
	var sets cliflag.NamedFlagSets

	fs := sets.FlagSet("serving")
	fs.IPVar(&o.serving.BindAddress, "bind-address", o.serving.BindAddress, "The address to listen on.")
	fs.IntVar(&o.serving.BindPort, "secure-port", o.serving.BindPort, "The port to serve HTTPS on.")
	fs.StringVar(&o.serving.ServerCert.CertKey.CertFile, "tls-cert-file", "",
		"The serving certificate with its chain. It is read again when it changes. Without it, the server makes a certificate from "+
			"an authority of its own, and publishes that to its APIService and to the ConfigMap mesh-ca; with it, the caBundle of the APIService is yours to set.")
	fs.StringVar(&o.serving.ServerCert.CertKey.KeyFile, "tls-private-key-file", "", "The key of --tls-cert-file.")
	fs.StringSliceVar(&o.names, "tls-san", nil, "Further names and addresses that the server's own serving certificate is valid for.")
	fs.StringVar(&o.service, "service-name", o.service, "The Service that clients reach the server by.")
	fs.StringVar(&o.namespace, "service-namespace", o.namespace, "The namespace of that Service, and of the Secret and the ConfigMap with the authority.")
	fs.DurationVar(&o.shutdownDelay, "shutdown-delay-duration", 0,
		"How long the server goes on serving, not ready any more, after it is told to stop, so that clients' traffic is led elsewhere first.")

	fs = sets.FlagSet("storage")
	fs.StringVar(&o.dataDir, "data-dir", "", "The directory of the embedded etcd. Either this or --etcd-servers is needed.")
	addEtcdFlags(fs, &o.etcd.StorageConfig.Transport)
	fs.StringVar(&o.etcd.EncryptionProviderConfigFilepath, "encryption-provider-config", "",
		"The EncryptionConfiguration for what is stored; resources are named as in globalservices.mesh.io.")
	fs.BoolVar(&o.etcd.EncryptionProviderConfigAutomaticReload, "encryption-provider-config-automatic-reload", false,
		"Read --encryption-provider-config again when it changes.")

	fs = sets.FlagSet("cluster")
	fs.StringVar(&o.coreAPI.CoreAPIKubeconfigPath, "kubeconfig", "",
		"The kubeconfig for the cluster's own API server, which authenticates and authorizes requests. Without it, the pod's service account is used.")

	fs.BoolVar(&o.allowLocal, "allow-local-peers", false,
		"Let clusters join by an invitation whose mesh API is at a loopback, link-local or cloud metadata address, as on one machine.")

	fs = sets.FlagSet("audit")
	fs.StringVar(&o.audit.PolicyFile, "audit-policy-file", "", "The audit policy. Without it, nothing is audited.")
	fs.StringVar(&o.audit.LogOptions.Path, "audit-log-path", "", "The file that audit events are written to; - is standard output.")
	fs.IntVar(&o.audit.LogOptions.MaxAge, "audit-log-maxage", 0, "For how many days old audit files are kept; 0 is for ever.")
	fs.IntVar(&o.audit.LogOptions.MaxBackups, "audit-log-maxbackup", 0, "How many old audit files are kept; 0 is all.")
	fs.IntVar(&o.audit.LogOptions.MaxSize, "audit-log-maxsize", 0, "At how many megabytes an audit file is changed; 0 is never.")
	fs.StringVar(&o.audit.WebhookOptions.ConfigFile, "audit-webhook-config-file", "", "The kubeconfig of a webhook that audit events are sent to.")
	return sets
}

// Complete derives what was not set from what was.
func (o *Options) Complete() {
	o.authn.RemoteKubeConfigFile = o.coreAPI.CoreAPIKubeconfigPath
	o.authz.RemoteKubeConfigFile = o.coreAPI.CoreAPIKubeconfigPath
	// A retry may not outlive the request that waits for it.
	o.authn.TokenRequestTimeout = requestTimeout / 2
	o.authz.ClientTimeout = requestTimeout / 2
}

// Validate returns everything that is wrong with the options.
func (o *Options) Validate() error {
	transport := o.etcd.StorageConfig.Transport
	embedded, external := o.dataDir != "", len(transport.ServerList) > 0
	errs := validateStore(o.dataDir, transport)
	if pair := o.serving.ServerCert.CertKey; (pair.CertFile == "") != (pair.KeyFile == "") {
		errs = append(errs, errors.New("--tls-cert-file and --tls-private-key-file need each other"))
	}
	for flag, value := range map[string]string{"service-name": o.service, "service-namespace": o.namespace} {
		if problems := validation.IsDNS1123Label(value); len(problems) > 0 {
			errs = append(errs, fmt.Errorf("--%s %q: %s", flag, value, problems[0]))
		}
	}
	if o.shutdownDelay < 0 {
		errs = append(errs, fmt.Errorf("--shutdown-delay-duration %s: must not be negative", o.shutdownDelay))
	}
	errs = append(errs, o.serving.Validate()...)
	if embedded != external {
		etcd := *o.etcd
		if embedded {
			etcd.StorageConfig.Transport.ServerList = []string{"embedded"} // known once it runs
		}
		errs = append(errs, etcd.Validate()...)
	}
	errs = append(errs, o.audit.Validate()...)
	return errors.Join(errs...)
}

// certificateNames are the names and the addresses that clients reach the server by.
func (o *Options) certificateNames() (names []string, addresses []net.IP) {
	service := o.service + "." + o.namespace
	names = []string{service + ".svc", o.service, service, service + ".svc.cluster.local", "localhost"}
	addresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	if bind := o.serving.BindAddress; bind != nil && !bind.IsUnspecified() && !bind.IsLoopback() {
		addresses = append(addresses, bind)
	}
	for _, name := range o.names {
		if address := net.ParseIP(name); address != nil {
			addresses = append(addresses, address)
		} else {
			names = append(names, name)
		}
	}
	return names, addresses
}

// ownsCertificate says that the server makes its serving certificate itself.
func (o *Options) ownsCertificate() bool { return o.serving.ServerCert.CertKey.CertFile == "" }
