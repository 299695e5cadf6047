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

package trouble

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/contact"
	"mesh.io/clustermesh/pkg/peer"
)

// byName finds, among the clusters that were looked at, the one of a name in the mesh.
func byName(all []*Facts, name string) *Facts {
	for _, f := range all {
		if f.Name == name && f.Unreachable == "" {
			return f
		}
	}
	return nil
}

func checkIdentity(f *Facts, all []*Facts) []Finding {
	var findings []Finding
	if f.Name == "" {
		return nil
	}
	for _, other := range all {
		if other == f {
			break // each pair once
		}
		if other.Name == "" {
			continue
		}
		switch {
		case other.UID != "" && other.UID == f.UID && other.Name == f.Name:
			findings = append(findings, Finding{Gravity: Note, What: fmt.Sprintf("The context is the same cluster as %s.", other.Context), Do: "Name each cluster once."})
			continue
		case other.UID != "" && other.UID == f.UID:
			findings = append(findings, Finding{Gravity: Error, What: fmt.Sprintf("This cluster and %s are two members with one UID.", other.Context),
				Evidence: []string{"namespace kube-system has the UID " + f.UID + " in both"}, Do: "Was one made as a copy of the other's store? Make one of them anew."})
		}
		if other.Name == f.Name {
			findings = append(findings, Finding{Gravity: Error, What: fmt.Sprintf("The cluster's name %q is that of %s, too.", f.Name, other.Context),
				Do: "Uninstall one of the two and install it with another --cluster-name: two members of one name refuse each other."})
		}
		if other.ID == f.ID && f.ID != "" {
			findings = append(findings, Finding{Gravity: Error, What: fmt.Sprintf("The cluster's ID %s is that of %s, too.", f.ID, other.Context),
				Do: "Uninstall one of the two and install it with another --cluster-id: two members of one ID refuse each other."})
		}
	}
	for i := range f.Clusters {
		c := &f.Clusters[i]
		if condition := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.MeshClusterIdentityConflict); condition != nil && condition.Status == metav1.ConditionTrue {
			findings = append(findings, Finding{Gravity: Error, What: fmt.Sprintf("Nothing is exchanged with %s: its identity is in conflict.", c.Name),
				Evidence: []string{fmt.Sprintf("MeshCluster %s: IdentityConflict (%s): %s", c.Name, condition.Reason, condition.Message)},
				Do:       "If it is the right cluster, connect it anew with meshctl disconnect and meshctl connect; names and IDs are unique in the mesh."})
			continue
		}
		if peer := byName(all, c.Name); peer != nil && c.Spec.KubeconfigSecretRef != nil && peer.ID != "" && peer.ID != strconv.Itoa(int(c.Spec.ID)) {
			findings = append(findings, Finding{Gravity: Error, What: fmt.Sprintf("%s has the ID %s, but is known here by another.", c.Name, peer.ID),
				Evidence: []string{fmt.Sprintf("MeshCluster %s has spec.id %d", c.Name, c.Spec.ID)}, Do: "Disconnect and connect it again: an ID cannot be changed."})
		}
	}
	return findings
}

func checkPeers(f *Facts, all []*Facts) []Finding {
	var findings []Finding
	now := f.Now
	if f.Skew != nil {
		now = now.Add(*f.Skew)
	}
	var own *v1alpha1.MeshCluster
	if i := slices.IndexFunc(f.Clusters, func(c v1alpha1.MeshCluster) bool { return c.Spec.KubeconfigSecretRef == nil }); i >= 0 {
		own = &f.Clusters[i]
	}
	for i := range f.Clusters {
		c := &f.Clusters[i]
		if c.Spec.KubeconfigSecretRef == nil {
			if contact.Ended(now, c) {
				age := contact.Age(now, c.Status.LastContactTime)
				findings = append(findings, Finding{Gravity: Error, What: "The controller has given no sign of life for a while.",
					Evidence: []string{fmt.Sprintf("MeshCluster %s: lastContactTime is %s ago", c.Name, age.Round(time.Second))},
					Do:       fmt.Sprintf("Look at it: kubectl --context %s -n %s logs deployment/mesh-controller --all-pods", f.Context, f.Namespace)})
			}
			if condition := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.MeshClusterExportsSynced); condition != nil && condition.Status != metav1.ConditionTrue {
				findings = append(findings, Finding{Gravity: Warning, What: "The cluster's exports are not complete; peers keep what they have.",
					Evidence: []string{fmt.Sprintf("ExportsSynced=%s (%s): %s", condition.Status, condition.Reason, condition.Message)}, Do: "Wait for some seconds; if it stays, look at the log of mesh-controller."})
			}
			continue
		}
		if c.DeletionTimestamp != nil {
			findings = append(findings, Finding{Gravity: Note, What: fmt.Sprintf("%s is being disconnected.", c.Name), Do: "Wait until what was imported from it is removed."})
			continue
		}
		if meta.IsStatusConditionTrue(c.Status.Conditions, v1alpha1.MeshClusterIdentityConflict) {
			continue // has a finding of its own
		}
		// Where no controller leads, that is the finding.
		link := contact.Of(now, own, c)
		if connected := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.MeshClusterConnected); link.Doubt != "" && !link.Blind && connected != nil && connected.Status != metav1.ConditionFalse {
			findings = append(findings, Finding{Gravity: Error, What: fmt.Sprintf("The link to %s seems to be broken: what was imported from it is kept, and gets old.", c.Name),
				Evidence: []string{fmt.Sprintf("%s was %s", c.Name, link.Doubt)}, Do: advice(f, c.Name, peer.ReasonUnreachable)})
			continue
		}
		for _, kind := range []string{v1alpha1.MeshClusterConnected, v1alpha1.MeshClusterSynced} {
			condition := meta.FindStatusCondition(c.Status.Conditions, kind)
			if condition != nil && condition.Status == metav1.ConditionTrue {
				continue
			}
			what := fmt.Sprintf("%s is not connected: what was imported from it is kept, and gets old.", c.Name)
			if kind == v1alpha1.MeshClusterSynced {
				what = fmt.Sprintf("Not everything that %s exports is imported.", c.Name)
			}
			evidence, do := "the condition "+kind+" is not set: no controller has looked at it yet", "See that a mesh-controller leads."
			if condition != nil {
				evidence = fmt.Sprintf("MeshCluster %s: %s=%s (%s): %s", c.Name, kind, condition.Status, condition.Reason, condition.Message)
				do = advice(f, c.Name, condition.Reason)
			}
			shown := []string{evidence}
			if link.Heard >= 0 {
				shown = append(shown, fmt.Sprintf("%s was %s", c.Name, link.LastHeard()))
			}
			findings = append(findings, Finding{Gravity: Error, What: what, Evidence: shown, Do: do})
			break // not connected is not synced
		}
		if peer := byName(all, c.Name); peer != nil && peer.MeshAPI == "" && len(peer.Clusters) > 0 &&
			!slices.ContainsFunc(peer.Clusters, func(back v1alpha1.MeshCluster) bool { return back.Name == f.Name }) {
			findings = append(findings, Finding{Gravity: Note, What: fmt.Sprintf("%s is connected one way: it does not import this cluster's services.", c.Name),
				Do: fmt.Sprintf("If that is not meant: meshctl connect --context %s --destination-context %s", f.Context, peer.Context)})
		}
	}
	return findings
}

// advice is what to do about a peer that is not connected.
func advice(f *Facts, cluster, reason string) string {
	again := fmt.Sprintf("connect it again, which renews credentials and endpoints: meshctl connect --context %s --destination-context CONTEXT-OF-%s", f.Context, strings.ToUpper(cluster))
	switch reason {
	case peer.ReasonUnauthorized, peer.ReasonForbidden, peer.ReasonSecretMissing, peer.ReasonKubeconfigInvalid, peer.ReasonCertificateNotTrusted:
		return "To mend it, " + again
	case peer.ReasonUnreachable:
		return fmt.Sprintf("See that mesh-apiserver of %s is ready, and that its Service mesh-apiserver-peer can be reached from the nodes here; if its addresses have changed, %s", cluster, again)
	}
	return "Look at the log of mesh-controller here, and at mesh-apiserver of " + cluster + "."
}

func checkCredentials(f *Facts, all []*Facts) []Finding {
	var findings []Finding
	now := f.Now
	if f.Skew != nil {
		now = now.Add(*f.Skew)
	}
	for i := range f.Clusters {
		name := f.Clusters[i].Name
		p, ok := f.Peers[name]
		if !ok {
			continue
		}
		connect := fmt.Sprintf("Connect it again: meshctl connect --context %s --destination-context CONTEXT-OF-%s", f.Context, strings.ToUpper(name))
		if p.Problem != "" {
			findings = append(findings, Finding{Gravity: Error, What: fmt.Sprintf("The credentials for %s cannot be used.", name),
				Evidence: []string{fmt.Sprintf("Secret %s/%s: %s", f.Namespace, p.Secret, p.Problem)}, Do: connect})
			continue
		}
		if !p.Expires.IsZero() {
			left, life := p.Expires.Sub(now), p.Expires.Sub(p.IssuedAt)
			evidence := fmt.Sprintf("the token in Secret %s/%s ends at %s", f.Namespace, p.Secret, p.Expires.UTC().Format(time.RFC3339))
			switch {
			case left <= 0:
				findings = append(findings, Finding{Gravity: Error, What: fmt.Sprintf("The token for %s has expired.", name), Evidence: []string{evidence}, Do: connect})
			case !p.IssuedAt.IsZero() && left < life/3:
				// It is renewed at a third of its life.
				findings = append(findings, Finding{Gravity: Warning, What: fmt.Sprintf("The token for %s ends in %s and has not been renewed.", name, left.Round(time.Minute)),
					Evidence: []string{evidence}, Do: "See in the log of mesh-controller why. " + connect})
			}
		}
		if peer := byName(all, name); peer != nil && len(peer.CA) > 0 && len(p.CA) > 0 &&
			!slices.ContainsFunc(p.CA, func(print string) bool { return slices.Contains(peer.CA, print) }) {
			findings = append(findings, Finding{Gravity: Error, What: fmt.Sprintf("The authority that is trusted for %s is not the one that it has.", name),
				Evidence: []string{
					fmt.Sprintf("trusted here (Secret %s/%s): %s", f.Namespace, p.Secret, some(p.CA)),
					fmt.Sprintf("published there (ConfigMap mesh-ca): %s", some(peer.CA)),
				}, Do: connect})
		}
	}
	return findings
}

// addresses are those by which the nodes and load balancers of a cluster are reached.
func (f *Facts) addresses() map[string]bool {
	found := map[string]bool{}
	for i := range f.Nodes {
		for _, a := range f.Nodes[i].Status.Addresses {
			if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP || a.Type == corev1.NodeHostName {
				found[a.Address] = true
			}
		}
	}
	if f.PeerService != nil {
		for _, ingress := range f.PeerService.Status.LoadBalancer.Ingress {
			found[ingress.IP], found[ingress.Hostname] = true, true
		}
		for _, ip := range f.PeerService.Spec.ExternalIPs {
			found[ip] = true
		}
	}
	delete(found, "")
	return found
}

// checkEndpoints compares the addresses of a peer with those that it has now.
func checkEndpoints(f *Facts, all []*Facts) []Finding {
	var findings []Finding
	for i := range f.Clusters {
		name := f.Clusters[i].Name
		p, peer := f.Peers[name], byName(all, name)
		if peer == nil || len(p.Hosts) == 0 || len(peer.Nodes) == 0 {
			continue
		}
		there := peer.addresses()
		var gone, ports []string
		for n, host := range p.Hosts {
			// Whose name it is cannot be told: a proxy may have it.
			if _, err := netip.ParseAddr(host); err == nil && !there[host] {
				gone = append(gone, host)
			}
			if peer.PeerService != nil && there[host] && !hasPort(peer.PeerService, p.Ports[n]) {
				ports = append(ports, host+":"+p.Ports[n])
			}
		}
		connect := fmt.Sprintf("Connect it again: meshctl connect --context %s --destination-context %s", f.Context, peer.Context)
		if len(gone) > 0 {
			gravity := Warning
			if len(gone) == len(p.Hosts) {
				gravity = Error
			}
			findings = append(findings, Finding{Gravity: gravity, What: fmt.Sprintf("%d of %d endpoints of %s exist no longer.", len(gone), len(p.Hosts), name),
				Evidence: []string{fmt.Sprintf("in Secret %s/%s: %s; no node or load balancer of %s has them", f.Namespace, p.Secret, some(gone), name)}, Do: connect + " (unless something else has these addresses and leads there)"})
		}
		if len(ports) > 0 {
			findings = append(findings, Finding{Gravity: Error, What: fmt.Sprintf("The mesh API of %s is at another port.", name),
				Evidence: []string{fmt.Sprintf("in Secret %s/%s: %s; Service mesh-apiserver-peer has no such port", f.Namespace, p.Secret, some(ports))}, Do: connect})
		}
	}
	return findings
}

func hasPort(s *corev1.Service, port string) bool {
	for _, p := range s.Spec.Ports {
		if strconv.Itoa(int(p.NodePort)) == port || strconv.Itoa(int(p.Port)) == port {
			return true
		}
	}
	return false
}

func checkImports(f *Facts, _ []*Facts) []Finding {
	var findings []Finding
	for i := range f.Clusters {
		c := &f.Clusters[i]
		if c.Status.Refused > 0 {
			evidence := slices.Clone(c.Status.Refusals)
			if len(evidence) > named {
				evidence = evidence[:named]
			}
			findings = append(findings, Finding{Gravity: Warning, What: fmt.Sprintf("%d objects or endpoints of %s are refused.", c.Status.Refused, c.Name), Evidence: evidence,
				Do: fmt.Sprintf("Mend them in %s, or change spec.podCIDRs and spec.import.limits of MeshCluster %s here.", c.Name, c.Name)})
		}
		if n := len(c.Status.WaitingNamespaces); n > 0 {
			findings = append(findings, Finding{Gravity: Note, What: fmt.Sprintf("%s exports services of namespaces that do not exist here; they wait.", c.Name),
				Evidence: []string{some(c.Status.WaitingNamespaces)}, Do: "Make the namespaces, if clients here should use these services."})
		}
	}
	return findings
}

func checkGlobals(f *Facts, _ []*Facts) []Finding {
	var findings []Finding
	of := func(kind string, bad metav1.ConditionStatus, reasons ...string) (names []string, message string) {
		for i := range f.Globals {
			g := &f.Globals[i]
			c := meta.FindStatusCondition(g.Status.Conditions, kind)
			if c == nil || c.Status != bad || len(reasons) > 0 && !slices.Contains(reasons, c.Reason) {
				continue
			}
			if len(names) == 0 {
				message = c.Message
			}
			names = append(names, g.Namespace+"/"+g.Name)
		}
		return names, message
	}
	add := func(gravity Gravity, names []string, message, what, do string) {
		if len(names) > 0 {
			findings = append(findings, Finding{Gravity: gravity, What: fmt.Sprintf(what, plural(len(names), "global service")), Evidence: []string{some(names), "the first: " + message}, Do: do})
		}
	}
	names, message := of(v1alpha1.GlobalServiceConflict, metav1.ConditionTrue)
	add(Warning, names, message, "The clusters disagree about %s.", "Make the Services alike in all clusters.")
	names, message = of(v1alpha1.GlobalServiceProgrammed, metav1.ConditionFalse)
	add(Error, names, message, "Some nodes have not programmed %s.", "Look at the agents of the nodes that are named.")
	names, message = of(v1alpha1.GlobalServiceReady, metav1.ConditionFalse, "NoneReady", "NoEndpoints", "NoCommonIPFamily", "Drained")
	add(Warning, names, message, "No backend can be used of %s.", "Look closer: meshctl service explain NAMESPACE/NAME --from CLUSTER/NODE")
	names, message = of(v1alpha1.GlobalServiceLocalService, metav1.ConditionFalse, "NotGlobal")
	add(Note, names, message, "Other clusters have %s that no Service here takes part in.", "If that is not meant, annotate the Service with mesh.io/global: \"true\".")
	return findings
}
