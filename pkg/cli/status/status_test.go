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

package status

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/workload"
	"mesh.io/clustermesh/pkg/layout/golden"
)

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func before(d time.Duration) metav1.Time { return metav1.NewTime(now.Add(-d)) }

func conditions(pairs ...string) []metav1.Condition {
	var list []metav1.Condition
	for i := 0; i < len(pairs); i += 3 {
		list = append(list, metav1.Condition{Type: pairs[i], Status: metav1.ConditionStatus(pairs[i+1]), Message: pairs[i+2], LastTransitionTime: before(5 * time.Minute)})
	}
	return list
}

// healthy is a cluster that is connected to another one.
func healthy(name, peer string, id, peerID int32) Observed {
	state := func(program, kind string, n int32) workload.State {
		return workload.State{Name: program, Kind: kind, Desired: n, Ready: n, Updated: n, Observed: true, Version: "v0.3.0", Created: now.Add(-2 * time.Hour)}
	}
	local := v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MeshClusterSpec{ID: id}}
	local.Status = v1alpha1.MeshClusterStatus{Services: 3, Endpoints: 12, LastContactTime: before(4 * time.Second), Conditions: conditions(v1alpha1.MeshClusterExportsSynced, "True", "")}
	other := v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: peer}, Spec: v1alpha1.MeshClusterSpec{ID: peerID, KubeconfigSecretRef: &v1alpha1.SecretReference{Name: "mesh-peer-" + peer}}}
	other.Status = v1alpha1.MeshClusterStatus{
		Services: 2, Endpoints: 8, LastContactTime: before(2 * time.Second), LagMilliseconds: 7,
		Conditions: conditions(v1alpha1.MeshClusterConnected, "True", "", v1alpha1.MeshClusterSynced, "True", ""),
	}
	return Observed{
		Context: name, Namespace: "mesh-system", Config: map[string]string{"cluster-name": name, "cluster-id": string('0' + id)},
		Workloads: []workload.State{state(workload.APIServer, "StatefulSet", 1), state(workload.Controller, "Deployment", 2), state(workload.Agent, "DaemonSet", 2)},
		APIService: &apiregistrationv1.APIService{
			Spec:   apiregistrationv1.APIServiceSpec{Service: &apiregistrationv1.ServiceReference{Namespace: "mesh-system", Name: workload.APIServer}},
			Status: apiregistrationv1.APIServiceStatus{Conditions: []apiregistrationv1.APIServiceCondition{{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue}}},
		},
		Readiness: map[string]string{"mesh-apiserver-0": "[+]ping ok\n[+]etcd ok\nreadyz check passed\n"},
		Members:   []v1alpha1.MeshCluster{local, other}, GlobalServices: 4,
	}
}

func TestReport(t *testing.T) {
	for name, c := range map[string]struct {
		observed func() []Observed
		healthy  bool
	}{
		"healthy": {func() []Observed { return []Observed{healthy("cluster1", "cluster2", 1, 2)} }, true},
		"mesh": {func() []Observed {
			return []Observed{healthy("cluster1", "cluster2", 1, 2), healthy("cluster2", "cluster1", 2, 1)}
		}, true},
		"one-way": {func() []Observed {
			o := []Observed{healthy("cluster1", "cluster2", 1, 2), healthy("cluster2", "cluster1", 2, 1)}
			o[1].Members = o[1].Members[:1]
			return o
		}, true},
		"silent": {func() []Observed {
			o := []Observed{healthy("cluster1", "cluster2", 1, 2), healthy("cluster2", "cluster1", 2, 1)}
			o[0].Members[1].Status.LastContactTime = before(9 * time.Second)
			o[0].Members[1].Status.Conditions[0].Status = metav1.ConditionUnknown
			return o
		}, false},
		"not-heard-of": {func() []Observed {
			o := healthy("cluster1", "cluster2", 1, 2)
			o.Members[1].Status.LastContactTime = before(50 * time.Second)
			return []Observed{o}
		}, false},
		"no-controller": {func() []Observed {
			o := healthy("cluster1", "cluster2", 1, 2)
			o.Members[0].Status.LastContactTime, o.Members[1].Status.LastContactTime = before(3*time.Minute), before(3*time.Minute)
			return []Observed{o}
		}, false},
		"another-clock": {func() []Observed {
			o := healthy("cluster1", "cluster2", 1, 2)
			o.ClockAhead = -time.Hour
			o.Members[0].Status.LastContactTime, o.Members[1].Status.LastContactTime = before(time.Hour+3*time.Second), before(time.Hour+2*time.Second)
			return []Observed{o}
		}, true},
		"same-id": {func() []Observed {
			return []Observed{healthy("cluster1", "cluster2", 1, 2), healthy("cluster2", "cluster1", 1, 2)}
		}, false},
		"unreachable": {func() []Observed {
			return []Observed{{Context: "cluster9", Namespace: "mesh-system", Unreachable: "dial tcp 172.31.1.2:6443: connect: connection refused"}}
		}, false},
		"not-installed": {func() []Observed { return []Observed{{Context: "cluster9", Namespace: "mesh-system"}} }, false},
		"unread": {func() []Observed {
			o := healthy("cluster1", "cluster2", 1, 2)
			o.Unread = []string{"pods is forbidden"}
			return []Observed{o}
		}, false},
		// Names as long as they may be, and contexts as a cloud makes them.
		"long": {func() []Observed {
			one, two := strings.Repeat("production-", 2)+"eu-west-1", strings.Repeat("production-", 2)+"us-east-1b"
			o := []Observed{healthy(one, two, 1, 2), healthy(two, one, 2, 1)}
			for i := range o {
				o[i].Context = fmt.Sprintf("arn:aws:eks:eu-central-1:123456789012:cluster/%s", o[i].Context)
			}
			node := "ip-10-0-0-1." + strings.Repeat("x", 63-len("ip-10-0-0-1."))
			o[0].Workloads[2].Ready, o[0].Pods = 1, []corev1.Pod{{
				ObjectMeta: metav1.ObjectMeta{Name: "mesh-agent-x", Labels: map[string]string{workload.NameLabel: workload.Agent}}, Spec: corev1.PodSpec{NodeName: node},
				Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "mesh-agent", RestartCount: 4, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}}}},
			}}
			o[0].Members[1].Status.Services, o[0].Members[1].Status.Endpoints, o[0].Members[1].Status.LagMilliseconds = 12345, 123456, 9999
			return o
		}, false},
		"no-quorum": {func() []Observed {
			o := healthy("cluster1", "cluster2", 1, 2)
			o.External = true
			o.Readiness["mesh-apiserver-0"] = "[+]ping ok\n[+]etcd (no quorum for 30s, serving from memory) ok\n"
			return []Observed{o}
		}, false},
		"api-down": {func() []Observed {
			o := healthy("cluster1", "cluster2", 1, 2)
			o.APIService.Status.Conditions[0] = apiregistrationv1.APIServiceCondition{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionFalse, Reason: "MissingEndpoints", Message: "endpoints have no addresses"}
			o.Workloads[0].Ready = 0
			o.Pods = []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "mesh-apiserver-0", Labels: map[string]string{workload.NameLabel: workload.APIServer}}, Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/2 nodes are available"}}}}}
			o.Members, o.MembersError, o.GlobalServices, o.Readiness = nil, "the server is currently unable to handle the request", -1, nil
			return []Observed{o}
		}, false},
		"troubled": {func() []Observed {
			o := healthy("cluster1", "cluster2", 1, 2)
			o.Workloads[2].Ready = 1
			o.Workloads[1].Version = "v0.2.0"
			o.Pods = []corev1.Pod{{
				ObjectMeta: metav1.ObjectMeta{Name: "mesh-agent-x", Labels: map[string]string{workload.NameLabel: workload.Agent}}, Spec: corev1.PodSpec{NodeName: "node2"},
				Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "mesh-agent", RestartCount: 4, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}, LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1}}}}},
			}}
			local, peer := &o.Members[0], &o.Members[1]
			local.Status.LastContactTime = before(2 * time.Minute)
			peer.Status.Conditions = conditions(v1alpha1.MeshClusterConnected, "False", "The peer's mesh API cannot be reached.", v1alpha1.MeshClusterSynced, "False", "")
			peer.Status.LastContactTime = before(5 * time.Minute)
			peer.Status.Refused, peer.Status.Refusals = 2, []string{"song/x: address 127.0.0.1 is a loopback address"}
			peer.Status.WaitingNamespaces = []string{"a", "b", "c", "d", "e", "f"}
			peer.Spec.Drained = true
			return []Observed{o}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			report := Build(now, c.observed())
			if report.Healthy != c.healthy {
				t.Errorf("healthy is %t", report.Healthy)
			}
			if (report.Missing() == "") != c.healthy {
				t.Errorf("missing is %q", report.Missing())
			}
			for _, cluster := range report.Clusters {
				for _, w := range cluster.Warnings {
					if w.Do == "" {
						t.Errorf("it does not say what to do: %s", w.Message)
					}
				}
			}
			golden.Print(t, name, func(w io.Writer, width int) error { return Write(w, width, now, report) })
		})
	}
}
