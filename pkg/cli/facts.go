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

package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/explain"
	"mesh.io/clustermesh/pkg/policy"
)

// facts reads all that a cluster's two APIs say about one service. What cannot be
// read is named in the facts: the rest is of use without it.
func (t *target) facts(ctx context.Context, namespace, name string) *explain.Cluster {
	c := &explain.Cluster{Context: t.Context, Name: t.Context, MeshNamespace: t.Namespace}
	ofService := metav1.ListOptions{LabelSelector: v1alpha1.LabelServiceName + "=" + name}
	mesh := t.Mesh.MeshV1alpha1()
	t.gather(ctx, &c.Problem, []reading{
		{"the Service", func(ctx context.Context) (err error) {
			c.Service, err = optional(t.Kube.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{}))
			return err
		}},
		{"the Namespace", func(ctx context.Context) (err error) {
			c.Namespace, err = optional(t.Kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}))
			return err
		}},
		{"EndpointSlices", func(ctx context.Context) error {
			list, err := t.Kube.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + name})
			if err == nil {
				c.Slices = list.Items
			}
			return err
		}},
		{"Cilium's own cluster mesh", func(ctx context.Context) (err error) {
			c.CiliumMesh, err = t.ciliumMesh(ctx)
			return err
		}},
	}, &c.MeshProblem, []reading{
		{"the GlobalService", func(ctx context.Context) (err error) {
			c.Global, err = optional(mesh.GlobalServices(namespace).Get(ctx, name, metav1.GetOptions{}))
			return err
		}},
		{"MeshClusters", func(ctx context.Context) error {
			list, err := mesh.MeshClusters().List(ctx, metav1.ListOptions{})
			if err != nil {
				return err // also where the mesh API itself is not found
			}
			c.Members = list.Items
			return nil
		}},
		{"the ExportedService", func(ctx context.Context) (err error) {
			c.Exported, err = optional(mesh.ExportedServices(namespace).Get(ctx, name, metav1.GetOptions{}))
			return err
		}},
		{"ExportedEndpointSlices", func(ctx context.Context) error {
			list, err := mesh.ExportedEndpointSlices(namespace).List(ctx, ofService)
			if err == nil {
				c.ExportedSlices = list.Items
			}
			return err
		}},
		{"ImportedServices", func(ctx context.Context) error {
			list, err := mesh.ImportedServices(namespace).List(ctx, ofService)
			if err == nil {
				c.Imported = list.Items
			}
			return err
		}},
		{"ImportedEndpointSlices", func(ctx context.Context) error {
			list, err := mesh.ImportedEndpointSlices(namespace).List(ctx, ofService)
			if err == nil {
				c.ImportedSlices = list.Items
			}
			return err
		}},
	})
	if local := explain.Local(c.Members); local != nil {
		c.Name = local.Name
	}
	return c
}

// readTimeout is how long a cluster may take to answer all that it is asked at once.
const readTimeout = 20 * time.Second

// reading is one thing to read.
type reading struct {
	what string
	read func(context.Context) error
}

// gather reads everything at once, and says in the two problems what could not be.
func (t *target) gather(ctx context.Context, kubeProblem *string, kube []reading, meshProblem *string, mesh []reading) {
	// One cluster that does not answer must not keep the others from being shown.
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	var group sync.WaitGroup
	run := func(list []reading) []error {
		errs := make([]error, len(list))
		for i, r := range list {
			group.Go(func() { errs[i] = r.read(ctx) })
		}
		return errs
	}
	kubeErrs, meshErrs := run(kube), run(mesh)
	group.Wait()
	*kubeProblem = t.problem(kube, kubeErrs, "kube-apiserver")
	*meshProblem = t.problem(mesh, meshErrs, "the mesh API")
}

// problem puts what went wrong into one sentence.
func (t *target) problem(list []reading, errs []error, api string) string {
	var what []string
	var first error
	for i, err := range errs {
		if err != nil {
			what = append(what, list[i].what)
			if first == nil {
				first = err
			}
		}
	}
	switch {
	case first == nil:
		return ""
	case apierrors.IsNotFound(first) && api != "kube-apiserver":
		return fmt.Sprintf("%s has no mesh API: is the mesh installed there (meshctl install)?", t.Context)
	}
	if len(what) == len(list) {
		return fmt.Sprintf("%s of %s does not answer: %v", api, t.Context, first)
	}
	return fmt.Sprintf("could not read %s in %s: %v", strings.Join(what, ", "), t.Context, first)
}

// optional takes the absence of an object for an answer.
func optional[T any](object *T, err error) (*T, error) {
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return object, nil
}

// ciliumMesh says whether Cilium's own cluster mesh runs in a cluster. Who may not
// know gets the usual answer.
func (t *target) ciliumMesh(ctx context.Context) (bool, error) {
	_, err := t.Kube.CoreV1().Services(policy.CiliumMesh.Namespace).Get(ctx, policy.CiliumMesh.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		return false, nil
	}
	return err == nil, err
}

// allFacts reads the same for every service in a namespace, or in all, by
// namespace/name.
func (t *target) allFacts(ctx context.Context, namespace string) (map[string]*explain.Cluster, error) {
	base := explain.Cluster{Context: t.Context, Name: t.Context, MeshNamespace: t.Namespace}
	var (
		services   *corev1.ServiceList
		namespaces *corev1.NamespaceList
		endpoints  *discoveryv1.EndpointSliceList
		globals    *v1alpha1.GlobalServiceList
		imported   *v1alpha1.ImportedEndpointSliceList
		problem    string
	)
	all := metav1.ListOptions{}
	t.gather(ctx, &problem, []reading{
		{"Services", func(ctx context.Context) (err error) {
			services, err = t.Kube.CoreV1().Services(namespace).List(ctx, all)
			return err
		}},
		{"Namespaces", func(ctx context.Context) (err error) {
			options := metav1.ListOptions{}
			if namespace != "" {
				options.FieldSelector = "metadata.name=" + namespace
			}
			namespaces, err = t.Kube.CoreV1().Namespaces().List(ctx, options)
			return err
		}},
		{"EndpointSlices", func(ctx context.Context) (err error) {
			endpoints, err = t.Kube.DiscoveryV1().EndpointSlices(namespace).List(ctx, all)
			return err
		}},
		{"Cilium's own cluster mesh", func(ctx context.Context) (err error) {
			base.CiliumMesh, err = t.ciliumMesh(ctx)
			return err
		}},
	}, &base.MeshProblem, []reading{
		{"GlobalServices", func(ctx context.Context) (err error) {
			globals, err = t.Mesh.MeshV1alpha1().GlobalServices(namespace).List(ctx, all)
			return err
		}},
		{"MeshClusters", func(ctx context.Context) error {
			list, err := t.Mesh.MeshV1alpha1().MeshClusters().List(ctx, all)
			if err == nil {
				base.Members = list.Items
			}
			return err
		}},
		{"ImportedEndpointSlices", func(ctx context.Context) (err error) {
			imported, err = t.Mesh.MeshV1alpha1().ImportedEndpointSlices(namespace).List(ctx, all)
			return err
		}},
	})
	if problem != "" {
		return nil, fmt.Errorf("%s", problem)
	}
	if base.MeshProblem != "" {
		return nil, fmt.Errorf("%s", base.MeshProblem)
	}
	if local := explain.Local(base.Members); local != nil {
		base.Name = local.Name
	}
	facts := map[string]*explain.Cluster{}
	of := func(namespace, name string) *explain.Cluster {
		key := namespace + "/" + name
		if facts[key] == nil {
			c := base
			if i := slices.IndexFunc(namespaces.Items, func(n corev1.Namespace) bool { return n.Name == namespace }); i >= 0 {
				c.Namespace = &namespaces.Items[i]
			}
			facts[key] = &c
		}
		return facts[key]
	}
	for i := range services.Items {
		s := &services.Items[i]
		of(s.Namespace, s.Name).Service = s
	}
	for i := range endpoints.Items {
		s := endpoints.Items[i]
		if service := s.Labels[discoveryv1.LabelServiceName]; service != "" {
			c := of(s.Namespace, service)
			c.Slices = append(c.Slices, s)
		}
	}
	for i := range globals.Items {
		g := &globals.Items[i]
		of(g.Namespace, g.Name).Global = g
	}
	for i := range imported.Items {
		s := imported.Items[i]
		c := of(s.Namespace, s.Spec.Service)
		c.ImportedSlices = append(c.ImportedSlices, s)
	}
	return facts, nil
}
