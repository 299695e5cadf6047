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
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"

	meshclient "mesh.io/clustermesh/pkg/generated/clientset/versioned"
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
---
apiVersion: v1
kind: Service
metadata:
  name: datagrams
  annotations: {mesh.io/global: "true"}
spec:
  selector: {app: echo}
  ports: [{port: 53, protocol: UDP, targetPort: 7777}]
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

// restConfig is how to reach a cluster's API server: without a limit of our own, and without
// JSON where the other side can do better.
func (r *runner) restConfig(cluster string) (*rest.Config, error) {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(&clientcmd.ClientConfigLoadingRules{ExplicitPath: r.kubeconfig},
		&clientcmd.ConfigOverrides{CurrentContext: cluster}).ClientConfig()
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return config, nil
}

// proxies compares connects and datagrams through our programs with those through kube-proxy,
// which both know the same services, and with those straight to a pod.
func (r *runner) proxies() ([]Result, error) {
	if err := r.startProxyPods(); err != nil {
		return nil, err
	}
	if err := r.skipServiceChains("all"); err != nil {
		return nil, err
	}
	var results []Result
	overheads := map[string][]map[string]float64{} // of connects, by mode and size
	for _, size := range r.Sizes {
		more, err := r.grow(size)
		results = append(results, more...)
		if err != nil {
			return results, fmt.Errorf("making %d services: %w", size, err)
		}
		r.say(fmt.Sprintf("comparing with kube-proxy at %d services", size))
		r.settle()
		for _, at := range proxyNodes {
			outcomes, err := r.compareOn(at.node)
			if err != nil {
				return results, fmt.Errorf("on %s: %w", at.node, err)
			}
			results = append(results, r.compared(outcomes, at.mode, size)...)
			overheads[at.mode] = append(overheads[at.mode], outcomes[kindConnect].Diffs)
		}
	}
	for _, at := range proxyNodes {
		first, last := overheads[at.mode][0], overheads[at.mode][len(r.Sizes)-1]
		results = append(results, Result{
			Name:  fmt.Sprintf("connect_overhead_growth, %d to %d services, beside kube-proxy %s", r.Sizes[0], r.Sizes[len(r.Sizes)-1], at.mode),
			Value: last[ThroughMesh] - first[ThroughMesh], Unit: "µs", Target: "≤ 1",
			Peers: map[string]float64{ThroughKubeProxy + " " + at.mode: last[ThroughKubeProxy] - first[ThroughKubeProxy]},
			Note:  "of connect_overhead_p50: what the number of services adds",
		})
	}
	more, err := r.oneChange()
	if results = append(results, more...); err != nil {
		return results, err
	}

	// And as it is by default, at the largest size.
	if err := r.skipServiceChains("off"); err != nil {
		return results, err
	}
	for _, at := range proxyNodes {
		if at.mode != "iptables" {
			continue
		}
		outcomes, err := r.compareOn(at.node)
		if err != nil {
			return results, fmt.Errorf("on %s: %w", at.node, err)
		}
		results = append(results, r.compared(outcomes, at.mode, r.Sizes[len(r.Sizes)-1])...)
	}
	return results, nil
}

// skipServiceChains sets whether the agents lead connections past the rules of kube-proxy in
// iptables mode that they match none of, and waits until it is so.
func (r *runner) skipServiceChains(which string) error {
	r.skipped = which
	_, err := r.command(r.bin("meshctl"), "--kubeconfig", r.kubeconfig, "upgrade", "--context", "cluster1", "--set", "agent.skipServiceChains="+which)
	if err != nil {
		return err
	}
	if _, err := r.kubectl("cluster1", "-n", "mesh-system", "rollout", "status", "ds/mesh-agent", "--timeout", "120s"); err != nil {
		return err
	}
	for _, at := range proxyNodes {
		if at.mode != "iptables" {
			continue
		}
		err := r.poll(3*time.Minute, "the way past kube-proxy's chains on "+at.node, func() (bool, error) {
			m, err := r.metrics(at.node, agentHealth+"/metrics")
			return err == nil && (m[`mesh_agent_service_chains_skipped{family="IPv4"}`] == 1) == (which != "off"), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) startProxyPods() error {
	r.targets = Targets{}
	for _, at := range proxyNodes {
		if at.mode == "iptables" {
			if err := r.legacyIptables(at.node); err != nil {
				return err
			}
		}
	}
	if _, err := r.kubectl("cluster1", "create", "namespace", Namespace); err != nil {
		return err
	}
	if err := r.apply("cluster1", echoServers); err != nil {
		return err
	}
	for _, at := range proxyNodes {
		if err := r.apply("cluster1", fmt.Sprintf(proxyClient, at.node)); err != nil {
			return err
		}
	}
	if _, err := r.kubectl("cluster1", "wait", "--for=condition=Ready", "pod", "--all", "--timeout", "60s"); err != nil {
		return err
	}
	if _, err := r.kubectl("cluster1", "rollout", "status", "deploy/echo", "--timeout", "60s"); err != nil {
		return err
	}
	addresses, err := r.kubectl("cluster1", "get", "pods", "-l", "app=echo", "-o", "jsonpath={.items[*].status.podIP}")
	if err != nil {
		return err
	}
	for _, address := range strings.Fields(addresses) {
		a, err := netip.ParseAddr(address)
		if err != nil {
			return err
		}
		r.targets.Direct = append(r.targets.Direct, netip.AddrPortFrom(a, echoPort))
	}
	vip, err := r.vip("cluster1", "datagrams")
	if err != nil {
		return err
	}
	a, err := netip.ParseAddr(vip)
	if err != nil {
		return err
	}
	r.targets.DatagramVIP = netip.AddrPortFrom(a, 53)

	// The servers have the last CPU, the clients the first.
	pods, err := r.kubectl("cluster1", "get", "pods", "-l", "app=echo", "-o", "jsonpath={.items[*].metadata.uid}")
	if err != nil {
		return err
	}
	for _, uid := range strings.Fields(pods) {
		pod, err := r.place("cluster1-node3", uid)
		if err != nil {
			return err
		}
		if err := pinProcess(pod.pid, runtime.NumCPU()-1); err != nil {
			return err
		}
	}
	return nil
}

// legacyIptables makes kube-proxy on a node work with the iptables that has tables of its own in the
// kernel, if this machine has it. It is the stronger peer: the one that is laid over nftables
// takes longer for each packet, and minutes to write 10,000 services at once.
func (r *runner) legacyIptables(node string) error {
	const script = `
[ -x /usr/sbin/xtables-legacy-multi ] || exit 0
for table in nat filter mangle; do
	for family in iptables ip6tables; do
		$family -t $table -F && $family -t $table -X
	done
done
mkdir -p /usr/local/sbin
for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
	ln -sf /usr/sbin/xtables-legacy-multi /usr/local/sbin/$name
done`
	if _, err := r.lab("kill", node+"/kube-proxy"); err != nil {
		return err
	}
	if _, err := r.onNode(node, "sh", "-c", script); err != nil {
		return err
	}
	if err := r.labUp(); err != nil {
		return err
	}
	version, err := r.onNode(node, "env", "PATH=/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin", "iptables", "--version")
	r.iptables = version
	return err
}

// pinProcess binds all threads of a process to one CPU.
func pinProcess(pid string, cpu int) error {
	threads, err := os.ReadDir(filepath.Join("/proc", pid, "task"))
	if err != nil {
		return err
	}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			return err
		}
		if err := Pin(id, cpu); err != nil {
			return err
		}
	}
	return nil
}

// labCgroup is the cgroup of the lab, on this machine.
func (r *runner) labCgroup() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		mount, fs, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(mount); strings.HasPrefix(fs, "cgroup2 ") && len(fields) > 4 {
			return filepath.Join(fields[4], filepath.Base(r.StateDir)), nil
		}
	}
	return "", errors.New("cgroup v2 is not mounted")
}

// place is where a pod of a node is on this machine.
func (r *runner) place(node, uid string) (place, error) {
	lab, err := r.labCgroup()
	if err != nil {
		return place{}, err
	}
	// The sandbox and the container have one each: the container's is the later one.
	found := place{}
	newest := time.Time{}
	cgroups, err := filepath.Glob(filepath.Join(lab, node, "kubepods", "pod"+uid, "*", "cgroup.procs"))
	if err != nil {
		return place{}, err
	}
	for _, file := range cgroups {
		pids, err := os.ReadFile(file)
		pid, _, _ := strings.Cut(string(pids), "\n")
		info, errInfo := os.Stat(filepath.Dir(file))
		if err == nil && errInfo == nil && pid != "" && info.ModTime().After(newest) {
			found, newest = place{pid: pid, cgroup: filepath.Dir(file)}, info.ModTime()
		}
	}
	if found.pid == "" {
		return place{}, fmt.Errorf("pod %s has no process on %s", uid, node)
	}
	return found, nil
}

// podPlace is where a pod is on this machine.
func (r *runner) podPlace(cluster, name string) (place, error) {
	out, err := r.kubectl(cluster, "get", "pod", name, "-o", "jsonpath={.metadata.uid} {.spec.nodeName}")
	if err != nil {
		return place{}, err
	}
	uid, node, _ := strings.Cut(out, " ")
	return r.place(node, uid)
}

// plainCgroup is a cgroup as deep as a container's, outside of every node's.
func (r *runner) plainCgroup(name string) (string, error) {
	lab, err := r.labCgroup()
	return filepath.Join(lab, "host", "plain", "pod", name), err
}

func (r *runner) comparerOn(node string) (*comparer, error) {
	pod, err := r.podPlace("cluster1", node)
	if err != nil {
		return nil, err
	}
	plain, err := r.plainCgroup("client")
	if err != nil {
		return nil, err
	}
	return startComparer(r.ctx, r.bin("bench"), pod, plain)
}

func (r *runner) compareOn(node string) (map[string]Outcome, error) {
	c, err := r.comparerOn(node)
	if err != nil {
		return nil, err
	}
	defer c.stop()
	return c.compare(r.targets, r.Rounds, r.Turns)
}

// settle waits until the machine has little else to do, or for half a minute: what has just
// been made is still being worked off.
func (r *runner) settle() {
	const calm, look = 0.15, 2 * time.Second
	for range 15 {
		before := busy()
		time.Sleep(look)
		if (busy()-before).Seconds() < calm*look.Seconds()*float64(runtime.NumCPU()) || r.ctx.Err() != nil {
			return
		}
	}
	r.say("the machine does other things too: the noise is in the figures")
}

// busy is how long the CPUs have worked since the start of the machine.
func busy() time.Duration {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	ticks := 0
	for i, field := range strings.Fields(line) {
		if i >= 1 && i != 4 && i != 5 && i <= 8 { // without idle and iowait, nor guests
			n, _ := strconv.Atoi(field)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// grow makes as many services, and waits until everybody knows them. kube-proxy stands still
// while they are made: it would write its tables over and over, and only take the time from
// the API servers.
func (r *runner) grow(size int) ([]Result, error) {
	have := len(r.targets.VIPs)
	if size <= have {
		return nil, nil
	}
	r.say(fmt.Sprintf("making services, from %d to %d", have, size))
	proceed, err := r.haltProxies()
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
	vips, err := makeServices(r.ctx, config, r.targets.Direct, have, size)
	if err != nil {
		return nil, err
	}
	made := time.Since(began)
	r.targets.VIPs = append(r.targets.VIPs, vips...)
	if err := r.poll(5*time.Minute, "all services to be global", func() (bool, error) { return countGlobal(r.ctx, mesh, size) }); err != nil {
		return nil, err
	}
	global := time.Since(began)
	for _, at := range proxyNodes {
		if err := r.programmed(at.node, len(r.targets.Direct)); err != nil {
			return nil, err
		}
	}
	ours := time.Since(began)
	r.say(fmt.Sprintf("made in %.1f s; global after %.1f s, programmed on the nodes after %.1f s", made.Seconds(), global.Seconds(), ours.Seconds()))

	note := fmt.Sprintf("%d services with a slice of %d endpoints each, kube-proxy halted meanwhile", size-have, len(r.targets.Direct))
	results := []Result{
		{Name: fmt.Sprintf("made_s, %d to %d services", have, size), Value: made.Seconds(), Unit: "s", Note: note},
		{Name: fmt.Sprintf("global_s, %d to %d services", have, size), Value: global.Seconds(), Unit: "s", Note: "until the last GlobalService is there, since the first Service"},
		{Name: fmt.Sprintf("programmed_s, %d to %d services", have, size), Value: ours.Seconds(), Unit: "s", Note: "until the agents' maps have all of them, since the first Service"},
	}
	proceed()
	released := time.Now()
	for i, at := range proxyNodes {
		if err := r.answered(at.node); err != nil {
			return results, err
		}
		took := time.Since(released)
		r.say(fmt.Sprintf("kube-proxy %s serves them %.1f s after it was let go on", proxyNodes[i].mode, took.Seconds()))
		results = append(results, Result{
			Name: fmt.Sprintf("kube_proxy_programmed_s, %d to %d services, %s", have, size, at.mode), Value: took.Seconds(), Unit: "s",
			Note: "until kube-proxy serves all of them, since it was let go on",
		})
	}
	return results, nil
}

// haltProxies stops kube-proxy on all nodes. proceed can be called more than once.
func (r *runner) haltProxies() (proceed func(), err error) {
	pids, err := r.pids()
	if err != nil {
		return nil, err
	}
	signal := func(s syscall.Signal) {
		for name, pid := range pids {
			if n, err := strconv.Atoi(pid); err == nil && strings.HasSuffix(name, "/kube-proxy") {
				_ = syscall.Kill(n, s)
			}
		}
	}
	signal(syscall.SIGSTOP)
	return func() { signal(syscall.SIGCONT) }, nil
}

// poll waits until something is so.
func (r *runner) poll(most time.Duration, what string, so func() (bool, error)) error {
	for end := time.Now().Add(most); ; {
		done, err := so()
		if done {
			return nil
		}
		if time.Now().After(end) {
			return errors.Join(fmt.Errorf("waited %s for %s", most, what), err)
		}
		select {
		case <-r.ctx.Done():
			return r.ctx.Err()
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// countGlobal says whether there are as many GlobalServices of the comparison's.
func countGlobal(ctx context.Context, mesh meshclient.Interface, want int) (bool, error) {
	list, err := mesh.MeshV1alpha1().GlobalServices(Namespace).List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil || len(list.Items) == 0 {
		return false, err
	}
	// One more is the datagrams'.
	return 1+int(ptr.Deref(list.RemainingItemCount, 0)) >= want+1, nil
}

// programmed waits until the maps of a node have so many backends of every service.
func (r *runner) programmed(node string, backends int) error {
	content, err := json.Marshal(r.targets.VIPs)
	if err != nil {
		return err
	}
	file := filepath.Join(r.Root, "_output", "bench", "vips.json")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return err
	}
	_, err = r.onNode(node, r.bin("bench"), "programmed", "--vips", file, "--backends", fmt.Sprint(backends))
	return err
}

// answered waits until kube-proxy serves every service.
func (r *runner) answered(node string) error {
	c, err := r.comparerOn(node)
	if err != nil {
		return err
	}
	defer c.stop()
	return r.poll(10*time.Minute, "kube-proxy on "+node, func() (bool, error) {
		reply, err := c.ask(order{To: r.targets.VIPs})
		return err == nil && reply.Missing == 0, err
	})
}

// compared are the figures of one size and one mode of kube-proxy.
func (r *runner) compared(outcomes map[string]Outcome, mode string, size int) []Result {
	note := fmt.Sprintf("medians of %d rounds of %d turns; a turn goes each way once", r.Rounds, r.Turns)
	at := fmt.Sprintf("%d services, beside kube-proxy %s", size, mode)
	if mode == "iptables" {
		note += "; " + r.iptables
		at += ", skipServiceChains=" + r.skipped
	}
	var results []Result
	const many, better = 1000, "better than kube-proxy" // from so many services on
	add := func(name, unit, target, note string, of func(way string) float64, peers ...string) {
		if size < many {
			target = strings.TrimSuffix(strings.TrimSuffix(target, better), ", ")
		}
		result := Result{Name: name + ", " + at, Value: of(ThroughMesh), Unit: unit, Target: target, Note: note, Peers: map[string]float64{}}
		for _, way := range peers {
			label := way
			if way == ThroughKubeProxy {
				label += " " + mode
			}
			result.Peers[label] = of(way)
		}
		results = append(results, result)
	}
	kinds := []struct{ kind, name string }{
		{kindConnect, "connect"}, {kindCRR, "crr"},
		{kindUDPConnected, "udp_rr connected"}, {kindUDPUnconnected, "udp_rr unconnected"}, {kindUDPNew, "udp_rr new socket"},
	}
	for _, k := range kinds {
		o := outcomes[k.kind]
		target := better
		if k.kind == kindConnect {
			add("connect_p50", "µs", better, note, func(way string) float64 { return o.Ways[way].P50 }, Straight, StraightAlongside, ThroughKubeProxy)
			add("connect_p99", "µs", "", note, func(way string) float64 { return o.Ways[way].P99 }, Straight, StraightAlongside, ThroughKubeProxy)
			target = "≤ 4, " + better
		} else {
			name := strings.Replace(k.name, "udp_rr", "udp_rr_rate", 1)
			if k.kind == kindCRR {
				name = "crr_rate"
			}
			add(name, "1/s", better, note, func(way string) float64 { return o.Ways[way].Rate }, Straight, StraightAlongside, ThroughKubeProxy)
		}
		add(k.name+"_overhead_p50", "µs", target, "median of the differences to the direct way within a turn",
			func(way string) float64 { return o.Diffs[way] }, StraightAlongside, ThroughKubeProxy)
	}
	return results
}

// makeServices makes the global services with the numbers from (included) to to (not
// included), each with all backends, and returns their virtual addresses.
//
// The addresses are asked for: kube-apiserver chooses one at a time, and writes it to its store
// and counts all there are, twice, while it holds a lock.
func makeServices(ctx context.Context, config *rest.Config, backends []netip.AddrPort, from, to int) ([]netip.AddrPort, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	vips := make([]netip.AddrPort, to-from)
	errs := make(chan error, to-from)
	slots := make(chan struct{}, 32)
	var working sync.WaitGroup
	for i := range vips {
		slots <- struct{}{}
		working.Go(func() {
			defer func() { <-slots }()
			vip, err := makeService(ctx, client, from+i, backends)
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

// numberedVIP is the n-th virtual address that is asked for, of cluster1's services. Where it
// is taken, the next try is far away.
func numberedVIP(n, try int) string {
	n += try * 12_000
	return fmt.Sprintf("10.101.%d.%d", 16+n/250, 1+n%250)
}

func numberedName(n int) string { return fmt.Sprintf("many-%d", n) }

func makeService(ctx context.Context, client kubernetes.Interface, n int, backends []netip.AddrPort) (netip.AddrPort, error) {
	var service *corev1.Service
	var err error
	for try := range 4 {
		service, err = client.CoreV1().Services(Namespace).Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: numberedName(n), Namespace: Namespace, Annotations: map[string]string{"mesh.io/global": "true"}},
			Spec: corev1.ServiceSpec{
				ClusterIP: numberedVIP(n, try),
				Ports:     []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
			},
		}, metav1.CreateOptions{})
		if err == nil || !apierrors.IsInvalid(err) {
			break
		}
	}
	if err != nil {
		return netip.AddrPort{}, err
	}
	if _, err := client.DiscoveryV1().EndpointSlices(Namespace).Create(ctx, numberedSlice(n, backends), metav1.CreateOptions{}); err != nil {
		return netip.AddrPort{}, err
	}
	address, err := netip.ParseAddr(service.Spec.ClusterIP)
	return netip.AddrPortFrom(address, 80), err
}

// numberedSlice is the slice of a service, which it is named after.
func numberedSlice(n int, backends []netip.AddrPort) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: numberedName(n), Namespace: Namespace,
			Labels: map[string]string{discoveryv1.LabelServiceName: numberedName(n), discoveryv1.LabelManagedBy: "bench.mesh.io"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(""), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To(int32(echoPort))}},
	}
	for _, backend := range backends {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{backend.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		})
	}
	return slice
}
