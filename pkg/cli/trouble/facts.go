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

// Package trouble looks for what is wrong in one or more clusters of a mesh. Facts are
// collected first (collect.go); each check is a pure function over them (checks.go,
// mesh.go), and gives findings: what is wrong, what shows it, and what to do.
package trouble

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

// Gravity is how bad a finding is.
type Gravity string

// Gravities, the worst first.
const (
	Error   Gravity = "error"   // something does not work
	Warning Gravity = "warning" // something will not work, or not for all
	Note    Gravity = "note"    // something that people should know
)

// Finding is one thing that is wrong.
type Finding struct {
	Gravity Gravity `json:"gravity"`
	// Cluster is the context it was found in.
	Cluster string `json:"cluster"`
	// Check is the name of what was checked.
	Check string `json:"check"`
	// What is wrong, in a sentence.
	What string `json:"what"`
	// Evidence is what shows it.
	Evidence []string `json:"evidence,omitempty"`
	// Do is what to do about it.
	Do string `json:"do"`
}

// Facts are what is known of one cluster. Where something could not be read, Problems
// says why by what it is, and the checks of it are left out.
type Facts struct {
	Context   string
	Namespace string
	Now       time.Time // this machine's clock
	// Unreachable says why kube-apiserver does not answer; then there is nothing else.
	Unreachable string
	Problems    map[string]string

	// Skew is how far kube-apiserver's clock is ahead of this machine's, to within
	// SkewWithin; absent if it did not say.
	Skew       *time.Duration
	SkewWithin time.Duration

	// Name and ID are what ConfigMap mesh-config says; empty if there is none.
	Name, ID string
	// UID is that of the namespace kube-system.
	UID string

	APIService *apiregistrationv1.APIService // nil: there is none
	// MeshAPI says why the mesh API does not answer; empty if it does.
	MeshAPI  string
	Clusters []v1alpha1.MeshCluster
	Globals  []v1alpha1.GlobalService

	Nodes       []corev1.Node
	Pods        []corev1.Pod // of the mesh's namespace
	StatefulSet *appsv1.StatefulSet
	Deployment  *appsv1.Deployment
	DaemonSet   *appsv1.DaemonSet
	Lease       *coordinationv1.Lease
	// PeerService is the Service that peers reach the mesh API by.
	PeerService *corev1.Service

	// CA are the fingerprints of the certificates in ConfigMap mesh-ca.
	CA []string
	// Peers are the credentials for the peers, by the cluster's name. They hold no secret.
	Peers map[string]Peer

	// Readyz is what agents say that are not ready, by pod.
	Readyz map[string]string

	// Services are those with an annotation of the mesh, Namespaces alike.
	Services   []Annotated
	Namespaces []Annotated

	// CiliumReplacesKubeProxy and CiliumMesh say what of Cilium's runs beside the mesh.
	CiliumReplacesKubeProxy bool
	CiliumMesh              bool
}

// Annotated is an object with annotations of the mesh.
type Annotated struct {
	Namespace, Name string
	Annotations     map[string]string
}

// Peer is what can be told of the Secret with a peer's kubeconfig.
type Peer struct {
	Secret  string
	Problem string // it cannot be used, and why
	// Hosts are the endpoints' hosts, and Ports their ports.
	Hosts []string
	Ports []string
	// CA are the fingerprints of the certificates that are trusted.
	CA []string
	// IssuedAt and Expires are the token's, zero if it does not say.
	IssuedAt, Expires time.Time
}
