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
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	aggregator "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/remote"
	"mesh.io/clustermesh/pkg/policy"
)

const (
	apiServiceName = "v1alpha1.mesh.io"
	leaseName      = "mesh-controller"
	// agentPort is where an agent says whether it is ready, on its node's loopback.
	agentPort = 9476
	// maxAgents bounds how many agents are asked why they are not ready.
	maxAgents = 10
	// page bounds one answer of a list.
	page = 500
)

// Collect reads the facts of one cluster. What cannot be read is a fact, too.
func Collect(ctx context.Context, c *remote.Cluster) *Facts {
	f := &Facts{Context: c.Context, Namespace: c.Namespace, Now: time.Now(), Problems: map[string]string{}, Peers: map[string]Peer{}, Readyz: map[string]string{}}
	ahead, within, err := remote.Clock(ctx, c.REST)
	if err != nil {
		f.Unreachable = err.Error()
		return f
	}
	if within > 0 {
		f.Skew, f.SkewWithin = &ahead, within
	}
	system, err := c.Kube.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
	if f.read("the namespace kube-system", err) {
		f.UID = string(system.UID)
	}
	config, err := c.Kube.CoreV1().ConfigMaps(c.Namespace).Get(ctx, "mesh-config", metav1.GetOptions{})
	if f.read("ConfigMap mesh-config", err) {
		f.Name, f.ID = config.Data["cluster-name"], config.Data["cluster-id"]
	}
	f.workloads(ctx, c)
	f.api(ctx, c)
	f.credentials(ctx, c)
	f.annotated(ctx, c)
	f.cilium(ctx, c)
	f.agents(ctx, c)
	return f
}

// read notes why something could not be read; that it is not there is none of it.
func (f *Facts) read(what string, err error) bool {
	if err != nil && !apierrors.IsNotFound(err) {
		f.Problems[what] = err.Error()
	}
	return err == nil
}

func (f *Facts) workloads(ctx context.Context, c *remote.Cluster) {
	nodes, err := c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if f.read("the nodes", err) {
		f.Nodes = nodes.Items
	}
	pods, err := c.Kube.CoreV1().Pods(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/part-of=clustermesh"})
	if f.read("the pods of the mesh", err) {
		f.Pods = pods.Items
	}
	set, err := c.Kube.AppsV1().StatefulSets(c.Namespace).Get(ctx, "mesh-apiserver", metav1.GetOptions{})
	if f.read("StatefulSet mesh-apiserver", err) {
		f.StatefulSet = set
	}
	deployment, err := c.Kube.AppsV1().Deployments(c.Namespace).Get(ctx, "mesh-controller", metav1.GetOptions{})
	if f.read("Deployment mesh-controller", err) {
		f.Deployment = deployment
	}
	daemons, err := c.Kube.AppsV1().DaemonSets(c.Namespace).Get(ctx, "mesh-agent", metav1.GetOptions{})
	if f.read("DaemonSet mesh-agent", err) {
		f.DaemonSet = daemons
	}
	lease, err := c.Kube.CoordinationV1().Leases(c.Namespace).Get(ctx, leaseName, metav1.GetOptions{})
	if f.read("the Lease of the controllers", err) {
		f.Lease = lease
	}
	service, err := c.Kube.CoreV1().Services(c.Namespace).Get(ctx, "mesh-apiserver-peer", metav1.GetOptions{})
	if f.read("Service mesh-apiserver-peer", err) {
		f.PeerService = service
	}
}

func (f *Facts) api(ctx context.Context, c *remote.Cluster) {
	if client, err := aggregator.NewForConfig(c.REST); f.read("the APIService of mesh.io", err) {
		service, err := client.ApiregistrationV1().APIServices().Get(ctx, apiServiceName, metav1.GetOptions{})
		if f.read("the APIService of mesh.io", err) {
			f.APIService = service
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	clusters, err := c.Mesh.MeshV1alpha1().MeshClusters().List(ctx, metav1.ListOptions{})
	switch {
	case apierrors.IsForbidden(err):
		f.Problems["the MeshClusters"] = err.Error()
	case err != nil:
		f.MeshAPI = err.Error()
		return
	default:
		f.Clusters = clusters.Items
	}
	options := metav1.ListOptions{Limit: page}
	for {
		globals, err := c.Mesh.MeshV1alpha1().GlobalServices(metav1.NamespaceAll).List(ctx, options)
		if !f.read("the GlobalServices", err) {
			return
		}
		f.Globals = append(f.Globals, globals.Items...)
		if options.Continue = globals.Continue; options.Continue == "" {
			return
		}
	}
}

func (f *Facts) credentials(ctx context.Context, c *remote.Cluster) {
	ca, err := c.Kube.CoreV1().ConfigMaps(c.Namespace).Get(ctx, "mesh-ca", metav1.GetOptions{})
	if f.read("ConfigMap mesh-ca", err) {
		f.CA = fingerprints([]byte(ca.Data["ca.crt"]))
	}
	for i := range f.Clusters {
		reference := f.Clusters[i].Spec.KubeconfigSecretRef
		if reference == nil {
			continue
		}
		key := reference.Key
		if key == "" {
			key = v1alpha1.DefaultSecretKey
		}
		secret, err := c.Kube.CoreV1().Secrets(c.Namespace).Get(ctx, reference.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			f.Peers[f.Clusters[i].Name] = Peer{Secret: reference.Name, Problem: "there is no such Secret"}
		case err != nil:
			f.Problems["Secret "+reference.Name] = err.Error()
		case len(secret.Data[key]) == 0:
			f.Peers[f.Clusters[i].Name] = Peer{Secret: reference.Name, Problem: fmt.Sprintf("it has no entry %q", key)}
		default:
			f.Peers[f.Clusters[i].Name] = peerOf(reference.Name, secret.Data[key])
		}
	}
}

// ours finds annotations that the mesh reads, or that somebody meant it to read.
func ours(annotations map[string]string) map[string]string {
	found := map[string]string{}
	for key, value := range annotations {
		if strings.HasPrefix(key, "mesh.io/") || strings.HasPrefix(key, "service.cilium.io/") || strings.HasPrefix(key, "io.cilium/") {
			found[key] = value
		}
	}
	return found
}

func (f *Facts) annotated(ctx context.Context, c *remote.Cluster) {
	options := metav1.ListOptions{Limit: page}
	for {
		services, err := c.Kube.CoreV1().Services(metav1.NamespaceAll).List(ctx, options)
		if !f.read("the Services", err) {
			break
		}
		for i := range services.Items {
			if found := ours(services.Items[i].Annotations); len(found) > 0 {
				f.Services = append(f.Services, Annotated{services.Items[i].Namespace, services.Items[i].Name, found})
			}
		}
		if options.Continue = services.Continue; options.Continue == "" {
			break
		}
	}
	namespaces, err := c.Kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if !f.read("the Namespaces", err) {
		return
	}
	for i := range namespaces.Items {
		if found := ours(namespaces.Items[i].Annotations); len(found) > 0 {
			f.Namespaces = append(f.Namespaces, Annotated{Name: namespaces.Items[i].Name, Annotations: found})
		}
	}
}

func (f *Facts) cilium(ctx context.Context, c *remote.Cluster) {
	config, err := c.Kube.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, "cilium-config", metav1.GetOptions{})
	if f.read("ConfigMap kube-system/cilium-config", err) {
		switch config.Data["kube-proxy-replacement"] {
		case "true", "strict":
			f.CiliumReplacesKubeProxy = true
		}
	}
	_, err = c.Kube.CoreV1().Services(policy.CiliumMesh.Namespace).Get(ctx, policy.CiliumMesh.Name, metav1.GetOptions{})
	f.CiliumMesh = f.read("Service "+policy.CiliumMesh.String(), err)
}

// agents asks those that are not ready for the reason.
func (f *Facts) agents(ctx context.Context, c *remote.Cluster) {
	var (
		group sync.WaitGroup
		mu    sync.Mutex
	)
	asked := 0
	for i := range f.Pods {
		pod := &f.Pods[i]
		if pod.Labels["app.kubernetes.io/name"] != "mesh-agent" || pod.Status.Phase != corev1.PodRunning || podReady(pod) || asked == maxAgents {
			continue
		}
		asked++
		group.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			answer, err := c.Get(ctx, c.Namespace, pod.Name, agentPort, "/readyz", nil, false)
			text := ""
			switch {
			case errors.Is(err, context.DeadlineExceeded):
				text = "it does not answer: the process hangs"
			case err != nil:
				text = "it does not answer: " + err.Error()
			default:
				text = strings.TrimSpace(string(answer.Body))
			}
			mu.Lock()
			defer mu.Unlock()
			f.Readyz[pod.Name] = text
		})
	}
	group.Wait()
}

func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
