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

package workload

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestImageVersion(t *testing.T) {
	for image, want := range map[string]string{
		"mesh.io/mesh-agent:v1.2.3":                           "v1.2.3",
		"mesh.io/mesh-agent":                                  "latest",
		"registry:5000/mesh-agent":                            "latest",
		"registry:5000/mesh-agent:v1":                         "v1",
		"mesh.io/mesh-agent@sha256:0123456789abcdef0123":      "0123456789ab",
		"mesh.io/mesh-agent:v1.2.3@sha256:0123456789abcdef01": "v1.2.3",
	} {
		if got := ImageVersion(image); got != want {
			t.Errorf("%s: got %q, want %q", image, got, want)
		}
	}
}

func TestProblem(t *testing.T) {
	waiting := func(reason, message string) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: "c", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}
	}
	crashed := waiting("CrashLoopBackOff", "back-off 10s restarting failed container")
	crashed.RestartCount = 3
	crashed.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}
	running := corev1.ContainerStatus{Name: "c", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	for name, c := range map[string]struct {
		status corev1.PodStatus
		want   string
	}{
		"a ready pod has none": {corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}, ""},
		"no node has room": {
			corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/2 nodes are available"}}},
			"no node takes it: 0/2 nodes are available",
		},
		"an image that is not there":  {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{waiting("ErrImagePull", "not found")}}, "ErrImagePull: not found"},
		"a program that ends":         {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{crashed}}, "CrashLoopBackOff: container c ended 3 times, last with exit code 137 (OOMKilled)"},
		"a container that is made":    {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{waiting("ContainerCreating", "")}}, "is being started"},
		"a program that is not ready": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{running}}, "runs, and is not ready"},
		"a pod that a node refused":   {corev1.PodStatus{Phase: corev1.PodFailed, Reason: "NodeAffinity", Message: "Pod was rejected"}, "failed: NodeAffinity: Pod was rejected"},
	} {
		if got := Problem(&corev1.Pod{Status: c.status}); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestState(t *testing.T) {
	deployment := func(change func(*appsv1.Deployment)) State {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Generation: 2}, Spec: appsv1.DeploymentSpec{Replicas: ptr.To[int32](2)}}
		d.Status = appsv1.DeploymentStatus{ObservedGeneration: 2, UpdatedReplicas: 2, ReadyReplicas: 2}
		change(d)
		return OfDeployment(d)
	}
	for name, c := range map[string]struct {
		state    State
		done     bool
		progress string
	}{
		"all are ready":                            {deployment(func(*appsv1.Deployment) {}), true, "2 of 2 ready"},
		"the counts are of the version before":     {deployment(func(d *appsv1.Deployment) { d.Status.ObservedGeneration = 1 }), false, "not looked at by Kubernetes yet"},
		"ready ones that run the version before":   {deployment(func(d *appsv1.Deployment) { d.Status.UpdatedReplicas = 1 }), false, "1 of 2 started"},
		"one is not ready":                         {deployment(func(d *appsv1.Deployment) { d.Status.ReadyReplicas = 1 }), false, "1 of 2 ready"},
		"a StatefulSet that says no replicas: one": {OfStatefulSet(&appsv1.StatefulSet{}), false, "0 of 1 started"},
	} {
		if c.state.Done() != c.done || c.state.Progress() != c.progress {
			t.Errorf("%s: got %t, %q", name, c.state.Done(), c.state.Progress())
		}
	}
}
