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

package desired

import (
	"net/netip"
	"strings"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

// Name is a Service's namespace and name.
type Name struct{ Namespace, Name string }

// String formats the name as namespace/name.
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// LocalService is a Service of this cluster, as far as the table depends on it.
type LocalService struct {
	Annotations map[string]string
	// ClusterIPs are of one address family or both. Each is served by the endpoints of
	// its own.
	ClusterIPs []netip.Addr
	Ports      []LocalPort
	// LoadBalancerIPs are those that its load balancer has, ExternalIPs those of its spec:
	// further addresses that kube-proxy may serve it at. Only the first may ever be
	// frontends; anybody who may make Services may write any address into the others
	// (CVE-2020-8554).
	LoadBalancerIPs []LoadBalancerIP
	ExternalIPs     []netip.Addr
	// Created is when the Service was made, to the second.
	Created time.Time
	// AffinitySeconds is the timeout of sessionAffinity ClientIP; 0 without.
	AffinitySeconds uint32
	// InternalLocal is set where internalTrafficPolicy is Local: clients reach the
	// endpoints of their own node, or none.
	InternalLocal bool
	// Reason says why kube-proxy must keep serving the Service although it is global,
	// or is empty.
	Reason string
}

// LoadBalancerIP is an address of a Service's load balancer.
type LoadBalancerIP struct {
	Addr netip.Addr
	// Reason says why kube-proxy must keep serving it, or is empty.
	Reason string
}

// Claim is another Service that has an address, too.
type Claim struct {
	Service Name
	Created time.Time
	Addr    netip.Addr
	// ClusterIP is set where the address is a cluster IP of it; else its load balancer
	// has it.
	ClusterIP bool
	Ports     []LocalPort
}

// LocalPort is a port that clients of a Service use.
type LocalPort struct {
	Name     string
	Protocol corev1.Protocol
	Port     uint16
}

// Slice is some endpoints of one Service in one cluster, checked and sorted. A slice
// is never changed once it is handed over; a newer one takes its place.
type Slice struct {
	// Cluster is the name of the cluster; empty for this one.
	Cluster string
	Service Name
	// Object is the name of the API object.
	Object string
	Ports  []SlicePort
	// Endpoints are sorted by address, each address once.
	Endpoints []Endpoint
	// Near says of each endpoint where it is and for whom; nil for other clusters'.
	Near []Near
	// ChangedAt is when the endpoints' own cluster saw them change; zero if unknown.
	ChangedAt time.Time
}

// SlicePort is a port that each endpoint of a slice listens on.
type SlicePort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Endpoint is one address of a slice.
type Endpoint struct {
	Addr  netip.Addr
	State State
	// Leaving is set once the endpoint was told to stop, whether it still serves or not.
	Leaving bool
}

// Near is where an endpoint of this cluster is, and which clients are to prefer it, as
// EndpointSlices say. The zero value of a handle is none.
type Near struct {
	Node unique.Handle[string]
	// ForZones and ForNodes are the hints: names, joined by commas.
	ForZones, ForNodes unique.Handle[string]
}

// Names returns a handle for some names, in the form of Near.
func Names(names ...string) (handle unique.Handle[string]) {
	if joined := strings.Join(names, ","); joined != "" {
		handle = unique.Make(joined)
	}
	return handle
}

// names says whether a handle has any names, and whether this is among them.
func names(handle unique.Handle[string], name string) (some, among bool) {
	if handle == (unique.Handle[string]{}) {
		return false, false
	}
	for one := range strings.SplitSeq(handle.Value(), ",") {
		if one == name {
			return true, true
		}
	}
	return true, false
}

// Member is a cluster of the mesh: its MeshCluster, whose name and ID count,
// whatever an imported object claims.
type Member struct {
	Name string
	ID   uint16
	// Spec holds the member's weight, priority and whether it is drained.
	Spec v1alpha1.MeshClusterSpec
}

// Mesh is what the tables of all Services depend on.
type Mesh struct {
	// Cluster is this cluster's name.
	Cluster string
	// Namespace is the one that the mesh's own programs run in.
	Namespace string
	Policy    policy.Reader
	// Members are the clusters of the mesh by name, this one among them. A cluster
	// that is not a member does not count, whatever was imported from it.
	Members map[string]Member
	// LocalID is this cluster's ID for as long as its own Member is not known.
	LocalID uint16
	// Node is the name of the client's node, Zone its zone; each empty where unknown.
	Node, Zone string
	// AnyNode asks for what holds for the clients of any node, for people.
	AnyNode bool
	// LoadBalancerIPs makes the addresses of load balancers frontends, too.
	LoadBalancerIPs bool
	// Bound are the addresses that this node itself has, each with its device: what
	// connects to one means the node. It must not be changed any more.
	Bound map[netip.Addr]string
	// Remembered names the clusters, by ID, of which nothing is known but what the
	// kernel's table held at start.
	Remembered map[uint16]string
}

// ServiceInput is what the table of one Service depends on, beside the Mesh.
type ServiceInput struct {
	// Service is nil while the Service does not exist here.
	Service *LocalService
	// Claims are the other Services that have an address of its load balancer, too.
	Claims []Claim
	// NamespaceAnnotations are those of its Namespace.
	NamespaceAnnotations map[string]string
	// Spec is its GlobalService's; nil where there is none.
	Spec *v1alpha1.GlobalServiceSpec
	// Local and Remote are its slices of this cluster and of the others, in any order.
	Local, Remote []*Slice
	// Remembered is what the kernel's table held of it at start, by frontend.
	Remembered map[Frontend][]Backend
}

// Input is all that the table depends on.
type Input struct {
	Mesh     Mesh
	Services map[Name]ServiceInput
}

// Left is a Service, one port of it or one address, that is global here and yet left to
// kube-proxy.
type Left struct {
	Service ServicePort
	// Reason is one of few.
	Reason string
	// Detail is what exactly it is about; empty where there is nothing to add.
	Detail string
}

// Text is the reason with its detail.
func (l Left) Text() string {
	if l.Detail == "" {
		return l.Reason
	}
	return l.Reason + ": " + l.Detail
}

// Result is the part of the table that one Service makes up.
type Result struct {
	Services []Service
	Left     []Left
	// Unheld names the ports whose weights no reasonable number of slots can hold
	// within 2 %; they are served with the nearest shares that fit.
	Unheld []ServicePort
}

// Remote is all that is known of the rest of the mesh: what an agent keeps over a
// restart.
type Remote struct {
	// Epoch is that of the store that the rest was read from; empty if unknown.
	Epoch string
	// Revision is the highest resource version of our own MeshCluster in that store.
	Revision uint64
	Members  []Member
	Specs    map[Name]v1alpha1.GlobalServiceSpec
	Slices   []*Slice
}
