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
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/policy"
)

// check looks at one cluster. others are all clusters that were looked at, this one
// included.
type check struct {
	name string
	run  func(f *Facts, others []*Facts) []Finding
}

var checks = []check{
	{"kube-apiserver", checkReachable},
	{"permissions", checkProblems},
	{"installation", checkInstalled},
	{"mesh-api", checkAPI},
	{"clock", checkClock},
	{"controllers", checkLeader},
	{"pods", checkPods},
	{"agents", checkAgents},
	{"kernel", checkKernels},
	{"cilium", checkCilium},
	{"annotations", checkAnnotations},
	{"identity", checkIdentity},
	{"peers", checkPeers},
	{"credentials", checkCredentials},
	{"endpoints", checkEndpoints},
	{"imports", checkImports},
	{"services", checkGlobals},
}

var order = map[Gravity]int{Error: 0, Warning: 1, Note: 2}

// Examine runs every check over every cluster. The gravest findings come first.
func Examine(all []*Facts) []Finding {
	findings := []Finding{}
	for _, f := range all {
		for _, c := range checks {
			if f.Unreachable != "" && c.name != "kube-apiserver" {
				continue
			}
			for _, finding := range c.run(f, all) {
				finding.Cluster, finding.Check = f.Context, c.name
				findings = append(findings, finding)
			}
		}
	}
	slices.SortStableFunc(findings, func(a, b Finding) int { return cmp.Compare(order[a.Gravity], order[b.Gravity]) })
	return findings
}

// named is the most objects that one finding names.
const named = 5

// some joins what is named and counts the rest.
func some(items []string) string {
	if len(items) > named {
		return strings.Join(items[:named], ", ") + fmt.Sprintf(" and %d more", len(items)-named)
	}
	return strings.Join(items, ", ")
}

func checkReachable(f *Facts, _ []*Facts) []Finding {
	if f.Unreachable == "" {
		return nil
	}
	return []Finding{{Gravity: Error, What: "The cluster's kube-apiserver does not answer; nothing else was checked.",
		Evidence: []string{f.Unreachable}, Do: fmt.Sprintf("Check the kubeconfig: kubectl --context %s version", f.Context)}}
}

func checkProblems(f *Facts, _ []*Facts) []Finding {
	if len(f.Problems) == 0 {
		return nil
	}
	var evidence []string
	for _, what := range slices.Sorted(maps.Keys(f.Problems)) {
		evidence = append(evidence, what+": "+f.Problems[what])
	}
	return []Finding{{Gravity: Warning, What: "Not everything could be read, so that not everything was checked.", Evidence: evidence,
		Do: "Run this as a user who may read these: the role cluster-admin does."}}
}

func checkInstalled(f *Facts, _ []*Facts) []Finding {
	if _, unknown := f.Problems["ConfigMap mesh-config"]; f.Name != "" || unknown {
		return nil
	}
	return []Finding{{Gravity: Error, What: "The mesh is not installed.",
		Evidence: []string{fmt.Sprintf("there is no ConfigMap mesh-config with a cluster-name in namespace %s", f.Namespace)},
		Do:       fmt.Sprintf("Install it: meshctl install --context %s --cluster-name NAME --cluster-id ID", f.Context)}}
}

func checkAPI(f *Facts, _ []*Facts) []Finding {
	if f.Name == "" {
		return nil
	}
	logs := fmt.Sprintf("kubectl --context %s -n %s logs statefulset/mesh-apiserver", f.Context, f.Namespace)
	var findings []Finding
	if _, unknown := f.Problems["the APIService of mesh.io"]; !unknown {
		findings = append(findings, apiService(f, logs)...)
	}
	if f.MeshAPI != "" && len(findings) == 0 {
		findings = append(findings, Finding{Gravity: Error, What: "The mesh API does not answer, although its APIService is Available.", Evidence: []string{f.MeshAPI},
			Do: "Look at its log: " + logs})
	}
	return findings
}

func apiService(f *Facts, logs string) []Finding {
	s := f.APIService
	if s == nil {
		return []Finding{{Gravity: Error, What: "The mesh API is not registered: there is no APIService " + apiServiceName + ".",
			Do: "Install again, which brings it back: meshctl upgrade --context " + f.Context}}
	}
	if s.Spec.Service == nil || s.Spec.Service.Name != "mesh-apiserver" || s.Spec.Service.Namespace != f.Namespace {
		where := "no Service (a CustomResourceDefinition?)"
		if s.Spec.Service != nil {
			where = "Service " + s.Spec.Service.Namespace + "/" + s.Spec.Service.Name
		}
		return []Finding{{Gravity: Error, What: "The API group mesh.io belongs to something else in this cluster.",
			Evidence: []string{"APIService " + apiServiceName + " points to " + where}, Do: "Find out what made it, and remove one of the two."}}
	}
	for _, c := range s.Status.Conditions {
		if c.Type != apiregistrationv1.Available || c.Status == apiregistrationv1.ConditionTrue {
			continue
		}
		do := "Look at its log: " + logs
		switch {
		case c.Reason == "MissingEndpoints":
			do = fmt.Sprintf("No mesh-apiserver is ready: kubectl --context %s -n %s describe pods -l app.kubernetes.io/name=mesh-apiserver", f.Context, f.Namespace)
		case strings.Contains(c.Message, "x509"):
			do = "The server publishes whom to trust by itself; if it does not within a minute, look at its log: " + logs
		case strings.Contains(c.Message, "timeout"), strings.Contains(c.Message, "deadline"), strings.Contains(c.Message, "refused"):
			do = "kube-apiserver must reach the pods of mesh-apiserver on port 6443: check firewalls and NetworkPolicies."
		}
		return []Finding{{Gravity: Error, What: "The mesh API is not available through kube-apiserver.",
			Evidence: []string{fmt.Sprintf("APIService %s: Available=%s (%s): %s", apiServiceName, c.Status, c.Reason, c.Message)}, Do: do}}
	}
	return nil
}

const (
	// skewNoted and skewGrave are how far clocks may be apart. Tokens are refused that
	// are not valid yet.
	skewNoted = 2 * time.Second
	skewGrave = 30 * time.Second
)

func checkClock(f *Facts, others []*Facts) []Finding {
	if f.Skew == nil {
		return nil
	}
	var findings []Finding
	report := func(skew, within time.Duration, than string) {
		gravity := Warning
		beyond := max(skew.Abs()-within, 0)
		switch {
		case beyond < skewNoted:
			return
		case beyond >= skewGrave:
			gravity = Error
		}
		direction := "ahead of"
		if skew < 0 {
			direction = "behind"
		}
		findings = append(findings, Finding{Gravity: gravity, What: fmt.Sprintf("The cluster's clock is %s %s that of %s.", skew.Abs().Round(time.Second), direction, than),
			Evidence: []string{fmt.Sprintf("by the Date header of kube-apiserver, to within %s", within.Round(time.Millisecond))},
			Do:       "Synchronise the clocks (NTP): tokens, certificates and the lag that is shown depend on them."})
	}
	report(*f.Skew, f.SkewWithin, "this machine")
	// Where this machine is the one that is wrong, the clusters still agree.
	for _, other := range others {
		if other == f {
			break // each pair once
		}
		if other.Skew != nil {
			report(*f.Skew-*other.Skew, f.SkewWithin+other.SkewWithin, "cluster "+other.Context)
		}
	}
	return findings
}

func checkLeader(f *Facts, _ []*Facts) []Finding {
	if f.Deployment == nil {
		return nil
	}
	do := fmt.Sprintf("Look at the controllers: kubectl --context %s -n %s logs deployment/mesh-controller --all-pods", f.Context, f.Namespace)
	const what = "No mesh-controller leads: nothing is exported or imported. What is there stays."
	if ptr.Deref(f.Deployment.Spec.Replicas, 1) == 0 {
		return []Finding{{Gravity: Error, What: what, Evidence: []string{"Deployment mesh-controller has 0 replicas"},
			Do: fmt.Sprintf("Start them: kubectl --context %s -n %s scale deployment mesh-controller --replicas 2", f.Context, f.Namespace)}}
	}
	if _, unknown := f.Problems["the Lease of the controllers"]; unknown {
		return nil
	}
	if f.Lease == nil || ptr.Deref(f.Lease.Spec.HolderIdentity, "") == "" {
		return []Finding{{Gravity: Error, What: what, Evidence: []string{"Lease " + leaseName + " has no holder"}, Do: do}}
	}
	now := f.Now
	if f.Skew != nil {
		now = now.Add(*f.Skew) // the Lease is written by the cluster's clock
	}
	renewed := f.Lease.Spec.RenewTime
	if renewed != nil {
		if idle := now.Sub(renewed.Time); idle > 3*time.Duration(ptr.Deref(f.Lease.Spec.LeaseDurationSeconds, 10))*time.Second {
			return []Finding{{Gravity: Error, What: what,
				Evidence: []string{fmt.Sprintf("Lease %s of %s was last renewed %s ago", leaseName, *f.Lease.Spec.HolderIdentity, idle.Round(time.Second))}, Do: do}}
		}
	}
	return nil
}

// checkPods looks at the pods of the API server and the controllers.
func checkPods(f *Facts, _ []*Facts) []Finding {
	var findings []Finding
	for i := range f.Pods {
		p := &f.Pods[i]
		name := p.Labels["app.kubernetes.io/name"]
		if name == "mesh-agent" || podReady(p) || p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded {
			continue
		}
		gravity := Error
		if name == "mesh-controller" {
			gravity = Warning // another may lead
		}
		findings = append(findings, Finding{Gravity: gravity, What: fmt.Sprintf("Pod %s is not ready.", p.Name), Evidence: []string{podState(p)},
			Do: fmt.Sprintf("Look closer: kubectl --context %s -n %s describe pod %s", f.Context, f.Namespace, p.Name)})
	}
	if f.StatefulSet != nil && ptr.Deref(f.StatefulSet.Spec.Replicas, 1) == 0 {
		findings = append(findings, Finding{Gravity: Error, What: "mesh-apiserver is scaled to zero.", Evidence: []string{"StatefulSet mesh-apiserver has 0 replicas"},
			Do: fmt.Sprintf("Start it: kubectl --context %s -n %s scale statefulset mesh-apiserver --replicas 1", f.Context, f.Namespace)})
	}
	return findings
}

// podState is what Kubernetes says, the nearest cause first.
func podState(p *corev1.Pod) string {
	for _, c := range p.Status.ContainerStatuses {
		again := ""
		if c.RestartCount > 0 {
			again = fmt.Sprintf(", restarted %d times", c.RestartCount)
		}
		if w := c.State.Waiting; w != nil {
			return strings.TrimSpace(w.Reason+": "+w.Message) + again
		}
		if t := c.State.Terminated; t != nil {
			return fmt.Sprintf("%s with exit code %d%s", t.Reason, t.ExitCode, again)
		}
		if !c.Ready {
			return "its readiness probe fails" + again
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Status == corev1.ConditionFalse && c.Message != "" {
			return c.Message
		}
	}
	return "phase " + string(p.Status.Phase)
}

func checkAgents(f *Facts, _ []*Facts) []Finding {
	var findings []Finding
	on := map[string]bool{}
	for i := range f.Pods {
		p := &f.Pods[i]
		if p.Labels["app.kubernetes.io/name"] != "mesh-agent" || p.DeletionTimestamp != nil {
			continue
		}
		on[p.Spec.NodeName] = true
		if podReady(p) {
			continue
		}
		evidence := []string{podState(p)}
		if said := f.Readyz[p.Name]; said != "" {
			evidence = append(evidence, strings.Split(said, "\n")...)
		}
		findings = append(findings, Finding{Gravity: Error, What: fmt.Sprintf("The agent of node %s is not ready. The node's kernel goes on with what it has.", p.Spec.NodeName),
			Evidence: evidence, Do: fmt.Sprintf("Look at its log: kubectl --context %s -n %s logs %s", f.Context, f.Namespace, p.Name)})
	}
	if _, unknown := f.Problems["the pods of the mesh"]; unknown || f.Name == "" {
		return findings
	}
	var without []string
	for i := range f.Nodes {
		if !on[f.Nodes[i].Name] {
			without = append(without, f.Nodes[i].Name)
		}
	}
	if len(without) > 0 {
		slices.Sort(without)
		findings = append(findings, Finding{Gravity: Error, What: fmt.Sprintf("%d of %d nodes have no agent: clients there reach this cluster's backends only.", len(without), len(f.Nodes)),
			Evidence: []string{some(without)}, Do: fmt.Sprintf("See why: kubectl --context %s -n %s describe daemonset mesh-agent", f.Context, f.Namespace)})
	}
	return findings
}

// The kernel that agents need.
const kernelMajor, kernelMinor = 5, 10

func checkKernels(f *Facts, _ []*Facts) []Finding {
	var old []string
	for i := range f.Nodes {
		n := &f.Nodes[i]
		if major, minor, ok := kernel(n.Status.NodeInfo.KernelVersion); ok && (major < kernelMajor || major == kernelMajor && minor < kernelMinor) {
			old = append(old, fmt.Sprintf("%s (%s)", n.Name, n.Status.NodeInfo.KernelVersion))
		}
	}
	if len(old) == 0 {
		return nil
	}
	slices.Sort(old)
	return []Finding{{Gravity: Error, What: fmt.Sprintf("%d nodes have a kernel older than %d.%d: their agents cannot work.", len(old), kernelMajor, kernelMinor),
		Evidence: []string{some(old)}, Do: "Take a newer kernel on these nodes, or keep clients of global services off them."}}
}

// kernel reads "6.1.0-25-amd64".
func kernel(version string) (major, minor int, ok bool) {
	first, rest, found := strings.Cut(version, ".")
	if !found {
		return 0, 0, false
	}
	major, err := strconv.Atoi(first)
	if err != nil {
		return 0, 0, false
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		rest = rest[:end]
	}
	minor, err = strconv.Atoi(rest)
	return major, minor, err == nil
}

func checkCilium(f *Facts, _ []*Facts) []Finding {
	var findings []Finding
	if f.CiliumReplacesKubeProxy {
		findings = append(findings, Finding{Gravity: Warning, What: "Cilium replaces kube-proxy here: at the socket level it and the agent may both translate a connection.",
			Evidence: []string{"kube-proxy-replacement is on in ConfigMap kube-system/cilium-config"},
			Do:       "Run meshctl connectivity test; if the wrong backends answer, set bpf-lb-sock-hostns-only, or leave Services to one of the two."})
	}
	if f.CiliumMesh {
		findings = append(findings, Finding{Gravity: Warning, What: "Cilium's own cluster mesh runs here: service.cilium.io annotations are left to it.",
			Evidence: []string{"there is a Service " + policy.CiliumMesh.String()}, Do: "Use mesh.io annotations for the Services that are ours, or remove one of the two meshes."})
	}
	return findings
}

func checkAnnotations(f *Facts, _ []*Facts) []Finding {
	var findings []Finding
	// Cilium's spellings count unless its own mesh runs.
	reader := policy.Reader{Cilium: !f.CiliumMesh}
	add := func(object string, problems []policy.Problem, onService bool) {
		for _, problem := range problems {
			if problem.OnService == onService {
				findings = append(findings, Finding{Gravity: Warning, What: fmt.Sprintf("An annotation of %s means nothing, so that the default holds.", object),
					Evidence: []string{fmt.Sprintf("%s: %.80q", problem.Annotation, problem.Value)}, Do: "Use " + problem.Want + "."})
			}
		}
	}
	for _, s := range f.Services {
		object := fmt.Sprintf("Service %s/%s", s.Namespace, s.Name)
		add(object, reader.Service(s.Annotations, nil, nil).Problems, true)
		if reader.Service(s.Annotations, nil, nil).Global.Value {
			if reason := policy.Reserved(s.Namespace, s.Name, f.Namespace); reason != "" {
				findings = append(findings, Finding{Gravity: Warning, What: fmt.Sprintf("%s is annotated as global and can never be: %s.", object, reason), Do: "Remove the annotation."})
			}
		}
		var unknown []string
		for key := range s.Annotations {
			if strings.HasPrefix(key, "mesh.io/") && !known[key] {
				unknown = append(unknown, key)
			}
		}
		if slices.Sort(unknown); len(unknown) > 0 {
			findings = append(findings, Finding{Gravity: Note, What: fmt.Sprintf("%s has annotations that this meshctl does not know.", object),
				Evidence: []string{some(unknown)}, Do: "Check how they are spelled."})
		}
	}
	for _, n := range f.Namespaces {
		add("Namespace "+n.Name, reader.Service(nil, n.Annotations, nil).Problems, false)
	}
	if len(findings) > 3*named {
		more := len(findings) - 3*named
		findings = append(findings[:3*named], Finding{Gravity: Warning, What: fmt.Sprintf("%d more annotations mean nothing.", more), Do: "Mend those that are named, and run this again."})
	}
	return findings
}

var known = map[string]bool{
	policy.AnnotationGlobal: true, policy.AnnotationShared: true, policy.AnnotationAffinity: true, policy.AnnotationExportManual: true,
}
