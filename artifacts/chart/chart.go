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

// Package chart holds the Helm chart that installs clustermesh, for programs that have
// no folder with it at hand. The manifests in artifacts/manifests are rendered from it.
package chart

import (
	"embed"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"

	"helm.sh/helm/v4/pkg/chart/common"
	commonutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/client-go/rest"
)

// FS is the chart's folder. Without "all:", files whose names begin with an underscore
// would be left out.
//
//go:embed Chart.yaml values.yaml values.schema.json .helmignore all:templates
var FS embed.FS

const (
	// Namespace is where the mesh is installed, unless a person says otherwise.
	Namespace = "mesh-system"
	// Release is the name of the Helm release.
	Release = "clustermesh"
)

// NamespaceLabels are those that the release's namespace needs. The chart cannot make
// the namespace itself: Helm keeps the release in it. The agents load programs into the
// nodes' kernels, which only the most permissive of the Pod Security Standards lets
// through.
func NamespaceLabels() map[string]string {
	return map[string]string{
		"app.kubernetes.io/part-of":          "clustermesh",
		"pod-security.kubernetes.io/enforce": "privileged",
	}
}

// Load returns the chart.
func Load() (*chartv2.Chart, error) {
	var files []*archive.BufferedFile
	err := fs.WalkDir(FS, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := FS.ReadFile(name)
		files = append(files, &archive.BufferedFile{Name: name, Data: content})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the chart: %w", err)
	}
	chart, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("loading the chart: %w", err)
	}
	return chart, nil
}

// File is what one of the chart's templates was rendered to.
type File struct {
	Name    string // of the template, without its folder
	Content string
}

// Render fills in the chart's templates, the empty ones too. What the programs need to
// start is first, then they are sorted by name. With a cluster's config it looks, as an
// upgrade does, at what is installed there.
func Render(values map[string]any, namespace string, cluster *rest.Config) ([]File, error) {
	chart, err := Load()
	if err != nil {
		return nil, err
	}
	options := common.ReleaseOptions{Name: Release, Namespace: namespace, Revision: 1, IsInstall: true}
	filled, err := commonutil.ToRenderValues(chart, values, options, nil)
	if err != nil {
		return nil, fmt.Errorf("checking the values: %w", err)
	}
	templates := engine.Engine{}
	if cluster != nil {
		templates = engine.New(cluster)
	}
	rendered, err := templates.Render(chart, filled)
	if err != nil {
		return nil, fmt.Errorf("rendering the chart: %w", err)
	}
	var out []File
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		out = append(out, File{Name: path.Base(name), Content: rendered[name]})
	}
	slices.SortStableFunc(out, func(a, b File) int { return rank(a.Name) - rank(b.Name) })
	return out, nil
}

func rank(template string) int {
	switch template {
	case "config.yaml":
		return 0
	case "rbac.yaml":
		return 1
	}
	return 2
}
