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

package peering

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// userName is the kubeconfig's name for the account of the peer.
const userName = "peer"

// Access is how an importer reaches an exporter's mesh API.
type Access struct {
	// Endpoints are addresses as host:port, the one to try first in front.
	Endpoints []string
	// ServerName is the name in the mesh API's certificate, whatever its address.
	ServerName string
	// CA is the PEM bundle of the authorities that the certificate may be from.
	CA []byte
	// Token is the secret that proves who the importer is.
	Token string
}

// Kubeconfig writes an access as the importer's controller reads it: a cluster and a
// context for each endpoint, and one user.
func Kubeconfig(access Access) ([]byte, error) {
	switch {
	case len(access.Endpoints) == 0:
		return nil, errors.New("there is no endpoint")
	case access.Token == "":
		return nil, errors.New("there is no token")
	case len(access.CA) == 0:
		return nil, errors.New("there is no authority")
	}
	config := clientcmdapi.NewConfig()
	config.AuthInfos[userName] = &clientcmdapi.AuthInfo{Token: access.Token}
	for _, endpoint := range access.Endpoints {
		config.Clusters[endpoint] = &clientcmdapi.Cluster{
			Server: "https://" + endpoint, TLSServerName: access.ServerName, CertificateAuthorityData: access.CA,
		}
		config.Contexts[endpoint] = &clientcmdapi.Context{Cluster: endpoint, AuthInfo: userName}
	}
	config.CurrentContext = access.Endpoints[0]
	return clientcmd.Write(*config)
}

// ReadKubeconfig reads what Kubeconfig wrote, or what was made by hand to the same end.
func ReadKubeconfig(content []byte) (Access, error) {
	var access Access
	config, err := clientcmd.Load(content)
	if err != nil {
		return access, errors.New("it is no kubeconfig") // the cause may quote the token
	}
	for name, context := range config.Contexts {
		cluster, user := config.Clusters[context.Cluster], config.AuthInfos[context.AuthInfo]
		if cluster == nil || user == nil {
			return access, fmt.Errorf("context %q lacks its cluster or user", name)
		}
		access.Endpoints = append(access.Endpoints, strings.TrimPrefix(cluster.Server, "https://"))
		access.ServerName, access.CA, access.Token = cluster.TLSServerName, cluster.CertificateAuthorityData, user.Token
	}
	if len(access.Endpoints) == 0 {
		return access, errors.New("it has no contexts")
	}
	slices.Sort(access.Endpoints)
	return access, nil
}

// tokenClaims are what a service account's token says of itself.
type tokenClaims struct {
	ID         string `json:"jti"`
	Expiry     int64  `json:"exp"`
	Kubernetes struct {
		ServiceAccount struct {
			UID string `json:"uid"`
		} `json:"serviceaccount"`
	} `json:"kubernetes.io"`
}

// claims reads a token without proving it: that is the server's business.
func claims(token string) (tokenClaims, bool) {
	var c tokenClaims
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, false
	}
	content, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(content, &c) != nil {
		return c, false
	}
	return c, true
}

// Stale says why a kubeconfig cannot be what reaches an exporter; it is empty if
// nothing speaks against it. accountUID is that of the importer's account there now.
func Stale(kubeconfig []byte, accountUID string, want Access, now time.Time) string {
	access, err := ReadKubeconfig(kubeconfig)
	if err != nil {
		return err.Error()
	}
	token, ok := claims(access.Token)
	switch {
	case access.Token == "":
		return "it has no token"
	case !ok:
		return "its token is none of a service account"
	case token.Kubernetes.ServiceAccount.UID != accountUID:
		return "its token is of an account that is gone"
	case token.Expiry != 0 && !now.Before(time.Unix(token.Expiry, 0)):
		return "its token has expired"
	case !trusts(access.CA, want.CA):
		return "the authority of the mesh API has changed"
	case access.ServerName != want.ServerName:
		return "the server's name has changed"
	case !slices.ContainsFunc(access.Endpoints, func(e string) bool { return slices.Contains(want.Endpoints, e) }):
		return "the mesh API has other addresses now"
	}
	return ""
}

// trusts says whether a bundle holds one of the authorities of another: the server
// publishes old and new ones while it changes them.
func trusts(bundle, published []byte) bool {
	for _, a := range certificates(published) {
		for _, b := range certificates(bundle) {
			if a.Equal(b) {
				return true
			}
		}
	}
	return false
}

func certificates(bundle []byte) []*x509.Certificate {
	var found []*x509.Certificate
	for {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil {
			return found
		}
		if certificate, err := x509.ParseCertificate(block.Bytes); err == nil {
			found = append(found, certificate)
		}
	}
}

// OtherEndpoints says whether a kubeconfig leads elsewhere, too, or not everywhere.
func OtherEndpoints(kubeconfig []byte, want []string) bool {
	access, err := ReadKubeconfig(kubeconfig)
	if err != nil {
		return false
	}
	sorted := slices.Clone(want)
	slices.Sort(sorted)
	return !slices.Equal(access.Endpoints, sorted)
}
