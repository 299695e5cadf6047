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

package mesh

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// GlobalService is one Service of the mesh as this cluster sees it: the Services
// of the same namespace and name in all clusters that take part. The mesh
// controller makes one for each Service that any cluster exports. People change
// its spec, or apply one ahead of the Service.
type GlobalService struct {
	metav1.TypeMeta
	metav1.ObjectMeta

	Spec   GlobalServiceSpec
	Status GlobalServiceStatus
}

// Affinity is the side of the mesh, this cluster or the others, that clients
// prefer while it has a usable backend.
type Affinity string

const (
	// AffinityNone prefers neither side: all ready backends are used evenly.
	AffinityNone Affinity = "None"
	// AffinityLocal prefers the backends of this cluster.
	AffinityLocal Affinity = "Local"
	// AffinityRemote prefers the backends of the other clusters.
	AffinityRemote Affinity = "Remote"
)

// GlobalServiceSpec says how clients in this cluster use a global service.
type GlobalServiceSpec struct {
	Shared        *bool
	Affinity      Affinity
	LocalMinReady *int32
	Clusters      []ClusterPolicy
}

// ClusterPolicy is how one cluster's backends of a service are used.
type ClusterPolicy struct {
	Name     string
	Weight   *int32
	Priority *int32
}

// PolicySource is where a setting in effect comes from.
type PolicySource string

const (
	// SourceSpec is the GlobalService's spec.
	SourceSpec PolicySource = "Spec"
	// SourceAnnotation is an annotation on the Service.
	SourceAnnotation PolicySource = "Annotation"
	// SourceNamespace is an annotation on the Namespace.
	SourceNamespace PolicySource = "Namespace"
	// SourceDefault is the default, as nothing says otherwise.
	SourceDefault PolicySource = "Default"
)

// EffectiveShared is whether this cluster offers its backends, and why.
type EffectiveShared struct {
	Value  bool
	Source PolicySource
}

// EffectiveAffinity is the affinity that clients in this cluster get, and why.
type EffectiveAffinity struct {
	Value  Affinity
	Source PolicySource
}

// GlobalServiceStatus is what the mesh knows about a service.
type GlobalServiceStatus struct {
	ObservedGeneration int64
	Shared             EffectiveShared
	Affinity           EffectiveAffinity
	Clusters           []ClusterStatus
	Conditions         []metav1.Condition
	// PolicyResourceVersion is the version of the last write that changed the
	// service's ServicePolicy; empty where that is the object's own.
	PolicyResourceVersion string
}

// ClusterStatus is what one cluster has of a global service.
type ClusterStatus struct {
	Name      string
	ID        int32
	Local     bool
	Shared    bool
	Type      ServiceType
	Ports     []ServicePort
	Endpoints EndpointCount
}

// EndpointCount counts endpoints. An address that stands in two slices counts once.
type EndpointCount struct {
	Ready int32
	Total int32
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// GlobalServiceList is a list of GlobalServices.
type GlobalServiceList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []GlobalService
}

// ServiceType is the kind of Service as far as the mesh tells them apart.
type ServiceType string

const (
	// ServiceTypeClusterIP is a Service with a virtual IP.
	ServiceTypeClusterIP ServiceType = "ClusterIP"
	// ServiceTypeHeadless is a Service without one.
	ServiceTypeHeadless ServiceType = "Headless"
)

// ServicePort is one port of a Service.
type ServicePort struct {
	Name        string
	Protocol    corev1.Protocol
	Port        int32
	AppProtocol string
}

// ServiceRecord is what a cluster tells the others about one of its Services. An
// ExportedService and the ImportedService made from it hold the same record.
type ServiceRecord struct {
	Cluster         string
	ClusterID       int32
	Type            ServiceType
	Ports           []ServicePort
	IPFamilies      []corev1.IPFamily
	SessionAffinity corev1.ServiceAffinity
	ExportedAt      metav1.Time
	Consumers       []string
}

// SliceRecord is a part of one Service's endpoints in one cluster. An
// ExportedEndpointSlice and the ImportedEndpointSlice made from it hold the same
// record.
type SliceRecord struct {
	Cluster     string
	ClusterID   int32
	Service     string
	AddressType discoveryv1.AddressType
	Endpoints   []Endpoint
	Ports       []EndpointPort
	Zones       []string
	ChangedAt   metav1.MicroTime
}

// Endpoint is one address that serves a Service.
type Endpoint struct {
	Address     string
	Ready       bool
	Serving     bool
	Terminating bool
	Hostname    string
	Zone        *int32
}

// EndpointPort is a port that endpoints listen on.
type EndpointPort struct {
	Name        string
	Protocol    corev1.Protocol
	Port        int32
	AppProtocol string
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ExportedService is a Service that this cluster offers to its peers. This
// cluster's mesh controller writes it; peers read it.
type ExportedService struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	Spec ServiceRecord
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ExportedServiceList is a list of ExportedServices.
type ExportedServiceList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []ExportedService
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ImportedService is a Service that a peer cluster offers to this one. This
// cluster's mesh controller writes it.
type ImportedService struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	Spec ServiceRecord
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ImportedServiceList is a list of ImportedServices.
type ImportedServiceList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []ImportedService
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ExportedEndpointSlice is a part of the endpoints that this cluster offers to its
// peers. This cluster's mesh controller writes it; peers read it.
type ExportedEndpointSlice struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	Spec SliceRecord
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ExportedEndpointSliceList is a list of ExportedEndpointSlices.
type ExportedEndpointSliceList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []ExportedEndpointSlice
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ImportedEndpointSlice is a part of the endpoints that a peer cluster offers to
// this one, checked. This cluster's mesh controller writes it; its agents read it.
type ImportedEndpointSlice struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	Spec SliceRecord
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ImportedEndpointSliceList is a list of ImportedEndpointSlices.
type ImportedEndpointSliceList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []ImportedEndpointSlice
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// MeshCluster is a member of the mesh: this cluster, or a peer that it imports
// from. Its name is the cluster's name, unique in the mesh: a DNS label of at most
// 32 characters, not "default".
type MeshCluster struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	Spec   MeshClusterSpec
	Status MeshClusterStatus
}

// MeshClusterSpec says who a member of the mesh is, and how it is used.
type MeshClusterSpec struct {
	ID                  int32
	KubeconfigSecretRef *SecretReference
	PodCIDRs            []string
	Import              ImportPolicy
	Export              ExportPolicy
	Drained             bool
	Weight              *int32
	Priority            *int32
}

// SecretReference names a Secret in the mesh controller's namespace.
type SecretReference struct {
	Name string
	Key  string
}

// ImportPolicy limits what is imported from a peer.
type ImportPolicy struct {
	Namespaces []string
	Limits     ImportLimits
}

// ImportLimits bounds how much is taken from one peer.
type ImportLimits struct {
	Services   *int32
	Slices     *int32
	Endpoints  *int32
	Namespaces *int32
}

// ExportPolicy limits what is offered to the peers.
type ExportPolicy struct {
	Namespaces []string
}

// MeshClusterStatus is what this cluster knows about a member.
type MeshClusterStatus struct {
	UID                string
	Version            string
	StoreEpoch         string
	ControllerRun      string
	Services           int32
	Endpoints          int32
	LastContactTime    metav1.Time
	LagMilliseconds    int64
	Refused            int32
	Refusals           []string
	WaitingNamespaces  []string
	Conditions         []metav1.Condition
	ObservedGeneration int64
	// PolicyResourceVersion is the version of the last write that changed the member's
	// MeshMember; empty where that is the object's own.
	PolicyResourceVersion string
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// MeshClusterList is a list of MeshClusters.
type MeshClusterList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []MeshCluster
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ServicePolicy is what agents are told of a GlobalService. It is not stored.
type ServicePolicy struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	Spec GlobalServiceSpec
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ServicePolicyList is a list of ServicePolicies.
type ServicePolicyList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []ServicePolicy
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// MeshMember is what agents are told of a MeshCluster. It is not stored.
type MeshMember struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	Spec MeshMemberSpec
}

// MeshMemberSpec says who a member of the mesh is, and how its backends count.
type MeshMemberSpec struct {
	ID         int32
	Drained    bool
	Weight     *int32
	Priority   *int32
	StoreEpoch string
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// MeshMemberList is a list of MeshMembers.
type MeshMemberList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []MeshMember
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// PeerToken asks for a new token for the peer that asks. It is not stored.
type PeerToken struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	Spec   PeerTokenSpec
	Status PeerTokenStatus
}

// PeerTokenSpec says what kind of token a peer asks for.
type PeerTokenSpec struct {
	ExpirationSeconds *int64
}

// PeerTokenStatus is the token that a peer was given.
type PeerTokenStatus struct {
	Token               string
	ExpirationTimestamp metav1.Time
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// JoinRequest makes another cluster a member of this cluster's mesh. It is not stored.
type JoinRequest struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	Spec   JoinRequestSpec
	Status JoinRequestStatus
}

// JoinRequestSpec is what a cluster that joins says about itself.
type JoinRequestSpec struct {
	Name       string
	ID         int32
	UID        string
	Kubeconfig []byte
}

// JoinRequestStatus is what a cluster that has joined needs to import from this one.
type JoinRequestStatus struct {
	Name                string
	ID                  int32
	UID                 string
	Token               string
	ExpirationTimestamp metav1.Time
	CABundle            []byte
	TLSServerName       string
}
