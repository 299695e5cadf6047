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
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	meshclient "mesh.io/clustermesh/pkg/generated/clientset/versioned"
)

const (
	agentLabel   = "app.kubernetes.io/name=mesh-agent"
	agentHealth  = "http://127.0.0.1:9476"
	proxyMetrics = "http://127.0.0.1:10249/metrics"
	// elsewhere is a cluster that is only in the mesh API.
	elsewhere = "elsewhere"
)

// Metrics reads the samples without labels but for the given ones, such as
// `name{ip_family="IPv4"}`.
func Metrics(url string) (map[string]float64, error) {
	response, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	samples := map[string]float64{}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, ok := cutLast(lines.Text())
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			samples[name] = v
		}
	}
	return samples, lines.Err()
}

func cutLast(line string) (before, after string, ok bool) {
	i := strings.LastIndexByte(line, ' ')
	if i < 0 {
		return "", "", false
	}
	return line[:i], line[i+1:], true
}

// metrics reads those of a program on a node.
func (r *runner) metrics(node, url string) (map[string]float64, error) {
	out, err := r.onNode(node, r.bin("bench"), "metrics", "--url", url)
	if err != nil {
		return nil, err
	}
	samples := map[string]float64{}
	return samples, json.Unmarshal([]byte(out), &samples)
}

// AwaitAgent waits until the agent of this node, which has started after another did, is
// ready, and returns how long that took since its process began.
func AwaitAgent(ctx context.Context, after float64) (time.Duration, error) {
	for {
		if ready, at := agentReady(); ready {
			// Asked after the clock was read: it takes time of its own.
			samples, err := Metrics(agentHealth + "/metrics")
			if start := samples["process_start_time_seconds"]; err == nil && start > after {
				return at.Sub(time.UnixMicro(int64(start * 1e6))), nil
			}
		}
		select {
		case <-ctx.Done():
			return 0, errors.New("no new agent is ready in time")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func agentReady() (bool, time.Time) {
	response, err := http.Get(agentHealth + "/readyz")
	if err != nil {
		return false, time.Time{}
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK, time.Now()
}

// restart makes an agent end somehow, and returns how long the next one took to be ready.
func (r *runner) restart(node string, end func() error) (time.Duration, error) {
	before, err := r.metrics(node, agentHealth+"/metrics")
	if err != nil {
		return 0, err
	}
	if err := end(); err != nil {
		return 0, err
	}
	out, err := r.onNode(node, r.bin("bench"), "await-agent", "--after", strconv.FormatFloat(before["process_start_time_seconds"], 'f', 3, 64))
	if err != nil {
		return 0, err
	}
	return time.ParseDuration(out)
}

func (r *runner) restarted(node string, end func() error) error {
	_, err := r.restart(node, end)
	return err
}

// oneChange changes one endpoint of one of all services, and looks what that cost whom.
func (r *runner) oneChange() ([]Result, error) {
	config, err := r.restConfig("cluster1")
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	const agentSync, proxySync = "mesh_agent_apply_seconds", "kubeproxy_sync_proxy_rules_duration_seconds"
	type sums struct{ agent, iptables, nftables, agents, iptablesN, nftablesN float64 }
	read := func() (s sums, err error) {
		for _, at := range proxyNodes {
			proxy, err := r.metrics(at.node, proxyMetrics)
			if err != nil {
				return s, err
			}
			sum, n := proxy[proxySync+`_sum{ip_family="IPv4"}`], proxy[proxySync+`_count{ip_family="IPv4"}`]
			if at.mode == "iptables" {
				s.iptables, s.iptablesN = sum, n
			} else {
				s.nftables, s.nftablesN = sum, n
			}
			agent, err := r.metrics(at.node, agentHealth+"/metrics")
			if err != nil {
				return s, err
			}
			s.agent, s.agents = s.agent+agent[agentSync+"_sum"], s.agents+agent[agentSync+"_count"]
		}
		return s, nil
	}
	before, err := read()
	if err != nil {
		return nil, err
	}
	const changes = 8
	for i := range changes {
		backends := r.targets.Direct
		if i%2 == 0 {
			backends = backends[1:]
		}
		slices := client.DiscoveryV1().EndpointSlices(Namespace)
		slice, err := slices.Get(r.ctx, numberedName(0), metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		slice.Endpoints = numberedSlice(0, backends).Endpoints
		if _, err := slices.Update(r.ctx, slice, metav1.UpdateOptions{}); err != nil {
			return nil, err
		}
		time.Sleep(2 * time.Second) // kube-proxy waits a second between two
	}
	after, err := read()
	if err != nil {
		return nil, err
	}
	mean := func(sum, n float64) float64 { return 1000 * sum / max(n, 1) }
	return []Result{{
		Name: fmt.Sprintf("one_change_ms, %d services", len(r.targets.VIPs)), Value: mean(after.agent-before.agent, after.agents-before.agents), Unit: "ms",
		Peers: map[string]float64{
			"kube-proxy nftables": mean(after.nftables-before.nftables, after.nftablesN-before.nftablesN),
			"kube-proxy iptables": mean(after.iptables-before.iptables, after.iptablesN-before.iptablesN),
		},
		Note: fmt.Sprintf("mean of the programs' own metrics of writing to the kernel, %d changes of one endpoint", changes),
	}}, nil
}

// proxyRestarts ends kube-proxy on each node, and measures how long the next one takes from the
// start of its process to the end of its first writing of all services.
func (r *runner) proxyRestarts() (map[string]float64, error) {
	took := map[string]float64{}
	for _, at := range proxyNodes {
		if _, err := r.lab("kill", at.node+"/kube-proxy"); err != nil {
			return nil, err
		}
		if err := r.labUp(); err != nil {
			return nil, err
		}
		err := r.poll(5*time.Minute, "kube-proxy on "+at.node, func() (bool, error) {
			m, err := r.metrics(at.node, proxyMetrics)
			written := m[`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}`]
			took["kube-proxy "+at.mode] = 1000 * (written - m["process_start_time_seconds"])
			return err == nil && written > 0, err
		})
		if err != nil {
			return nil, err
		}
		r.say(fmt.Sprintf("kube-proxy %s has written %d services %.1f s after its start", at.mode, len(r.targets.VIPs), took["kube-proxy "+at.mode]/1000))
	}
	return took, nil
}

// agent measures the agent with endpoints of another cluster beside its own: a real agent,
// which gets them from the mesh API. They are written there by hand, as the importer would,
// which is stopped meanwhile.
func (r *runner) agent() ([]Result, error) {
	if len(r.targets.Direct) == 0 {
		if err := r.startProxyPods(); err != nil {
			return nil, err
		}
	}
	if _, err := r.grow(r.Sizes[len(r.Sizes)-1]); err != nil {
		return nil, err
	}
	const node = "cluster1-node1"
	peers, err := r.proxyRestarts()
	if err != nil {
		return nil, err
	}
	services := len(r.targets.VIPs)
	perService := r.Remote / services
	r.say(fmt.Sprintf("adding %d remote endpoints to %d services", perService*services, services))
	if _, err := r.kubectl("cluster1", "-n", "mesh-system", "scale", "deploy/mesh-controller", "--replicas=0"); err != nil {
		return nil, err
	}
	// The default is for so many backends in all, local ones included.
	patch := fmt.Sprintf(`[{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--max-backends=%d"}]`,
		(perService+len(r.targets.Direct))*services*5/4)
	if _, err := r.kubectl("cluster1", "-n", "mesh-system", "patch", "ds/mesh-agent", "--type=json", "-p", patch); err != nil {
		return nil, err
	}
	if _, err := r.kubectl("cluster1", "-n", "mesh-system", "rollout", "status", "ds/mesh-agent", "--timeout", "120s"); err != nil {
		return nil, err
	}
	proceed, err := r.haltProxies() // nothing of this concerns them
	if err != nil {
		return nil, err
	}
	defer proceed()
	config, err := r.restConfig("cluster1")
	if err != nil {
		return nil, err
	}
	mesh, err := meshclient.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := addRemote(r.ctx, mesh, services, perService); err != nil {
		return nil, err
	}
	r.say(fmt.Sprintf("written in %.1f s", time.Since(began).Seconds()))
	if err := r.programmed(node, len(r.targets.Direct)+perService); err != nil {
		return nil, err
	}
	r.settle()

	total := fmt.Sprintf("%d services, %d remote and %d local endpoints", services, perService*services, len(r.targets.Direct)*services)
	rss := func(what string) (Result, error) {
		m, err := r.metrics(node, agentHealth+"/metrics")
		const mib = 1 << 20
		return Result{
			Name: "agent_rss_mib, " + what, Value: m["process_resident_memory_bytes"] / mib, Unit: "MiB", Target: "≤ 200",
			Note: fmt.Sprintf("%s; Go's heap in use %.0f MiB", total, m["go_memstats_heap_inuse_bytes"]/mib),
		}, err
	}
	grown, err := rss("grown to it")
	if err != nil {
		return nil, err
	}
	var times []float64
	for range 3 {
		took, err := r.restart(node, func() error { _, err := r.lab("kill", node+":mesh-agent"); return err })
		if err != nil {
			return []Result{grown}, err
		}
		r.say(fmt.Sprintf("ready %.2f s after its start", took.Seconds()))
		times = append(times, float64(took.Microseconds())/1e3)
	}
	r.settle()
	restarted, err := rss("after a restart")
	if err != nil {
		return []Result{grown}, err
	}
	return []Result{grown, restarted, {
		Name: "restart_to_ready_ms", Value: Percentile(times, 50), Unit: "ms", Peers: peers,
		Note: "since the start of the process, killed before; median of 3; " + total + "; kube-proxy, which has the local ones alone, once",
	}}, nil
}

// addRemote writes a slice of another cluster for each service.
func addRemote(ctx context.Context, mesh meshclient.Interface, services, perService int) error {
	_, err := mesh.MeshV1alpha1().MeshClusters().Create(ctx, &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: elsewhere},
		Spec:       v1alpha1.MeshClusterSpec{ID: 2, KubeconfigSecretRef: &v1alpha1.SecretReference{Name: elsewhere}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	errs := make(chan error, services)
	slots := make(chan struct{}, 32)
	var working sync.WaitGroup
	for i := range services {
		slots <- struct{}{}
		working.Go(func() {
			defer func() { <-slots }()
			slice := &v1alpha1.ImportedEndpointSlice{
				ObjectMeta: metav1.ObjectMeta{
					Name: elsewhere + "." + numberedName(i), Namespace: Namespace,
					Labels: map[string]string{v1alpha1.LabelCluster: elsewhere, v1alpha1.LabelServiceName: numberedName(i)},
				},
				Spec: v1alpha1.SliceRecord{
					Cluster: elsewhere, ClusterID: 2, Service: numberedName(i), AddressType: discoveryv1.AddressTypeIPv4,
					Ports: []v1alpha1.EndpointPort{{Protocol: corev1.ProtocolTCP, Port: echoPort}},
				},
			}
			for j := range perService {
				n := i*perService + j
				slice.Spec.Endpoints = append(slice.Spec.Endpoints, v1alpha1.Endpoint{
					Address: fmt.Sprintf("10.%d.%d.%d", 128+n>>16, n>>8&255, n&255), Ready: true, Serving: true,
				})
			}
			if _, err := mesh.MeshV1alpha1().ImportedEndpointSlices(Namespace).Create(ctx, slice, metav1.CreateOptions{}); err != nil {
				errs <- err
			}
		})
	}
	working.Wait()
	close(errs)
	return <-errs
}
