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

package e2e

import (
	"bufio"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"mesh.io/clustermesh/test/e2e/trace"
)

// people are accounts with few rights, and installer with just enough of them: it is no
// administrator, and may not give away what it does not have.
const people = `
apiVersion: v1
kind: Namespace
metadata: {name: people}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: installer}
rules:
- apiGroups: ["", apps, networking.k8s.io, coordination.k8s.io, apiregistration.k8s.io, apiextensions.k8s.io, admissionregistration.k8s.io,
    authentication.k8s.io, authorization.k8s.io, events.k8s.io, storage.k8s.io, mesh.io]
  resources: ["*"]
  verbs: ["*"]
- apiGroups: [rbac.authorization.k8s.io]
  resources: ["*"]
  verbs: [get, list, watch, create, update, patch, delete]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: installer-budgets}
rules:
- {apiGroups: [policy], resources: ["*"], verbs: ["*"]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: installer-slices}
rules:
- {apiGroups: [discovery.k8s.io], resources: ["*"], verbs: ["*"]}
`

// bound binds the people to their roles.
var bound = map[string][]string{
	"viewer":            {"view"},
	"without-budgets":   {"installer", "installer-slices"},
	"without-endpoints": {"installer", "installer-budgets"},
	"installer":         {"installer", "installer-budgets", "installer-slices"},
}

const foreignAPI = `
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1alpha1.mesh.io}
spec:
  group: mesh.io
  version: v1alpha1
  groupPriorityMinimum: 10
  versionPriority: 10
  insecureSkipTLSVerify: true
  service: {namespace: people, name: their-api}
`

// bareNode adds a node to cluster1 that is not ready. It has no kubelet, which would
// otherwise correct what is said of it.
func bareNode(c commands, kernel string) {
	c.Helper()
	c.apply("cluster1", `
apiVersion: v1
kind: Node
metadata: {name: bare-node, labels: {kubernetes.io/os: linux, kubernetes.io/hostname: bare-node}}
`)
	c.get("cluster1", "patch", "node", "bare-node", "--subresource", "status", "-p",
		`{"status":{"nodeInfo":{"kernelVersion":"`+kernel+`","operatingSystem":"linux"},`+
			`"allocatable":{"cpu":"4","memory":"8Gi","pods":"10"},"capacity":{"cpu":"4","memory":"8Gi","pods":"10"},`+
			`"conditions":[{"type":"Ready","status":"False","reason":"KubeletNotReady","message":"there is none"}]}}`)
}

// commands runs programs against one lab.
type commands struct {
	*testing.T
	bin, kubeconfig string
}

// of is the same for a subtest.
func (c commands) of(t *testing.T) commands { c.T = t; return c }

func (c commands) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.bin, program), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig)
	return cmd
}

// run runs a program, and returns all that it says and its exit code.
func (c commands) run(input, program string, args ...string) (string, int) {
	c.Helper()
	cmd := c.command(program, args...)
	cmd.Stdin = strings.NewReader(input)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.Fatalf("%s %v: %v", program, args, err)
	}
	if program == "meshctl" {
		c.Logf("%s %s: exit code %d after %s\n%s", program, strings.Join(args, " "), cmd.ProcessState.ExitCode(), time.Since(began).Round(100*time.Millisecond), out)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// must runs a program that has to succeed.
func (c commands) must(program string, args ...string) string {
	c.Helper()
	out, code := c.run("", program, args...)
	if code != 0 {
		c.Fatalf("%s %v ends with %d:\n%s", program, args, code, out)
	}
	return strings.TrimSpace(out)
}

func (c commands) apply(cluster, manifest string) {
	c.Helper()
	if out, code := c.run(manifest, "kubectl", "--context", cluster, "apply", "-f", "-"); code != 0 {
		c.Fatalf("applying: %s", out)
	}
}

// expect runs meshctl, and says whether it ended with a code and said some things. Lines
// may be broken anywhere.
func (c commands) expect(code int, says []string, args ...string) string {
	c.Helper()
	return c.answered("", code, says, args...)
}

func (c commands) answered(input string, code int, says []string, args ...string) string {
	c.Helper()
	out, got := c.run(input, "meshctl", args...)
	if got != code {
		c.Errorf("meshctl %s ends with %d, want %d", strings.Join(args, " "), got, code)
	}
	for _, text := range says {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), text) {
			c.Errorf("meshctl %s does not say %q", strings.Join(args, " "), text)
		}
	}
	return out
}

// stopAt runs meshctl, and sends it a signal once it has begun or ended its nth step, or
// once a moment has come. It returns what it has said, its exit code (-1 if it was killed),
// and whether the signal was sent.
func (c commands) stopAt(signal syscall.Signal, at func(steps int, line string) bool, moment <-chan struct{}, args ...string) (said string, code int, stopped bool) {
	c.Helper()
	cmd := c.command("meshctl", args...)
	reader, writer := io.Pipe()
	cmd.Stderr = writer
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		writer.Close()
		close(ended)
	}()
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(reader); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	var out strings.Builder
	steps := 0
	stop := func() {
		if !stopped && cmd.Process.Signal(signal) == nil {
			stopped = true
			out.WriteString("(" + signal.String() + ")\n")
		}
	}
	for open := true; open; {
		select {
		case line, more := <-lines:
			if open = more; !more {
				break
			}
			out.WriteString(line + "\n")
			if strings.HasPrefix(line, "... ") || strings.HasPrefix(line, "✔ ") {
				if steps++; at != nil && at(steps, line) {
					stop()
				}
			}
		case <-moment:
			moment = nil
			stop()
		}
	}
	<-ended
	c.Logf("meshctl %s: exit code %d\n%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), &out)
	return out.String(), cmd.ProcessState.ExitCode(), stopped
}

// killEverywhere runs a command again and again, and kills it one step later each time,
// until it has come to its end.
func (c commands) killEverywhere(args ...string) {
	c.Helper()
	for n := 1; ; n++ {
		_, code, stopped := c.stopAt(syscall.SIGKILL, func(steps int, _ string) bool { return steps == n }, nil, args...)
		if !stopped || code == 0 {
			if code != 0 || n < 4 {
				c.Fatalf("meshctl %s ends with %d, after it was killed %d times", strings.Join(args, " "), code, n-1)
			}
			return
		}
	}
}

// recorded is closed once a cluster holds a record of a Helm release in some state.
func (c commands) recorded(cluster, state string) <-chan struct{} {
	c.Helper()
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: c.kubeconfig}, &clientcmd.ConfigOverrides{CurrentContext: cluster}).ClientConfig()
	if err != nil {
		c.Fatal(err)
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		c.Fatal(err)
	}
	seen := make(chan struct{})
	ctx := c.Context()
	go func() {
		for ctx.Err() == nil {
			list, err := client.CoreV1().Secrets("mesh-system").List(ctx, metav1.ListOptions{LabelSelector: "owner=helm,status=" + state})
			if err == nil && len(list.Items) > 0 {
				close(seen)
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	return seen
}

type writerFunc func(text string)

func (f writerFunc) Write(text []byte) (int, error) {
	f(string(text))
	return len(text), nil
}

func (c commands) get(cluster string, args ...string) string {
	c.Helper()
	return c.must("kubectl", append([]string{"--context", cluster}, args...)...)
}

func (c commands) epoch(cluster string) string {
	c.Helper()
	epoch := c.get(cluster, "get", "meshcluster", cluster, "-o", "jsonpath={.status.storeEpoch}")
	if epoch == "" {
		c.Errorf("the store of %s has no epoch", cluster)
	}
	return epoch
}

// record is what says of our objects that they have not been touched: the records of the
// release, and the version of each object whose content is ours alone.
func (c commands) record(cluster string) string {
	c.Helper()
	return c.get(cluster, "-n", "mesh-system", "get",
		"secrets,configmaps,services,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,networkpolicies,daemonsets,deployments,statefulsets",
		"-o", `jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.resourceVersion}{"\n"}{end}`)
}

// calm takes a picture of a cluster once nothing changes any more: kube-proxy has caught
// up, and addresses are no longer tentative.
func calm(c commands, pictures trace.Lab, cluster string) trace.Picture {
	c.Helper()
	for began := time.Now(); ; {
		first, err := pictures.Take(c.Context(), cluster)
		if err != nil {
			c.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		second, err := pictures.Take(c.Context(), cluster)
		if err != nil {
			c.Fatal(err)
		}
		differences := first.Differences(second)
		if len(differences) == 0 && !slices.ContainsFunc(slices.Collect(maps.Keys(second)), func(line string) bool { return strings.Contains(line, " tentative") }) {
			return second
		}
		if time.Since(began) > time.Minute {
			c.Fatalf("%s does not come to rest: %q", cluster, differences)
		}
	}
}

// holds says what is in the mesh's namespace of cluster1 beside what every namespace has.
func holds(c commands, want ...string) {
	c.Helper()
	list := c.get("cluster1", "-n", "mesh-system", "get",
		"all,secrets,configmaps,serviceaccounts,roles,rolebindings,persistentvolumeclaims,networkpolicies,poddisruptionbudgets,leases,controllerrevisions", "-o", "name")
	names := slices.DeleteFunc(strings.Fields(list), func(name string) bool {
		return name == "configmap/kube-root-ca.crt" || name == "serviceaccount/default"
	})
	if !slices.Equal(names, want) {
		c.Errorf("the namespace holds %q, want %q", names, want)
	}
}

// TestInstall installs, upgrades and uninstalls the mesh in every way that a person or a
// machine may get wrong, on a lab of its own.
func TestInstall(t *testing.T) {
	if os.Getuid() != 0 || os.Getenv("MESH_LAB_TESTS") != "1" {
		t.Skip("the lab needs root, and MESH_LAB_TESTS=1")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	const state = "/run/mesh-lab-install"
	c := commands{t, filepath.Join(root, "_output", "bin"), filepath.Join(t.TempDir(), "kubeconfig")}
	lab := func(command string) []string {
		return []string{command, "--clusters", "2", "--nodes", "1", "--state-dir", state, "--port", "17941", "--bin-dir", c.bin, "--kubeconfig", c.kubeconfig}
	}
	c.must("lab", lab("down")...)
	t.Cleanup(func() { c.must("lab", lab("down")...) })
	c.must("lab", lab("up")...)
	pictures := trace.Lab{Kubeconfig: c.kubeconfig, Program: filepath.Join(c.bin, "lab"), StateDir: state}
	before := map[string]trace.Picture{}
	for _, cluster := range []string{"cluster1", "cluster2"} {
		c.apply(cluster, people)
		for account, roles := range bound {
			c.get(cluster, "-n", "people", "create", "serviceaccount", account)
			for _, role := range roles {
				c.get(cluster, "create", "clusterrolebinding", account+"-"+role, "--clusterrole", role, "--serviceaccount", "people:"+account)
			}
			token := c.get(cluster, "-n", "people", "create", "token", account, "--duration", "1h")
			c.must("kubectl", "config", "set-credentials", account+"@"+cluster, "--token", token)
			c.must("kubectl", "config", "set-context", account+"@"+cluster, "--cluster", cluster, "--user", account+"@"+cluster)
		}
		c.get(cluster, "create", "namespace", "shop")
		c.get(cluster, "-n", "shop", "apply", "-f", filepath.Join(root, "artifacts", "examples", "userlist.yaml"))
	}
	for _, cluster := range []string{"cluster1", "cluster2"} {
		c.get(cluster, "-n", "shop", "rollout", "status", "deployment/userlist", "--timeout", "60s")
		before[cluster] = calm(c, pictures, cluster)
	}
	// nothing says whether a cluster is as it was before.
	nothing := func(c commands, cluster string, but ...string) {
		c.Helper()
		lines, err := pictures.Settled(c.Context(), cluster, before[cluster], 15*time.Second)
		if err != nil {
			c.Fatal(err)
		}
		lines = slices.DeleteFunc(lines, func(line string) bool {
			return slices.ContainsFunc(but, func(part string) bool { return strings.Contains(line, part) })
		})
		for _, line := range lines[:min(len(lines), 20)] {
			c.Errorf("%s is not as it was before: %s", cluster, line)
		}
		if len(lines) > 20 {
			c.Errorf("and %d more differences", len(lines)-20)
		}
	}
	on := func(context, name, id string, args ...string) []string {
		return append([]string{"install", "--context", context, "--cluster-name", name, "--cluster-id", id}, args...)
	}
	one, two := on("cluster1", "cluster1", "1"), on("cluster2", "cluster2", "2", "--set", "persistence.type=hostPath")
	more := func(args []string, further ...string) []string { return slices.Concat(args, further) }

	t.Run("refused before anything is changed", func(t *testing.T) {
		c := c.of(t)
		c.expect(0, []string{"This was a dry run: nothing was changed"}, more(one, "--dry-run")...)
		c.expect(2, []string{"persistence", "type", "must be one of", "nothing was changed"}, more(one, "--set", "persistence.type=tape")...)
		c.expect(2, []string{"agents", "not allowed", "nothing was changed"}, more(one, "--set", "agents.replicas=3")...)
		c.expect(2, []string{"the values say that the cluster is other"}, more(one, "--set", "cluster.name=other")...)
		c.expect(1, []string{`use "meshctl install"`}, "upgrade", "--context", "cluster1")
		c.expect(0, []string{"There is nothing of the mesh in cluster1"}, "uninstall", "--context", "cluster1", "--yes")

		c.expect(1, []string{"you may not", "create namespaces mesh-system", "more", "nothing was changed"}, on("viewer@cluster1", "cluster1", "1")...)
		c.expect(1, []string{"permissions: you may not get, create and patch poddisruptionbudgets mesh-controller in mesh-system. →"}, on("without-budgets@cluster1", "cluster1", "1")...)
		c.expect(1, []string{"you may not pass on the right to get, list and watch endpointslices, which you don't have (to ClusterRole mesh-controller and ClusterRole mesh-agent). →"}, on("without-endpoints@cluster1", "cluster1", "1")...)
		c.expect(0, nil, more(on("installer@cluster1", "cluster1", "1"), "--dry-run")...)
		c.expect(1, []string{"you may not list", "nothing was changed"}, "uninstall", "--context", "viewer@cluster1", "--yes")
		nothing(c, "cluster1")

		c.apply("cluster1", foreignAPI)
		c.get("cluster1", "create", "clusterrole", "mesh-view", "--verb", "get", "--resource", "pods")
		c.get("cluster1", "-n", "people", "create", "service", "nodeport", "web", "--tcp", "443", "--node-port", "32443")
		c.expect(1, []string{
			"already has an API v1alpha1.mesh.io that is not ours: it is served by Service people/their-api",
			"called like those of the mesh: clusterrole mesh-view",
			"port 32443 of the nodes, for the peers, belongs to Service people/web",
			"no objects of the kind PodMonitor (monitoring.coreos.com/v1), ServiceMonitor (monitoring.coreos.com/v1)", "nothing was changed",
		}, more(one, "--set", "serviceMonitor.enabled=true")...)
		c.expect(0, []string{"APIService v1alpha1.mesh.io is somebody else's: it is kept", "There is nothing of the mesh"}, "uninstall", "--context", "cluster1", "--yes")
		c.get("cluster1", "delete", "apiservice/v1alpha1.mesh.io", "clusterrole/mesh-view")
		c.get("cluster1", "-n", "people", "delete", "service", "web")
		nothing(c, "cluster1")

		bareNode(c, "4.18.0-477.el8.x86_64")
		c.expect(1, []string{"1 of 2 nodes have a kernel older than 5.10: bare-node (4.18.0-477.el8.x86_64)", "1 of 2 nodes are not ready: bare-node"}, one...)
		c.get("cluster1", "delete", "node", "bare-node")
		nothing(c, "cluster1")
	})

	t.Run("an install that is killed is completed", func(t *testing.T) {
		c := c.of(t)
		c.stopAt(syscall.SIGKILL, nil, c.recorded("cluster2", "pending-install"), two...)
		if got := c.get("cluster2", "-n", "mesh-system", "get", "secrets", "-l", "owner=helm", "-o", "name"); got == "" {
			t.Error("it was killed before it had begun")
		}
		said, code, _ := c.stopAt(syscall.SIGINT, func(_ int, line string) bool { return line == "... Starting mesh-apiserver" }, nil, two...)
		if code != 130 || !strings.Contains(said, "To complete it, run the same command again; to undo it: meshctl uninstall --context cluster2") {
			t.Errorf("Ctrl-C: it ends with %d", code)
		}
		c.killEverywhere(two...)
		if got := c.get("cluster2", "get", "meshcluster", "cluster2", "-o", "jsonpath={.spec.id}"); got != "2" {
			t.Errorf("the cluster's ID is %q", got)
		}
	})

	t.Run("a name and an ID that are taken", func(t *testing.T) {
		c := c.of(t)
		c.expect(1, []string{"the name cluster2 is taken: the cluster of context cluster2 knows another cluster by it"}, on("cluster1", "cluster2", "1", "--mesh-contexts", "cluster2")...)
		c.expect(1, []string{"the ID 2 is taken: the cluster of context cluster2 knows cluster2 by it"}, on("cluster1", "cluster1", "2", "--mesh-contexts", "cluster2")...)
		c.expect(1, []string{"the mesh is installed here already, as cluster2 with the ID 2"}, on("cluster2", "cluster3", "2", "--set", "persistence.type=hostPath")...)
		c.expect(1, []string{"the mesh is installed here already, as cluster2 with the ID 2"}, on("cluster2", "cluster2", "3", "--set", "persistence.type=hostPath")...)
		nothing(c, "cluster1")
	})

	t.Run("a node that is not ready, and an image that is not there", func(t *testing.T) {
		c := c.of(t)
		bareNode(c, "6.1.0")
		c.expect(4, []string{
			"1 of 2 nodes are not ready: bare-node",
			"starting mesh-apiserver: not within 8s", "is not in the lab's image table",
			"to undo it: meshctl uninstall --context installer@cluster1",
		}, more(on("installer@cluster1", "cluster1", "1"), "--set", "apiserver.image.repository=no-such", "--timeout", "8s")...)
		c.expect(0, []string{"not waited for, as their nodes are not ready: bare-node", "leave apiserver.image.repository to the chart"},
			"upgrade", "--context", "installer@cluster1", "--reset-values", "--timeout", "90s")
	})

	t.Run("a second install does nothing", func(t *testing.T) {
		c := c.of(t)
		was := c.record("cluster1")
		c.expect(0, []string{"installed in cluster1 already, as it is wanted: there is nothing to do"}, more(one, "--mesh-contexts", "cluster2")...)
		if now := c.record("cluster1"); now != was || !strings.Contains(was, "DaemonSet mesh-agent") {
			t.Errorf("objects were changed:\n%s\nbefore:\n%s", now, was)
		}
		c.expect(1, []string{`use "meshctl upgrade --context cluster1" with what is to change`}, more(one, "--set", "controller.replicas=1")...)
		// What somebody has removed is made again.
		c.get("cluster1", "-n", "mesh-system", "delete", "service", "mesh-apiserver-peer")
		c.expect(0, []string{"make what is missing: service mesh-apiserver-peer"}, one...)
		c.get("cluster1", "-n", "mesh-system", "get", "service", "mesh-apiserver-peer")
	})

	t.Run("connected", func(t *testing.T) {
		c := c.of(t)
		c.expect(0, nil, "connect", "--context", "cluster1", "--destination-context", "cluster2")
		c.get("cluster1", "-n", "shop", "wait", "--for=condition=Ready", "globalservice/userlist-svc", "--timeout", "30s")
	})

	t.Run("an upgrade keeps who the cluster is and what it has", func(t *testing.T) {
		c := c.of(t)
		epoch := c.epoch("cluster1")
		c.get("cluster1", "-n", "shop", "patch", "globalservice", "userlist-svc", "--type", "merge", "-p", `{"spec":{"affinity":"Local"}}`)
		replicas := func() string {
			return c.get("cluster1", "-n", "mesh-system", "get", "deployment", "mesh-controller", "-o", "jsonpath={.spec.replicas}")
		}
		upgrade := []string{"upgrade", "--context", "cluster1"}
		c.expect(2, []string{"an upgrade does not change that"}, more(upgrade, "--set", "cluster.id=7")...)
		c.expect(2, []string{"an upgrade does not change that"}, more(upgrade, "--set", "cluster.name=other", "--reset-values")...)
		c.expect(2, []string{"controller", "replicas", "nothing was changed"}, more(upgrade, "--set", "controller.replicas=many")...)
		c.expect(2, []string{"would not be found in", "Keep the values below persistence"}, more(upgrade, "--set", "persistence.type=emptyDir")...)
		c.expect(1, []string{"you may not"}, "upgrade", "--context", "viewer@cluster1")

		// As a plugin of kubectl it is called otherwise, and is to be the same owner.
		if out, code := c.run("", "kubectl-mesh", more(upgrade, "--set", "controller.replicas=1", "--wait=false")...); code != 0 || replicas() != "1" {
			t.Errorf("kubectl mesh ends with %d, and there are %s replicas:\n%s", code, replicas(), out)
		}
		newer := more(upgrade, "--set", "image.tag=v0.2.0")
		// A node that is not ready uses up what may be unavailable at a time.
		c.expect(4, []string{"while nodes are not ready (bare-node), Kubernetes replaces the other agents only within agent.maxUnavailable"}, more(newer, "--timeout", "12s")...)
		c.get("cluster1", "delete", "node", "bare-node")
		// A new version of all programs, killed in the middle.
		newer = more(upgrade, "--set", "image.tag=v0.3.0")
		c.stopAt(syscall.SIGKILL, nil, c.recorded("cluster1", "pending-upgrade"), newer...)
		said, code, _ := c.stopAt(syscall.SIGINT, func(_ int, line string) bool { return line == "... Starting mesh-apiserver" }, nil, newer...)
		if code != 130 || !strings.Contains(said, "To complete it, run the same command again; to undo it: helm --kube-context cluster1 -n mesh-system rollback clustermesh") {
			t.Errorf("Ctrl-C: it ends with %d", code)
		}
		c.killEverywhere(newer...)
		if replicas() != "1" {
			t.Errorf("an earlier value is forgotten: there are %s replicas", replicas())
		}
		images := c.get("cluster1", "-n", "mesh-system", "get", "pods", "-o", "jsonpath={.items[*].spec.containers[*].image}")
		if regexp.MustCompile(`mesh-agent:v0\.3\.0\b`).FindString(images) == "" || strings.Contains(images, "mesh-apiserver:v0.1") {
			t.Errorf("after the upgrade it runs %s", images)
		}
		// What somebody has changed goes back, and what was given is forgotten if that is asked for.
		c.get("cluster1", "-n", "mesh-system", "scale", "deployment", "mesh-controller", "--replicas", "3")
		c.expect(0, []string{"leave controller.replicas to the chart"}, more(upgrade, "--reset-values")...)
		if replicas() != "2" {
			t.Errorf("there are %s replicas, and the chart says 2", replicas())
		}
		if got := c.get("cluster1", "-n", "shop", "get", "globalservice", "userlist-svc", "-o", "jsonpath={.spec.affinity}"); got != "Local" {
			t.Errorf("what a person wrote is %q", got)
		}
		if now := c.epoch("cluster1"); now != epoch {
			t.Errorf("the store is another one: %s, was %s", now, epoch)
		}
	})

	t.Run("an uninstall that is not meant or not allowed changes nothing", func(t *testing.T) {
		c := c.of(t)
		was := c.record("cluster1")
		c.answered("n\n", 1, []string{"Remove the mesh from cluster1? [y/N]", "nothing was removed"}, "uninstall", "--context", "cluster1")
		c.answered("", 1, []string{"nothing was removed"}, "uninstall", "--context", "cluster1")
		asked := make(chan struct{})
		cmd := c.command("meshctl", "uninstall", "--context", "cluster1")
		never, silent, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		cmd.Stdin = never
		cmd.Stderr = writerFunc(func(text string) {
			if strings.Contains(text, "[y/N]") {
				close(asked)
			}
		})
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-asked:
		case <-time.After(time.Minute):
			t.Error("it does not ask")
		}
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("Ctrl-C in the place of an answer: it ends with %d", code)
		}
		c.expect(0, []string{"nothing was removed", "It keeps the store's volume data-mesh-apiserver-0"}, "uninstall", "--context", "cluster1", "--dry-run")
		c.expect(1, []string{"you may not list", "nothing was changed"}, "uninstall", "--context", "viewer@cluster1", "--yes")
		c.expect(1, []string{"you may not list poddisruptionbudgets in mesh-system", "nothing was changed"}, "uninstall", "--context", "without-budgets@cluster1", "--yes")
		if now := c.record("cluster1"); now != was {
			t.Errorf("objects were changed:\n%s\nbefore:\n%s", now, was)
		}
	})

	t.Run("uninstalled with its API dead and a peer connected, killed everywhere", func(t *testing.T) {
		c := c.of(t)
		epoch := c.epoch("cluster2")
		c.get("cluster2", "-n", "mesh-system", "scale", "statefulset", "mesh-apiserver", "--replicas", "0")
		c.get("cluster2", "-n", "mesh-system", "wait", "--for=delete", "pod/mesh-apiserver-0", "--timeout", "60s")
		uninstall := []string{"uninstall", "--context", "cluster2", "--yes"}
		said, code, _ := c.stopAt(syscall.SIGINT, func(_ int, line string) bool { return line == "... Stopping the mesh's programs" }, nil, uninstall...)
		if code != 130 || !strings.Contains(said, "to remove the rest, run it again: meshctl uninstall --context cluster2") {
			t.Errorf("Ctrl-C: it ends with %d", code)
		}
		c.expect(1, []string{`an uninstall was stopped in the middle: complete it with "meshctl uninstall --context cluster2"`}, two...)
		c.killEverywhere(uninstall...)
		nothing(c, "cluster2", "file /var/lib/mesh-apiserver")
		// The data was kept, and is found again.
		c.expect(0, nil, two...)
		if now := c.epoch("cluster2"); now != epoch {
			t.Errorf("the store is another one: %s, was %s", now, epoch)
		}
		c.expect(0, []string{"Removed the mesh from cluster2"}, more(uninstall, "--purge-data")...)
		nothing(c, "cluster2")
		c.expect(0, []string{"There is nothing of the mesh in cluster2"}, uninstall...)

		// The peer knows by itself that it has lost one, and can leave it.
		c.get("cluster1", "wait", "--for=condition=Connected=false", "meshcluster/cluster2", "--timeout", "90s")
		c.expect(3, []string{"cluster2"}, "status", "--context", "cluster1")
		c.expect(0, nil, "disconnect", "--peer", "cluster2", "--context", "cluster1")
	})

	t.Run("uninstalled with nodes and objects that are left", func(t *testing.T) {
		c := c.of(t)
		epoch := c.epoch("cluster1")
		uninstall := []string{"uninstall", "--context", "cluster1", "--yes"}
		bareNode(c, "6.1.0")
		c.expect(1, []string{
			"these nodes were not cleaned up: bare-node (not ready)", "run it again: meshctl uninstall --context cluster1", "--skip-nodes",
		}, uninstall...)
		c.get("cluster1", "delete", "node", "bare-node")
		c.expect(0, []string{"kept: the store's volume data-mesh-apiserver-0, and the namespace with it"}, uninstall...)
		c.expect(0, []string{"There is nothing of the mesh in cluster1; kept: the store's volume"}, uninstall...)
		holds(c, "persistentvolumeclaim/data-mesh-apiserver-0")
		nothing(c, "cluster1", "mesh-system", "persistentvolumes ", "file /var/lib/volumes")

		c.expect(0, nil, one...)
		if now := c.epoch("cluster1"); now != epoch {
			t.Errorf("the store is another one: %s, was %s", now, epoch)
		}
		c.get("cluster1", "-n", "mesh-system", "create", "secret", "generic", "etcd-tls", "--from-literal", "theirs=1")
		c.expect(0, []string{"It keeps namespace mesh-system, where there is more than the mesh: secret etcd-tls"}, more(uninstall, "--purge-data")...)
		holds(c, "secret/etcd-tls")
		c.get("cluster1", "delete", "namespace", "mesh-system")
		nothing(c, "cluster1")
	})

	t.Run("an install that is killed is removed, and leaves the namespace that was there", func(t *testing.T) {
		c := c.of(t)
		c.get("cluster1", "create", "namespace", "mesh-system")
		c.get("cluster1", "label", "namespace", "mesh-system", "pod-security.kubernetes.io/enforce=privileged")
		c.stopAt(syscall.SIGKILL, nil, c.recorded("cluster1", "pending-install"), one...)
		c.expect(0, []string{"It keeps namespace mesh-system, which install did not make"}, "uninstall", "--context", "cluster1", "--yes", "--purge-data")
		holds(c)
		c.get("cluster1", "delete", "namespace", "mesh-system")
		nothing(c, "cluster1")
	})
}
