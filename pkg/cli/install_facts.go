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

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	aggregator "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/preflight"
	"mesh.io/clustermesh/pkg/cli/release"
	"mesh.io/clustermesh/pkg/policy"
)

// permission is what an install asks the cluster to let it do.
type permission struct {
	verb, group, resource string
	// namespace is "" for what belongs to none, and own for the mesh's.
	namespace string
}

const own = "<own>"

// installPermissions are those that the chart's objects, the release and the waiting need.
var installPermissions = []permission{
	{"create", "", "namespaces", ""},
	{"list", "", "nodes", ""},
	{"create", "", "serviceaccounts", own},
	{"create", "", "services", own},
	{"create", "", "configmaps", own},
	{"create", "", "secrets", own},
	{"list", "", "pods", own},
	{"create", "apps", "statefulsets", own},
	{"create", "apps", "deployments", own},
	{"create", "apps", "daemonsets", own},
	{"create", "policy", "poddisruptionbudgets", own},
	{"create", "networking.k8s.io", "networkpolicies", own},
	{"create", "rbac.authorization.k8s.io", "roles", own},
	{"create", "rbac.authorization.k8s.io", "rolebindings", own},
	{"create", "rbac.authorization.k8s.io", "rolebindings", metav1.NamespaceSystem},
	{"create", "rbac.authorization.k8s.io", "clusterroles", ""},
	{"create", "rbac.authorization.k8s.io", "clusterrolebindings", ""},
	{"create", "apiregistration.k8s.io", "apiservices", ""},
}

// removePermissions are those that an uninstall needs.
var removePermissions = []permission{
	{"delete", "", "secrets", own},
	{"delete", "", "pods", own},
	{"deletecollection", "", "pods", own},
	{"create", "", "pods", own},
	{"list", "", "nodes", ""},
	{"delete", "apps", "statefulsets", own},
	{"delete", "apps", "deployments", own},
	{"delete", "apps", "daemonsets", own},
	{"delete", "rbac.authorization.k8s.io", "clusterroles", ""},
	{"delete", "rbac.authorization.k8s.io", "clusterrolebindings", ""},
	{"delete", "apiregistration.k8s.io", "apiservices", ""},
}

// denied asks the cluster which of the permissions the person does not have.
func (t *target) denied(ctx context.Context, wanted []permission) ([]string, error) {
	answers := make([]string, len(wanted))
	errs := make([]error, len(wanted))
	var wg sync.WaitGroup
	for i, p := range wanted {
		namespace := p.namespace
		if namespace == own {
			namespace = t.Namespace
		}
		wg.Go(func() {
			review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
				ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: p.verb, Group: p.group, Resource: p.resource},
			}}
			answer, err := t.Kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
			if err != nil {
				errs[i] = fmt.Errorf("asking %q what you may do: %w", t.Context, err)
				return
			}
			if !answer.Status.Allowed {
				answers[i] = p.verb + " " + p.resource
				if namespace != "" {
					answers[i] += " in " + namespace
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(answers, func(s string) bool { return s == "" }), nil
}

// installFacts reads what the checks look at. values are complete, with the chart's defaults.
func (t *target) installFacts(ctx context.Context, wanted preflight.Identity, values map[string]any, last *release.Release, others []*target) (*preflight.Facts, error) {
	f := &preflight.Facts{Wanted: wanted, Namespace: t.Namespace}
	info, err := t.Kube.Discovery().ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("asking the API server of %q for its version: %w", t.Context, err)
	}
	f.Kubernetes = info.GitVersion
	if f.Denied, err = t.denied(ctx, installPermissions); err != nil {
		return nil, err
	}
	if nodes, err := t.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); err != nil {
		f.NodesError = err.Error()
	} else {
		f.Nodes = nodes.Items
	}
	client, err := aggregator.NewForConfig(t.REST)
	if err != nil {
		return nil, fmt.Errorf("preparing to connect to %q: %w", t.Context, err)
	}
	// Who may not read this may not install either, and is told so by the permissions.
	if services, err := client.ApiregistrationV1().APIServices().List(ctx, metav1.ListOptions{}); err == nil {
		for _, s := range services.Items {
			if s.Spec.Group == v1alpha1.SchemeGroupVersion.Group {
				f.APIServices = append(f.APIServices, s)
			}
		}
	}
	if f.CustomResources, err = t.customResources(ctx); err != nil && !apierrors.IsForbidden(err) {
		return nil, fmt.Errorf("reading the CustomResourceDefinitions of %q: %w", t.Context, err)
	}
	ns, err := t.Kube.CoreV1().Namespaces().Get(ctx, t.Namespace, metav1.GetOptions{})
	switch {
	case err == nil:
		f.NamespaceObject = ns
	case !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err):
		return nil, fmt.Errorf("reading namespace %s of %q: %w", t.Namespace, t.Context, err)
	}
	f.NeedsVolume = release.At(values, "persistence", "type") == "volumeClaim" && noServers(values)
	f.StorageClass, _ = release.At(values, "persistence", "storageClass").(string)
	if f.NeedsVolume {
		if classes, err := t.Kube.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{}); err == nil {
			f.StorageClasses = classes.Items
		}
	}
	if config, err := t.Kube.CoreV1().ConfigMaps(t.Namespace).Get(ctx, meshConfig, metav1.GetOptions{}); err == nil {
		f.Installed, f.InstalledBy = &preflight.Identity{Name: config.Data["cluster-name"]}, "manifests"
		_, _ = fmt.Sscan(config.Data["cluster-id"], &f.Installed.ID)
	}
	if last != nil {
		f.InstalledBy = "meshctl"
	}
	if system, err := t.Kube.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{}); err == nil {
		f.UID = string(system.UID)
	}
	if _, err := t.Kube.CoreV1().Services(policy.CiliumMesh.Namespace).Get(ctx, policy.CiliumMesh.Name, metav1.GetOptions{}); err == nil {
		f.CiliumMesh = true
	}
	if f.Installed != nil {
		// An API that is down is what an install may be to repair.
		f.Members, _ = t.meshMembers(ctx)
	}
	for _, other := range others {
		o := preflight.Other{Context: other.Context}
		if o.Members, err = other.meshMembers(ctx); err != nil {
			o.Error = err.Error()
		}
		f.Others = append(f.Others, o)
	}
	return f, nil
}

func noServers(values map[string]any) bool {
	servers, _ := release.At(values, "etcd", "external", "servers").([]any)
	return len(servers) == 0
}

// meshMembers are the MeshClusters of a cluster; none if it has no mesh.
func (t *target) meshMembers(ctx context.Context) ([]v1alpha1.MeshCluster, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	list, err := t.Mesh.MeshV1alpha1().MeshClusters().List(ctx, metav1.ListOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return list.Items, nil
}

// customResources are the names of the CustomResourceDefinitions of group mesh.io.
func (t *target) customResources(ctx context.Context) ([]string, error) {
	client, err := dynamic.NewForConfig(t.REST)
	if err != nil {
		return nil, err
	}
	list, err := client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var names []string
	for i := range list.Items {
		if name := list.Items[i].GetName(); strings.HasSuffix(name, "."+v1alpha1.SchemeGroupVersion.Group) {
			names = append(names, name)
		}
	}
	return names, nil
}
