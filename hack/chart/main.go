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

// Command chart works on artifacts/chart with Helm's SDK, so that nobody needs the helm
// program for it.
//
//	chart manifests DIR                        write the manifests for kubectl apply
//	chart lint DIR VALUES…                     lint, with each file of values
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"mesh.io/clustermesh/artifacts/chart"
)

const usage = "usage: chart manifests DIR | chart lint DIR VALUES…"

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	switch {
	case len(args) == 2 && args[0] == "manifests":
		return writeManifests(args[1])
	case len(args) > 2 && args[0] == "lint":
		return lintAll(args[1], args[2:], out)
	}
	return errors.New(usage)
}

const header = "# Rendered from artifacts/chart by hack/update-manifests.sh: change it there.\n"

// identity is the template that the plain manifests leave out: what it makes differs
// from cluster to cluster, and a file that is applied as it is has no place for that.
const identity = "config.yaml"

const namespaceComment = `# The agents (agent.yaml) load programs into the nodes' kernels, which only the most
# permissive of the Pod Security Standards lets through.
#
# Who the cluster is in the mesh has to be said after this and before the rest, in a
# ConfigMap that is not shipped. Both values are unique in the mesh:
#
#   kubectl -n mesh-system create configmap mesh-config \
#     --from-literal=cluster-name=cluster1 --from-literal=cluster-id=1
`

// manifests are the files for those who install with kubectl: the chart's defaults.
func manifests() (map[string][]byte, error) {
	// The name and the ID are only in what is left out.
	values := map[string]any{"cluster": map[string]any{"name": "cluster", "id": 1}}
	rendered, err := chart.Render(values, chart.Namespace, nil)
	if err != nil {
		return nil, err
	}
	namespace, err := namespaceObject(chart.Namespace)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"namespace.yaml": []byte(header + namespaceComment + string(namespace))}
	list := "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - namespace.yaml\n"
	for _, file := range rendered {
		content := strings.TrimSpace(file.Content)
		if file.Name == identity || filepath.Ext(file.Name) != ".yaml" || content == "" {
			continue
		}
		files[file.Name] = []byte(header + content + "\n")
		list += "  - " + file.Name + "\n"
	}
	files["kustomization.yaml"] = []byte(header + list)
	return files, nil
}

func namespaceObject(name string) ([]byte, error) {
	return yaml.Marshal(map[string]any{
		"apiVersion": corev1.SchemeGroupVersion.String(), "kind": "Namespace",
		"metadata": metav1.ObjectMeta{Name: name, Labels: chart.NamespaceLabels()},
	})
}

// writeManifests makes a folder hold the manifests and no others.
func writeManifests(dir string) error {
	files, err := manifests()
	if err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return err
	}
	for _, name := range old {
		if _, ok := files[filepath.Base(name)]; !ok {
			if err := os.Remove(name); err != nil {
				return fmt.Errorf("removing a manifest that the chart does not have: %w", err)
			}
		}
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return fmt.Errorf("writing a manifest: %w", err)
		}
	}
	return nil
}

// lintAll is helm lint --strict: warnings are failures.
func lintAll(dir string, files []string, out io.Writer) error {
	var errs []error
	for _, file := range files {
		values, err := common.ReadValuesFile(file)
		if err != nil {
			return fmt.Errorf("reading %s: %w", file, err)
		}
		for _, message := range lint.RunAll(dir, values, chart.Namespace).Messages {
			if message.Severity >= support.WarningSev {
				errs = append(errs, fmt.Errorf("with %s: %w", file, message))
			}
		}
		// Unlike the linter, this fails where a template refuses.
		if _, err := chart.Render(values, chart.Namespace, nil); err != nil {
			errs = append(errs, fmt.Errorf("with %s: %w", file, err))
		}
		fmt.Fprintln(out, "linted with", file)
	}
	return errors.Join(errs...)
}
