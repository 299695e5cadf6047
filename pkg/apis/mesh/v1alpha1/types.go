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

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// LabelManagedBy is on every object that the mesh controller made. On a
	// GlobalService it also says that nobody has written its spec: a spec written
	// by anyone else clears the label, and the object is then kept for ever.
	LabelManagedBy = "mesh.io/managed-by"
	// ManagedByController is the value of LabelManagedBy.
	ManagedByController = "mesh-controller"
	// LabelCluster names the cluster that an imported or exported object is from.
	LabelCluster = "mesh.io/cluster"
	// LabelServiceName names the Service that a slice belongs to.
	LabelServiceName = "mesh.io/service-name"

	// FinalizerCluster keeps a peer's MeshCluster until what was imported from it is gone.
	FinalizerCluster = "mesh.io/imported-objects"
)

// Condition types of a GlobalService.
const (
	// GlobalServiceReady is True while at least one backend can be used.
	GlobalServiceReady = "Ready"
	// GlobalServiceLocalService says whether the Service exists here and takes part.
	GlobalServiceLocalService = "LocalService"
	// GlobalServiceConflict is True while clusters disagree about the Service.
	GlobalServiceConflict = "Conflict"
	// GlobalServiceProgrammed is False while some node failed to program the Service.
	GlobalServiceProgrammed = "Programmed"
	// GlobalServiceAnnotationsValid is False while an annotation has a value that means nothing.
	GlobalServiceAnnotationsValid = "AnnotationsValid"
)

// Condition types of a MeshCluster.
const (
	// MeshClusterConnected is True while the peer's mesh API answers, and Unknown when
	// it has gone silent, until it answers again or counts as unreachable.
	MeshClusterConnected = "Connected"
	// MeshClusterSynced is True while what the peer exports is imported completely.
	MeshClusterSynced = "Synced"
	// MeshClusterExportsSynced is True, on the local cluster, while everything that
	// should be exported is. An importer deletes nothing while the peer's is not True.
	MeshClusterExportsSynced = "ExportsSynced"
	// MeshClusterIdentityConflict is True while two members claim the same name, ID
	// or UID. Nothing is exchanged with such a peer.
	MeshClusterIdentityConflict = "IdentityConflict"
	// MeshClusterCredentialsExpiring is True while the token that a peer has given to
	// this cluster is in the last third of its life and cannot be renewed. It is absent
	// where that has never been so.
	MeshClusterCredentialsExpiring = "CredentialsExpiring"
)

// +genclient
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// GlobalService is one Service of the mesh as this cluster sees it: the Services
// of the same namespace and name in all clusters that take part. The mesh
// controller makes one for each Service that any cluster exports. People change
// its spec, or apply one ahead of the Service.
type GlobalService struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard object's metadata.
	// +optional
	// +k8s:opaqueType
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`

	// spec is how clients in this cluster use the service. Each field that is set
	// here wins over the annotation of the same meaning on the Service.
	// +optional
	Spec GlobalServiceSpec `json:"spec,omitempty,omitzero" protobuf:"bytes,2,opt,name=spec"`
	// status is what the mesh makes of the service now. The mesh controller sets it.
	// +optional
	Status GlobalServiceStatus `json:"status,omitempty,omitzero" protobuf:"bytes,3,opt,name=status"`
}

// Affinity is the side of the mesh, this cluster or the others, that clients
// prefer while it has a usable backend.
// +enum
// +k8s:enum
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
	// shared says whether this cluster offers its own backends to the other
	// clusters. It does not change what this cluster's clients use. If absent, the
	// Service's annotation decides; without one, a global Service is shared.
	// +optional
	// +k8s:optional
	Shared *bool `json:"shared,omitempty" protobuf:"varint,1,opt,name=shared"`
	// affinity is the preferred side: None, Local or Remote. The other side is used
	// only while the preferred one has no usable backend. If absent, the Service's
	// annotation decides; without one it is None.
	// +optional
	// +k8s:optional
	Affinity Affinity `json:"affinity,omitempty" protobuf:"bytes,2,opt,name=affinity,casttype=Affinity"`
	// localMinReady is for affinity Local: the percentage of the local endpoints that
	// must be ready for them to take all the traffic. Below it they take only the
	// share ready/desired, and the other clusters take the rest. If absent it is 0:
	// one ready local endpoint takes all.
	// +optional
	// +k8s:optional
	// +k8s:minimum=0
	// +k8s:maximum=100
	LocalMinReady *int32 `json:"localMinReady,omitempty" protobuf:"varint,3,opt,name=localMinReady"`
	// clusters changes the share and the order of single clusters' backends, for the
	// clients of this cluster only. A cluster that is not listed has the weight and
	// the priority of its MeshCluster.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +k8s:optional
	// +k8s:listType=map
	// +k8s:listMapKey=name
	// +k8s:maxItems=256
	Clusters []ClusterPolicy `json:"clusters,omitempty" protobuf:"bytes,4,rep,name=clusters"`
}

// ClusterPolicy is how one cluster's backends of a service are used.
type ClusterPolicy struct {
	// name is the cluster's name, as in its MeshCluster. The cluster need not exist yet.
	// +required
	// +k8s:required
	// +k8s:format=k8s-short-name
	// +k8s:maxLength=32
	Name string `json:"name" protobuf:"bytes,1,opt,name=name"`
	// weight multiplies each backend of the cluster, from 0 to 1000. Equal weights
	// make every backend equal, whichever its cluster. 0 drains the cluster: it gets
	// no new connection, and connections that are open stay. If absent it is 100.
	// +optional
	// +k8s:optional
	// +k8s:minimum=0
	// +k8s:maximum=1000
	Weight *int32 `json:"weight,omitempty" protobuf:"varint,2,opt,name=weight"`
	// priority orders the clusters on the same side of the affinity: those with the
	// lowest number that have a usable backend take all the traffic. If absent it is 0.
	// +optional
	// +k8s:optional
	// +k8s:minimum=0
	// +k8s:maximum=1000
	Priority *int32 `json:"priority,omitempty" protobuf:"varint,3,opt,name=priority"`
}

// PolicySource is where a setting in effect comes from.
// +enum
// +k8s:enum
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
	// value is true when this cluster offers its backends to the others.
	Value bool `json:"value" protobuf:"varint,1,opt,name=value"`
	// source is where the value comes from: Spec, Annotation or Default.
	// +optional
	// +k8s:optional
	Source PolicySource `json:"source,omitempty" protobuf:"bytes,2,opt,name=source,casttype=PolicySource"`
}

// EffectiveAffinity is the affinity that clients in this cluster get, and why.
type EffectiveAffinity struct {
	// value is the affinity in effect.
	// +optional
	// +k8s:optional
	Value Affinity `json:"value,omitempty" protobuf:"bytes,1,opt,name=value,casttype=Affinity"`
	// source is where the value comes from: Spec, Annotation or Default.
	// +optional
	// +k8s:optional
	Source PolicySource `json:"source,omitempty" protobuf:"bytes,2,opt,name=source,casttype=PolicySource"`
}

// GlobalServiceStatus is what the mesh knows about a service.
type GlobalServiceStatus struct {
	// observedGeneration is the generation of the spec that this status reflects.
	// +optional
	// +k8s:optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty" protobuf:"varint,1,opt,name=observedGeneration"`
	// shared is whether this cluster offers its backends to the others.
	// +optional
	Shared EffectiveShared `json:"shared,omitempty,omitzero" protobuf:"bytes,2,opt,name=shared"`
	// affinity is the preferred side in effect.
	// +optional
	Affinity EffectiveAffinity `json:"affinity,omitempty,omitzero" protobuf:"bytes,3,opt,name=affinity"`
	// clusters lists what each cluster has of the service, this one included.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +k8s:optional
	// +k8s:listType=map
	// +k8s:listMapKey=name
	Clusters []ClusterStatus `json:"clusters,omitempty" protobuf:"bytes,4,rep,name=clusters"`
	// conditions are Ready, LocalService, Conflict, AnnotationsValid and Programmed.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +patchMergeKey=type
	// +patchStrategy=merge
	// +k8s:eachVal=+k8s:opaqueType
	Conditions []metav1.Condition `json:"conditions,omitempty" patchStrategy:"merge" patchMergeKey:"type" protobuf:"bytes,5,rep,name=conditions"`
	// policyResourceVersion is the resourceVersion of the last write that changed what
	// agents are told of the service (its ServicePolicy). It is empty where that is this
	// object's own. The server sets it, and does not pass other writes on to agents.
	// +optional
	PolicyResourceVersion string `json:"policyResourceVersion,omitempty" protobuf:"bytes,6,opt,name=policyResourceVersion"`
}

// ClusterStatus is what one cluster has of a global service.
type ClusterStatus struct {
	// name is the cluster's name.
	// +required
	// +k8s:required
	Name string `json:"name" protobuf:"bytes,1,opt,name=name"`
	// id is the cluster's ID in the mesh.
	// +optional
	ID int32 `json:"id,omitempty" protobuf:"varint,2,opt,name=id"`
	// local is true for this cluster.
	// +optional
	Local bool `json:"local,omitempty" protobuf:"varint,3,opt,name=local"`
	// shared is true when the cluster offers its backends to the others.
	Shared bool `json:"shared" protobuf:"varint,4,opt,name=shared"`
	// type is the type of the cluster's Service: ClusterIP or Headless.
	// +optional
	// +k8s:optional
	Type ServiceType `json:"type,omitempty" protobuf:"bytes,5,opt,name=type,casttype=ServiceType"`
	// ports are the ports of the cluster's Service.
	// +optional
	// +listType=atomic
	// +k8s:optional
	// +k8s:listType=atomic
	// +k8s:maxItems=100
	Ports []ServicePort `json:"ports,omitempty" protobuf:"bytes,6,rep,name=ports"`
	// endpoints counts the cluster's endpoints of the service.
	// +optional
	Endpoints EndpointCount `json:"endpoints,omitempty,omitzero" protobuf:"bytes,7,opt,name=endpoints"`
}

// EndpointCount counts endpoints. An address that stands in two slices counts once, and
// so does an endpoint that has an address of each family.
type EndpointCount struct {
	// ready is how many are ready to serve.
	Ready int32 `json:"ready" protobuf:"varint,1,opt,name=ready"`
	// total is how many there are.
	Total int32 `json:"total" protobuf:"varint,2,opt,name=total"`
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// GlobalServiceList is a list of GlobalServices.
type GlobalServiceList struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard list metadata.
	// +optional
	// +k8s:opaqueType
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// items is the list.
	Items []GlobalService `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// ServiceType is the kind of Service as far as the mesh tells them apart.
// +enum
// +k8s:enum
type ServiceType string

const (
	// ServiceTypeClusterIP is a Service with a virtual IP.
	ServiceTypeClusterIP ServiceType = "ClusterIP"
	// ServiceTypeHeadless is a Service without one.
	ServiceTypeHeadless ServiceType = "Headless"
)

// ServicePort is one port of a Service.
type ServicePort struct {
	// name is the port's name, by which ports of the clusters' Services match each
	// other. It is empty for a single unnamed port.
	// +optional
	// +k8s:optional
	// +k8s:format=k8s-short-name
	// +k8s:maxLength=63
	Name string `json:"name,omitempty" protobuf:"bytes,1,opt,name=name"`
	// protocol is TCP, UDP or SCTP.
	// +required
	// +k8s:required
	// +k8s:maxLength=4
	// +k8s:opaqueType
	Protocol corev1.Protocol `json:"protocol" protobuf:"bytes,2,opt,name=protocol,casttype=k8s.io/api/core/v1.Protocol"`
	// port is the port that clients of the Service use.
	// +required
	// +k8s:required
	// +k8s:minimum=1
	// +k8s:maximum=65535
	Port int32 `json:"port" protobuf:"varint,3,opt,name=port"`
	// appProtocol is the Service's hint of the protocol that is spoken.
	// +optional
	// +k8s:optional
	// +k8s:maxLength=253
	AppProtocol string `json:"appProtocol,omitempty" protobuf:"bytes,4,opt,name=appProtocol"`
}

// ServiceRecord is what a cluster tells the others about one of its Services. An
// ExportedService and the ImportedService made from it hold the same record.
type ServiceRecord struct {
	// cluster is the name of the cluster that the Service is in. Immutable.
	// +required
	// +k8s:required
	// +k8s:immutable
	// +k8s:format=k8s-short-name
	// +k8s:maxLength=32
	Cluster string `json:"cluster" protobuf:"bytes,1,opt,name=cluster"`
	// clusterID is the ID of that cluster in the mesh. Immutable.
	// +required
	// +k8s:required
	// +k8s:immutable
	// +k8s:minimum=1
	// +k8s:maximum=65535
	ClusterID int32 `json:"clusterID" protobuf:"varint,2,opt,name=clusterID"`
	// type is ClusterIP or Headless.
	// +required
	// +k8s:required
	Type ServiceType `json:"type" protobuf:"bytes,3,opt,name=type,casttype=ServiceType"`
	// ports are the Service's ports.
	// +optional
	// +listType=atomic
	// +k8s:optional
	// +k8s:listType=atomic
	// +k8s:maxItems=100
	Ports []ServicePort `json:"ports,omitempty" protobuf:"bytes,4,rep,name=ports"`
	// ipFamilies are the families of the Service: IPv4, IPv6 or both.
	// +optional
	// +listType=atomic
	// +k8s:optional
	// +k8s:listType=atomic
	// +k8s:maxItems=2
	// +k8s:eachVal=+k8s:opaqueType
	IPFamilies []corev1.IPFamily `json:"ipFamilies,omitempty" protobuf:"bytes,5,rep,name=ipFamilies,casttype=k8s.io/api/core/v1.IPFamily"`
	// sessionAffinity is the Service's: None or ClientIP.
	// +optional
	// +k8s:optional
	// +k8s:maxLength=16
	// +k8s:opaqueType
	SessionAffinity corev1.ServiceAffinity `json:"sessionAffinity,omitempty" protobuf:"bytes,6,opt,name=sessionAffinity,casttype=k8s.io/api/core/v1.ServiceAffinity"`
	// exportedAt is when the cluster began to export the Service. Where the clusters'
	// Services differ, the oldest export wins.
	// +optional
	// +k8s:opaqueType
	ExportedAt metav1.Time `json:"exportedAt,omitempty,omitzero" protobuf:"bytes,7,opt,name=exportedAt"`
	// consumers names the clusters that the Service is offered to. Empty means all peers.
	// +optional
	// +listType=set
	// +k8s:optional
	// +k8s:listType=set
	// +k8s:maxItems=256
	Consumers []string `json:"consumers,omitempty" protobuf:"bytes,8,rep,name=consumers"`
}

// SliceRecord is a part of one Service's endpoints in one cluster. An
// ExportedEndpointSlice and the ImportedEndpointSlice made from it hold the same
// record.
type SliceRecord struct {
	// cluster is the name of the cluster that the endpoints are in. Immutable.
	// +required
	// +k8s:required
	// +k8s:immutable
	// +k8s:format=k8s-short-name
	// +k8s:maxLength=32
	Cluster string `json:"cluster" protobuf:"bytes,1,opt,name=cluster"`
	// clusterID is the ID of that cluster in the mesh. Immutable.
	// +required
	// +k8s:required
	// +k8s:immutable
	// +k8s:minimum=1
	// +k8s:maximum=65535
	ClusterID int32 `json:"clusterID" protobuf:"varint,2,opt,name=clusterID"`
	// service is the name of the Service, in the slice's namespace. Immutable.
	// +required
	// +k8s:required
	// +k8s:immutable
	// +k8s:format=k8s-short-name
	// +k8s:maxLength=63
	Service string `json:"service" protobuf:"bytes,3,opt,name=service"`
	// addressType is IPv4 or IPv6. Immutable.
	// +required
	// +k8s:required
	// +k8s:immutable
	// +k8s:maxLength=4
	// +k8s:opaqueType
	AddressType discoveryv1.AddressType `json:"addressType" protobuf:"bytes,4,opt,name=addressType,casttype=k8s.io/api/discovery/v1.AddressType"`
	// endpoints are at most 100; a larger slice of the cluster is split.
	// +optional
	// +listType=atomic
	// +k8s:optional
	// +k8s:listType=atomic
	// +k8s:maxItems=100
	Endpoints []Endpoint `json:"endpoints,omitempty" protobuf:"bytes,5,rep,name=endpoints"`
	// ports are the ports that each endpoint of the slice listens on.
	// +optional
	// +listType=atomic
	// +k8s:optional
	// +k8s:listType=atomic
	// +k8s:maxItems=100
	Ports []EndpointPort `json:"ports,omitempty" protobuf:"bytes,6,rep,name=ports"`
	// zones are the zones that the endpoints refer to by index.
	// +optional
	// +listType=atomic
	// +k8s:optional
	// +k8s:listType=atomic
	// +k8s:maxItems=100
	Zones []string `json:"zones,omitempty" protobuf:"bytes,7,rep,name=zones"`
	// changedAt is when the cluster saw the endpoints change, for measuring how long
	// a change takes to arrive.
	// +optional
	// +k8s:opaqueType
	ChangedAt metav1.MicroTime `json:"changedAt,omitempty,omitzero" protobuf:"bytes,8,opt,name=changedAt"`
}

// Endpoint is one address that serves a Service.
type Endpoint struct {
	// address is the endpoint's IP address, of the slice's addressType.
	// +required
	// +k8s:required
	// +k8s:maxLength=45
	Address string `json:"address" protobuf:"bytes,1,opt,name=address"`
	// ready is true while the endpoint takes new connections.
	Ready bool `json:"ready" protobuf:"varint,2,opt,name=ready"`
	// serving is true while the endpoint answers, even when it is terminating.
	Serving bool `json:"serving" protobuf:"varint,3,opt,name=serving"`
	// terminating is true once the endpoint was told to stop.
	// +optional
	Terminating bool `json:"terminating,omitempty" protobuf:"varint,4,opt,name=terminating"`
	// hostname is the endpoint's name within a headless Service.
	// +optional
	// +k8s:optional
	// +k8s:format=k8s-short-name
	// +k8s:maxLength=63
	Hostname string `json:"hostname,omitempty" protobuf:"bytes,5,opt,name=hostname"`
	// zone is the index of the endpoint's zone in the slice's zones. If absent, the
	// zone is not known.
	// +optional
	// +k8s:optional
	// +k8s:minimum=0
	Zone *int32 `json:"zone,omitempty" protobuf:"varint,6,opt,name=zone"`
}

// EndpointPort is a port that endpoints listen on.
type EndpointPort struct {
	// name is the name of the Service's port that this serves; empty for a single
	// unnamed one.
	// +optional
	// +k8s:optional
	// +k8s:format=k8s-short-name
	// +k8s:maxLength=63
	Name string `json:"name,omitempty" protobuf:"bytes,1,opt,name=name"`
	// protocol is TCP, UDP or SCTP.
	// +required
	// +k8s:required
	// +k8s:maxLength=4
	// +k8s:opaqueType
	Protocol corev1.Protocol `json:"protocol" protobuf:"bytes,2,opt,name=protocol,casttype=k8s.io/api/core/v1.Protocol"`
	// port is the number that the endpoints listen on.
	// +required
	// +k8s:required
	// +k8s:minimum=1
	// +k8s:maximum=65535
	Port int32 `json:"port" protobuf:"varint,3,opt,name=port"`
	// appProtocol is the hint of the protocol that is spoken.
	// +optional
	// +k8s:optional
	// +k8s:maxLength=253
	AppProtocol string `json:"appProtocol,omitempty" protobuf:"bytes,4,opt,name=appProtocol"`
}

// +genclient
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ExportedService is a Service that this cluster offers to its peers. This
// cluster's mesh controller writes it; peers read it.
type ExportedService struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard object's metadata. The name is the Service's.
	// +optional
	// +k8s:opaqueType
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// spec is what the peers are told about the Service.
	Spec ServiceRecord `json:"spec" protobuf:"bytes,2,opt,name=spec"`
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ExportedServiceList is a list of ExportedServices.
type ExportedServiceList struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard list metadata.
	// +optional
	// +k8s:opaqueType
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// items is the list.
	Items []ExportedService `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// +genclient
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ImportedService is a Service that a peer cluster offers to this one. This
// cluster's mesh controller writes it.
type ImportedService struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard object's metadata. The name is the peer's name, a dot and the Service's name.
	// +optional
	// +k8s:opaqueType
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// spec is what the peer tells about the Service. Cluster name and ID are those
	// of the peer's MeshCluster here, never what the peer claims.
	Spec ServiceRecord `json:"spec" protobuf:"bytes,2,opt,name=spec"`
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ImportedServiceList is a list of ImportedServices.
type ImportedServiceList struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard list metadata.
	// +optional
	// +k8s:opaqueType
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// items is the list.
	Items []ImportedService `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// +genclient
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ExportedEndpointSlice is a part of the endpoints that this cluster offers to its
// peers. This cluster's mesh controller writes it; peers read it.
type ExportedEndpointSlice struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard object's metadata.
	// +optional
	// +k8s:opaqueType
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// spec is the endpoints that the peers are told.
	Spec SliceRecord `json:"spec" protobuf:"bytes,2,opt,name=spec"`
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ExportedEndpointSliceList is a list of ExportedEndpointSlices.
type ExportedEndpointSliceList struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard list metadata.
	// +optional
	// +k8s:opaqueType
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// items is the list.
	Items []ExportedEndpointSlice `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// +genclient
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ImportedEndpointSlice is a part of the endpoints that a peer cluster offers to
// this one, checked. This cluster's mesh controller writes it; its agents read it.
type ImportedEndpointSlice struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard object's metadata. The name is the peer's name, a dot and the slice's
	// name there.
	// +optional
	// +k8s:opaqueType
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// spec is the peer's endpoints. Cluster name and ID are those of the peer's
	// MeshCluster here, never what the peer claims.
	Spec SliceRecord `json:"spec" protobuf:"bytes,2,opt,name=spec"`
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ImportedEndpointSliceList is a list of ImportedEndpointSlices.
type ImportedEndpointSliceList struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard list metadata.
	// +optional
	// +k8s:opaqueType
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// items is the list.
	Items []ImportedEndpointSlice `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// +genclient
// +genclient:nonNamespaced
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// MeshCluster is a member of the mesh: this cluster, or a peer that it imports
// from. Its name is the cluster's name, unique in the mesh: a DNS label of at most
// 32 characters, not "default".
type MeshCluster struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard object's metadata.
	// +optional
	// +k8s:opaqueType
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// spec is who the member is and how it is used.
	// +required
	Spec MeshClusterSpec `json:"spec" protobuf:"bytes,2,opt,name=spec"`
	// status is what this cluster knows about the member. The mesh controller sets it.
	// +optional
	Status MeshClusterStatus `json:"status,omitempty,omitzero" protobuf:"bytes,3,opt,name=status"`
}

// MeshClusterSpec says who a member of the mesh is, and how it is used.
type MeshClusterSpec struct {
	// id is the member's number in the mesh, from 1 to 65535, unique in the mesh.
	// Immutable.
	// +required
	// +k8s:required
	// +k8s:immutable
	// +k8s:minimum=1
	// +k8s:maximum=65535
	ID int32 `json:"id" protobuf:"varint,1,opt,name=id"`
	// kubeconfigSecretRef names the Secret, in the mesh controller's namespace, with
	// the kubeconfig of the member's mesh API. Absent for the local cluster only.
	// +optional
	// +k8s:optional
	KubeconfigSecretRef *SecretReference `json:"kubeconfigSecretRef,omitempty" protobuf:"bytes,2,opt,name=kubeconfigSecretRef"`
	// podCIDRs are the prefixes that the member's pods have. Where any is given, an
	// endpoint of the member outside them is refused; on the local cluster, an
	// endpoint of any peer inside them is. At most 64.
	// +optional
	// +listType=set
	// +k8s:optional
	// +k8s:listType=set
	// +k8s:maxItems=64
	PodCIDRs []string `json:"podCIDRs,omitempty" protobuf:"bytes,3,rep,name=podCIDRs"`
	// import limits what is taken from a peer.
	// +optional
	Import ImportPolicy `json:"import,omitempty,omitzero" protobuf:"bytes,4,opt,name=import"`
	// export limits, on the local cluster, what is offered to the peers.
	// +optional
	Export ExportPolicy `json:"export,omitempty,omitzero" protobuf:"bytes,5,opt,name=export"`
	// drained takes all backends of the member out of use for this cluster's clients,
	// as weight 0 does for one service.
	// +optional
	// +k8s:optional
	Drained bool `json:"drained,omitempty" protobuf:"varint,6,opt,name=drained"`
	// weight is the weight of the member's backends in services that don't set one,
	// from 0 to 1000. If absent it is 100.
	// +optional
	// +k8s:optional
	// +k8s:minimum=0
	// +k8s:maximum=1000
	Weight *int32 `json:"weight,omitempty" protobuf:"varint,7,opt,name=weight"`
	// priority is the priority of the member's backends in services that don't set
	// one; lower is preferred. If absent it is 0.
	// +optional
	// +k8s:optional
	// +k8s:minimum=0
	// +k8s:maximum=1000
	Priority *int32 `json:"priority,omitempty" protobuf:"varint,8,opt,name=priority"`
}

// SecretReference names a Secret in the mesh controller's namespace.
type SecretReference struct {
	// name is the Secret's name.
	// +required
	// +k8s:required
	// +k8s:format=k8s-long-name
	Name string `json:"name" protobuf:"bytes,1,opt,name=name"`
	// key is the entry of the Secret that holds the kubeconfig. If absent it is "kubeconfig".
	// +optional
	// +k8s:optional
	// +k8s:maxLength=253
	Key string `json:"key,omitempty" protobuf:"bytes,2,opt,name=key"`
}

// ImportPolicy limits what is imported from a peer.
type ImportPolicy struct {
	// namespaces are those that are imported. Empty means all.
	// +optional
	// +listType=set
	// +k8s:optional
	// +k8s:listType=set
	// +k8s:maxItems=1000
	Namespaces []string `json:"namespaces,omitempty" protobuf:"bytes,1,rep,name=namespaces"`
	// limits bounds how much is imported. What exceeds them is refused, counted and
	// named in the status.
	// +optional
	Limits ImportLimits `json:"limits,omitempty,omitzero" protobuf:"bytes,2,opt,name=limits"`
}

// ImportLimits bounds how much is taken from one peer.
type ImportLimits struct {
	// services is the most Services. If absent it is 10000.
	// +optional
	// +k8s:optional
	// +k8s:minimum=0
	Services *int32 `json:"services,omitempty" protobuf:"varint,1,opt,name=services"`
	// slices is the most endpoint slices. If absent it is 20000.
	// +optional
	// +k8s:optional
	// +k8s:minimum=0
	Slices *int32 `json:"slices,omitempty" protobuf:"varint,2,opt,name=slices"`
	// endpoints is the most endpoints. If absent it is 100000.
	// +optional
	// +k8s:optional
	// +k8s:minimum=0
	Endpoints *int32 `json:"endpoints,omitempty" protobuf:"varint,3,opt,name=endpoints"`
	// namespaces is the most namespaces. If absent it is 1000.
	// +optional
	// +k8s:optional
	// +k8s:minimum=0
	Namespaces *int32 `json:"namespaces,omitempty" protobuf:"varint,4,opt,name=namespaces"`
}

// ExportPolicy limits what is offered to the peers.
type ExportPolicy struct {
	// namespaces are those whose global Services are exported. Empty means all.
	// +optional
	// +listType=set
	// +k8s:optional
	// +k8s:listType=set
	// +k8s:maxItems=1000
	Namespaces []string `json:"namespaces,omitempty" protobuf:"bytes,1,rep,name=namespaces"`
}

// MeshClusterStatus is what this cluster knows about a member.
type MeshClusterStatus struct {
	// uid identifies the cluster whatever it is called: the UID of its kube-system
	// namespace. A known name with a new uid is an IdentityConflict.
	// +optional
	UID string `json:"uid,omitempty" protobuf:"bytes,1,opt,name=uid"`
	// version is the clustermesh version of the member's controller.
	// +optional
	Version string `json:"version,omitempty" protobuf:"bytes,2,opt,name=version"`
	// storeEpoch changes whenever the member's store is made anew or restored.
	// +optional
	StoreEpoch string `json:"storeEpoch,omitempty" protobuf:"bytes,3,opt,name=storeEpoch"`
	// controllerRun changes whenever the member's controller starts to lead.
	// +optional
	ControllerRun string `json:"controllerRun,omitempty" protobuf:"bytes,4,opt,name=controllerRun"`
	// services is how many Services are imported from the member; on the local
	// cluster, how many are exported.
	// +optional
	Services int32 `json:"services,omitempty" protobuf:"varint,5,opt,name=services"`
	// endpoints is how many endpoints are imported, or exported.
	// +optional
	Endpoints int32 `json:"endpoints,omitempty" protobuf:"varint,6,opt,name=endpoints"`
	// lastContactTime is when the member last answered; on the local cluster, when
	// its controller last ran (the heartbeat).
	// +optional
	// +k8s:opaqueType
	LastContactTime metav1.Time `json:"lastContactTime,omitempty,omitzero" protobuf:"bytes,7,opt,name=lastContactTime"`
	// lagMilliseconds is how old the last change from the member was when it arrived,
	// by the two clusters' clocks.
	// +optional
	LagMilliseconds int64 `json:"lagMilliseconds,omitempty" protobuf:"varint,8,opt,name=lagMilliseconds"`
	// refused is how many objects and endpoints of the member are refused now.
	// +optional
	Refused int32 `json:"refused,omitempty" protobuf:"varint,9,opt,name=refused"`
	// refusals names some of what is refused, each with the reason; at most 10.
	// +optional
	// +listType=atomic
	Refusals []string `json:"refusals,omitempty" protobuf:"bytes,10,rep,name=refusals"`
	// waitingNamespaces are those that the member exports and that do not exist
	// here; at most 100 are named.
	// +optional
	// +listType=atomic
	WaitingNamespaces []string `json:"waitingNamespaces,omitempty" protobuf:"bytes,11,rep,name=waitingNamespaces"`
	// conditions are Connected, Synced, IdentityConflict and, once there was a reason,
	// CredentialsExpiring; ExportsSynced on the local cluster.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +patchMergeKey=type
	// +patchStrategy=merge
	// +k8s:eachVal=+k8s:opaqueType
	Conditions []metav1.Condition `json:"conditions,omitempty" patchStrategy:"merge" patchMergeKey:"type" protobuf:"bytes,12,rep,name=conditions"`
	// observedGeneration is the generation of the spec that this status reflects.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty" protobuf:"varint,13,opt,name=observedGeneration"`
	// policyResourceVersion is the resourceVersion of the last write that changed what
	// agents are told of the member (its MeshMember). It is empty where that is this
	// object's own. The server sets it, and does not pass other writes on to agents.
	// +optional
	PolicyResourceVersion string `json:"policyResourceVersion,omitempty" protobuf:"bytes,14,opt,name=policyResourceVersion"`
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// MeshClusterList is a list of MeshClusters.
type MeshClusterList struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard list metadata.
	// +optional
	// +k8s:opaqueType
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// items is the list.
	Items []MeshCluster `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// +genclient
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ServicePolicy is what the agents of this cluster are told of a GlobalService: its
// spec. It is a view that cannot be written: change the GlobalService. There is one
// for each GlobalService but those that the mesh controller made and nobody has
// written into. A change of a GlobalService's status does not change it.
type ServicePolicy struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard object's metadata: the GlobalService's, without annotations and managed fields.
	// +optional
	// +k8s:opaqueType
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// spec is the GlobalService's.
	// +optional
	Spec GlobalServiceSpec `json:"spec,omitempty,omitzero" protobuf:"bytes,2,opt,name=spec"`
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// ServicePolicyList is a list of ServicePolicies.
type ServicePolicyList struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard list metadata.
	// +optional
	// +k8s:opaqueType
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// items is the list.
	Items []ServicePolicy `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// +genclient
// +genclient:nonNamespaced
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// MeshMember is what the agents of this cluster are told of a MeshCluster: who it is,
// and how its backends count. It is a view that cannot be written: change the
// MeshCluster. There is none for a MeshCluster that is being deleted. A change of a
// MeshCluster's counts or freshness does not change it.
type MeshMember struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard object's metadata: the MeshCluster's, without annotations and managed fields.
	// +optional
	// +k8s:opaqueType
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// spec is who the member is, and how its backends count.
	// +required
	Spec MeshMemberSpec `json:"spec" protobuf:"bytes,2,opt,name=spec"`
}

// MeshMemberSpec says who a member of the mesh is, and how its backends count.
type MeshMemberSpec struct {
	// id is the member's number in the mesh, from 1 to 65535.
	// +required
	// +k8s:required
	ID int32 `json:"id" protobuf:"varint,1,opt,name=id"`
	// drained is true while no backend of the member is used.
	// +optional
	// +k8s:optional
	Drained bool `json:"drained,omitempty" protobuf:"varint,2,opt,name=drained"`
	// weight is the weight of the member's backends in services that don't set one. If
	// absent it is 100.
	// +optional
	// +k8s:optional
	Weight *int32 `json:"weight,omitempty" protobuf:"varint,3,opt,name=weight"`
	// priority is the priority of the member's backends in services that don't set one;
	// lower is preferred. If absent it is 0.
	// +optional
	// +k8s:optional
	Priority *int32 `json:"priority,omitempty" protobuf:"varint,4,opt,name=priority"`
	// storeEpoch is, of the local cluster, the epoch of the store that all of this is
	// from.
	// +optional
	StoreEpoch string `json:"storeEpoch,omitempty" protobuf:"bytes,5,opt,name=storeEpoch"`
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// MeshMemberList is a list of MeshMembers.
type MeshMemberList struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard list metadata.
	// +optional
	// +k8s:opaqueType
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// items is the list.
	Items []MeshMember `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// +genclient
// +genclient:nonNamespaced
// +genclient:onlyVerbs=create
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// PeerToken asks for a new token for whoever asks: the account that this cluster has
// given to a peer, a ServiceAccount mesh-peer-<peer> in the mesh's namespace. Creating one
// is the request, the answer is in its status, and nothing is stored. Anybody else is
// refused. The token that was used stays valid until it expires; to take a peer's
// access away, delete its account.
//
// Whoever makes the account also makes a Role mesh-peer-<peer> in the mesh's namespace,
// bound to the ServiceAccount mesh-apiserver, that lets the server create
// serviceaccounts/token for that account, by its name.
type PeerToken struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard object's metadata. It means nothing here, and the answer has the account's name.
	// +optional
	// +k8s:opaqueType
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// spec is what kind of token is asked for.
	// +optional
	Spec PeerTokenSpec `json:"spec,omitempty,omitzero" protobuf:"bytes,2,opt,name=spec"`
	// status is the answer. The server sets it.
	// +optional
	Status PeerTokenStatus `json:"status,omitempty,omitzero" protobuf:"bytes,3,opt,name=status"`
}

// PeerTokenSpec says what kind of token a peer asks for. Whose token it is follows from
// who asks.
type PeerTokenSpec struct {
	// expirationSeconds is how long the token shall be valid: from 600 (10 minutes) to
	// 7776000 (90 days). If absent it is 2592000 (30 days). The cluster may grant less.
	// +optional
	// +k8s:optional
	// +k8s:minimum=600
	// +k8s:maximum=7776000
	ExpirationSeconds *int64 `json:"expirationSeconds,omitempty" protobuf:"varint,1,opt,name=expirationSeconds"`
}

// PeerTokenStatus is the token that a peer was given.
type PeerTokenStatus struct {
	// token is the new token.
	// +optional
	Token string `json:"token,omitempty" protobuf:"bytes,1,opt,name=token"`
	// expirationTimestamp is when it ceases to be valid.
	// +optional
	// +k8s:opaqueType
	ExpirationTimestamp metav1.Time `json:"expirationTimestamp,omitempty,omitzero" protobuf:"bytes,2,opt,name=expirationTimestamp"`
}

// +genclient
// +genclient:nonNamespaced
// +genclient:onlyVerbs=create
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object

// JoinRequest makes another cluster a member of this cluster's mesh. It is for two
// administrators who share no credentials: the one of this cluster invites, the one of
// the other joins. Creating one is the request, the answer is in its status, and it is
// not stored. An invitation is good for one join, of one name, for a short time.
//
// What an invitation to the cluster <name> consists of, made by "meshctl invite" with
// an administrator's rights, all in the mesh's namespace where it has one:
//
//   - Secret mesh-invite-<name>. It is the invitation: whoever deletes it
//     withdraws it. Its entry "expires" is the end of its time (RFC 3339), its entry
//     "token-id" the ID ("jti") of the one token that may use it; a join writes "used".
//   - ServiceAccount mesh-invite-<name>. It may create JoinRequests and nothing else, as
//     every account in the mesh's namespace may.
//   - that token: of the ServiceAccount, bound to the Secret. So the Secret is made
//     first, then the token, then the two entries are written; until then it is refused.
//   - ServiceAccount mesh-peer-<name>, ClusterRoleBinding mesh-peer-<name> to
//     ClusterRole mesh-peer, and Role and RoleBinding mesh-peer-<name> as for any
//     peer (see PeerToken).
//   - Role and RoleBinding mesh-renew-<name>, as for any peer that is imported from:
//     they let the ServiceAccount mesh-controller update Secret mesh-peer-<name>.
//   - Role mesh-invite-<name>, bound by a RoleBinding of the same name to the ServiceAccounts
//     mesh-apiserver and mesh-controller: get, update and delete on Secret
//     mesh-invite-<name>, get and update on Secret mesh-peer-<name>.
//
// What is called mesh-invite-<name> has the Secret as its owner, and goes with it.
//
// The server checks who asks, reads the Secret, and checks that name, ID and UID are
// free, that the kubeconfig is plain data, and that it can get the token. Then it writes
// into the Secret that it is used: of two that ask at once, one finds it so. Only then
// it writes Secret mesh-peer-<name> and MeshCluster <name>, if there is a kubeconfig,
// deletes the invitation, and answers. What fails after that is put right by another
// invitation: a cluster that is a member by the same name, ID and UID may join again, and
// gets new credentials. An invitation whose time is over the controller deletes.
type JoinRequest struct {
	// +k8s:opaqueType
	metav1.TypeMeta `json:""`
	// Standard object's metadata. It means nothing here.
	// +optional
	// +k8s:opaqueType
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	// spec is who joins.
	// +required
	Spec JoinRequestSpec `json:"spec" protobuf:"bytes,2,opt,name=spec"`
	// status is the answer. The server sets it.
	// +optional
	Status JoinRequestStatus `json:"status,omitempty,omitzero" protobuf:"bytes,3,opt,name=status"`
}

// JoinRequestSpec is what a cluster that joins says about itself.
type JoinRequestSpec struct {
	// name is the cluster's name in the mesh. The invitation must be for it.
	// +required
	// +k8s:required
	// +k8s:maxLength=32
	Name string `json:"name" protobuf:"bytes,1,opt,name=name"`
	// id is the cluster's number in the mesh, from 1 to 65535.
	// +required
	// +k8s:required
	// +k8s:minimum=1
	// +k8s:maximum=65535
	ID int32 `json:"id" protobuf:"varint,2,opt,name=id"`
	// uid identifies the cluster whatever it is called: the UID of its kube-system namespace.
	// +required
	// +k8s:required
	// +k8s:maxLength=253
	UID string `json:"uid" protobuf:"bytes,3,opt,name=uid"`
	// kubeconfig is how this cluster reaches the mesh API of the one that joins, and as
	// whom: an https address and certificate-authority-data for each cluster in it, a token or a
	// certificate for each user, no files, no programs; at most 64 KiB. Without it the joining
	// cluster imports from this one, and this one imports nothing.
	// +optional
	// +k8s:optional
	Kubeconfig []byte `json:"kubeconfig,omitempty" protobuf:"bytes,4,opt,name=kubeconfig"`
}

// JoinRequestStatus is what a cluster that has joined needs to import from this one.
type JoinRequestStatus struct {
	// name is this cluster's name in the mesh.
	// +optional
	Name string `json:"name,omitempty" protobuf:"bytes,1,opt,name=name"`
	// id is this cluster's number in the mesh.
	// +optional
	ID int32 `json:"id,omitempty" protobuf:"varint,2,opt,name=id"`
	// uid is the UID of this cluster's kube-system namespace.
	// +optional
	UID string `json:"uid,omitempty" protobuf:"bytes,3,opt,name=uid"`
	// token is a token of the account mesh-peer-<name of the cluster that joins>.
	// +optional
	Token string `json:"token,omitempty" protobuf:"bytes,4,opt,name=token"`
	// expirationTimestamp is when the token ceases to be valid.
	// +optional
	// +k8s:opaqueType
	ExpirationTimestamp metav1.Time `json:"expirationTimestamp,omitempty,omitzero" protobuf:"bytes,5,opt,name=expirationTimestamp"`
	// caBundle is the certificates of the authorities that the certificate of this
	// cluster's mesh API may be from, in PEM. It is empty where that certificate comes from
	// somebody else; then what the invitation says holds.
	// +optional
	CABundle []byte `json:"caBundle,omitempty" protobuf:"bytes,6,opt,name=caBundle"`
	// tlsServerName is the name that is in that certificate, whatever the address.
	// +optional
	TLSServerName string `json:"tlsServerName,omitempty" protobuf:"bytes,7,opt,name=tlsServerName"`
}
