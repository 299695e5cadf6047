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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/kubernetes"
)

const (
	// The cluster's API server says here whose certificates prove who a client is.
	authoritiesNamespace = metav1.NamespaceSystem
	authoritiesConfigMap = "extension-apiserver-authentication"
	authoritiesKey       = "client-ca-file"
)

// clientAuthorities are the authorities of clients' certificates. The server is not
// ready before it knows them: until then every such client would be nobody to it, and
// be refused what it may do.
type clientAuthorities struct {
	provider *dynamiccertificates.ConfigMapCAController
	expected bool
}

func newClientAuthorities(ctx context.Context, client kubernetes.Interface) (*clientAuthorities, error) {
	found, err := client.CoreV1().ConfigMaps(authoritiesNamespace).Get(ctx, authoritiesConfigMap, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading whose client certificates the cluster trusts: %w", err)
	}
	provider, err := dynamiccertificates.NewDynamicCAFromConfigMapController(
		"client-ca", authoritiesNamespace, authoritiesConfigMap, authoritiesKey, client)
	if err != nil {
		return nil, fmt.Errorf("watching whose client certificates the cluster trusts: %w", err)
	}
	// A cluster need not have client certificates at all.
	return &clientAuthorities{provider: provider, expected: found.Data[authoritiesKey] != ""}, nil
}

// Name is the line in the verbose output.
func (*clientAuthorities) Name() string { return "client-authorities" }

// Check fails until the authorities are known.
func (a *clientAuthorities) Check(*http.Request) error {
	if a.expected && len(a.provider.CurrentCABundleContent()) == 0 {
		return errors.New("the authorities of client certificates are not known yet")
	}
	return nil
}
