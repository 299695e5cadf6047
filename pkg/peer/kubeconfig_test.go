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
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func kubeconfig(cluster, user string) string {
	return `apiVersion: v1
kind: Config
current-context: b
clusters:
- name: c
  cluster: {` + cluster + `}
users:
- name: u
  user: {` + user + `}
contexts:
- {name: a, context: {cluster: c, user: u}}
- {name: b, context: {cluster: c, user: u}}
`
}

func TestEndpoints(t *testing.T) {
	const server, token = `server: "https://127.0.0.1:1"`, `token: t`
	tests := map[string]struct {
		kubeconfig string
		want       string // part of the error; empty: it is accepted
	}{
		"inline data is accepted":   {kubeconfig(server, token), ""},
		"not YAML":                  {"}{", "reading the kubeconfig"},
		"empty":                     {"", "no contexts"},
		"plain http":                {kubeconfig(`server: "http://127.0.0.1:1"`, token), "https"},
		"verification switched off": {kubeconfig(server+`, insecure-skip-tls-verify: true`, token), "insecure-skip-tls-verify"},
		"CA in a file":              {kubeconfig(server+`, certificate-authority: /etc/passwd`, token), "names a file"},
		"token in a file":           {kubeconfig(server, `tokenFile: /etc/passwd`), "tokenFile"},
		"certificate in a file":     {kubeconfig(server, `client-certificate: /a`), "client-certificate names"},
		"key in a file":             {kubeconfig(server, `client-key: /a`), "client-key names"},
		"exec plugin":               {kubeconfig(server, `exec: {apiVersion: client.authentication.k8s.io/v1, command: id, interactiveMode: Never}`), "exec"},
		"auth provider":             {kubeconfig(server, `auth-provider: {name: gcp}`), "auth-provider"},
		"a context without its cluster is an error": {strings.Replace(kubeconfig(server, token), "cluster: c,", "cluster: x,", 1), `no cluster "x"`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			endpoints, err := Endpoints([]byte(test.kubeconfig))
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if len(endpoints) != 2 || endpoints[0].Context != "b" {
					t.Errorf("want two endpoints, the current context first, got %v", endpoints)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error = %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestReason(t *testing.T) {
	resource := schema.GroupResource{Group: "mesh.io", Resource: "exportedservices"}
	tests := map[string]struct {
		err  error
		want string
	}{
		"401":            {apierrors.NewUnauthorized("no"), ReasonUnauthorized},
		"403":            {apierrors.NewForbidden(resource, "", errors.New("no")), ReasonForbidden},
		"404":            {apierrors.NewNotFound(resource, ""), ReasonNotMeshAPI},
		"unknown CA":     {fmt.Errorf("get: %w", x509.UnknownAuthorityError{}), ReasonCertificateNotTrusted},
		"nobody listens": {fmt.Errorf("get: %w", &net.OpError{Op: "dial", Err: errors.New("connection refused")}), ReasonUnreachable},
		"timeout":        {fmt.Errorf("get: %w", context.DeadlineExceeded), ReasonUnreachable},
		"silence":        {fmt.Errorf("get: %w", ErrSilent), ReasonUnreachable},
		"anything else":  {apierrors.NewInternalError(errors.New("boom")), ReasonPeerError},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got, advice := Reason(test.err); got != test.want || advice == "" {
				t.Errorf("Reason() = %q, %q, want %q", got, advice, test.want)
			}
		})
	}
}
