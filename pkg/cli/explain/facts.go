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

// Package explain follows one global service from the annotation that makes it global
// to a node's kernel, link by link, and says where that chain is broken. It performs
// no I/O: facts go in, and the chain comes out.
package explain

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/agent/dump"
	"mesh.io/clustermesh/pkg/agent/source"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

// Cluster is what one cluster's two APIs say about one service. What is nil or empty
// is not there, unless a problem says that it could not be read.
type Cluster struct {
	// Context is the kubeconfig context that it was read by.
	Context string
	// Name is the cluster's name in the mesh; the context's while it is not known.
	Name string
	// MeshNamespace is where the mesh's programs run.
	MeshNamespace string
	// Problem and MeshProblem say why kube-apiserver, or the mesh API, could not be read.
	Problem, MeshProblem string
	// CiliumMesh is set where Cilium's own cluster mesh runs: its annotations don't
	// count for ours there.
	CiliumMesh bool

	Namespace      *corev1.Namespace
	Service        *corev1.Service
	Slices         []discoveryv1.EndpointSlice
	Global         *v1alpha1.GlobalService
	Exported       *v1alpha1.ExportedService
	ExportedSlices []v1alpha1.ExportedEndpointSlice
	Imported       []v1alpha1.ImportedService
	ImportedSlices []v1alpha1.ImportedEndpointSlice
	Members        []v1alpha1.MeshCluster
}

// Member is the MeshCluster of a name, or nil.
func (c *Cluster) Member(name string) *v1alpha1.MeshCluster {
	for i := range c.Members {
		if c.Members[i].Name == name {
			return &c.Members[i]
		}
	}
	return nil
}

// Local is the cluster's own MeshCluster, or nil while its controller has not run.
func Local(members []v1alpha1.MeshCluster) *v1alpha1.MeshCluster {
	for i := range members {
		if members[i].Spec.KubeconfigSecretRef == nil {
			return &members[i]
		}
	}
	return nil
}

// Peers are the names of the other clusters that this one has a MeshCluster of.
func (c *Cluster) Peers() []string {
	var names []string
	for i := range c.Members {
		if c.Members[i].Spec.KubeconfigSecretRef != nil {
			names = append(names, c.Members[i].Name)
		}
	}
	slices.Sort(names)
	return names
}

func (c *Cluster) reader() policy.Reader { return policy.Reader{Cilium: !c.CiliumMesh} }

// Policy is how the cluster's Service takes part. Without a Service the spec and the
// defaults are left.
func (c *Cluster) Policy() policy.Service {
	var service, namespace map[string]string
	if c.Service != nil {
		service = c.Service.Annotations
		if c.Namespace != nil {
			namespace = c.Namespace.Annotations
		}
	}
	return c.reader().Service(service, namespace, c.spec())
}

func (c *Cluster) spec() *v1alpha1.GlobalServiceSpec {
	if c.Global == nil {
		return nil
	}
	return &c.Global.Spec
}

// Share is how the backends of a cluster are weighed for the clients of this one, and
// where that comes from.
func (c *Cluster) Share(name string) (share policy.Share, weight, priority policy.ShareSource) {
	var member *v1alpha1.MeshClusterSpec
	if m := c.Member(name); m != nil {
		member = &m.Spec
	}
	share = policy.Cluster(c.spec(), name, member)
	weight, priority = policy.ShareSources(c.spec(), name, member)
	return share, weight, priority
}

// Objects are what an agent of the cluster builds its table from.
func (c *Cluster) Objects() source.Objects {
	return source.Objects{
		Cluster: c.Name, MeshNamespace: c.MeshNamespace, Policy: c.reader(), Members: c.Members,
		Service: c.Service, Namespace: c.Namespace, Global: c.Global, Slices: c.Slices, Imported: c.ImportedSlices,
	}
}

// Peer is another cluster of the mesh.
type Peer struct {
	Name string
	// There is what that cluster itself says; nil if nobody could be asked.
	There *Cluster
}

// Node is one node of the cluster that the client is in.
type Node struct {
	Name string
	// Problem says why the node or its pods could not be read.
	Problem string
	Exists  bool
	// Pod is the agent's; nil if there is none.
	Pod *corev1.Pod
	// Dump is the kernel's table, DumpProblem why there is none.
	Dump        *dump.Document
	DumpProblem string
}

// Facts are all that the chain is made of.
type Facts struct {
	Namespace, Name string
	Here            Cluster
	Peers           []Peer
	// Only is set if the peers are those that a person asked about: then each has to
	// take part.
	Only bool
	// Unnamed are the problems of clusters that were asked and of which not even the
	// name is known: any peer may be one.
	Unnamed []string
	Node    Node
	Now     time.Time
}

// State is how a link is.
type State string

// The states of a link.
const (
	OK      State = "ok"
	Broken  State = "broken"
	Unknown State = "unknown"
	// Skipped is a link that there is nothing to say of: something before it is
	// missing, or the cluster does not take part.
	Skipped State = "skipped"
)

// Link is one step on the way of a service to a node's kernel.
type Link struct {
	Name string `json:"link"`
	// Cluster is where the link is; Peer, where there are several of it, whose
	// backends it is about.
	Cluster  string   `json:"cluster"`
	Peer     string   `json:"peer,omitempty"`
	State    State    `json:"state"`
	Evidence []string `json:"evidence,omitempty"`
	// Since is how long the evidence has been so; zero if that is not known.
	Since time.Time `json:"since,omitzero"`
	// Do says what a person can do about a link that is not ok.
	Do string `json:"do,omitempty"`
}

func (l *Link) set(state State, evidence ...string) *Link {
	l.State = state
	for _, e := range evidence {
		if e != "" {
			l.Evidence = append(l.Evidence, e)
		}
	}
	return l
}

func (l *Link) since(t time.Time) *Link {
	l.Since = t
	return l
}

func (l *Link) do(parts ...string) *Link {
	l.Do = strings.Join(parts, " ")
	return l
}

// FirstBroken is the index of the first link that is broken, or -1.
func FirstBroken(chain []Link) int {
	return slices.IndexFunc(chain, func(l Link) bool { return l.State == Broken })
}

// input is what the agents here build the service from.
func (c *Cluster) input() (desired.Mesh, desired.ServiceInput) { return c.Objects().Input() }
