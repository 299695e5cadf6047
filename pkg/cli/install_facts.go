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

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	aggregator "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/preflight"
	"mesh.io/clustermesh/pkg/cli/release"
	"mesh.io/clustermesh/pkg/cli/removal"
	"mesh.io/clustermesh/pkg/cli/workload"
	"mesh.io/clustermesh/pkg/policy"
)

// standing is what there is of the objects that an install makes.
type standing struct {
	missing   []string
	strangers []string // that are not of the release
}

// stand looks for the objects of the chart in the cluster.
func (b *begun) stand(ctx context.Context) (standing, error) {
	config := rest.CopyConfig(b.target.REST)
	config.QPS = -1
	client, err := metadata.NewForConfig(config)
	if err != nil {
		return standing{}, fmt.Errorf("preparing to connect to %q: %w", b.target.Context, err)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		s     standing
		turns = make(chan struct{}, askAtOnce)
	)
	for _, o := range b.objects {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			gvr, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
			found, err := client.Resource(gvr).Namespace(o.GetNamespace()).Get(ctx, o.GetName(), metav1.GetOptions{})
			name := strings.ToLower(o.GetKind()) + " " + o.GetName()
			mu.Lock()
			defer mu.Unlock()
			switch {
			case apierrors.IsNotFound(err):
				s.missing = append(s.missing, name)
			case err == nil && !release.Owns(found, b.target.Namespace) && gvr.GroupResource() != removal.Registrations.GroupResource():
				// Of the registration another check says more.
				s.strangers = append(s.strangers, name)
			}
			// What may not be read may not be made either: the permissions say so.
		})
	}
	wg.Wait()
	slices.Sort(s.missing)
	slices.Sort(s.strangers)
	return s, ctx.Err()
}

// installFacts reads what the checks look at. values are complete, with the chart's defaults.
func (b *begun) installFacts(ctx context.Context, wanted preflight.Identity, values map[string]any, step release.Step, others []*target) (*preflight.Facts, error) {
	t, last := b.target, b.last
	f := &preflight.Facts{Wanted: wanted, Namespace: t.Namespace}
	info, err := t.Kube.Discovery().ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("asking the API server of %q for its version: %w", t.Context, err)
	}
	f.Kubernetes = info.GitVersion
	ns, err := t.Kube.CoreV1().Namespaces().Get(ctx, t.Namespace, metav1.GetOptions{})
	switch {
	case err == nil:
		f.NamespaceObject = ns
	case !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err):
		return nil, fmt.Errorf("reading namespace %s of %q: %w", t.Namespace, t.Context, err)
	}
	if b.standing, err = b.stand(ctx); err != nil {
		return nil, err
	}
	// To find that there is nothing to do takes no rights.
	if step != release.StepNothing || len(b.standing.missing) > 0 {
		plan, err := installPlan(t.Namespace, f.NamespaceObject != nil, b.objects, last)
		if err != nil {
			return nil, err
		}
		if f.Denied, err = t.lacking(ctx, plan); err != nil {
			return nil, err
		}
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
	if f.NoAPI, err = b.noAPI(); err != nil {
		return nil, err
	}
	if f.PeerPort = b.peerPort(); f.PeerPort != 0 {
		f.PortTakenBy = t.portTakenBy(ctx, f.PeerPort)
	}
	f.NeedsVolume = release.At(values, "persistence", "type") == "volumeClaim" && noServers(values)
	f.StorageClass, _ = release.At(values, "persistence", "storageClass").(string)
	if f.NeedsVolume {
		if classes, err := t.Kube.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{}); err != nil {
			f.StorageError = err.Error()
		} else {
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
	// Of a mesh that was made by manifests, one finding says it all.
	if f.InstalledBy != "manifests" {
		f.Strangers = b.standing.strangers
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

// noAPI are the kinds of the chart's objects that the cluster does not have.
func (b *begun) noAPI() ([]string, error) {
	groups, err := b.target.Kube.Discovery().ServerGroups()
	if err != nil {
		return nil, fmt.Errorf("asking %q for its APIs: %w", b.target.Context, err)
	}
	known := map[string]bool{}
	for _, group := range groups.Groups {
		for _, v := range group.Versions {
			known[v.GroupVersion] = true
		}
	}
	var missing []string
	for _, o := range b.objects {
		if !known[o.GetAPIVersion()] {
			missing = append(missing, fmt.Sprintf("%s (%s)", o.GetKind(), o.GetAPIVersion()))
		}
	}
	slices.Sort(missing)
	return slices.Compact(missing), nil
}

// peerPort is the port of each node that the peers' Service asks for, or 0.
func (b *begun) peerPort() int32 {
	for _, o := range b.objects {
		if o.GetKind() != "Service" || o.GetName() != workload.APIServer+"-peer" {
			continue
		}
		var service corev1.Service
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &service); err != nil || len(service.Spec.Ports) == 0 {
			return 0
		}
		return service.Spec.Ports[0].NodePort
	}
	return 0
}

// portTakenBy is the Service of somebody else that has a port of the nodes, or "". Where
// the Services may not be read, it is left to the cluster to refuse the port.
func (t *target) portTakenBy(ctx context.Context, port int32) string {
	services, err := t.Kube.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return ""
	}
	for i := range services.Items {
		s := &services.Items[i]
		for _, p := range s.Spec.Ports {
			if p.NodePort == port && p.Protocol == corev1.ProtocolTCP && (s.Namespace != t.Namespace || s.Name != workload.APIServer+"-peer") {
				return s.Namespace + "/" + s.Name
			}
		}
	}
	return ""
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
