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

// Package status judges a mesh by what was read of its clusters. It is pure: Build makes
// a report of what was observed, and Write prints it for people.
package status

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/contact"
	"mesh.io/clustermesh/pkg/cli/workload"
)

// Observed is what was read of one cluster. What could not be read says why.
type Observed struct {
	// Context is the kubeconfig context that the cluster was reached by.
	Context string
	// ClockAhead is how far the cluster's clock is ahead of this machine's, if that can be told.
	ClockAhead time.Duration
	// Namespace is the mesh's.
	Namespace string
	// Unreachable is why Kubernetes' API server did not answer.
	Unreachable string
	// Unread is why other things could not be read.
	Unread []string
	// Config is the content of the ConfigMap mesh-config; nil without one.
	Config map[string]string
	// Workloads are those of the mesh that exist.
	Workloads []workload.State
	// Pods are those of the workloads.
	Pods []corev1.Pod
	// External is true where the store is an etcd of somebody else.
	External bool
	// APIService is the registration of the mesh API, if there is one.
	APIService *apiregistrationv1.APIService
	// Readiness is what each mesh API server's /readyz?verbose says, by pod.
	Readiness map[string]string
	// ReadinessError is why that could not be read.
	ReadinessError string
	// Members are the MeshClusters, and MembersError why they could not be read.
	Members      []v1alpha1.MeshCluster
	MembersError string
	// GlobalServices is how many there are; -1 when it could not be read.
	GlobalServices int64
}

// Report is the state of a mesh.
type Report struct {
	Healthy  bool      `json:"healthy"`
	Clusters []Cluster `json:"clusters"`
	// Exported is how many services each cluster offers to the others.
	Exported *Spread `json:"exported,omitempty"`
}

// Spread is how a number differs between clusters.
type Spread struct {
	Clusters int     `json:"clusters"`
	Min      int32   `json:"min"`
	Average  float64 `json:"average"`
	Max      int32   `json:"max"`
}

// Cluster is the state of one cluster.
type Cluster struct {
	Context string `json:"context"`
	Name    string `json:"name,omitempty"`
	ID      int32  `json:"id,omitempty"`
	// State is healthy, unhealthy, not installed or unreachable.
	State      string      `json:"state"`
	Components []Component `json:"components,omitempty"`
	API        *API        `json:"api,omitempty"`
	Store      *Store      `json:"store,omitempty"`
	Exports    *Exports    `json:"exports,omitempty"`
	Peers      []Peer      `json:"peers"`
	Nodes      *Nodes      `json:"nodes,omitempty"`
	// GlobalServices is how many services this cluster knows to be global.
	GlobalServices *int64    `json:"globalServices,omitempty"`
	Warnings       []Warning `json:"warnings"`

	clockAhead time.Duration
}

// The states of a cluster.
const (
	Healthy      = "healthy"
	Unhealthy    = "unhealthy"
	NotInstalled = "not installed"
	Unreachable  = "unreachable"
)

// Component is one of the mesh's programs.
type Component struct {
	Name    string      `json:"name"`
	Kind    string      `json:"kind"`
	Ready   int32       `json:"ready"`
	Desired int32       `json:"desired"`
	Version string      `json:"version"`
	Since   metav1.Time `json:"since"`
}

// API is the mesh API as people reach it.
type API struct {
	Available bool   `json:"available"`
	Message   string `json:"message,omitempty"`
}

// Store is where the mesh API keeps its objects.
type Store struct {
	// Kind is embedded or external.
	Kind string `json:"kind"`
	// Healthy is absent when it is not known.
	Healthy *bool  `json:"healthy,omitempty"`
	Message string `json:"message,omitempty"`
}

// Exports is what the cluster offers to the others.
type Exports struct {
	Services  int32       `json:"services"`
	Endpoints int32       `json:"endpoints"`
	Synced    bool        `json:"synced"`
	Message   string      `json:"message,omitempty"`
	Heartbeat metav1.Time `json:"heartbeat"`
}

// Peer is a cluster that this one imports from.
type Peer struct {
	Name      string    `json:"name"`
	ID        int32     `json:"id"`
	Version   string    `json:"version,omitempty"`
	Connected Condition `json:"connected"`
	Synced    Condition `json:"synced"`
	// Doubt is why the connection may be broken although it counts as connected.
	Doubt           string      `json:"doubt,omitempty"`
	Conflict        bool        `json:"identityConflict,omitempty"`
	Drained         bool        `json:"drained,omitempty"`
	LastContact     metav1.Time `json:"lastContact"`
	LagMilliseconds int64       `json:"lagMilliseconds"`
	Services        int32       `json:"services"`
	Endpoints       int32       `json:"endpoints"`
	Refused         int32       `json:"refused"`
}

// Condition is whether something is so, since when, and why.
type Condition struct {
	Status bool `json:"status"`
	// Unknown is set where Status is false because nobody knows.
	Unknown bool        `json:"unknown,omitempty"`
	Since   metav1.Time `json:"since"`
	Reason  string      `json:"reason,omitempty"`
	Message string      `json:"message,omitempty"`
}

// Nodes says on how many nodes the kernel is programmed.
type Nodes struct {
	Programmed int32 `json:"programmed"`
	Desired    int32 `json:"desired"`
	// Not names those that are not, with the reason.
	Not []Node `json:"not,omitempty"`
}

// Node is a node that is not programmed.
type Node struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Warning is what a person should know.
type Warning struct {
	// Problem is true for what makes the cluster unhealthy.
	Problem bool   `json:"problem"`
	Message string `json:"message"`
	// Do is what to do about it.
	Do string `json:"do"`
}

// Build judges a mesh.
func Build(now time.Time, observed []Observed) *Report {
	report := &Report{Healthy: len(observed) > 0}
	for i := range observed {
		cluster := build(now, &observed[i])
		report.Clusters = append(report.Clusters, *cluster)
	}
	if len(report.Clusters) > 1 {
		together(report.Clusters)
	}
	for i := range report.Clusters {
		c := &report.Clusters[i]
		if c.State == Healthy && slices.ContainsFunc(c.Warnings, func(w Warning) bool { return w.Problem }) {
			c.State = Unhealthy
		}
		report.Healthy = report.Healthy && c.State == Healthy
	}
	report.Exported = spread(report.Clusters)
	return report
}

// builder collects what is wrong with one cluster.
type builder struct {
	now      time.Time
	observed *Observed
	cluster  *Cluster
}

func (b *builder) problem(do, format string, args ...any) {
	b.cluster.Warnings = append(b.cluster.Warnings, Warning{Problem: true, Message: fmt.Sprintf(format, args...), Do: do})
}

func (b *builder) note(do, format string, args ...any) {
	b.cluster.Warnings = append(b.cluster.Warnings, Warning{Message: fmt.Sprintf(format, args...), Do: do})
}

func build(now time.Time, o *Observed) *Cluster {
	b := &builder{now: now.Add(o.ClockAhead), observed: o, cluster: &Cluster{Context: o.Context, State: Healthy, Peers: []Peer{}, Warnings: []Warning{}, clockAhead: o.ClockAhead}}
	b.identity()
	switch {
	case o.Unreachable != "":
		b.cluster.State = Unreachable
		b.problem("Check the context of the kubeconfig, and that the cluster is up.", "Kubernetes' API server does not answer: %s.", strings.TrimSuffix(o.Unreachable, "."))
		return b.cluster
	case len(o.Unread) > 0:
		for _, why := range o.Unread {
			b.problem("Check what your account may do: whether the cluster is healthy cannot be told without it.", "Not all could be read: %s.", strings.TrimSuffix(why, "."))
		}
	case len(o.Workloads) == 0 && (o.APIService == nil || !ours(o.APIService, o.Namespace)):
		b.cluster.State = NotInstalled
		b.problem(fmt.Sprintf("meshctl install --context %s --cluster-name NAME --cluster-id ID", o.Context), "The mesh is not installed here: there are none of its programs in namespace %s.", o.Namespace)
		if o.APIService != nil {
			b.note("Ask whom it belongs to: the mesh cannot be installed beside it.", "Somebody else serves the API %s here.", o.APIService.Name)
		}
		return b.cluster
	}
	b.components()
	b.api()
	b.store()
	b.members()
	return b.cluster
}

// ours says whether a registration is of a mesh API in the namespace.
func ours(s *apiregistrationv1.APIService, namespace string) bool {
	return s.Spec.Service != nil && s.Spec.Service.Name == workload.APIServer && s.Spec.Service.Namespace == namespace
}

func (b *builder) identity() {
	b.cluster.Name = b.observed.Config["cluster-name"]
	_, _ = fmt.Sscan(b.observed.Config["cluster-id"], &b.cluster.ID)
}

// logs is the command that shows why a program is as it is.
func (b *builder) logs(object string) string {
	return fmt.Sprintf("kubectl --context %s -n %s logs %s", b.observed.Context, b.observed.Namespace, object)
}

func (b *builder) describe(pod string) string {
	return fmt.Sprintf("kubectl --context %s -n %s describe pod %s", b.observed.Context, b.observed.Namespace, pod)
}

func (b *builder) components() {
	for _, name := range []string{workload.APIServer, workload.Controller, workload.Agent} {
		i := slices.IndexFunc(b.observed.Workloads, func(s workload.State) bool { return s.Name == name })
		if i < 0 {
			b.problem(fmt.Sprintf("meshctl upgrade --context %s makes it again.", b.observed.Context), "%s is missing.", name)
			continue
		}
		state := b.observed.Workloads[i]
		b.cluster.Components = append(b.cluster.Components, Component{
			Name: name, Kind: state.Kind, Ready: state.Ready, Desired: state.Desired, Version: state.Version, Since: metav1.NewTime(state.Created),
		})
		if name == workload.Agent {
			b.nodes(state)
			continue
		}
		if state.Done() {
			continue
		}
		reason, pod := b.reason(name)
		text := fmt.Sprintf("%s: %s", name, state.Progress())
		if pod == "" {
			b.problem(fmt.Sprintf("kubectl --context %s -n %s describe %s %s", b.observed.Context, b.observed.Namespace, strings.ToLower(state.Kind), name), "%s.", text)
			continue
		}
		b.problem(b.remedy(reason, pod), "%s. Pod %s: %s.", text, pod, strings.TrimSuffix(reason, "."))
	}
	versions := map[string]bool{}
	var named []string
	for _, c := range b.cluster.Components {
		versions[c.Version] = true
		named = append(named, c.Name+" "+c.Version)
	}
	if len(versions) > 1 {
		b.note(fmt.Sprintf("meshctl upgrade --context %s", b.observed.Context), "The programs are of different versions: %s.", strings.Join(named, ", "))
	}
}

// remedy is how to look into a pod that is not ready.
func (b *builder) remedy(reason, pod string) string {
	switch {
	case strings.Contains(reason, " ended ") || strings.Contains(reason, "started again"):
		return b.logs(pod) + " --previous"
	case strings.Contains(reason, "runs, and is not ready"):
		return b.logs(pod)
	}
	return b.describe(pod)
}

// reason is why a program's pods are not ready, and of which one this is said.
func (b *builder) reason(name string) (reason, pod string) {
	for i := range b.observed.Pods {
		p := &b.observed.Pods[i]
		if p.Labels[workload.NameLabel] != name {
			continue
		}
		if problem := workload.Problem(p); problem != "" {
			return problem, p.Name
		}
	}
	return "", ""
}

func (b *builder) nodes(state workload.State) {
	nodes := &Nodes{Programmed: state.Ready, Desired: state.Desired}
	b.cluster.Nodes = nodes
	pods := map[string]string{}
	for i := range b.observed.Pods {
		p := &b.observed.Pods[i]
		if p.Labels[workload.NameLabel] != workload.Agent || p.Spec.NodeName == "" {
			continue
		}
		if problem := workload.Problem(p); problem != "" && p.DeletionTimestamp == nil {
			nodes.Not = append(nodes.Not, Node{Name: p.Spec.NodeName, Reason: problem})
			pods[p.Spec.NodeName] = p.Name
		}
	}
	slices.SortFunc(nodes.Not, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	for i, n := range nodes.Not {
		if i == 3 {
			b.problem(fmt.Sprintf("kubectl --context %s -n %s get pods -l %s=%s -o wide", b.observed.Context, b.observed.Namespace, workload.NameLabel, workload.Agent),
				"%d more nodes are not programmed.", len(nodes.Not)-i)
			break
		}
		b.problem(b.remedy(n.Reason, pods[n.Name]), "Node %s is not programmed: pod %s: %s. Its clients get local backends only, from kube-proxy, or what was programmed last.",
			n.Name, pods[n.Name], strings.TrimSuffix(n.Reason, "."))
	}
	switch {
	case state.Done() && state.Desired == 0:
		b.problem("Check the nodes, and the agent's nodeSelector.", "No node runs %s: no client can use the other clusters.", workload.Agent)
	case !state.Done() && len(nodes.Not) == 0:
		b.problem(fmt.Sprintf("kubectl --context %s -n %s describe daemonset %s", b.observed.Context, b.observed.Namespace, workload.Agent), "%s: %s.", workload.Agent, state.Progress())
	}
}

func (b *builder) api() {
	api := &API{}
	b.cluster.API = api
	s := b.observed.APIService
	switch {
	case s == nil:
		api.Message = "it is not registered"
		b.problem(fmt.Sprintf("meshctl upgrade --context %s registers it again.", b.observed.Context), "The mesh API is not registered with Kubernetes: APIService v1alpha1.mesh.io is missing.")
		return
	case !ours(s, b.observed.Namespace):
		api.Message = "APIService " + s.Name + " is somebody else's"
		b.problem("Ask whom it belongs to, and remove one of the two.", "APIService %s does not lead to the mesh API of namespace %s.", s.Name, b.observed.Namespace)
		return
	}
	for _, c := range s.Status.Conditions {
		if c.Type == apiregistrationv1.Available {
			api.Available = c.Status == apiregistrationv1.ConditionTrue
			if !api.Available {
				api.Message = c.Reason + ": " + c.Message
			}
		}
	}
	if !api.Available {
		if api.Message == "" {
			api.Message = "Kubernetes has not tried it yet"
		}
		b.problem("See to mesh-apiserver first. Nodes go on with what they know; namespaces cannot be deleted meanwhile.", "The mesh API cannot be reached through Kubernetes: %s.", strings.TrimSuffix(api.Message, "."))
	}
}

func (b *builder) store() {
	store := &Store{Kind: "embedded"}
	if b.observed.External {
		store.Kind = "external"
	}
	b.cluster.Store = store
	if len(b.observed.Readiness) == 0 {
		store.Message = b.observed.ReadinessError
		return
	}
	healthy := true
	for _, pod := range slices.Sorted(maps.Keys(b.observed.Readiness)) {
		if trouble := storeTrouble(b.observed.Readiness[pod]); trouble != "" {
			healthy = false
			store.Message = pod + ": " + trouble
			do := "See to that etcd: nothing can be written meanwhile; what is known is still served."
			if !b.observed.External {
				do = b.logs(pod) + "; nothing can be written meanwhile, what is known is still served."
			}
			b.problem(do, "The store does not answer %s: %s.", pod, trouble)
		}
	}
	store.Healthy = &healthy
}

// storeTrouble reads the line about etcd of a verbose /readyz: "[+]etcd ok", where a
// store without quorum says so in the name of the check.
func storeTrouble(readiness string) string {
	for line := range strings.Lines(readiness) {
		line = strings.TrimSpace(line)
		check, ok := strings.CutPrefix(line, "[+]")
		if !ok {
			if check, ok = strings.CutPrefix(line, "[-]"); !ok {
				continue
			}
		}
		if rest, ok := strings.CutPrefix(check, "etcd "); ok {
			if strings.HasPrefix(rest, "(") {
				inside, _, _ := strings.Cut(rest[1:], ")")
				return inside
			}
			if strings.HasPrefix(line, "[-]") {
				return strings.TrimPrefix(rest, "failed: ")
			}
		}
	}
	return ""
}

func (b *builder) members() {
	o := b.observed
	if o.MembersError != "" {
		if b.cluster.API.Available {
			b.problem("Check what your account may do: ClusterRole mesh-cluster-view lets it read them.", "The members of the mesh cannot be read: %s.", strings.TrimSuffix(o.MembersError, "."))
		}
		return
	}
	if o.GlobalServices >= 0 {
		n := o.GlobalServices
		b.cluster.GlobalServices = &n
	}
	local := slices.IndexFunc(o.Members, func(m v1alpha1.MeshCluster) bool { return m.Spec.KubeconfigSecretRef == nil })
	var own *v1alpha1.MeshCluster
	if local >= 0 {
		own = &o.Members[local]
	}
	for i := range o.Members {
		if o.Members[i].Spec.KubeconfigSecretRef != nil {
			b.peer(own, &o.Members[i])
		}
	}
	slices.SortFunc(b.cluster.Peers, func(x, y Peer) int { return strings.Compare(x.Name, y.Name) })
	if own == nil {
		b.problem(b.logs("deploy/"+workload.Controller), "This cluster is not a member of the mesh yet: its controller has not made its MeshCluster.")
		return
	}
	b.local(own)
}

func (b *builder) local(m *v1alpha1.MeshCluster) {
	if b.cluster.Name == "" {
		b.cluster.Name, b.cluster.ID = m.Name, m.Spec.ID
	}
	exports := &Exports{Services: m.Status.Services, Endpoints: m.Status.Endpoints, Heartbeat: m.Status.LastContactTime}
	b.cluster.Exports = exports
	if c := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.MeshClusterExportsSynced); c != nil {
		exports.Synced = c.Status == metav1.ConditionTrue
		if !exports.Synced {
			exports.Message = c.Message
		}
	}
	if b.conflict(m) {
		return
	}
	switch {
	case m.Status.LastContactTime.IsZero():
		b.problem(b.logs("deploy/"+workload.Controller), "No controller has led in this cluster yet.")
	case contact.Ended(b.now, m):
		b.problem(b.logs("deploy/"+workload.Controller), "No controller leads: the last one was alive %s ago. Nothing is exported or imported.", ago(contact.Age(b.now, m.Status.LastContactTime)))
	case !exports.Synced:
		b.problem("It takes seconds after a start; otherwise: "+b.logs("deploy/"+workload.Controller), "What this cluster exports is not complete yet. %s", exports.Message)
	}
}

// conflict tells of a conflict of identity.
func (b *builder) conflict(m *v1alpha1.MeshCluster) bool {
	c := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.MeshClusterIdentityConflict)
	if c == nil || c.Status != metav1.ConditionTrue {
		return false
	}
	b.problem("Give each cluster a name and an ID of its own: uninstall one, and install it with others.", "%s has a conflict of identity. %s", m.Name, c.Message)
	return true
}

func (b *builder) peer(own, m *v1alpha1.MeshCluster) {
	s := &m.Status
	link := contact.Of(b.now, own, m)
	peer := Peer{
		Name: m.Name, ID: m.Spec.ID, Version: s.Version, Drained: m.Spec.Drained, LastContact: s.LastContactTime, LagMilliseconds: s.LagMilliseconds,
		Services: s.Services, Endpoints: s.Endpoints, Refused: s.Refused,
		Connected: condition(m, v1alpha1.MeshClusterConnected), Synced: condition(m, v1alpha1.MeshClusterSynced),
	}
	disconnect := fmt.Sprintf("meshctl disconnect --context %s --peer %s", b.observed.Context, m.Name)
	switch {
	case m.DeletionTimestamp != nil:
		b.note("It goes by itself once the controller has removed what came from it.", "Peer %s is being disconnected.", m.Name)
	case b.conflict(m):
		peer.Conflict = true
	case link.Doubt != "" && (peer.Connected.Status || peer.Connected.Unknown):
		peer.Doubt = link.Doubt
		// Where no controller leads, that is the problem.
		if !link.Blind {
			b.problem(fmt.Sprintf("See to the peer and the way to it, or: %s. What was imported before stays.", disconnect), "The link to peer %s seems to be broken: it was %s.", m.Name, link.Doubt)
		}
	case !peer.Connected.Status:
		text := "it has not been tried yet"
		if peer.Connected.Message != "" {
			text = strings.TrimSuffix(peer.Connected.Message, ".")
		}
		since := ""
		if !peer.Connected.Since.IsZero() {
			since = " for " + ago(b.now.Sub(peer.Connected.Since.Time))
		}
		if link.Heard >= 0 {
			since += ", " + link.LastHeard()
		}
		b.problem(fmt.Sprintf("See to the peer, or: %s. What was imported before stays.", disconnect), "Peer %s is not connected%s: %s.", m.Name, since, text)
	case !peer.Synced.Status:
		b.problem("It takes seconds; otherwise: "+b.logs("deploy/"+workload.Controller), "What peer %s exports is not imported completely. %s", m.Name, peer.Synced.Message)
	}
	if s.Refused > 0 {
		b.note(fmt.Sprintf("kubectl --context %s describe meshcluster %s", b.observed.Context, m.Name), "%d objects or endpoints of peer %s are refused: %s.", s.Refused, m.Name, strings.TrimSuffix(first(s.Refusals), "."))
	}
	if n := len(s.WaitingNamespaces); n > 0 {
		b.note("Create them here to use these services.", "Peer %s exports services of namespaces that do not exist here: %s.", m.Name, some(s.WaitingNamespaces, 5))
	}
	if m.Spec.Drained {
		b.note(fmt.Sprintf("kubectl --context %s patch meshcluster %s --type merge -p '{\"spec\":{\"drained\":false}}'", b.observed.Context, m.Name), "Peer %s is drained: its backends get no new connection from here.", m.Name)
	}
	b.cluster.Peers = append(b.cluster.Peers, peer)
}

func condition(m *v1alpha1.MeshCluster, kind string) Condition {
	c := meta.FindStatusCondition(m.Status.Conditions, kind)
	if c == nil {
		return Condition{}
	}
	return Condition{Status: c.Status == metav1.ConditionTrue, Unknown: c.Status == metav1.ConditionUnknown, Since: c.LastTransitionTime, Reason: c.Reason, Message: c.Message}
}

func first(list []string) string {
	if len(list) == 0 {
		return "no reason is known"
	}
	return list[0]
}

func some(list []string, most int) string {
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}

// together looks at clusters side by side.
func together(clusters []Cluster) {
	for i := range clusters {
		c := &clusters[i]
		if c.Name == "" {
			continue
		}
		for j := range clusters {
			other := &clusters[j]
			if i == j || other.Name == "" {
				continue
			}
			switch {
			case other.Name == c.Name:
				c.Warnings = append(c.Warnings, Warning{Problem: true, Message: fmt.Sprintf("The clusters of contexts %s and %s have the same name, %s.", c.Context, other.Context, c.Name), Do: "Names are unique in a mesh: uninstall one, and install it with another. Or are both contexts of one cluster?"})
			case other.ID == c.ID && c.ID != 0:
				c.Warnings = append(c.Warnings, Warning{Problem: true, Message: fmt.Sprintf("Clusters %s and %s have the same ID, %d.", c.Name, other.Name, c.ID), Do: "IDs are unique in a mesh: uninstall one, and install it with another."})
			case c.Exports != nil && other.Exports != nil && !knows(c, other.Name):
				text, do := fmt.Sprintf("%s does not import from %s.", c.Name, other.Name), fmt.Sprintf("meshctl connect --context %s --destination-context %s", c.Context, other.Context)
				if knows(other, c.Name) {
					text = fmt.Sprintf("%s does not import from %s, which imports from it.", c.Name, other.Name)
				}
				c.Warnings = append(c.Warnings, Warning{Message: text, Do: do})
			}
		}
	}
}

func knows(c *Cluster, name string) bool {
	return slices.ContainsFunc(c.Peers, func(p Peer) bool { return p.Name == name })
}

// spread is how many services the clusters offer: of those that were asked, what they
// say themselves; of the others, what was imported from them.
func spread(clusters []Cluster) *Spread {
	counts := map[string]int32{}
	for i := range clusters {
		for _, p := range clusters[i].Peers {
			counts[p.Name] = max(counts[p.Name], p.Services)
		}
	}
	for i := range clusters {
		if c := &clusters[i]; c.Exports != nil {
			counts[c.Name] = c.Exports.Services
		}
	}
	if len(counts) == 0 {
		return nil
	}
	s := &Spread{Clusters: len(counts), Min: -1}
	var sum int64
	for _, n := range counts {
		sum += int64(n)
		s.Max = max(s.Max, n)
		if s.Min < 0 || n < s.Min {
			s.Min = n
		}
	}
	s.Average = float64(int64(float64(sum)/float64(len(counts))*10+0.5)) / 10
	return s
}

// Missing says in one line what is not healthy yet.
func (r *Report) Missing() string {
	var texts []string
	for i := range r.Clusters {
		c := &r.Clusters[i]
		for _, w := range c.Warnings {
			if !w.Problem {
				continue
			}
			text := strings.TrimSuffix(w.Message, ".")
			if len(r.Clusters) > 1 {
				text = c.title() + ": " + text
			}
			texts = append(texts, text)
		}
	}
	return strings.Join(texts, "; ")
}

func (c *Cluster) title() string {
	if c.Name != "" {
		return c.Name
	}
	return c.Context
}
