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

// Package policy decides how a Service takes part in the mesh, from its
// annotations, its Namespace's and its GlobalService's spec. The controller and the
// agent both ask it, so that they cannot disagree. It performs no I/O.
package policy

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

// The annotations on a Service, in our own spelling. AnnotationGlobal may stand on a
// Namespace too, for all its Services.
const (
	AnnotationGlobal   = "mesh.io/global"
	AnnotationShared   = "mesh.io/shared"
	AnnotationAffinity = "mesh.io/affinity"
	// AnnotationExportManual makes the mesh export the Service's hand-made
	// EndpointSlices too.
	AnnotationExportManual = "mesh.io/export-manual"
)

// AnnotationSocketLB on a Pod, or on a Namespace for all its Pods, is "false" where the
// agent is to leave their connections alone.
const AnnotationSocketLB = "mesh.io/socket-lb"

// spellings lists, for each of our annotations that Cilium has too, what means the
// same, the strongest first: ours, Cilium's, and what Cilium used before 1.14.
var spellings = map[string][]string{
	AnnotationGlobal:   {AnnotationGlobal, "service.cilium.io/global", "io.cilium/global-service"},
	AnnotationShared:   {AnnotationShared, "service.cilium.io/shared", "io.cilium/shared-service"},
	AnnotationAffinity: {AnnotationAffinity, "service.cilium.io/affinity", "io.cilium/service-affinity"},
}

// Setting is a value in effect and where it comes from.
type Setting[T any] struct {
	Value  T
	Source v1alpha1.PolicySource
}

// Problem is an annotation whose value means nothing. The default holds instead.
type Problem struct {
	Annotation string
	Value      string
	Want       string // the values that would mean something
	OnService  bool   // false: on the Namespace
}

// String says what is wrong and what holds instead, for an Event or a condition: of a
// value of any length, no more than its beginning.
func (p Problem) String() string {
	return fmt.Sprintf("annotation %s has the value %.80q, which means nothing: use %s; until then the default holds", p.Annotation, p.Value, p.Want)
}

// Service is how one Service takes part.
type Service struct {
	// Global: the Service exports its backends (unless not shared) and imports the others'.
	Global Setting[bool]
	// Shared: its backends are offered to the other clusters. Without effect unless global.
	Shared Setting[bool]
	// Affinity is the preferred side for this cluster's clients.
	Affinity Setting[v1alpha1.Affinity]
	// ExportManual: its hand-made EndpointSlices are exported too.
	ExportManual bool
	// Problems lists the annotations that mean nothing, in a fixed order.
	Problems []Problem
}

// Exports says whether the Service's backends are offered to the other clusters.
func (s Service) Exports() bool { return s.Global.Value && s.Shared.Value }

// CiliumMesh is the Service that every cluster mesh of Cilium's own has. Where it is,
// Cilium acts on its annotations itself, and two must not: by default they then don't
// count here.
var CiliumMesh = types.NamespacedName{Namespace: metav1.NamespaceSystem, Name: "clustermesh-apiserver"}

// Reader reads annotations.
type Reader struct {
	// Cilium makes it accept Cilium's spellings beside ours.
	Cilium bool
}

// Service returns the policy of a Service with the given annotations in a Namespace
// with the given ones. spec is its GlobalService's, or nil where there is none yet.
// The spec wins over annotations, and those over defaults (design: not global;
// shared; no affinity).
func (r Reader) Service(service, namespace map[string]string, spec *v1alpha1.GlobalServiceSpec) Service {
	result := Service{
		Global:   Setting[bool]{false, v1alpha1.SourceDefault},
		Shared:   Setting[bool]{true, v1alpha1.SourceDefault},
		Affinity: Setting[v1alpha1.Affinity]{v1alpha1.AffinityNone, v1alpha1.SourceDefault},
	}
	problem := func(annotation, value, want string, onService bool) {
		result.Problems = append(result.Problems, Problem{annotation, value, want, onService})
	}

	// A Service that says anything about itself is not asked what its Namespace says,
	// even where what it says means nothing: the safe reading is "not global".
	if annotation, value, ok := r.lookup(service, AnnotationGlobal); ok {
		if b, ok := parseBool(value); ok {
			result.Global = Setting[bool]{b, v1alpha1.SourceAnnotation}
		} else {
			problem(annotation, value, "true or false", true)
		}
	} else if value, ok := namespace[AnnotationGlobal]; ok {
		if b, ok := parseBool(value); ok {
			result.Global = Setting[bool]{b, v1alpha1.SourceNamespace}
		} else {
			problem(AnnotationGlobal, value, "true or false", false)
		}
	}
	if annotation, value, ok := r.lookup(service, AnnotationShared); ok {
		if b, ok := parseBool(value); ok {
			result.Shared = Setting[bool]{b, v1alpha1.SourceAnnotation}
		} else {
			problem(annotation, value, "true or false", true)
		}
	}
	if annotation, value, ok := r.lookup(service, AnnotationAffinity); ok {
		if affinity, ok := parseAffinity(value); ok {
			result.Affinity = Setting[v1alpha1.Affinity]{affinity, v1alpha1.SourceAnnotation}
		} else {
			problem(annotation, value, "none, local or remote", true)
		}
	}
	if value, ok := service[AnnotationExportManual]; ok {
		b, ok := parseBool(value)
		if !ok {
			problem(AnnotationExportManual, value, "true or false", true)
		}
		result.ExportManual = b
	}

	if spec != nil {
		if spec.Shared != nil {
			result.Shared = Setting[bool]{*spec.Shared, v1alpha1.SourceSpec}
		}
		if spec.Affinity != "" {
			result.Affinity = Setting[v1alpha1.Affinity]{spec.Affinity, v1alpha1.SourceSpec}
		}
	}
	return result
}

// Lookup finds the spelling of one of our annotations that counts among those that
// are there, and its value.
func (r Reader) Lookup(annotations map[string]string, name string) (spelling, value string, ok bool) {
	return r.lookup(annotations, name)
}

// lookup finds the strongest spelling of an annotation that is present.
func (r Reader) lookup(annotations map[string]string, name string) (spelling, value string, ok bool) {
	known := spellings[name]
	if !r.Cilium {
		known = known[:1]
	}
	for _, spelling := range known {
		if value, ok := annotations[spelling]; ok {
			return spelling, value, true
		}
	}
	return "", "", false
}

// parseBool accepts what Cilium accepts: true and false in any case, and nothing else.
func parseBool(value string) (b, ok bool) {
	switch strings.ToLower(value) {
	case "true":
		return true, true
	case "false":
		return false, true
	}
	return false, false
}

func parseAffinity(value string) (v1alpha1.Affinity, bool) {
	switch strings.ToLower(value) {
	case "none":
		return v1alpha1.AffinityNone, true
	case "local":
		return v1alpha1.AffinityLocal, true
	case "remote":
		return v1alpha1.AffinityRemote, true
	}
	return "", false
}

// Reserved says why a Service can never be global, whatever is annotated; it
// returns "" for one that can. meshNamespace is the namespace that the mesh's own
// programs run in.
func Reserved(namespace, name, meshNamespace string) string {
	switch {
	case namespace == metav1.NamespaceDefault && name == "kubernetes":
		return "it is how this cluster reaches its own API server"
	case namespace == metav1.NamespaceSystem:
		return "Services in kube-system serve one cluster only"
	case namespace == meshNamespace:
		return "Services of the mesh itself serve one cluster only"
	}
	return ""
}

// Share is how the backends of one cluster are weighed.
type Share struct {
	Weight   int32 // multiplies each backend; 0 drains
	Priority int32 // lower first
}

// ShareSource is where the weight or the priority of a cluster's backends comes from.
type ShareSource string

// The sources of a share.
const (
	ShareSpec    ShareSource = "spec"        // the GlobalService's
	ShareMember  ShareSource = "MeshCluster" // its spec's weight or priority
	ShareDrained ShareSource = "drained"     // the MeshCluster is drained as a whole
	ShareDefault ShareSource = "default"
)

// ShareSources says where what Cluster returns for the same arguments comes from.
func ShareSources(spec *v1alpha1.GlobalServiceSpec, name string, cluster *v1alpha1.MeshClusterSpec) (weight, priority ShareSource) {
	weight, priority = ShareDefault, ShareDefault
	override := func(w, p *int32, source ShareSource) {
		if w != nil {
			weight = source
		}
		if p != nil {
			priority = source
		}
	}
	if cluster != nil {
		override(cluster.Weight, cluster.Priority, ShareMember)
	}
	if spec != nil {
		for i := range spec.Clusters {
			if spec.Clusters[i].Name == name {
				override(spec.Clusters[i].Weight, spec.Clusters[i].Priority, ShareSpec)
			}
		}
	}
	if cluster != nil && cluster.Drained {
		weight = ShareDrained
	}
	return weight, priority
}

// Cluster returns the share of a cluster's backends in a service: what the
// GlobalService's spec says of it, else its MeshCluster, else the defaults. A cluster
// that is drained as a whole stays drained. Both arguments may be nil.
func Cluster(spec *v1alpha1.GlobalServiceSpec, name string, cluster *v1alpha1.MeshClusterSpec) Share {
	share := Share{Weight: v1alpha1.DefaultWeight, Priority: v1alpha1.DefaultPriority}
	override := func(weight, priority *int32) {
		if weight != nil {
			share.Weight = *weight
		}
		if priority != nil {
			share.Priority = *priority
		}
	}
	if cluster != nil {
		override(cluster.Weight, cluster.Priority)
	}
	if spec != nil {
		for i := range spec.Clusters {
			if spec.Clusters[i].Name == name {
				override(spec.Clusters[i].Weight, spec.Clusters[i].Priority)
			}
		}
	}
	if cluster != nil && cluster.Drained {
		share.Weight = 0
	}
	return share
}
