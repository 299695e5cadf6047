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

package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/cli/preflight"
	"mesh.io/clustermesh/pkg/cli/removal"
	"mesh.io/clustermesh/pkg/cli/status"
	"mesh.io/clustermesh/pkg/cli/workload"
)

const (
	// stepEvery is how often is looked whether a step has come about.
	stepEvery = 500 * time.Millisecond
	// lastLines is how much of a log is shown of a program that does not come up.
	lastLines = 5
)

// waitStep is one thing that an install waits for.
type waitStep struct {
	what    string
	program string // whose pods tell why it does not come
	// done says whether it is so, and how far it is.
	done func(*sight) (bool, string)
}

// sight is what is seen of a cluster while it is waited for.
type sight struct {
	status.Observed
	*status.Cluster
	// away are the nodes that are not ready.
	away map[string]bool
	// left is who was not waited for, and why.
	left string
}

var waitSteps = []waitStep{
	{"Starting " + workload.APIServer, workload.APIServer, rolledOut(workload.APIServer)},
	{"Registering the mesh API", workload.APIServer, func(s *sight) (bool, string) {
		if s.API == nil {
			return false, ""
		}
		return s.API.Available, s.API.Message
	}},
	{"Starting " + workload.Controller, workload.Controller, rolledOut(workload.Controller)},
	{"Starting " + workload.Agent + " on the nodes", workload.Agent, rolledOut(workload.Agent)},
	{"Exporting this cluster's global services", workload.Controller, func(s *sight) (bool, string) {
		if s.Exports == nil {
			return false, "the cluster is not a member of the mesh yet"
		}
		return s.Exports.Synced, s.Exports.Message
	}},
}

// rolledOut says whether a program runs as its workload says. The agents of nodes that
// are not ready are not waited for: they start when their nodes come back, if ever.
func rolledOut(program string) func(*sight) (bool, string) {
	return func(o *sight) (bool, string) {
		var away []string
		if program == workload.Agent {
			for i := range o.Pods {
				if p := &o.Pods[i]; p.Labels[workload.NameLabel] == program && o.away[p.Spec.NodeName] && !workload.Ready(p) {
					away = append(away, p.Spec.NodeName)
				}
			}
			slices.Sort(away)
			away = slices.Compact(away)
		}
		for _, s := range o.Workloads {
			if s.Name != program {
				continue
			}
			note := s.Progress()
			if len(away) > 0 {
				o.left = "not waited for, as their nodes are not ready: " + preflight.Listed(away)
			}
			s.Desired -= int32(len(away))
			if s.Done() {
				return true, note
			}
			for i := range o.Pods {
				if p := &o.Pods[i]; p.Labels[workload.NameLabel] == program && !o.away[p.Spec.NodeName] {
					if problem := workload.Problem(p); problem != "" && problem != "is being started" && problem != "runs, and is not ready" {
						return false, fmt.Sprintf("%s; pod %s: %s", note, p.Name, problem)
					}
				}
			}
			if len(away) > 0 && s.Updated < s.Desired {
				note += "; while nodes are not ready (" + preflight.Listed(away) + "), Kubernetes replaces the other agents only within agent.maxUnavailable: " +
					"bring the nodes back or remove them, or raise it with --set agent.maxUnavailable=…"
			}
			return false, note
		}
		return false, "not there yet"
	}
}

// awayNodes are the nodes that are not ready. Where they may not be read, all are taken
// for ready.
func (t *target) awayNodes(ctx context.Context) map[string]bool {
	nodes, err := t.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil
	}
	away := map[string]bool{}
	for i := range nodes.Items {
		if removal.NodeTrouble(&nodes.Items[i]) == removal.NotReady {
			away[nodes.Items[i].Name] = true
		}
	}
	return away
}

// awaitInstalled waits until the mesh works in a cluster. It says what failed, and why.
func (o *options) awaitInstalled(ctx context.Context, t *target, p *progress, timeout time.Duration) error {
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for _, step := range waitSteps {
		err := p.step(step.what, func(note func(string, ...any)) error {
			ticker := time.NewTicker(stepEvery)
			defer ticker.Stop()
			last := "nothing is known of it"
			for {
				// The question has a bound of its own: near the end, within would make it fail
				// for want of time, and that would be taken for the cause.
				observed := t.observe(ctx)
				report := status.Build(time.Now(), []status.Observed{observed})
				sight := &sight{Observed: observed, Cluster: &report.Clusters[0], away: t.awayNodes(ctx)}
				done, how := step.done(sight)
				if done {
					if sight.left != "" {
						p.say("    %s", sight.left)
					}
					return nil
				}
				if observed.Unreachable != "" {
					how = observed.Unreachable
				}
				if within.Err() == nil && how != "" {
					last = how
					note("%s", how)
				}
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-within.Done():
					return codeError{fmt.Errorf("%s: not within %s: %s", lowerFirst(step.what), timeout, strings.TrimSuffix(last, ".")), ExitTimeout}
				case <-ticker.C:
				}
			}
		})
		if err != nil {
			if ctx.Err() == nil {
				t.explain(ctx, p, step.program)
			}
			return err
		}
	}
	return nil
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }

// explain tells what is known about why a program does not come up: the state of its
// pods, their events and the ends of their logs.
func (t *target) explain(ctx context.Context, p *progress, program string) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	pods, err := t.Kube.CoreV1().Pods(t.Namespace).List(ctx, metav1.ListOptions{LabelSelector: workload.NameLabel + "=" + program})
	if err != nil {
		p.say("  The pods of %s could not be read: %v", program, err)
		return
	}
	if len(pods.Items) == 0 {
		p.say("  There is no pod of %s. What Kubernetes says about it:", program)
		t.explainEvents(ctx, p, program)
		return
	}
	told := 0
	for i := range pods.Items {
		pod := &pods.Items[i]
		problem := workload.Problem(pod)
		if problem == "" {
			continue
		}
		if told++; told > 2 {
			p.say("  … and more pods of %s.", program)
			return
		}
		p.say("  Pod %s: %s", pod.Name, problem)
		t.explainEvents(ctx, p, pod.Name)
		t.explainLogs(ctx, p, pod)
	}
}

// explainEvents shows the last warnings about an object.
func (t *target) explainEvents(ctx context.Context, p *progress, name string) {
	events, err := t.Kube.CoreV1().Events(t.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{"involvedObject.name": name, "type": corev1.EventTypeWarning}.AsSelector().String(),
	})
	if err != nil {
		return
	}
	items := events.Items
	for _, e := range items[max(0, len(items)-2):] {
		p.say("    event: %s: %s", e.Reason, strings.TrimSpace(e.Message))
	}
}

// explainLogs shows the end of a pod's log: of the run before, if that ended.
func (t *target) explainLogs(ctx context.Context, p *progress, pod *corev1.Pod) {
	for _, c := range pod.Status.ContainerStatuses {
		previous := c.LastTerminationState.Terminated != nil && c.State.Running == nil
		if !previous && c.State.Running == nil && c.State.Terminated == nil {
			continue
		}
		content, err := t.Kube.CoreV1().Pods(t.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{
			Container: c.Name, Previous: previous, TailLines: ptr.To[int64](lastLines),
		}).DoRaw(ctx)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(content)) {
			p.say("    log: %s", strings.TrimRight(line, "\n"))
		}
	}
}
