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

// Package release is the Helm release that the mesh is installed as. Plain helm can
// manage the same release.
package release

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	releasev1 "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	"helm.sh/helm/v4/pkg/strvals"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"mesh.io/clustermesh/artifacts/chart"
)

const (
	// keepRevisions is how many former states helm can roll back to.
	keepRevisions = 10
	// pendingFor is how long an install or upgrade may take by itself: it only writes
	// objects. One that takes longer was killed.
	pendingFor = 20 * time.Second
	// fieldManager is who sets the fields of the objects.
	fieldManager = "helm"
	// callTimeout bounds one call to the cluster.
	callTimeout = 30 * time.Second
)

// Release is a release as it is recorded in the cluster.
type Release = releasev1.Release

// Store is where the release of one cluster is.
type Store struct {
	config    *action.Configuration
	namespace string
}

// Open returns the store of a cluster's release. It asks nothing yet.
func Open(config *rest.Config, loader clientcmd.ClientConfig, namespace string) (*Store, error) {
	config = rest.CopyConfig(config)
	config.Timeout = callTimeout
	config.WarningHandler = rest.NoWarnings{}
	discoverer, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("preparing to connect: %w", err)
	}
	// meshctl, kubectl-mesh and helm are to be one owner of the objects' fields: by their
	// own names each would be kept from changing what another one has set.
	kube.ManagedFieldsManager = fieldManager
	cached := memory.NewMemCacheClient(discoverer)
	quiet := slog.New(slog.DiscardHandler).Handler()
	c := action.NewConfiguration(action.ConfigurationSetLogger(quiet))
	getter := &getter{config: config, loader: namespaced{kubeconfig: loader, namespace: namespace}, discovery: cached, mapper: restmapper.NewDeferredDiscoveryRESTMapper(cached)}
	if err := c.Init(getter, namespace, "secret"); err != nil {
		return nil, fmt.Errorf("preparing Helm: %w", err)
	}
	return &Store{config: c, namespace: namespace}, nil
}

// getter is how Helm reaches the cluster.
type getter struct {
	config    *rest.Config
	loader    clientcmd.ClientConfig
	discovery discovery.CachedDiscoveryInterface
	mapper    meta.RESTMapper
}

func (g *getter) ToRESTConfig() (*rest.Config, error) { return g.config, nil }
func (g *getter) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return g.discovery, nil
}
func (g *getter) ToRESTMapper() (meta.RESTMapper, error)        { return g.mapper, nil }
func (g *getter) ToRawKubeConfigLoader() clientcmd.ClientConfig { return g.loader }

// namespaced is a kubeconfig whose current namespace is the mesh's.
type namespaced struct {
	kubeconfig
	namespace string
}

type kubeconfig = clientcmd.ClientConfig

func (n namespaced) Namespace() (string, bool, error) { return n.namespace, true, nil }

// Last is the newest record of the release, or nil.
func (s *Store) Last() (*Release, error) {
	found, err := s.config.Releases.Last(chart.Release)
	switch {
	case errors.Is(err, driver.ErrReleaseNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading the Helm release %s: %w", chart.Release, err)
	}
	r, ok := found.(*Release)
	if !ok {
		return nil, fmt.Errorf("the Helm release %s is of a kind that is not known: %T", chart.Release, found)
	}
	return r, nil
}

// Step is what there is to do, by the newest record.
type Step string

// The steps.
const (
	StepInstall Step = "install" // there is none
	StepUpgrade Step = "upgrade" // there is one
	StepWait    Step = "wait"    // somebody may be at work
	StepRecover Step = "recover" // whoever was at work has been killed
	StepNothing Step = "nothing" // it is what is wanted
	StepLeave   Step = "leave"   // an uninstall was killed
)

// Next decides what there is to do for the release to be what is wanted.
func Next(now time.Time, last *Release, wanted *chartv2.Chart, values map[string]any) Step {
	switch {
	case last == nil || last.Info.Status == common.StatusUninstalled:
		return StepInstall
	case last.Info.Status == common.StatusUninstalling:
		return StepLeave
	case last.Info.Status.IsPending() && now.Sub(last.Info.LastDeployed) < pendingFor:
		return StepWait
	case last.Info.Status.IsPending():
		return StepRecover
	case last.Info.Status == common.StatusDeployed && SameValues(last.Config, values) && sameChart(last.Chart, wanted):
		return StepNothing
	}
	return StepUpgrade
}

func sameChart(a, b *chartv2.Chart) bool {
	return a != nil && b != nil && a.Metadata.Version == b.Metadata.Version && a.Metadata.AppVersion == b.Metadata.AppVersion && sameTemplates(a, b)
}

func sameTemplates(a, b *chartv2.Chart) bool {
	content := func(c *chartv2.Chart) map[string]string {
		m := map[string]string{}
		for _, f := range c.Templates {
			m[f.Name] = string(f.Data)
		}
		return m
	}
	return reflect.DeepEqual(content(a), content(b)) && SameValues(a.Values, b.Values)
}

// SameValues compares values as they are after being stored.
func SameValues(a, b map[string]any) bool {
	return reflect.DeepEqual(stored(a), stored(b))
}

func stored(values map[string]any) map[string]any {
	content, err := json.Marshal(values)
	out := map[string]any{}
	if err != nil || json.Unmarshal(content, &out) != nil {
		return values
	}
	if out == nil { // of no values at all
		return map[string]any{}
	}
	return out
}

// Install makes the release. The namespace has to be there.
func (s *Store) Install(ctx context.Context, c *chartv2.Chart, values map[string]any, description string) error {
	install := action.NewInstall(s.config)
	install.ReleaseName, install.Namespace = chart.Release, s.namespace
	install.WaitStrategy = kube.HookOnlyStrategy
	install.Timeout = callTimeout
	install.Description = description
	// After an uninstall with --keep-history there is a record of the same name.
	install.Replace = true
	_, err := install.RunWithContext(ctx, c, values)
	return err
}

// Upgrade changes the release.
func (s *Store) Upgrade(ctx context.Context, c *chartv2.Chart, values map[string]any, description string) error {
	upgrade := action.NewUpgrade(s.config)
	upgrade.Namespace = s.namespace
	upgrade.WaitStrategy = kube.HookOnlyStrategy
	upgrade.Timeout = callTimeout
	upgrade.MaxHistory = keepRevisions
	upgrade.Description = description
	// What is not given goes back to the chart's defaults; values are complete here.
	upgrade.ResetValues = true
	// What somebody else has changed goes back to what the values say.
	upgrade.ServerSideApply, upgrade.ForceConflicts = "true", true
	_, err := upgrade.RunWithContext(ctx, chart.Release, c, values)
	return err
}

// Abandon records that whoever worked on the release has been killed.
func (s *Store) Abandon(last *Release) error {
	last.SetStatus(common.StatusFailed, "it was stopped in the middle")
	if err := s.config.Releases.Update(last); err != nil {
		return fmt.Errorf("recording that the Helm release %s was stopped in the middle: %w", chart.Release, err)
	}
	return nil
}

// Leave records that an uninstall has begun, so that nobody takes what is half removed
// for an installation.
func (s *Store) Leave(last *Release) error {
	if last.Info.Status == common.StatusUninstalling {
		return nil
	}
	last.SetStatus(common.StatusUninstalling, "it is being uninstalled by meshctl")
	if err := s.config.Releases.Update(last); err != nil {
		return fmt.Errorf("recording that the Helm release %s is being uninstalled: %w", chart.Release, err)
	}
	return nil
}

// Forget removes all records of the release.
func (s *Store) Forget() error {
	history, err := s.config.Releases.History(chart.Release)
	if err != nil && !errors.Is(err, driver.ErrReleaseNotFound) {
		return fmt.Errorf("reading the Helm release %s: %w", chart.Release, err)
	}
	for _, found := range history {
		r, ok := found.(*Release)
		if !ok {
			continue
		}
		if _, err := s.config.Releases.Delete(r.Name, r.Version); err != nil && !errors.Is(err, driver.ErrReleaseNotFound) {
			return fmt.Errorf("removing the Helm release %s: %w", chart.Release, err)
		}
	}
	return nil
}

// Chart is the chart that this program brings. The images are those of its version.
func Chart(version string) (*chartv2.Chart, error) {
	c, err := chart.Load()
	if err != nil {
		return nil, err
	}
	if len(version) > 1 && version[0] == 'v' && version[1] >= '0' && version[1] <= '9' {
		c.Metadata.AppVersion = version
	}
	return c, nil
}

// Values merges files, later ones over earlier ones, and settings (a.b=c) over them.
func Values(base map[string]any, files, settings []string) (map[string]any, error) {
	values := stored(base)
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading values: %w", err)
		}
		more := map[string]any{}
		if err := yaml.Unmarshal(content, &more); err != nil {
			return nil, fmt.Errorf("reading the values in %s: %w", file, err)
		}
		values = loader.MergeMaps(values, more)
	}
	for _, setting := range settings {
		if err := strvals.ParseInto(setting, values); err != nil {
			return nil, fmt.Errorf("reading --set %s: %w", setting, err)
		}
	}
	return stored(values), nil
}

// Render fills the chart in without asking any cluster, which proves the values. It
// returns the objects.
func Render(values map[string]any, namespace string) ([]*unstructured.Unstructured, error) {
	files, err := chart.Render(values, namespace, nil)
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, file := range files {
		if path.Ext(file.Name) != ".yaml" {
			continue
		}
		of, err := Objects(file.Content)
		if err != nil {
			return nil, fmt.Errorf("reading %s of the chart: %w", file.Name, err)
		}
		objects = append(objects, of...)
	}
	return objects, nil
}

// Objects are those of a manifest.
func Objects(manifest string) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	documents := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(manifest)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading a manifest: %w", err)
		}
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(document, &o.Object); err != nil {
			return nil, fmt.Errorf("reading a manifest: %w", err)
		}
		if o.Object != nil {
			objects = append(objects, o)
		}
	}
}

// At is a value at a path, or nil.
func At(values map[string]any, path ...string) any {
	var at any = values
	for _, key := range path {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[key]
	}
	return at
}

// Owns says whether an object is of the release in a namespace, as Helm sees it.
func Owns(o metav1.Object, namespace string) bool {
	a := o.GetAnnotations()
	return a["meta.helm.sh/release-name"] == chart.Release && a["meta.helm.sh/release-namespace"] == namespace
}

// Changes says in lines how values differ.
func Changes(from, to map[string]any) []string {
	before, after := map[string]string{}, map[string]string{}
	flatten("", stored(from), before)
	flatten("", stored(to), after)
	var lines []string
	for key, value := range after {
		switch old, ok := before[key]; {
		case !ok:
			lines = append(lines, fmt.Sprintf("- set %s to %s", key, value))
		case old != value:
			lines = append(lines, fmt.Sprintf("- change %s from %s to %s", key, old, value))
		}
	}
	for key := range before {
		if _, ok := after[key]; !ok {
			lines = append(lines, fmt.Sprintf("- leave %s to the chart", key))
		}
	}
	slices.Sort(lines)
	return lines
}

func flatten(prefix string, values map[string]any, into map[string]string) {
	for key, value := range values {
		if m, ok := value.(map[string]any); ok && len(m) > 0 {
			flatten(prefix+key+".", m, into)
			continue
		}
		content, err := json.Marshal(value)
		if err != nil {
			continue
		}
		into[prefix+key] = string(content)
	}
}
