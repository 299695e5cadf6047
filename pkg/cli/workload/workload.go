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

// Package workload judges the mesh's programs by what Kubernetes says about them. It is
// pure: it gets objects, and says in a few words how far they are and what is wrong.
package workload

import (
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// The mesh's programs, by the names of their workloads.
const (
	APIServer  = "mesh-apiserver"
	Controller = "mesh-controller"
	Agent      = "mesh-agent"
)

// NameLabel is on each pod, and names its program.
const NameLabel = "app.kubernetes.io/name"

// State is how far a workload is.
type State struct {
	Name    string
	Kind    string
	Desired int32
	Ready   int32
	// Updated is how many run what the workload says now.
	Updated int32
	// Observed is false while the counts are of an earlier version of the workload.
	Observed bool
	Version  string
	Created  time.Time
}

// OfStatefulSet judges a StatefulSet.
func OfStatefulSet(s *appsv1.StatefulSet) State {
	return State{
		Name: s.Name, Kind: "StatefulSet", Desired: wanted(s.Spec.Replicas), Ready: s.Status.ReadyReplicas, Updated: s.Status.UpdatedReplicas,
		Observed: s.Status.ObservedGeneration >= s.Generation, Version: version(&s.Spec.Template), Created: s.CreationTimestamp.Time,
	}
}

// OfDeployment judges a Deployment.
func OfDeployment(d *appsv1.Deployment) State {
	return State{
		Name: d.Name, Kind: "Deployment", Desired: wanted(d.Spec.Replicas), Ready: d.Status.ReadyReplicas, Updated: d.Status.UpdatedReplicas,
		Observed: d.Status.ObservedGeneration >= d.Generation, Version: version(&d.Spec.Template), Created: d.CreationTimestamp.Time,
	}
}

// OfDaemonSet judges a DaemonSet.
func OfDaemonSet(d *appsv1.DaemonSet) State {
	return State{
		Name: d.Name, Kind: "DaemonSet", Desired: d.Status.DesiredNumberScheduled, Ready: d.Status.NumberReady, Updated: d.Status.UpdatedNumberScheduled,
		Observed: d.Status.ObservedGeneration >= d.Generation, Version: version(&d.Spec.Template), Created: d.CreationTimestamp.Time,
	}
}

func wanted(replicas *int32) int32 {
	if replicas == nil {
		return 1
	}
	return *replicas
}

// Done says whether all replicas run the newest version and are ready.
func (s State) Done() bool {
	return s.Observed && s.Ready >= s.Desired && s.Updated >= s.Desired
}

// Progress says how far it is.
func (s State) Progress() string {
	switch {
	case !s.Observed:
		return "not looked at by Kubernetes yet"
	case s.Updated < s.Desired:
		return fmt.Sprintf("%d of %d started", s.Updated, s.Desired)
	}
	return fmt.Sprintf("%d of %d ready", s.Ready, s.Desired)
}

// version is the version that a pod's first container runs, from its image.
func version(template *corev1.PodTemplateSpec) string {
	if len(template.Spec.Containers) == 0 {
		return ""
	}
	return ImageVersion(template.Spec.Containers[0].Image)
}

// ImageVersion is the tag of an image, or the beginning of its digest.
func ImageVersion(image string) string {
	name, digest, pinned := strings.Cut(image, "@")
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		return name[i+1:]
	}
	if pinned {
		_, sum, _ := strings.Cut(digest, ":")
		return sum[:min(12, len(sum))]
	}
	return "latest"
}

// Ready says whether a pod serves.
func Ready(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp == nil && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// Problem says why a pod is not ready, as its status tells, or "" if it is.
func Problem(pod *corev1.Pod) string {
	if Ready(pod) {
		return ""
	}
	if pod.DeletionTimestamp != nil {
		return "is being stopped"
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return "no node takes it: " + c.Message
		}
	}
	statuses := slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses)
	for _, c := range statuses {
		if problem := containerProblem(&c); problem != "" {
			return problem
		}
	}
	if pod.Status.Phase == corev1.PodFailed {
		return strings.TrimSuffix(fmt.Sprintf("failed: %s: %s", pod.Status.Reason, pod.Status.Message), ": ")
	}
	for _, c := range statuses {
		if c.State.Running != nil && !c.Ready {
			return "runs, and is not ready"
		}
	}
	return "is being started"
}

func containerProblem(c *corev1.ContainerStatus) string {
	switch {
	case c.State.Waiting != nil && c.State.Waiting.Reason != "" && c.State.Waiting.Reason != "ContainerCreating" && c.State.Waiting.Reason != "PodInitializing":
		text := c.State.Waiting.Reason
		if end := c.LastTerminationState.Terminated; end != nil {
			return fmt.Sprintf("%s: container %s ended %d times, last with %s", text, c.Name, c.RestartCount, exit(end))
		}
		if c.State.Waiting.Message != "" {
			text += ": " + c.State.Waiting.Message
		}
		return text
	case c.State.Terminated != nil && c.State.Terminated.ExitCode != 0:
		return fmt.Sprintf("container %s ended with %s", c.Name, exit(c.State.Terminated))
	case c.State.Running != nil && !c.Ready && c.RestartCount > 0 && c.LastTerminationState.Terminated != nil:
		return fmt.Sprintf("container %s was started again %d times, last after %s", c.Name, c.RestartCount, exit(c.LastTerminationState.Terminated))
	}
	return ""
}

func exit(end *corev1.ContainerStateTerminated) string {
	text := fmt.Sprintf("exit code %d", end.ExitCode)
	if end.Reason != "" && end.Reason != "Error" {
		text += " (" + end.Reason + ")"
	}
	return text
}
