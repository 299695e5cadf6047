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

package peer

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Endpoint is one way to reach a peer's mesh API.
type Endpoint struct {
	// Context is the kubeconfig's name for it.
	Context string
	Config  *rest.Config
}

// Endpoints reads a peer's kubeconfig: one endpoint for each context, the current
// one first. A kubeconfig comes from another cluster, so it may hold data only:
// nothing in it may make this process run a program or read a file.
func Endpoints(kubeconfig []byte) ([]Endpoint, error) {
	config, err := clientcmd.Load(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	if len(config.Contexts) == 0 {
		return nil, errors.New("reading the kubeconfig: it has no contexts")
	}
	if err := check(config); err != nil {
		return nil, err
	}
	var names []string
	for name := range config.Contexts {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if current := config.CurrentContext; a == current || b == current {
			if a == current {
				return -1
			}
			return 1
		}
		if a < b {
			return -1
		}
		return 1
	})

	var endpoints []Endpoint
	for _, name := range names {
		restConfig, err := clientcmd.NewNonInteractiveClientConfig(*config, name, &clientcmd.ConfigOverrides{}, nil).ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("reading context %q of the kubeconfig: %w", name, err)
		}
		// What bounds the requests is how fast this cluster's store takes them.
		restConfig.QPS = -1
		restConfig.ContentType = "application/vnd.kubernetes.protobuf"
		restConfig.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
		restConfig.UserAgent = "mesh-controller"
		restConfig.Dial = Dialer(false).DialContext
		Straight(restConfig)
		endpoints = append(endpoints, Endpoint{Context: name, Config: restConfig})
	}
	return endpoints, nil
}

// CheckInvited checks a kubeconfig that somebody sends who was invited: beside what
// Endpoints asks, it names whom to trust, and no proxy to go through; its addresses are
// bare and, unless allowLocal, not those that mean another machine to everybody.
func CheckInvited(kubeconfig []byte, allowLocal bool) error {
	if _, err := Endpoints(kubeconfig); err != nil {
		return err
	}
	config, err := clientcmd.Load(kubeconfig)
	if err != nil {
		return fmt.Errorf("reading the kubeconfig: %w", err)
	}
	var errs []error
	for name, cluster := range config.Clusters {
		if !x509.NewCertPool().AppendCertsFromPEM(cluster.CertificateAuthorityData) {
			errs = append(errs, fmt.Errorf("cluster %q: certificate-authority-data must hold the authorities of the mesh API's certificate", name))
		}
		if cluster.ProxyURL != "" {
			errs = append(errs, fmt.Errorf("cluster %q: proxy-url is refused", name))
		}
		if err := checkURL(cluster.Server); err != nil {
			errs = append(errs, fmt.Errorf("cluster %q: %w", name, err))
		} else if u, err := url.Parse(cluster.Server); err == nil && !allowLocal {
			if err := CheckAddress(u.Host); err != nil {
				errs = append(errs, fmt.Errorf("cluster %q: server: %w", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// check reports everything in the kubeconfig that is not plain data, or not safe.
func check(config *clientcmdapi.Config) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for name, cluster := range config.Clusters {
		if server, err := url.Parse(cluster.Server); err != nil || server.Scheme != "https" || server.Host == "" {
			bad("cluster %q: server must be an https address", name)
		}
		if cluster.InsecureSkipTLSVerify {
			bad("cluster %q: insecure-skip-tls-verify is refused; give certificate-authority-data", name)
		}
		if cluster.CertificateAuthority != "" {
			bad("cluster %q: certificate-authority names a file; give certificate-authority-data", name)
		}
	}
	for name, user := range config.AuthInfos {
		if user.Exec != nil {
			bad("user %q: exec runs a program; give a token or a certificate", name)
		}
		if user.AuthProvider != nil {
			bad("user %q: auth-provider runs a plugin; give a token or a certificate", name)
		}
		if user.TokenFile != "" {
			bad("user %q: tokenFile names a file; give token", name)
		}
		if user.ClientCertificate != "" {
			bad("user %q: client-certificate names a file; give client-certificate-data", name)
		}
		if user.ClientKey != "" {
			bad("user %q: client-key names a file; give client-key-data", name)
		}
	}
	for name, context := range config.Contexts {
		if config.Clusters[context.Cluster] == nil {
			bad("context %q: there is no cluster %q", name, context.Cluster)
		}
		if config.AuthInfos[context.AuthInfo] == nil {
			bad("context %q: there is no user %q", name, context.AuthInfo)
		}
	}
	return errors.Join(errs...)
}
