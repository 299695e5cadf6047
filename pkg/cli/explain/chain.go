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

package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/agent/dump"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/contact"
	"mesh.io/clustermesh/pkg/policy"
)

// The links, in the order of the chain.
const (
	LinkAnnotation = "annotation"
	LinkPolicy     = "policy"
	LinkService    = "service"
	LinkExport     = "export"
	LinkPeer       = "peer"
	LinkImport     = "import"
	LinkMerge      = "merge"
	LinkShare      = "share"
	LinkAgent      = "agent"
	LinkProgrammed = "programmed"
)

// staleAgent is the age of the heartbeat at which an agent counts as dead: it beats
// every 10 seconds.
const staleAgent = time.Minute

// Chain follows a service from its annotation here, over what each peer exports, to
// the kernel of a node here.
func Chain(f Facts) []Link {
	b := builder{Facts: f, name: f.Namespace + "/" + f.Name}
	b.annotation()
	b.policy()
	b.service()
	if len(f.Peers) == 0 {
		l := b.link(LinkPeer, f.Here.Name, "")
		if f.Here.MeshProblem != "" {
			l.set(Unknown, f.Here.MeshProblem)
		} else {
			l.set(Broken, f.Here.Name+" is connected to no other cluster").
				do(fmt.Sprintf("meshctl connect --context %s --destination-context CONTEXT", f.Here.Context))
		}
	}
	part := map[string]bool{}
	anyone := false
	for _, p := range f.Peers {
		part[p.Name] = b.takesPart(p)
		anyone = anyone || part[p.Name]
	}
	for _, p := range f.Peers {
		if f.Only || !anyone || part[p.Name] {
			b.peer(p)
		} else {
			b.link(LinkExport, p.Name, p.Name).set(Skipped, fmt.Sprintf("%s does not take part in %s", p.Name, b.name))
		}
	}
	b.agent()
	for _, p := range f.Peers {
		if f.Only || !anyone || part[p.Name] {
			b.programmed(p.Name)
		}
	}
	if len(f.Peers) == 0 {
		b.programmed(f.Here.Name)
	}
	links := make([]Link, len(b.chain))
	for i, l := range b.chain {
		links[i] = *l
	}
	return links
}

type builder struct {
	Facts
	name  string
	chain []*Link
	// global is set once the Service here is known to take part.
	global bool
}

func (b *builder) link(name, cluster, peer string) *Link {
	l := &Link{Name: name, Cluster: cluster, Peer: peer}
	b.chain = append(b.chain, l)
	return l
}

// kubectl is the beginning of a command line for a cluster.
func kubectl(c *Cluster) string { return "kubectl --context " + c.Context }

// said is what the annotations say about taking part, and where.
func said(c *Cluster) (text string, since time.Time, ok bool) {
	if spelling, value, ok := c.reader().Lookup(c.Service.Annotations, policy.AnnotationGlobal); ok {
		return fmt.Sprintf("%s: %.80q on the Service", spelling, value), c.Service.CreationTimestamp.Time, true
	}
	if c.Namespace != nil {
		if value, ok := c.Namespace.Annotations[policy.AnnotationGlobal]; ok {
			return fmt.Sprintf("%s: %.80q on the Namespace", policy.AnnotationGlobal, value), c.Namespace.CreationTimestamp.Time, true
		}
	}
	return "", time.Time{}, false
}

// Said is the annotation that says whether the Service takes part, as it was written,
// and where; empty if none does.
func (c *Cluster) Said() string {
	text, _, _ := said(c)
	return text
}

// notGlobal says why a Service that is there is not global, and what to do; nothing
// if it is.
func notGlobal(c *Cluster) (why, do string) {
	how := c.Policy()
	if how.Global.Value {
		return "", ""
	}
	do = fmt.Sprintf("%s -n %s annotate --overwrite service %s %s=true", kubectl(c), c.Service.Namespace, c.Service.Name, policy.AnnotationGlobal)
	text, _, ok := said(c)
	switch {
	case ok && how.Global.Source == v1alpha1.SourceDefault:
		return text + " means nothing: use true or false", do
	case ok:
		return text, do
	}
	if c.CiliumMesh {
		if spelling, value, ok := (policy.Reader{Cilium: true}).Lookup(c.Service.Annotations, policy.AnnotationGlobal); ok {
			return fmt.Sprintf("%s: %.80q on the Service does not count, as Cilium's own cluster mesh runs in %s", spelling, value, c.Name), do
		}
	}
	return "neither the Service nor its Namespace has the annotation " + policy.AnnotationGlobal, do
}

func (b *builder) annotation() {
	c := &b.Here
	l := b.link(LinkAnnotation, c.Name, "")
	switch {
	case c.Problem != "":
		l.set(Unknown, c.Problem)
		return
	case c.Service == nil:
		l.set(Skipped, "there is no Service to annotate")
		return
	}
	text, _, _ := said(c)
	if why, do := notGlobal(c); why != "" {
		l.set(Broken, why).do(do)
		return
	}
	b.global = true
	l.set(OK, text).since(c.Service.CreationTimestamp.Time)
	for _, problem := range c.Policy().Problems {
		l.set(OK, problem.String())
	}
}

// describe says how a service takes part, and why.
func describe(how policy.Service) string {
	from := func(s v1alpha1.PolicySource) string { return strings.ToLower(string(s)) }
	return fmt.Sprintf("shared %t (%s), affinity %s (%s)", how.Shared.Value, from(how.Shared.Source), how.Affinity.Value, from(how.Affinity.Source))
}

func (b *builder) policy() {
	c := &b.Here
	l := b.link(LinkPolicy, c.Name, "")
	reserved := policy.Reserved(b.Namespace, b.Name, c.MeshNamespace)
	switch {
	case reserved != "":
		b.global = false
		l.set(Broken, "it can never be global: "+reserved).do("use a Service in another namespace")
	case c.Problem != "":
		l.set(Unknown, c.Problem)
	case !b.global:
		l.set(Skipped, "the Service is not global in "+c.Name)
	case c.MeshProblem != "":
		l.set(Unknown, "what the annotations say: "+describe(c.Policy()), "the GlobalService could not be read: "+c.MeshProblem)
	default:
		l.set(OK, describe(c.Policy()))
		if c.Global != nil {
			l.since(c.Global.CreationTimestamp.Time)
			if c.Global.Spec.LocalMinReady != nil {
				l.set(OK, fmt.Sprintf("localMinReady %d", *c.Global.Spec.LocalMinReady))
			}
		}
	}
}

func (b *builder) service() {
	c := &b.Here
	l := b.link(LinkService, c.Name, "")
	switch {
	case c.Problem != "":
		l.set(Unknown, c.Problem)
		return
	case c.Namespace == nil && c.Service == nil:
		l.set(Broken, fmt.Sprintf("namespace %s does not exist in %s", b.Namespace, c.Name)).
			do(fmt.Sprintf("create namespace %s and Service %s in %s, with the same ports: clients there need them; the Service needs no endpoints", b.Namespace, b.Name, c.Name))
		return
	case c.Service == nil:
		l.set(Broken, fmt.Sprintf("there is no Service %s in %s", b.name, c.Name)).
			do(fmt.Sprintf("create it in %s, with the same ports: clients there need it; it needs no endpoints", c.Name))
		return
	case c.Service.DeletionTimestamp != nil:
		l.set(Broken, "the Service is being deleted").since(c.Service.DeletionTimestamp.Time).do("create it again once it is gone")
		return
	}
	l.since(c.Service.CreationTimestamp.Time)
	_, in := c.input()
	if in.Service.Reason != "" {
		l.set(Broken, "it is left to kube-proxy, which knows this cluster's endpoints only: "+in.Service.Reason).
			do("change the Service so that it has a cluster IP")
		return
	}
	var ports []string
	balanced := 0
	for _, p := range c.Service.Spec.Ports {
		text := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if p.Name != "" {
			text = p.Name + " " + text
		}
		if p.Protocol == corev1.ProtocolSCTP {
			text += " (left to kube-proxy)"
		} else {
			balanced++
		}
		ports = append(ports, text)
	}
	text := fmt.Sprintf("%s %s, port %s", cmp.Or(string(c.Service.Spec.Type), "ClusterIP"), strings.Join(c.Service.Spec.ClusterIPs, ", "), strings.Join(ports, ", "))
	if balanced == 0 {
		l.set(Broken, text, desired.ReasonProtocol).do("give it a TCP or UDP port")
	} else {
		l.set(OK, text)
	}
}

// takesPart says whether a peer seems to offer the service, or could not be asked.
func (b *builder) takesPart(p Peer) bool {
	if slices.ContainsFunc(b.Here.Imported, func(s v1alpha1.ImportedService) bool { return s.Spec.Cluster == p.Name }) {
		return true
	}
	if p.There == nil || p.There.Problem != "" {
		return true
	}
	return p.There.Exported != nil || p.There.Service != nil && p.There.Policy().Global.Value
}

func (b *builder) peer(p Peer) {
	b.export(p)
	b.connection(p)
	b.imported(p)
	b.merged(p)
	b.share(p)
}

// count counts endpoints, each address once.
type count map[string]bool

func (c count) add(address string, ready bool) { c[address] = c[address] || ready }

// sum counts as a GlobalService does, by the IP family that has more addresses: a pod of
// a dual-stack Service has one of each.
func (c count) sum() (ready, total int) {
	var sums [2]struct{ total, ready int }
	for address, isReady := range c {
		sum := &sums[0]
		if strings.Contains(address, ":") {
			sum = &sums[1]
		}
		sum.total++
		if isReady {
			sum.ready++
		}
	}
	most := slices.MaxFunc(sums[:], func(a, b struct{ total, ready int }) int {
		return cmp.Or(cmp.Compare(a.total, b.total), cmp.Compare(a.ready, b.ready))
	})
	return most.ready, most.total
}

func (c count) ready() int {
	ready, _ := c.sum()
	return ready
}

func (c count) String() string {
	ready, total := c.sum()
	return fmt.Sprintf("%d/%d endpoints ready", ready, total)
}

func exportedCount(list []v1alpha1.ExportedEndpointSlice) (c count, changed time.Time) {
	c = count{}
	for i := range list {
		for _, e := range list[i].Spec.Endpoints {
			c.add(e.Address, e.Ready)
		}
		changed = latest(changed, list[i].Spec.ChangedAt.Time)
	}
	return c, changed
}

func importedCount(list []v1alpha1.ImportedEndpointSlice, cluster string) (c count, changed time.Time, slices int) {
	c = count{}
	for i := range list {
		if list[i].Spec.Cluster != cluster {
			continue
		}
		slices++
		for _, e := range list[i].Spec.Endpoints {
			c.add(e.Address, e.Ready)
		}
		changed = latest(changed, list[i].Spec.ChangedAt.Time)
	}
	return c, changed, slices
}

func localCount(list []discoveryv1.EndpointSlice) count {
	c := count{}
	for i := range list {
		for _, e := range list[i].Endpoints {
			if len(e.Addresses) > 0 {
				c.add(e.Addresses[0], ptr.Deref(e.Conditions.Ready, true))
			}
		}
	}
	return c
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func (b *builder) export(p Peer) {
	c := p.There
	l := b.link(LinkExport, p.Name, p.Name)
	if c == nil || c.Problem != "" {
		evidence := "no context of " + p.Name + " was given"
		if c != nil {
			evidence = c.Problem
		} else if len(b.Unnamed) > 0 {
			evidence = p.Name + " could not be asked: " + strings.Join(b.Unnamed, "; ")
		}
		for i := range b.Here.Imported {
			if s := &b.Here.Imported[i]; s.Spec.Cluster == p.Name {
				l.set(OK, "it was exported, as it is imported in "+b.Here.Name, evidence).since(s.Spec.ExportedAt.Time)
				return
			}
		}
		l.set(Unknown, evidence).do("add the context of", p.Name, "to --contexts")
		return
	}
	if c.Service == nil {
		l.set(Broken, fmt.Sprintf("there is no Service %s in %s", b.name, p.Name)).do("create it there, with the annotation", policy.AnnotationGlobal+`: "true"`)
		return
	}
	if why, do := notGlobal(c); why != "" {
		l.set(Broken, "not global there: "+why).do(do)
		return
	}
	how := c.Policy()
	if reserved := policy.Reserved(b.Namespace, b.Name, c.MeshNamespace); reserved != "" {
		l.set(Broken, "it can never be global: "+reserved).do("use a Service in another namespace")
		return
	}
	if c.Service.Spec.Type == corev1.ServiceTypeExternalName {
		l.set(Broken, "the Service there is of type ExternalName, which has no endpoints of its own").do("give the Service there a selector and another type")
		return
	}
	if !how.Shared.Value {
		l.set(Broken, fmt.Sprintf("%s keeps its backends to itself: shared is false (%s)", p.Name, strings.ToLower(string(how.Shared.Source)))).
			do(fmt.Sprintf("%s -n %s annotate --overwrite service %s %s=true, and take spec.shared of its GlobalService back if that says so", kubectl(c), b.Namespace, b.Name, policy.AnnotationShared))
		return
	}
	if c.MeshProblem != "" {
		l.set(Unknown, "global there: "+describe(how), c.MeshProblem)
		return
	}
	local := Local(c.Members)
	if local != nil && len(local.Spec.Export.Namespaces) > 0 && !slices.Contains(local.Spec.Export.Namespaces, b.Namespace) {
		l.set(Broken, fmt.Sprintf("%s does not export namespace %s (spec.export.namespaces of its own MeshCluster)", p.Name, b.Namespace)).
			do(fmt.Sprintf("%s edit meshcluster %s", kubectl(c), local.Name))
		return
	}
	if c.Exported == nil {
		l.set(Broken, "the Service there is global, but the mesh-controller there has not exported it", exportsSynced(local)).
			do(fmt.Sprintf("%s -n %s logs deploy/mesh-controller; %s -n %s get events", kubectl(c), c.MeshNamespace, kubectl(c), b.Namespace))
		return
	}
	if consumers := c.Exported.Spec.Consumers; len(consumers) > 0 && !slices.Contains(consumers, b.Here.Name) {
		l.set(Broken, fmt.Sprintf("it is offered to %s only", strings.Join(consumers, ", "))).do("add", b.Here.Name, "to the consumers there")
		return
	}
	exported, changed := exportedCount(c.ExportedSlices)
	switch have := localCount(c.Slices); {
	case len(exported) == 0 && len(have) == 0:
		l.set(Broken, fmt.Sprintf("the Service has no endpoints in %s", p.Name)).since(c.Exported.Spec.ExportedAt.Time).
			do("start pods that its selector matches there")
	case len(exported) == 0:
		l.set(Broken, fmt.Sprintf("%s in %s, and none is exported", have, p.Name), exportsSynced(local)).
			do(fmt.Sprintf("if its EndpointSlices were made by hand: %s -n %s annotate service %s %s=true", kubectl(c), b.Namespace, b.Name, policy.AnnotationExportManual))
	case exported.ready() == 0:
		l.set(Broken, fmt.Sprintf("%s in %s", exported, p.Name)).since(changed).
			do(fmt.Sprintf("%s -n %s get pods: why are they not ready?", kubectl(c), b.Namespace))
	default:
		l.set(OK, fmt.Sprintf("%s, in %s", exported, number(len(c.ExportedSlices), "slice")), exportsSynced(local)).since(changed)
	}
}

// exportsSynced says what is wrong with the exports of a cluster.
func exportsSynced(local *v1alpha1.MeshCluster) string {
	if local == nil {
		return "the controller there has not run yet"
	}
	if c := meta.FindStatusCondition(local.Status.Conditions, v1alpha1.MeshClusterExportsSynced); c != nil && c.Status != metav1.ConditionTrue {
		return fmt.Sprintf("its exports are not complete: %s: %s", c.Reason, c.Message)
	}
	return ""
}

func (b *builder) connection(p Peer) {
	c := &b.Here
	l := b.link(LinkPeer, c.Name, p.Name)
	if c.MeshProblem != "" {
		l.set(Unknown, c.MeshProblem)
		return
	}
	destination := p.Name
	if p.There != nil {
		destination = p.There.Context
	}
	connect := fmt.Sprintf("meshctl connect --context %s --destination-context %s", c.Context, destination)
	member := c.Member(p.Name)
	switch {
	case member == nil:
		l.set(Broken, fmt.Sprintf("%s has no MeshCluster %s", c.Name, p.Name)).do(connect)
		return
	case member.DeletionTimestamp != nil:
		l.set(Broken, fmt.Sprintf("MeshCluster %s is being deleted", p.Name)).since(member.DeletionTimestamp.Time).do(connect, "once it is gone")
		return
	}
	conditions := member.Status.Conditions
	if conflict := meta.FindStatusCondition(conditions, v1alpha1.MeshClusterIdentityConflict); conflict != nil && conflict.Status == metav1.ConditionTrue {
		l.set(Broken, conflict.Reason+": "+conflict.Message).since(conflict.LastTransitionTime.Time).
			do("give one of the two clusters another name or ID, or remove the MeshCluster that is wrong")
		return
	}
	link := contact.Of(b.Now, Local(c.Members), member)
	controllers := fmt.Sprintf("%s -n %s get pods -l app.kubernetes.io/name=mesh-controller", kubectl(c), c.MeshNamespace)
	look := fmt.Sprintf("meshctl troubleshoot --context %s; if its credentials are at fault: %s", c.Context, connect)
	for _, kind := range []string{v1alpha1.MeshClusterConnected, v1alpha1.MeshClusterSynced} {
		condition := meta.FindStatusCondition(conditions, kind)
		if condition == nil {
			l.set(Broken, "the mesh-controller has not looked at it yet").do(controllers)
			return
		}
		if condition.Status == metav1.ConditionTrue {
			l.since(condition.LastTransitionTime.Time)
			continue
		}
		if condition.Status == metav1.ConditionUnknown && link.Doubt != "" {
			break
		}
		l.set(Broken, fmt.Sprintf("not %s: %s: %s", kind, condition.Reason, condition.Message)).since(condition.LastTransitionTime.Time)
		if link.Heard >= 0 {
			l.set(Broken, link.LastHeard()+"; what was imported before stays")
		}
		if kind == v1alpha1.MeshClusterConnected {
			l.do(look)
		} else {
			l.do(fmt.Sprintf("%s describe meshcluster %s, and wait if it is only beginning", kubectl(c), p.Name))
		}
		return
	}
	switch {
	case link.Blind:
		l.set(Broken, "as far as is known connected, but this may not be so any more: "+link.Doubt).since(member.Status.LastContactTime.Time).do(controllers)
	case link.Doubt != "":
		l.set(Broken, p.Name+" was "+link.Doubt+"; what was imported before stays").since(member.Status.LastContactTime.Time).do(look)
	default:
		l.set(OK, "connected and in sync")
		if link.Heard >= 0 {
			l.set(OK, fmt.Sprintf("%s, lag %d ms", link.LastHeard(), member.Status.LagMilliseconds))
		}
	}
}

// Age formats how long something has been so, as kubectl does.
func Age(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func (b *builder) imported(p Peer) {
	c := &b.Here
	l := b.link(LinkImport, c.Name, p.Name)
	if c.MeshProblem != "" {
		l.set(Unknown, c.MeshProblem)
		return
	}
	member := c.Member(p.Name)
	var refused []string
	if member == nil {
		l.set(Skipped, "nothing is imported from a cluster that has no MeshCluster here")
		return
	}
	if only := member.Spec.Import.Namespaces; len(only) > 0 && !slices.Contains(only, b.Namespace) {
		l.set(Broken, fmt.Sprintf("%s imports no namespace %s from %s (spec.import.namespaces of MeshCluster %s)", c.Name, b.Namespace, p.Name, p.Name)).
			do(fmt.Sprintf("%s edit meshcluster %s", kubectl(c), p.Name))
		return
	}
	for _, refusal := range member.Status.Refusals {
		if slices.ContainsFunc(b.refusable(p), func(object string) bool { return strings.HasPrefix(refusal, object+": ") }) {
			refused = append(refused, "refused: "+refusal)
		}
	}
	at := slices.IndexFunc(c.Imported, func(s v1alpha1.ImportedService) bool { return s.Spec.Cluster == p.Name })
	if at < 0 {
		if slices.Contains(member.Status.WaitingNamespaces, b.Namespace) || c.Problem == "" && c.Namespace == nil {
			l.set(Broken, fmt.Sprintf("namespace %s does not exist in %s: what %s exports of it waits", b.Namespace, c.Name, p.Name)).
				do(fmt.Sprintf("%s create namespace %s", kubectl(c), b.Namespace))
			return
		}
		l.set(Broken, append([]string{fmt.Sprintf("there is no ImportedService %s.%s", p.Name, b.Name)}, refused...)...)
		if len(refused) > 0 {
			l.do("change what is refused in", p.Name, "or the limits and podCIDRs of MeshCluster", p.Name)
		} else if member.Status.Refused > 0 {
			l.set(Broken, fmt.Sprintf("%d objects or endpoints of %s are refused, of which some are named in its status", member.Status.Refused, p.Name)).
				do(fmt.Sprintf("%s describe meshcluster %s", kubectl(c), p.Name))
		} else {
			l.do("look at the links before this one")
		}
		return
	}
	count, changed, n := importedCount(c.ImportedSlices, p.Name)
	l.since(latest(changed, c.Imported[at].CreationTimestamp.Time))
	if c.Problem == "" && !b.global {
		l.set(Skipped, fmt.Sprintf("the Service is not global in %s: endpoints are not imported", c.Name))
		return
	}
	missing := 0
	if p.There != nil && p.There.Problem == "" && p.There.MeshProblem == "" {
		exported, _ := exportedCount(p.There.ExportedSlices)
		for address := range exported {
			if _, ok := count[address]; !ok {
				missing++
			}
		}
	}
	switch {
	case len(count) == 0:
		l.set(Broken, append([]string{"no endpoint is imported"}, refused...)...).do("look at the links before this one, and at", fmt.Sprintf("%s describe meshcluster %s", kubectl(c), p.Name))
	case count.ready() == 0:
		l.set(Broken, append([]string{count.String()}, refused...)...).do("look at the endpoints in", p.Name)
	case missing > 0 && len(refused) > 0:
		l.set(Broken, append([]string{fmt.Sprintf("%s, in %s; %d that are exported are not here", count, number(n, "slice"), missing)}, refused...)...).
			do("change what is refused in", p.Name, "or the limits and podCIDRs of MeshCluster", p.Name)
	case missing > 0:
		l.set(Broken, fmt.Sprintf("%s, in %s; %d that are exported are not here", count, number(n, "slice"), missing)).
			do(fmt.Sprintf("%s describe meshcluster %s: is it in sync, are any refused?", kubectl(c), p.Name))
	default:
		l.set(OK, append([]string{fmt.Sprintf("%s, in %s", count, number(n, "slice"))}, refused...)...)
	}
}

// refusable are the objects of a peer's service as a MeshCluster's refusals name them:
// with the names that they have here, or would have.
func (b *builder) refusable(p Peer) []string {
	objects := []string{fmt.Sprintf("service %s/%s.%s", b.Namespace, p.Name, b.Name)}
	if p.There != nil {
		for i := range p.There.ExportedSlices {
			objects = append(objects, fmt.Sprintf("slice %s/%s.%s", b.Namespace, p.Name, p.There.ExportedSlices[i].Name))
		}
	}
	for i := range b.Here.ImportedSlices {
		if s := &b.Here.ImportedSlices[i]; s.Spec.Cluster == p.Name {
			objects = append(objects, fmt.Sprintf("slice %s/%s", b.Namespace, s.Name))
		}
	}
	return objects
}

func (b *builder) merged(p Peer) {
	c := &b.Here
	l := b.link(LinkMerge, c.Name, p.Name)
	logs := fmt.Sprintf("%s -n %s logs deploy/mesh-controller", kubectl(c), c.MeshNamespace)
	switch {
	case c.MeshProblem != "":
		l.set(Unknown, c.MeshProblem)
		return
	case c.Global == nil && len(c.Imported) == 0 && !b.global:
		l.set(Skipped, "no cluster offers the service here")
		return
	case c.Global == nil:
		l.set(Broken, fmt.Sprintf("there is no GlobalService %s in %s", b.name, c.Name)).do(logs)
		return
	}
	status := &c.Global.Status
	if status.ObservedGeneration < c.Global.Generation {
		l.set(Broken, fmt.Sprintf("the controller has seen generation %d of the GlobalService, not %d", status.ObservedGeneration, c.Global.Generation)).do(logs)
		return
	}
	at := slices.IndexFunc(status.Clusters, func(s v1alpha1.ClusterStatus) bool { return s.Name == p.Name })
	if at < 0 {
		l.set(Broken, fmt.Sprintf("the GlobalService does not list %s", p.Name)).do("look at the links before this one")
		return
	}
	if c.Service != nil {
		if mine, theirs := c.Service.Spec.IPFamilies, familiesOf(c.Imported, p.Name); apart(mine, theirs) {
			l.set(Broken, fmt.Sprintf("the Service is of %s here, and of %s in %s: no address here leads to an endpoint there", join(mine), join(theirs), p.Name)).
				do("give both Services an IP family in common: spec.ipFamilyPolicy: PreferDualStack, where the cluster has both")
			return
		}
	}
	e := status.Clusters[at].Endpoints
	l.set(OK, fmt.Sprintf("%s has %d/%d endpoints ready in the GlobalService", p.Name, e.Ready, e.Total))
	if ready := meta.FindStatusCondition(status.Conditions, v1alpha1.GlobalServiceReady); ready != nil {
		l.since(ready.LastTransitionTime.Time)
	}
	if conflict := meta.FindStatusCondition(status.Conditions, v1alpha1.GlobalServiceConflict); conflict != nil && conflict.Status == metav1.ConditionTrue {
		l.set(OK, "conflict: "+conflict.Message)
		if c.Service != nil && !sharesPort(c.Service, status.Clusters[at].Ports) {
			l.set(Broken, fmt.Sprintf("no port of the Service here has the name and protocol of one in %s", p.Name)).do("give the ports of both Services the same names")
		}
	}
}

// familiesOf are the IP families of a peer's Service; none where they are not known.
func familiesOf(imported []v1alpha1.ImportedService, cluster string) []corev1.IPFamily {
	for i := range imported {
		if imported[i].Spec.Cluster == cluster {
			return imported[i].Spec.IPFamilies
		}
	}
	return nil
}

// apart says whether two Services, whose families are known, have none in common.
func apart(a, b []corev1.IPFamily) bool {
	return len(a) > 0 && len(b) > 0 && !slices.ContainsFunc(a, func(f corev1.IPFamily) bool { return slices.Contains(b, f) })
}

func join(families []corev1.IPFamily) string {
	names := make([]string, len(families))
	for i, family := range families {
		names[i] = string(family)
	}
	return strings.Join(names, " and ")
}

func sharesPort(service *corev1.Service, ports []v1alpha1.ServicePort) bool {
	for _, have := range service.Spec.Ports {
		for _, want := range ports {
			if have.Name == want.Name && cmp.Or(have.Protocol, corev1.ProtocolTCP) == cmp.Or(want.Protocol, corev1.ProtocolTCP) {
				return true
			}
		}
	}
	return false
}

func (b *builder) share(p Peer) {
	c := &b.Here
	l := b.link(LinkShare, c.Name, p.Name)
	if c.MeshProblem != "" {
		l.set(Unknown, c.MeshProblem)
		return
	}
	share, weight, priority := c.Share(p.Name)
	text := fmt.Sprintf("weight %d (%s), priority %d (%s)", share.Weight, weight, share.Priority, priority)
	if share.Weight > 0 {
		l.set(OK, text)
		return
	}
	l.set(Broken, text, fmt.Sprintf("%s is drained for the clients of %s", p.Name, c.Name))
	switch weight {
	case policy.ShareSpec:
		l.do(fmt.Sprintf("meshctl service drain %s --context %s --cluster %s --undo", b.name, c.Context, p.Name))
	case policy.ShareDrained:
		l.do(fmt.Sprintf("%s patch meshcluster %s --type merge -p '{\"spec\":{\"drained\":false}}'", kubectl(c), p.Name))
	default:
		l.do(fmt.Sprintf("%s patch meshcluster %s --type merge -p '{\"spec\":{\"weight\":null}}'", kubectl(c), p.Name))
	}
}

func (b *builder) agent() {
	c, n := &b.Here, &b.Node
	l := b.link(LinkAgent, c.Name, "")
	look := fmt.Sprintf("%s -n %s get pods -o wide -l app.kubernetes.io/name=mesh-agent", kubectl(c), c.MeshNamespace)
	switch {
	case n.Problem != "":
		l.set(Unknown, n.Problem)
		return
	case !n.Exists:
		l.set(Broken, fmt.Sprintf("%s has no node %s", c.Name, n.Name)).do(kubectl(c), "get nodes")
		return
	case n.Pod == nil:
		l.set(Broken, "no mesh-agent runs on "+n.Name).do(look)
		return
	}
	ready := false
	for _, condition := range n.Pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			ready = condition.Status == corev1.ConditionTrue
			l.since(condition.LastTransitionTime.Time)
		}
	}
	logs := fmt.Sprintf("%s -n %s logs %s", kubectl(c), n.Pod.Namespace, n.Pod.Name)
	switch {
	case n.Dump == nil && (n.Pod.Status.Phase != corev1.PodRunning || n.DumpProblem == ""):
		l.set(Broken, fmt.Sprintf("pod %s is %s", n.Pod.Name, cmp.Or(string(n.Pod.Status.Phase), "not running")), n.DumpProblem).do(logs)
		return
	case n.Dump == nil:
		state := "ready"
		if !ready {
			state = "not ready"
		}
		l.set(Unknown, fmt.Sprintf("pod %s is %s, but cannot be asked: %s", n.Pod.Name, state, n.DumpProblem)).do("check that you may create pods/exec in namespace", n.Pod.Namespace)
		if !ready {
			l.State = Broken
			l.do(logs)
		}
		return
	}
	var problems, notes []string
	if n.Dump.Agent != nil {
		for _, check := range n.Dump.Agent.Checks {
			switch {
			case !check.OK:
				problems = append(problems, check.Name+": "+check.Message)
			case check.Message != "" && check.Name != "left-to-kube-proxy":
				notes = append(notes, check.Name+": "+check.Message)
			}
		}
	}
	beat := "no agent has been alive on this node yet"
	if n.Dump.HeartbeatAgeSeconds != nil {
		beat = fmt.Sprintf("last sign of life %s ago", Age(time.Duration(*n.Dump.HeartbeatAgeSeconds*float64(time.Second))))
	}
	switch {
	case n.Dump.HeartbeatAgeSeconds == nil || *n.Dump.HeartbeatAgeSeconds > staleAgent.Seconds():
		l.set(Broken, append([]string{beat}, problems...)...).do(logs)
	case len(problems) > 0:
		l.set(Broken, problems...).do(logs)
	default:
		l.set(OK, append([]string{fmt.Sprintf("%s on %s, %s", n.Pod.Name, n.Name, beat)}, notes...)...)
		if n.Dump.Agent == nil {
			l.set(OK, n.Dump.AgentProblem)
		}
	}
}

func (b *builder) programmed(cluster string) {
	c, n := &b.Here, &b.Node
	l := b.link(LinkProgrammed, c.Name, cluster)
	switch {
	case n.Dump == nil:
		l.set(Unknown, "the kernel's table of "+n.Name+" could not be read")
		return
	case c.Problem != "":
		l.set(Unknown, c.Problem)
		return
	case c.Service == nil || !b.global:
		l.set(Skipped, fmt.Sprintf("the Service does not take part in %s", c.Name))
		return
	}
	restart := fmt.Sprintf("look at the links before this one, and at %s -n %s logs %s", kubectl(c), c.MeshNamespace, podName(n.Pod))
	var left []string
	leftWords := map[string]bool{} // the addresses among them are left on purpose
	for _, line := range n.Dump.LeftToKubeProxy {
		if line.Service == b.name || strings.HasPrefix(line.Service, b.name+":") {
			left = append(left, "left to kube-proxy: "+line.Service+": "+line.Reason)
			for _, word := range strings.Fields(line.Reason) {
				leftWords[word] = true
			}
		}
	}
	frontends, listed, preferred := 0, 0, 0
	for i := range n.Dump.Services {
		s := &n.Dump.Services[i]
		if s.Namespace != b.Namespace || s.Name != b.Name {
			continue
		}
		frontends++
		for _, backend := range s.Backends {
			if backend.Cluster == cluster {
				listed++
				if backend.Preferred {
					preferred++
				}
			}
		}
	}
	if frontends == 0 {
		l.set(Broken, append([]string{"the kernel's table has no frontend of it"}, left...)...).do(restart)
		return
	}
	text := fmt.Sprintf("%d of %s of %s preferred, behind %s", preferred, number(listed, "backend"), cluster, number(frontends, "frontend"))
	mesh, in := c.input()
	explained, _ := mesh.Explain(desired.Name{Namespace: b.Namespace, Name: b.Name}, in)
	usable, standby, late := 0, 0, 0
	var reasons []string
	for i := range explained {
		if leftWords[explained[i].Frontend.Addr.String()] {
			continue
		}
		for _, v := range explained[i].Verdicts {
			if v.Cluster != cluster {
				continue
			}
			kernel := Find(n.Dump, explained[i].Frontend, v)
			switch {
			case v.Listed && kernel == nil, v.Slots > 0 && kernel != nil && !kernel.Preferred && !v.ByNode:
				late++
			case v.Reason != "" && !slices.Contains(reasons, v.Reason):
				reasons = append(reasons, v.Reason)
			}
			if v.Slots > 0 {
				usable++
			}
			if v.Standby {
				standby++
			}
		}
	}
	switch {
	case late > 0 && c.MeshProblem == "":
		l.set(Broken, append([]string{text, fmt.Sprintf("the node has not taken up %s yet", number(late, "backend"))}, left...)...).do("wait a second and ask again; then", restart)
	case preferred > 0:
		l.set(OK, append([]string{text}, left...)...)
	case standby > 0:
		l.set(OK, append([]string{text}, reasons...)...)
	case listed == 0 && len(reasons) == 0:
		l.set(Broken, text).do("look at the links before this one")
	default:
		l.set(Broken, append(append([]string{text}, reasons...), left...)...).do("look at the links before this one")
	}
}

// number counts things.
func number(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func podName(pod *corev1.Pod) string {
	if pod == nil {
		return "ds/mesh-agent"
	}
	return pod.Name
}

// Find finds in the kernel's table what the API's objects make a backend of.
func Find(d *dump.Document, frontend desired.Frontend, v desired.Verdict) *dump.Backend {
	for i := range d.Services {
		s := &d.Services[i]
		if s.Address != frontend.Addr.String() || s.Port != frontend.Port || s.Protocol != frontend.Protocol.String() {
			continue
		}
		for j := range s.Backends {
			if k := &s.Backends[j]; k.Address == v.Addr.Addr().String() && k.Port == v.Addr.Port() && (k.Cluster == v.Cluster || k.ClusterID == v.ID) {
				return k
			}
		}
	}
	return nil
}
