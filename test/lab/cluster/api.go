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

package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/template"
	"time"

	"mesh.io/clustermesh/test/lab/plan"
)

// manifests are the objects that a new cluster begins with. A line "# path" before
// each says where it is in the API.
//
//go:embed manifests.yaml
var manifests string

// api is a cluster's API as the host sees it.
type api struct {
	address string
	client  *http.Client
}

func (l *Lab) api(cluster plan.Cluster) (*api, error) {
	dir := func(file string) string { return l.path(cluster.Name, "pki", file) }
	pair, err := tls.LoadX509KeyPair(dir("admin.crt"), dir("admin.key"))
	if err != nil {
		return nil, fmt.Errorf("loading certificate: %w", err)
	}
	ca, err := os.ReadFile(dir("ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("loading certificate: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("loading certificate: ca.crt has none")
	}
	return &api{
		address: "https://" + l.hostAddress(cluster),
		client: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
		}},
	}, nil
}

func (a *api) do(ctx context.Context, method, path, contentType string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, a.address+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := a.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode >= 300 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, response.Status, strings.TrimSpace(string(answer)))
	}
	return answer, nil
}

// ready asks whether the server is ready.
func (a *api) ready(ctx context.Context) error {
	_, err := a.do(ctx, http.MethodGet, "/readyz", "", nil)
	return err
}

// apply writes the first objects of a cluster.
func (a *api) apply(ctx context.Context, cluster plan.Cluster) error {
	objects, err := render(cluster)
	if err != nil {
		return err
	}
	return each(objects, func(o manifest) error {
		_, err := a.do(ctx, http.MethodPatch, o.path+"?fieldManager=lab&force=true", "application/apply-patch+yaml", []byte(o.yaml))
		return err
	})
}

// notReady lists the nodes that are not ready yet.
func (a *api) notReady(ctx context.Context) ([]string, error) {
	answer, err := a.do(ctx, http.MethodGet, "/api/v1/nodes", "", nil)
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status string }
			}
		}
	}
	if err := json.Unmarshal(answer, &list); err != nil {
		return nil, fmt.Errorf("listing nodes: %w", err)
	}
	var names []string
	for _, item := range list.Items {
		ready := false
		for _, condition := range item.Status.Conditions {
			ready = ready || condition.Type == "Ready" && condition.Status == "True"
		}
		if !ready {
			names = append(names, item.Metadata.Name)
		}
	}
	return names, nil
}

// manifest is one object and its path in the API.
type manifest struct{ path, yaml string }

func render(cluster plan.Cluster) ([]manifest, error) {
	t, err := template.New("manifests").Funcs(template.FuncMap{"addresses": plan.Addresses, "networks": plan.Networks}).Parse(manifests)
	if err != nil {
		return nil, fmt.Errorf("reading manifests: %w", err)
	}
	var b strings.Builder
	if err := t.Execute(&b, cluster); err != nil {
		return nil, fmt.Errorf("filling in manifests: %w", err)
	}
	var objects []manifest
	for document := range strings.SplitSeq(b.String(), "\n---\n") {
		for line := range strings.Lines(document) {
			if path, ok := strings.CutPrefix(strings.TrimSpace(line), "# path "); ok {
				objects = append(objects, manifest{path: path, yaml: document})
			}
		}
	}
	return objects, nil
}
