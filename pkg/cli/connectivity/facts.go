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
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/agent/dump"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/remote"
)

const (
	// factsFor is how long the facts of one failure may take to collect.
	factsFor = 20 * time.Second
	// agentPort is where an agent says whether it is ready, on its node's loopback.
	agentPort = 9476
)

// facts reads what Missing and Unexpected need.
func (r *run) facts(ctx context.Context, service string, from Place, exporter string) *Facts {
	ctx, cancel := context.WithTimeout(ctx, factsFor)
	defer cancel()
	namespace, name, _ := strings.Cut(service, "/")
	f := &Facts{Service: service, Client: from, Exporter: exporter}
	there, here := r.side(exporter), r.side(from.Cluster)

	endpoints, err := there.Kube.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + name})
	if err != nil {
		f.BackendsProblem = err.Error()
	} else {
		for i := range endpoints.Items {
			for _, e := range endpoints.Items[i].Endpoints {
				if ptr.Deref(e.Conditions.Ready, true) {
					f.Backends++
				}
			}
		}
	}
	if exporter != from.Cluster {
		r.exportFacts(ctx, there, f, namespace, name)
		r.importFacts(ctx, here, f, namespace, name)
	}
	f.Agent = agentFacts(ctx, here.Cluster, from.Node)
	return f
}

func (r *run) exportFacts(ctx context.Context, there *Side, f *Facts, namespace, name string) {
	api := there.Mesh.MeshV1alpha1()
	problem := func(err error) bool {
		if err != nil && f.ExporterProblem == "" {
			f.ExporterProblem = err.Error()
		}
		return err != nil
	}
	if _, err := api.ExportedServices(namespace).Get(ctx, name, metav1.GetOptions{}); err == nil {
		f.ExportedService = true
	} else if !ours(err) {
		problem(err)
		return
	}
	slices, err := api.ExportedEndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: v1alpha1.LabelServiceName + "=" + name})
	if problem(err) {
		return
	}
	for i := range slices.Items {
		f.ExportedReady += ready(&slices.Items[i].Spec)
	}
	if local, err := api.MeshClusters().Get(ctx, there.Name, metav1.GetOptions{}); err == nil {
		f.ExportsSynced = meta.FindStatusCondition(local.Status.Conditions, v1alpha1.MeshClusterExportsSynced)
	}
}

func (r *run) importFacts(ctx context.Context, here *Side, f *Facts, namespace, name string) {
	api := here.Mesh.MeshV1alpha1()
	member, err := api.MeshClusters().Get(ctx, f.Exporter, metav1.GetOptions{})
	switch {
	case err == nil:
		f.Member = member
	case !ours(err):
		f.ImporterProblem = err.Error()
		return
	}
	services, err := api.ImportedServices(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		f.ImporterProblem = err.Error()
		return
	}
	for i := range services.Items {
		s := &services.Items[i]
		if s.Spec.Cluster == f.Exporter && strings.HasSuffix(s.Name, "."+name) {
			f.ImportedService = true
		}
	}
	slices, err := api.ImportedEndpointSlices(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		f.ImporterProblem = err.Error()
		return
	}
	for i := range slices.Items {
		if s := &slices.Items[i].Spec; s.Cluster == f.Exporter && s.Service == name {
			f.ImportedReady += ready(s)
		}
	}
	if global, err := api.GlobalServices(namespace).Get(ctx, name, metav1.GetOptions{}); err == nil {
		f.LocalService = meta.FindStatusCondition(global.Status.Conditions, v1alpha1.GlobalServiceLocalService)
	}
}

// ours says whether "not found" is the mesh API's word about the object, and not the
// kube-apiserver's about the API.
func ours(err error) bool {
	var status apierrors.APIStatus
	return apierrors.IsNotFound(err) && errors.As(err, &status) && status.Status().Details != nil && status.Status().Details.Name != ""
}

func ready(s *v1alpha1.SliceRecord) int {
	n := 0
	for i := range s.Endpoints {
		if s.Endpoints[i].Ready {
			n++
		}
	}
	return n
}

func agentFacts(ctx context.Context, c *remote.Cluster, node string) AgentFacts {
	pods, err := c.Kube.CoreV1().Pods(c.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=mesh-agent", FieldSelector: "spec.nodeName=" + node,
	})
	if err != nil {
		return AgentFacts{Problem: fmt.Sprintf("the pods of node %s cannot be read: %v", node, err)}
	}
	var pod *corev1.Pod
	for i := range pods.Items {
		if p := &pods.Items[i]; pod == nil || p.DeletionTimestamp == nil {
			pod = p
		}
	}
	if pod == nil {
		return AgentFacts{}
	}
	a := AgentFacts{Pod: pod.Name}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			a.Ready = condition.Status == corev1.ConditionTrue
		}
	}
	if !a.Ready {
		asking, cancel := context.WithTimeout(ctx, 5*time.Second)
		answer, err := c.Get(asking, c.Namespace, pod.Name, agentPort, "/readyz", nil, false)
		cancel()
		if err == nil {
			a.NotReady = strings.ReplaceAll(strings.TrimSpace(string(answer.Body)), "\n", "; ")
		}
	}
	dumping, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := c.Exec(dumping, c.Namespace, pod.Name, "mesh-agent", "mesh-agent", "dump", "-o", "json")
	if err == nil {
		a.Dump = &dump.Document{}
		err = json.Unmarshal(out, a.Dump)
	}
	if err != nil {
		a.Dump, a.DumpProblem = nil, err.Error()
	}
	return a
}
