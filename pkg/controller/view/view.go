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

// Package view is what the controller's loops read of their own cluster: its
// Services and their policy. The loops share its caches.
package view

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	meshinformers "mesh.io/clustermesh/pkg/generated/informers/externalversions"
	"mesh.io/clustermesh/pkg/policy"
)

// The indexes of the caches.
const (
	// ByService finds slices and ImportedServices by namespace/service.
	ByService = "service"
	// ByClusterIP finds Services by any of their cluster IPs.
	ByClusterIP = "clusterIP"
	// ByCluster finds imported objects by their cluster.
	ByCluster = "cluster"
	// BySource finds ExportedEndpointSlices by the namespace/name of the EndpointSlice
	// that they are from.
	BySource = "source"
)

// AnnotationSource names the EndpointSlice that a further part of a large one is from.
const AnnotationSource = "mesh.io/source-slice"

// Source is the name of the EndpointSlice that an exported one is from.
func Source(exported metav1.Object) string {
	if source := exported.GetAnnotations()[AnnotationSource]; source != "" {
		return source
	}
	return exported.GetName()
}

// Config is what a View is made of.
type Config struct {
	Kube informers.SharedInformerFactory
	Mesh meshinformers.SharedInformerFactory
	// MeshNamespace is the namespace of the mesh's own programs.
	MeshNamespace string
	// ClusterName is this cluster's name in the mesh.
	ClusterName string
	Reader      policy.Reader
}

// View reads this cluster's Services and everything that decides about them.
type View struct {
	Config

	Services       cache.SharedIndexInformer
	EndpointSlices cache.SharedIndexInformer
	Namespaces     cache.SharedIndexInformer
	Nodes          cache.SharedIndexInformer

	GlobalServices   cache.SharedIndexInformer
	ExportedServices cache.SharedIndexInformer
	ExportedSlices   cache.SharedIndexInformer
	ImportedServices cache.SharedIndexInformer
	ImportedSlices   cache.SharedIndexInformer
	Clusters         cache.SharedIndexInformer
}

// New makes the caches, to be started by their factories.
func New(config Config) (*View, error) {
	mesh := config.Mesh.Mesh().V1alpha1()
	v := &View{
		Config:           config,
		Services:         config.Kube.Core().V1().Services().Informer(),
		EndpointSlices:   config.Kube.Discovery().V1().EndpointSlices().Informer(),
		Namespaces:       config.Kube.Core().V1().Namespaces().Informer(),
		Nodes:            config.Kube.Core().V1().Nodes().Informer(),
		GlobalServices:   mesh.GlobalServices().Informer(),
		ExportedServices: mesh.ExportedServices().Informer(),
		ExportedSlices:   mesh.ExportedEndpointSlices().Informer(),
		ImportedServices: mesh.ImportedServices().Informer(),
		ImportedSlices:   mesh.ImportedEndpointSlices().Informer(),
		Clusters:         mesh.MeshClusters().Informer(),
	}
	for _, informer := range v.informers() {
		if err := informer.SetTransform(trim); err != nil {
			return nil, err
		}
	}
	byLabel := func(label string, namespaced bool) cache.IndexFunc {
		return func(obj any) ([]string, error) {
			accessor, err := meta.Accessor(obj)
			if err != nil {
				return nil, err
			}
			value := accessor.GetLabels()[label]
			if value != "" && namespaced {
				value = accessor.GetNamespace() + "/" + value
			}
			return []string{value}, nil
		}
	}
	for informer, indexers := range map[cache.SharedIndexInformer]cache.Indexers{
		v.Services: {ByClusterIP: func(obj any) ([]string, error) {
			return obj.(*corev1.Service).Spec.ClusterIPs, nil
		}},
		v.EndpointSlices: {ByService: byLabel(discoveryv1.LabelServiceName, true)},
		v.ExportedSlices: {ByService: byLabel(v1alpha1.LabelServiceName, true), BySource: func(obj any) ([]string, error) {
			accessor, err := meta.Accessor(obj)
			if err != nil {
				return nil, err
			}
			return []string{accessor.GetNamespace() + "/" + Source(accessor)}, nil
		}},
		v.ImportedServices: {ByService: byLabel(v1alpha1.LabelServiceName, true), ByCluster: byLabel(v1alpha1.LabelCluster, false)},
		v.ImportedSlices:   {ByService: byLabel(v1alpha1.LabelServiceName, true), ByCluster: byLabel(v1alpha1.LabelCluster, false)},
	} {
		if err := informer.AddIndexers(indexers); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func (v *View) informers() []cache.SharedIndexInformer {
	return []cache.SharedIndexInformer{v.Services, v.EndpointSlices, v.Namespaces, v.Nodes,
		v.GlobalServices, v.ExportedServices, v.ExportedSlices, v.ImportedServices, v.ImportedSlices, v.Clusters}
}

// Synced says whether every cache has been filled.
func (v *View) Synced() bool {
	for _, informer := range v.informers() {
		if !informer.HasSynced() {
			return false
		}
	}
	return true
}

// trim drops what nobody here reads, which is most of a cache's memory.
func trim(obj any) (any, error) {
	if accessor, err := meta.Accessor(obj); err == nil {
		accessor.SetManagedFields(nil)
	}
	switch obj := obj.(type) {
	case *discoveryv1.EndpointSlice:
		for i := range obj.Endpoints {
			obj.Endpoints[i].TargetRef = nil
			obj.Endpoints[i].NodeName = nil
			obj.Endpoints[i].DeprecatedTopology = nil
			obj.Endpoints[i].Hints = nil
		}
	case *corev1.Node:
		obj.Status = corev1.NodeStatus{Addresses: obj.Status.Addresses}
	}
	return obj, nil
}

// Service is one of this cluster's Services and how it takes part.
type Service struct {
	*corev1.Service
	Policy policy.Service
	// Reserved says why the Service can never take part; empty for one that can.
	Reserved string
}

// Global says whether the Service takes part in the mesh.
func (s Service) Global() bool {
	return s.Policy.Global.Value && s.Reserved == "" && s.Spec.Type != corev1.ServiceTypeExternalName && s.DeletionTimestamp == nil
}

// Service finds a Service of this cluster.
func (v *View) Service(namespace, name string) (Service, bool) {
	service, ok := Get[*corev1.Service](v.Services, namespace, name)
	if !ok {
		return Service{}, false
	}
	var annotations map[string]string
	if ns, ok := Get[*corev1.Namespace](v.Namespaces, "", namespace); ok {
		annotations = ns.Annotations
	}
	var spec *v1alpha1.GlobalServiceSpec
	if global, ok := Get[*v1alpha1.GlobalService](v.GlobalServices, namespace, name); ok {
		spec = &global.Spec
	}
	return Service{
		Service:  service,
		Policy:   v.Reader.Service(service.Annotations, annotations, spec),
		Reserved: policy.Reserved(namespace, name, v.MeshNamespace),
	}, true
}

// NamespaceReady says whether objects can be made in a namespace.
func (v *View) NamespaceReady(name string) bool {
	namespace, ok := Get[*corev1.Namespace](v.Namespaces, "", name)
	return ok && namespace.DeletionTimestamp == nil && namespace.Status.Phase != corev1.NamespaceTerminating
}

// Local returns this cluster's own MeshCluster.
func (v *View) Local() (*v1alpha1.MeshCluster, bool) {
	return Get[*v1alpha1.MeshCluster](v.Clusters, "", v.ClusterName)
}

// Get reads one object of a cache. It must not be changed.
func Get[T any](informer cache.SharedIndexInformer, namespace, name string) (T, bool) {
	key := name
	if namespace != "" {
		key = namespace + "/" + name
	}
	obj, ok, err := informer.GetStore().GetByKey(key)
	if !ok || err != nil {
		var none T
		return none, false
	}
	return obj.(T), true
}

// List reads all objects of a cache. They must not be changed.
func List[T any](informer cache.SharedIndexInformer) []T {
	var list []T
	for _, obj := range informer.GetStore().List() {
		list = append(list, obj.(T))
	}
	return list
}

// Indexed reads the objects of a cache that an index knows by a value.
func Indexed[T any](informer cache.SharedIndexInformer, index, value string) []T {
	objs, err := informer.GetIndexer().ByIndex(index, value)
	if err != nil {
		return nil
	}
	list := make([]T, 0, len(objs))
	for _, obj := range objs {
		list = append(list, obj.(T))
	}
	return list
}
