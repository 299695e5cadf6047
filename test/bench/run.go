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
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Config says what to measure and where.
type Config struct {
	Root     string // the checkout
	BinDir   string // absolute
	StateDir string // of the labs
	Port     int    // of the labs' first API server
	Changes  int    // endpoint changes
	Connects int    // pairs of connects

	// Only names the parts to do. None is all.
	Only []string

	// Sizes are the numbers of services at which we are compared with kube-proxy, in rising
	// order. Each service has four backends.
	Sizes  []int
	Rounds int // of the comparison with kube-proxy, at each size
	Turns  int // connects of each way in a round, and questions of each kind

	// Backends is how many are replaced in a rolling update, and Drain how long each goes
	// on accepting after it was taken from the Service. Where that is negative, it ends so
	// long before: connects are lost then, which shows that they are counted.
	Backends int
	Drain    time.Duration

	// Remote is how many endpoints of another cluster the agent gets whose memory and
	// restart are measured.
	Remote int
}

// part is something to measure.
type part struct {
	name, what string
	run        func() ([]Result, error)
}

// stage is a lab, and what is measured on it.
type stage struct {
	lab   []string // the arguments of hack/lab-up.sh; no lab without
	setUp func() error
	parts []part
}

func (r *runner) stages() []stage {
	return []stage{
		{parts: []part{
			{"datapath", "the hooks and the writes of the maps, without a cluster", r.datapath},
		}},
		{[]string{"--clusters", "2", "--nodes", "3"}, r.deploy, []part{
			{"propagation", "endpoint changes from cluster1 to the map of a node in cluster2", r.propagation},
			{"connects", "connects through a global VIP", r.connects},
			{"throughput", "throughput through a global VIP", r.throughput},
			{"lost", "connects that are lost in updates, restarts and upgrades", r.lost},
		}},
		// The other cluster's programs would only take time from the CPUs.
		{[]string{"--clusters", "1", "--nodes", "3", "--kube-proxy", "cluster1-node2=iptables"}, nil, []part{
			{"proxies", "connects and datagrams through us and through kube-proxy", r.proxies},
			{"agent", "the agent's memory and restart", r.agent},
		}},
	}
}

// Parts are the names of what can be measured.
func Parts() (names []string) {
	for _, stage := range (&runner{}).stages() {
		for _, part := range stage.parts {
			names = append(names, part.name)
		}
	}
	return names
}

// Run starts the labs that it takes, one after the other, measures everything on them and
// removes them. It returns what was measured, also where a later part fails.
func Run(ctx context.Context, config Config) (results []Result, err error) {
	r := &runner{Config: config, ctx: ctx, began: time.Now()}
	if r.Root, err = filepath.Abs(r.Root); err != nil {
		return nil, err
	}
	r.kubeconfig = filepath.Join(r.Root, "_output", "bench", "kubeconfig")
	for _, stage := range r.stages() {
		stage.parts = slices.DeleteFunc(stage.parts, func(p part) bool { return len(r.Only) > 0 && !slices.Contains(r.Only, p.name) })
		if len(stage.parts) == 0 {
			continue
		}
		more, err := r.stage(stage)
		results = append(results, more...)
		if err != nil {
			return results, err
		}
	}
	return results, nil
}

func (r *runner) stage(stage stage) (results []Result, err error) {
	if stage.lab != nil {
		r.say("starting a lab: " + strings.Join(stage.lab, " "))
		if _, err := r.lab("down"); err != nil {
			return nil, err
		}
		if err := r.freshPrograms(); err != nil {
			return nil, err
		}
		defer func() {
			r.say("removing the lab")
			down := exec.Command(r.bin("lab"), "down", "--state-dir", r.StateDir)
			down.Dir = r.Root
			err = errors.Join(err, down.Run())
		}()
		r.labArgs = append([]string{"--bin-dir", r.programs()}, stage.lab...)
		up := []string{"MESH_LAB_STATE_DIR=" + r.StateDir, fmt.Sprintf("MESH_LAB_PORT=%d", r.Port), "MESH_LAB_KUBECONFIG=" + r.kubeconfig,
			filepath.Join(r.Root, "hack", "lab-up.sh")}
		if _, err := r.command("env", append(up, r.labArgs...)...); err != nil {
			return nil, err
		}
	}
	if stage.setUp != nil {
		if err := stage.setUp(); err != nil {
			return nil, err
		}
	}
	for _, part := range stage.parts {
		r.say("measuring " + part.what)
		more, err := part.run()
		results = append(results, more...)
		if err != nil {
			return results, fmt.Errorf("measuring %s: %w", part.what, err)
		}
	}
	return results, nil
}

type runner struct {
	Config
	ctx        context.Context
	kubeconfig string
	began      time.Time
	labArgs    []string // of the lab that is up

	iptables string // its version, where kube-proxy is in iptables mode
	skipped  string // the agents' --skip-service-chains

	targets Targets // of the comparison with kube-proxy, as many services as there are
}

// programs is where the lab finds its programs: a folder of our own, where the agent can be
// replaced by another build.
func (r *runner) programs() string { return filepath.Join(r.Root, "_output", "bench", "bin") }

// freshPrograms links the programs of the build into the folder.
func (r *runner) freshPrograms() error {
	if err := os.RemoveAll(r.programs()); err != nil {
		return err
	}
	if err := os.MkdirAll(r.programs(), 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(r.BinDir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := os.Link(r.bin(entry.Name()), filepath.Join(r.programs(), entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// lab runs a command of the lab.
func (r *runner) lab(command string, args ...string) (string, error) {
	return r.command(r.bin("lab"), append([]string{command, "--state-dir", r.StateDir}, args...)...)
}

// labUp starts what has ended of the lab.
func (r *runner) labUp() error {
	_, err := r.lab("up", append([]string{"--port", fmt.Sprint(r.Port), "--kubeconfig", r.kubeconfig}, r.labArgs...)...)
	return err
}

// onNode runs a program on a node.
func (r *runner) onNode(node string, args ...string) (string, error) {
	return r.lab("exec", append([]string{"--node", node, "--"}, args...)...)
}

// pids are the process numbers of the lab's programs, by name, and of the namespaces of its
// places, by "NAME (namespaces)".
func (r *runner) pids() (map[string]string, error) {
	out, err := r.lab("ps")
	if err != nil {
		return nil, err
	}
	pids := map[string]string{}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		for i := 1; i < len(fields) && i < 3; i++ {
			if strings.Trim(fields[i], "0123456789") == "" {
				pids[strings.Join(fields[:i], " ")] = fields[i]
				break
			}
		}
	}
	return pids, nil
}

func (r *runner) say(what string) {
	fmt.Fprintf(os.Stderr, "bench: %4.0f s  %s\n", time.Since(r.began).Seconds(), what)
}
func (r *runner) bin(name string) string { return filepath.Join(r.BinDir, name) }

func (r *runner) command(name string, args ...string) (string, error) {
	return r.input("", name, args...)
}

func (r *runner) input(input, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(r.ctx, name, args...)
	cmd.Dir = r.Root
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(name), strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

func (r *runner) kubectl(cluster string, args ...string) (string, error) {
	return r.command(r.bin("kubectl"), append([]string{"--kubeconfig", r.kubeconfig, "--context", cluster, "-n", Namespace}, args...)...)
}

// apply applies a manifest.
func (r *runner) apply(cluster, manifest string) error {
	_, err := r.input(manifest, r.bin("kubectl"), "--kubeconfig", r.kubeconfig, "--context", cluster, "-n", Namespace, "apply", "-f", "-")
	return err
}

// workload is a server in cluster2 behind a Service that both clusters have, and a
// client in cluster1.
const workload = `
apiVersion: v1
kind: Service
metadata:
  name: server
  annotations: {mesh.io/global: "true"}
spec:
  selector: {app: server}
  ports:
  - {name: http, port: 80, targetPort: 8181}
  - {name: iperf, port: 5201, targetPort: 5201}
`

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: %[1]s, image: "%[2]s"%[3]s}]
`

func (r *runner) deploy() error {
	propagation, err := json.Marshal(PropagationServiceObject())
	if err != nil {
		return err
	}
	manifest := strings.Replace(string(propagation), "{", `{"apiVersion":"v1","kind":"Service",`, 1)
	for _, cluster := range []string{"cluster1", "cluster2"} {
		if _, err := r.kubectl(cluster, "create", "namespace", Namespace); err != nil {
			return err
		}
		role, image, command := "client", "curlimages/curl", `, command: [sh, -c, "while true; do sleep 3600; done"]`
		if cluster == "cluster2" {
			role, image, command = "server", "ssongman/userlist:v1", ""
		}
		for _, m := range []string{manifest, workload, fmt.Sprintf(deployment, role, image, command)} {
			if err := r.apply(cluster, m); err != nil {
				return err
			}
		}
	}
	if _, err := r.kubectl("cluster1", "rollout", "status", "--timeout", "60s", "deploy/client"); err != nil {
		return err
	}
	if _, err := r.kubectl("cluster2", "rollout", "status", "--timeout", "60s", "deploy/server"); err != nil {
		return err
	}
	_, err = r.kubectl("cluster1", "wait", "globalservice/server", "--for=condition=Ready", "--timeout", "60s")
	return err
}

func (r *runner) vip(cluster, service string) (string, error) {
	return r.kubectl(cluster, "get", "service", service, "-o", "jsonpath={.spec.clusterIP}")
}

func (r *runner) serverAddress() (string, error) {
	return r.kubectl("cluster2", "get", "pods", "-l", "app=server", "-o", "jsonpath={.items[0].status.podIP}")
}

func (r *runner) connects() ([]Result, error) {
	vip, err := r.vip("cluster1", "server")
	if err != nil {
		return nil, err
	}
	direct, err := r.serverAddress()
	if err != nil {
		return nil, err
	}
	out, err := r.kubectl("cluster1", "exec", "deploy/client", "--", r.bin("bench"), "connect",
		"--vip", vip+":80", "--direct", direct+":8181", "--pairs", fmt.Sprint(r.Connects))
	if err != nil {
		return nil, err
	}
	var c Connects
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		return nil, err
	}
	return []Result{{
		Name: "connect_overhead_p50", Value: c.OverheadP50, Unit: "µs", Target: "≤ 4", Peer: "straight to the pod",
		Note: fmt.Sprintf("VIP %.1f, direct %.1f; %d pairs, interleaved", c.VIPp50, c.DirectP50, c.Pairs),
	}}, nil
}

func (r *runner) throughput() ([]Result, error) {
	vip, err := r.vip("cluster1", "server")
	if err != nil {
		return nil, err
	}
	direct, err := r.serverAddress()
	if err != nil {
		return nil, err
	}
	const rounds = 5
	serverCtx, stop := context.WithCancel(r.ctx)
	defer stop()
	// One test after another, then it ends by itself.
	server := exec.CommandContext(serverCtx, r.bin("kubectl"), "--kubeconfig", r.kubeconfig, "--context", "cluster2", "-n", Namespace,
		"exec", "deploy/server", "--", "sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do iperf3 -s -1 >/dev/null; i=$((i+1)); done", 2*rounds))
	if err := server.Start(); err != nil {
		return nil, err
	}
	measure := func(to string) (float64, error) {
		var lastErr error
		for range 50 { // the server takes a moment between two tests
			out, err := r.kubectl("cluster1", "exec", "deploy/client", "--", "iperf3", "-J", "-t", "3", "-c", to, "-p", "5201")
			if err != nil {
				lastErr = err
				time.Sleep(100 * time.Millisecond)
				continue
			}
			var report struct {
				End struct {
					Received struct {
						BitsPerSecond float64 `json:"bits_per_second"`
					} `json:"sum_received"`
				} `json:"end"`
			}
			if err := json.Unmarshal([]byte(out), &report); err != nil {
				return 0, err
			}
			return report.End.Received.BitsPerSecond / 1e9, nil
		}
		return 0, lastErr
	}
	var viaVIP, viaDirect, ratios []float64
	for i := range rounds {
		order := []string{vip, direct}
		if i%2 == 1 {
			order = []string{direct, vip}
		}
		speeds := map[string]float64{}
		for _, to := range order {
			if speeds[to], err = measure(to); err != nil {
				return nil, err
			}
		}
		viaVIP, viaDirect = append(viaVIP, speeds[vip]), append(viaDirect, speeds[direct])
		ratios = append(ratios, speeds[vip]/speeds[direct])
	}
	return []Result{{
		Name: "throughput_ratio", Value: Percentile(ratios, 50), Unit: "ratio", Target: "≥ 0.99", Peer: "straight to the pod",
		Note: fmt.Sprintf("iperf3 TCP, median of %d pairs: VIP %.1f, direct %.1f Gb/s", rounds, Percentile(viaVIP, 50), Percentile(viaDirect, 50)),
	}}, nil
}

func (r *runner) propagation() ([]Result, error) {
	vip, err := r.vip("cluster2", PropagationService)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Join(r.Root, "_output", "bench"), "run-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	from, err := r.inside(dir, "cluster1")
	if err != nil {
		return nil, err
	}
	to, err := r.inside(dir, "cluster2")
	if err != nil {
		return nil, err
	}
	out, err := r.onNode("cluster2-node1", r.bin("bench"), "propagate",
		"--from", from, "--to", to, "--vip", vip+":80", "--changes", fmt.Sprint(r.Changes))
	if err != nil {
		return nil, err
	}
	var p Propagation
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		return nil, err
	}
	const peer = "three bare API writes, chained by watches"
	note := fmt.Sprintf("%d changes; medians of the hops: export %.2f, import %.2f, program %.2f", p.Changes, p.Exported, p.Imported, p.Programmed)
	return []Result{
		{Name: "propagation_idle_p50", Value: p.P50, Unit: "ms", Target: "≤ 10, ≤ 2.5 × chained", Peer: peer, Peers: map[string]float64{"chained writes": p.Chained.P50}, Note: note},
		{Name: "propagation_idle_p99", Value: p.P99, Unit: "ms", Target: "≤ 40, ≤ 2.5 × chained", Peer: peer, Peers: map[string]float64{"chained writes": p.Chained.P99}, Note: fmt.Sprintf("%.1f × the chained writes at p50, %.1f × at p99", p.P50/p.Chained.P50, p.P99/p.Chained.P99)},
		{Name: "chained_writes_p50", Value: p.Chained.P50, Unit: "ms", Peer: "", Note: "the floor, in turn with the changes"},
		{Name: "chained_writes_p99", Value: p.Chained.P99, Unit: "ms", Peer: "", Note: ""},
	}, nil
}

// inside writes a kubeconfig for one cluster whose address is the one within the
// lab: without the way over the host's loopback.
func (r *runner) inside(dir, cluster string) (string, error) {
	config, err := clientcmd.LoadFromFile(r.kubeconfig)
	if err != nil {
		return "", err
	}
	address, err := r.kubectl(cluster, "get", "endpointslices", "-n", "default", "-l", "kubernetes.io/service-name=kubernetes", "-o", "jsonpath={.items[0].endpoints[0].addresses[0]}:{.items[0].ports[0].port}")
	if err != nil {
		return "", err
	}
	config.CurrentContext = cluster
	if err := clientcmdapi.MinifyConfig(config); err != nil {
		return "", err
	}
	for _, c := range config.Clusters {
		c.Server = "https://" + address
	}
	path := filepath.Join(dir, cluster)
	return path, clientcmd.WriteToFile(*config, path)
}
