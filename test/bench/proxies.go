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

package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"
)

const echoPort = 7777

// echoServers are the pods that all services of the comparison lead to. They are on a node
// without clients.
const echoServers = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 4
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      nodeName: cluster1-node3
      terminationGracePeriodSeconds: 1
      containers: [{name: echo, image: mesh.io/lab/echo}]
`

// proxyClient is a pod on a node, in whose network the connects are made.
const proxyClient = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  nodeName: %[1]s
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: busybox, command: [sleep, "86400"]}]
`

// proxyNodes are the nodes that clients are on, with the mode of kube-proxy there.
var proxyNodes = []struct{ node, mode string }{{"cluster1-node1", "nftables"}, {"cluster1-node2", "iptables"}}

// proxies compares connects through our programs with those through kube-proxy, which both
// know the same services, and with those straight to a pod.
func (r *runner) proxies() ([]Result, error) {
	if err := r.apply("cluster1", echoServers); err != nil {
		return nil, err
	}
	for _, at := range proxyNodes {
		if err := r.apply("cluster1", fmt.Sprintf(proxyClient, at.node)); err != nil {
			return nil, err
		}
	}
	if _, err := r.kubectl("cluster1", "wait", "--for=condition=Ready", "pod", "--all", "--timeout", "60s"); err != nil {
		return nil, err
	}
	if _, err := r.kubectl("cluster1", "rollout", "status", "deploy/echo", "--timeout", "60s"); err != nil {
		return nil, err
	}
	addresses, err := r.kubectl("cluster1", "get", "pods", "-l", "app=echo", "-o", "jsonpath={.items[*].status.podIP}")
	if err != nil {
		return nil, err
	}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(&clientcmd.ClientConfigLoadingRules{ExplicitPath: r.kubeconfig},
		&clientcmd.ConfigOverrides{CurrentContext: "cluster1"}).ClientConfig()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Join(r.Root, "_output", "lab"), "bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	targets := Targets{}
	for _, address := range strings.Fields(addresses) {
		a, err := netip.ParseAddr(address)
		if err != nil {
			return nil, err
		}
		targets.Direct = append(targets.Direct, netip.AddrPortFrom(a, echoPort))
	}
	var results []Result
	for _, size := range r.Sizes {
		r.say(fmt.Sprintf("comparing with kube-proxy at %d services", size))
		more, err := makeServices(r.ctx, config, targets.Direct, len(targets.VIPs), size)
		if err != nil {
			return results, fmt.Errorf("making %d services: %w", size, err)
		}
		targets.VIPs = append(targets.VIPs, more...)
		content, err := json.Marshal(targets)
		if err != nil {
			return results, err
		}
		file := filepath.Join(dir, "targets.json")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return results, err
		}
		for _, at := range proxyNodes {
			uid, err := r.kubectl("cluster1", "get", "pod", at.node, "-o", "jsonpath={.metadata.uid}")
			if err != nil {
				return results, err
			}
			out, err := r.command(r.bin("lab"), "exec", "--node", at.node, "--", r.bin("bench"), "compare",
				"--targets", file, "--pod", uid, "--rounds", fmt.Sprint(r.Rounds), "--connects", fmt.Sprint(r.RoundConnects))
			if err != nil {
				return results, err
			}
			var c Comparison
			if err := json.Unmarshal([]byte(out), &c); err != nil {
				return results, err
			}
			results = append(results, c.results(at.mode, size)...)
		}
	}
	return results, nil
}

// results are the figures of one size and one mode of kube-proxy.
func (c Comparison) results(mode string, size int) []Result {
	note := fmt.Sprintf("median of %d rounds, interleaved, of %d connects", c.Rounds, c.Connects)
	named := func(way string) string {
		if way == ThroughKubeProxy {
			return way + " " + mode
		}
		return way + " beside kube-proxy " + mode
	}
	var results []Result
	for _, figure := range []struct {
		name, unit string
		of         func(Figures) float64
	}{
		{"connect_p50", "µs", func(f Figures) float64 { return f.P50 }},
		{"connect_p99", "µs", func(f Figures) float64 { return f.P99 }},
		{"crr_rate", "1/s", func(f Figures) float64 { return f.Rate }},
	} {
		for _, way := range []string{Straight, ThroughMesh, ThroughKubeProxy} {
			peer := ""
			if way == ThroughMesh {
				peer = fmt.Sprintf("kube-proxy %s: %.1f; direct: %.1f", mode, figure.of(c.Ways[ThroughKubeProxy]), figure.of(c.Ways[Straight]))
			}
			results = append(results, Result{
				Name: fmt.Sprintf("%s, %d services, %s", figure.name, size, named(way)), Value: figure.of(c.Ways[way]), Unit: figure.unit, Peer: peer, Note: note,
			})
		}
	}
	return results
}

// makeServices makes the global services with the numbers from (included) to to (not
// included), each with all backends, and returns their virtual addresses.
func makeServices(ctx context.Context, config *rest.Config, backends []netip.AddrPort, from, to int) ([]netip.AddrPort, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	vips := make([]netip.AddrPort, to-from)
	errs := make(chan error, to-from)
	slots := make(chan struct{}, 8)
	var working sync.WaitGroup
	for i := range vips {
		slots <- struct{}{}
		working.Go(func() {
			defer func() { <-slots }()
			vip, err := makeService(ctx, client, fmt.Sprintf("many-%d", from+i), backends)
			vips[i] = vip
			if err != nil {
				errs <- err
			}
		})
	}
	working.Wait()
	close(errs)
	return vips, <-errs
}

func makeService(ctx context.Context, client kubernetes.Interface, name string, backends []netip.AddrPort) (netip.AddrPort, error) {
	service, err := client.CoreV1().Services(Namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: Namespace, Annotations: map[string]string{"mesh.io/global": "true"}},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return netip.AddrPort{}, err
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: Namespace,
			Labels: map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "bench.mesh.io"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(""), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To(int32(echoPort))}},
	}
	for _, backend := range backends {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{backend.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		})
	}
	if _, err := client.DiscoveryV1().EndpointSlices(Namespace).Create(ctx, slice, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return netip.AddrPort{}, err
	}
	address, err := netip.ParseAddr(service.Spec.ClusterIP)
	return netip.AddrPortFrom(address, 80), err
}
