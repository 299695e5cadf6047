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

package connectivity

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/agent/dump"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

// Facts are what is known of the way of one service from the cluster that should have
// answered to the kernel of the client's node. A problem text says why something could
// not be read.
type Facts struct {
	Service string // namespace/name
	Client  Place
	// Exporter is the cluster whose backends are asked for; it is the client's own for
	// those that never leave the cluster.
	Exporter string

	// Backends is how many ready ones kube-apiserver of the exporter knows.
	Backends        int
	BackendsProblem string

	// What the exporter's mesh API offers.
	ExporterProblem string
	ExportedService bool
	ExportedReady   int
	// ExportsSynced is the exporter's own word, if it was read.
	ExportsSynced *metav1.Condition

	// What the client's cluster has of it.
	ImporterProblem string
	// Member is the exporter's MeshCluster in the client's cluster.
	Member          *v1alpha1.MeshCluster
	ImportedService bool
	ImportedReady   int
	// LocalService is the condition of the GlobalService there, if there is one.
	LocalService *metav1.Condition

	Agent AgentFacts
}

// AgentFacts are what is known of the agent on the client's node.
type AgentFacts struct {
	Problem string // the node's pods could not be read
	Pod     string // empty: there is none
	Ready   bool
	// NotReady is what the agent says about that (/readyz).
	NotReady string

	DumpProblem string
	Dump        *dump.Document
}

// backends counts what the table has of a cluster behind a service: all, and those
// that take connections.
func backends(d *dump.Document, service, network, cluster string) (found bool, known, preferred int) {
	for _, s := range d.Services {
		if s.Namespace+"/"+s.Name != service || !strings.EqualFold(s.Protocol, network) {
			continue
		}
		found = true
		for _, b := range s.Backends {
			if b.Cluster == cluster {
				known++
				if b.Preferred {
					preferred++
				}
			}
		}
	}
	return found, known, preferred
}

// staleAfter is how old the agent's last sign of life may be.
const staleAfter = 30 * time.Second

// Missing says where the chain is broken when a cluster that should have answered over
// a network did not. It names the first broken link.
func Missing(f *Facts, network string, errors []string) string {
	remote := f.Exporter != f.Client.Cluster
	if f.BackendsProblem != "" {
		return fmt.Sprintf("backends: the endpoints of %s in %s cannot be read: %s", f.Service, f.Exporter, f.BackendsProblem)
	}
	if f.Backends == 0 {
		return fmt.Sprintf("backends: %s has no ready pod behind %s", f.Exporter, f.Service)
	}
	if remote {
		if text := missingExport(f); text != "" {
			return text
		}
		if text := missingImport(f); text != "" {
			return text
		}
	}
	if text := missingProgram(f, network); text != "" {
		return text
	}
	text := fmt.Sprintf("connection: node %s has the backends of %s, but they were not reached", f.Client.Node, f.Exporter)
	if len(errors) > 0 {
		text += ": " + strings.Join(errors, "; ")
	}
	return text
}

func missingExport(f *Facts) string {
	synced := ""
	if c := f.ExportsSynced; c != nil && c.Status != metav1.ConditionTrue {
		synced = fmt.Sprintf(" (ExportsSynced is %s: %s)", c.Status, c.Message)
	}
	// A dead peer's API is a fault of this link only if nothing was imported before.
	if f.ExporterProblem != "" {
		if f.ImportedService && f.ImportedReady > 0 {
			return ""
		}
		return fmt.Sprintf("export: the mesh API of %s does not answer: %s", f.Exporter, f.ExporterProblem)
	}
	if !f.ExportedService {
		return fmt.Sprintf("export: %s has no ExportedService %s: does its mesh-controller lead?%s", f.Exporter, f.Service, synced)
	}
	if f.ExportedReady == 0 {
		return fmt.Sprintf("export: %s exports %s without a ready endpoint, though it has %d%s", f.Exporter, f.Service, f.Backends, synced)
	}
	return ""
}

func missingImport(f *Facts) string {
	in := f.Client.Cluster
	if f.ImporterProblem != "" {
		return fmt.Sprintf("import: the mesh API of %s does not answer: %s", in, f.ImporterProblem)
	}
	if f.Member == nil {
		return fmt.Sprintf("import: %s has no MeshCluster %s: connect it with meshctl connect", in, f.Exporter)
	}
	if f.ImportedService && f.ImportedReady > 0 {
		return ""
	}
	for _, want := range []struct {
		kind   string
		status metav1.ConditionStatus
	}{
		{v1alpha1.MeshClusterIdentityConflict, metav1.ConditionFalse},
		{v1alpha1.MeshClusterConnected, metav1.ConditionTrue},
		{v1alpha1.MeshClusterSynced, metav1.ConditionTrue},
	} {
		for _, c := range f.Member.Status.Conditions {
			if c.Type == want.kind && c.Status != want.status {
				return fmt.Sprintf("import: in %s, MeshCluster %s has %s=%s (%s): %s", in, f.Exporter, c.Type, c.Status, c.Reason, c.Message)
			}
		}
	}
	if refused := refusal(f.Member.Status.Refusals, f.Exporter, f.Service); refused != "" {
		return fmt.Sprintf("import: %s refuses of %s: %s", in, f.Exporter, refused)
	}
	namespace, _, _ := strings.Cut(f.Service, "/")
	if slices.Contains(f.Member.Status.WaitingNamespaces, namespace) {
		return fmt.Sprintf("import: %s waits for the namespace %s to exist there", in, namespace)
	}
	if c := f.LocalService; c != nil && c.Status != metav1.ConditionTrue {
		return fmt.Sprintf("import: %s is not used in %s (%s): %s", f.Service, in, c.Reason, c.Message)
	}
	what := "ImportedService"
	if f.ImportedService {
		what = "ImportedEndpointSlice with a ready endpoint"
	}
	return fmt.Sprintf("import: %s has no %s of %s from %s, although that counts as connected (last contact %s)",
		in, what, f.Service, f.Exporter, f.Member.Status.LastContactTime.UTC().Format("15:04:05Z"))
}

// refusal finds what is said of the service or a slice of it, by the names that a
// cluster's objects have here.
func refusal(refusals []string, cluster, service string) string {
	namespace, name, _ := strings.Cut(service, "/")
	for _, text := range refusals {
		if strings.Contains(text, fmt.Sprintf(" %s/%s.%s", namespace, cluster, name)) {
			return text
		}
	}
	return ""
}

// agentState says what is wrong with the agent itself, or "".
func agentState(f *Facts) string {
	a := f.Agent
	switch {
	case a.Problem != "":
		return a.Problem
	case a.Pod == "":
		return fmt.Sprintf("no mesh-agent runs on node %s", f.Client.Node)
	case a.Dump != nil && a.Dump.HeartbeatAgeSeconds != nil && *a.Dump.HeartbeatAgeSeconds > staleAfter.Seconds():
		return fmt.Sprintf("the agent on node %s (pod %s) was last alive %s ago", f.Client.Node, a.Pod,
			time.Duration(*a.Dump.HeartbeatAgeSeconds*float64(time.Second)).Round(time.Second))
	case !a.Ready && a.NotReady != "":
		return fmt.Sprintf("the agent on node %s (pod %s) is not ready: %s", f.Client.Node, a.Pod, a.NotReady)
	case !a.Ready:
		return fmt.Sprintf("the agent on node %s (pod %s) is not ready", f.Client.Node, a.Pod)
	}
	return ""
}

func missingProgram(f *Facts, network string) string {
	a := f.Agent
	state := agentState(f)
	if a.Dump == nil {
		switch {
		case state != "":
			return "agent: " + state
		case a.DumpProblem != "":
			return fmt.Sprintf("agent: the table of node %s cannot be read: %s", f.Client.Node, a.DumpProblem)
		}
		return ""
	}
	found, known, preferred := backends(a.Dump, f.Service, network, f.Exporter)
	text := ""
	switch {
	case !found:
		text = fmt.Sprintf("agent: node %s has not programmed %s over %s", f.Client.Node, f.Service, strings.ToUpper(network))
		for _, left := range a.Dump.LeftToKubeProxy {
			if left.Service == f.Service || strings.HasPrefix(left.Service, f.Service+":") {
				text += ", which is left to kube-proxy: " + left.Reason
			}
		}
	case known == 0:
		text = fmt.Sprintf("agent: the table of node %s has no backend of %s behind %s", f.Client.Node, f.Exporter, f.Service)
	case preferred == 0:
		text = fmt.Sprintf("agent: the table of node %s has %d backends of %s behind %s, and gives none of them connections", f.Client.Node, known, f.Exporter, f.Service)
	default:
		return ""
	}
	if state != "" {
		text += ": " + state
	}
	return text
}

// Unexpected says why a cluster answered that should not have.
func Unexpected(f *Facts, network, cluster string) string {
	state := agentState(f)
	if f.Agent.Dump == nil {
		switch {
		case state != "":
			return "agent: " + state
		case f.Agent.DumpProblem != "":
			return fmt.Sprintf("agent: the table of node %s cannot be read: %s", f.Client.Node, f.Agent.DumpProblem)
		}
		return fmt.Sprintf("%s answered, which should not", cluster)
	}
	found, _, preferred := backends(f.Agent.Dump, f.Service, network, cluster)
	var text string
	switch {
	case !found && cluster == f.Client.Cluster:
		text = fmt.Sprintf("agent: node %s has not programmed %s over %s, so that kube-proxy serves it", f.Client.Node, f.Service, strings.ToUpper(network))
	case preferred > 0:
		text = fmt.Sprintf("agent: the table of node %s still gives connections to %d backends of %s", f.Client.Node, preferred, cluster)
	default:
		text = fmt.Sprintf("connection: %s answered, though the table of node %s gives it none", cluster, f.Client.Node)
	}
	if state != "" {
		text += ": " + state
	}
	return text
}

// PodToPod says what a failed connection from pod to pod means.
func PodToPod(c *Check, v Verdict) string {
	if len(v.Unexpected) > 0 {
		return fmt.Sprintf("pod network: %s answered at %s, the address of the pod on %s: do the clusters' pod CIDRs overlap?", strings.Join(v.Unexpected, ", "), c.address, c.To)
	}
	cause := strings.Join(v.Errors, "; ")
	advice := "is the other cluster's pod network routed from this node, and open for " + strings.ToUpper(c.Network) + "?"
	if strings.Contains(cause, "refused") {
		advice = "something at that address refuses: do the clusters' pod CIDRs overlap?"
	}
	return fmt.Sprintf("pod network: no way from node %s to the pod on %s: %s; %s", c.From, c.To, cause, advice)
}
