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
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// meshLab is a lab of two bare clusters of one node each, and its programs.
type meshLab struct {
	root, bin, state string
	// kubeconfig is that of somebody who administers both clusters.
	kubeconfig string
}

func startMeshLab(t *testing.T, state, port string) *meshLab {
	t.Helper()
	if os.Getuid() != 0 || os.Getenv("MESH_LAB_TESTS") != "1" {
		t.Skip("the lab needs root, and MESH_LAB_TESTS=1")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	l := &meshLab{root: root, bin: filepath.Join(root, "_output", "bin"), state: state, kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	l.lab(t, "", "down").want(t, 0)
	t.Cleanup(func() { l.lab(t, "", "down") })
	l.up(t, port)
	return l
}

// up starts the clusters, or what has died of them.
func (l *meshLab) up(t *testing.T, port string) {
	t.Helper()
	l.lab(t, "", "up", "--clusters", "2", "--nodes", "1", "--port", port, "--bin-dir", l.bin, "--kubeconfig", l.kubeconfig).want(t, 0)
}

// only is a kubeconfig of somebody who administers one of the clusters. An address that
// is given takes the place of the one on this machine's loopback.
func (l *meshLab) only(t *testing.T, context, server string) []byte {
	t.Helper()
	all, err := clientcmd.LoadFromFile(l.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	one := clientcmdapi.NewConfig()
	c := all.Contexts[context]
	one.Contexts[context], one.Clusters[c.Cluster], one.AuthInfos[c.AuthInfo] = c, all.Clusters[c.Cluster], all.AuthInfos[c.AuthInfo]
	if server != "" {
		one.Clusters[c.Cluster].Server = server
	}
	content, err := clientcmd.Write(*one)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// outcome is how a program ended.
type outcome struct {
	line      string
	code      int
	out, errs string
}

// plain is what it has printed, with each space or line break as one space.
func (o outcome) plain() string { return strings.Join(strings.Fields(o.out+" "+o.errs), " ") }

// want checks how it ended, and what it said.
func (o outcome) want(t *testing.T, code int, texts ...string) outcome {
	t.Helper()
	if err := o.check(code, texts...); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o outcome) check(code int, texts ...string) error {
	var errs []error
	if o.code != code {
		errs = append(errs, fmt.Errorf("exit code %d, not %d", o.code, code))
	}
	for _, text := range texts {
		if !strings.Contains(o.plain(), text) {
			errs = append(errs, fmt.Errorf("it does not say %q", text))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w\n%s%s", o.line, errors.Join(errs...), o.out, o.errs)
}

func (l *meshLab) run(t *testing.T, input, program string, args ...string) outcome {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(l.bin, program), args...)
	if t.Context().Err() != nil { // in a cleanup
		cmd = exec.Command(cmd.Path, args...)
	}
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = l.root, strings.NewReader(input), &out, &errs
	cmd.Env = append(os.Environ(), "KUBECONFIG="+l.kubeconfig)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %q: %v", program, args, err)
	}
	return outcome{program + " " + strings.Join(args, " "), cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

func (l *meshLab) lab(t *testing.T, input, command string, args ...string) outcome {
	t.Helper()
	return l.run(t, input, "lab", append([]string{command, "--state-dir", l.state}, args...)...)
}

func (l *meshLab) meshctl(t *testing.T, args ...string) outcome {
	t.Helper()
	return l.run(t, "", "meshctl", args...)
}

func (l *meshLab) kubectl(t *testing.T, context string, args ...string) outcome {
	t.Helper()
	return l.run(t, "", "kubectl", append([]string{"--context", context}, args...)...)
}

// until asks again until the answer is right.
func until(t *testing.T, what string, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(300 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: %v", what, err)
		}
	}
}

// states are the states of the clusters, by context, as a document of status tells.
func (o outcome) states(t *testing.T) map[string]string {
	t.Helper()
	var report struct {
		Healthy  bool
		Clusters []struct{ Context, State string }
	}
	if err := json.Unmarshal([]byte(o.out), &report); err != nil {
		t.Fatalf("%s: %v\n%s%s", o.line, err, o.out, o.errs)
	}
	found := map[string]string{}
	healthy := true
	for _, c := range report.Clusters {
		found[c.Context] = c.State
		healthy = healthy && c.State == "healthy"
	}
	if healthy != report.Healthy {
		t.Errorf("the clusters are %v, and the mesh is healthy: %t", found, report.Healthy)
	}
	return found
}

// made is everything that connecting clusters makes, with the version of each object.
func (l *meshLab) made(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, cluster := range []string{"cluster1", "cluster2"} {
		const columns = "custom-columns=KIND:.kind,NAME:.metadata.name,UID:.metadata.uid,VERSION:.metadata.resourceVersion"
		for _, what := range [][]string{
			{"-n", "mesh-system", "get", "serviceaccounts,secrets,roles,rolebindings,clusterrolebindings", "-l", "app.kubernetes.io/managed-by=meshctl", "-o", columns},
			// The versions of these change with their status.
			{"get", "meshclusters", "-o", "custom-columns=KIND:.kind,NAME:.metadata.name,UID:.metadata.uid,GENERATION:.metadata.generation"},
		} {
			out := l.kubectl(t, cluster, append(what, "--no-headers")...).want(t, 0).out
			for line := range strings.Lines(out) {
				all = append(all, cluster+" "+strings.Join(strings.Fields(line), " "))
			}
		}
	}
	slices.Sort(all)
	return all
}

// TestMesh walks all ways of connecting two clusters, the right ones and the wrong
// ones, has sockets of every kind use Services of every IP family while they are
// connected, and has service explain name what is broken.
func TestMesh(t *testing.T) {
	const port = "18141"
	l := startMeshLab(t, "/run/mesh-lab-mesh", port)
	began := time.Now()
	step := func(name string, do func(t *testing.T)) {
		t.Helper()
		if !t.Run(name, do) {
			t.FailNow() // what follows builds on it
		}
		t.Logf("%s: at %v", name, time.Since(began).Round(time.Second))
	}
	const both = "--contexts=cluster1,cluster2"
	connect := []string{"connect", "--context", "cluster1", "--destination-context", "cluster2"}
	explain := []string{"service", "explain", "song/userlist-svc", "--from", "cluster1/cluster1-node1", both}
	healthy := func(t *testing.T) {
		t.Helper()
		l.meshctl(t, "status", both, "--wait", "--timeout", "60s").want(t, 0, "cluster1 1 cluster1 healthy 1/1 1/1", "cluster2 2 cluster2 healthy 1/1 1/1")
		until(t, "a whole chain", func() error { return l.meshctl(t, explain...).check(0, "No link is broken.") })
	}
	install := func(t *testing.T, cluster, id string) {
		t.Helper()
		l.meshctl(t, "install", "--context", cluster, "--cluster-name", cluster, "--cluster-id", id).want(t, 0)
	}

	step("before anything is installed", func(t *testing.T) {
		l.meshctl(t, "status", both).want(t, 3, "The mesh is not installed here", "meshctl install --context cluster1")
		if got := l.meshctl(t, "status", both, "-o", "json").want(t, 3).states(t); got["cluster1"] != "not installed" || got["cluster2"] != "not installed" {
			t.Errorf("the states are %v", got)
		}
		l.meshctl(t, connect...).want(t, 1, `the mesh is not installed in "cluster1"`, "meshctl install --context cluster2")
		l.meshctl(t, "invite", "--context", "cluster1", "--cluster-name", "cluster2").want(t, 1, `the mesh is not installed in "cluster1"`)
		l.meshctl(t, "disconnect", "--context", "cluster1", "--peer", "cluster2").want(t, 0, "there was nothing to remove")
		l.meshctl(t, explain...).want(t, 3, "cluster1 has no mesh API: is the mesh installed there (meshctl install)?")
	})

	step("one is installed", func(t *testing.T) {
		install(t, "cluster1", "1")
		if got := l.meshctl(t, "status", both, "-o", "json").want(t, 3).states(t); got["cluster1"] != "healthy" || got["cluster2"] != "not installed" {
			t.Errorf("the states are %v", got)
		}
		l.meshctl(t, "status", "--context", "cluster1").want(t, 0, "Peers none")
		l.meshctl(t, connect...).want(t, 1, `the mesh is not installed in "cluster2"`)
	})

	step("both are, and not connected", func(t *testing.T) {
		install(t, "cluster2", "2")
		for _, cluster := range []string{"cluster1", "cluster2"} {
			l.kubectl(t, cluster, "create", "namespace", "song").want(t, 0)
			l.kubectl(t, cluster, "-n", "song", "apply", "-f", "artifacts/examples/userlist.yaml").want(t, 0)
		}
		for _, cluster := range []string{"cluster1", "cluster2"} {
			l.kubectl(t, cluster, "-n", "song", "rollout", "status", "deploy/userlist", "--timeout", "60s").want(t, 0)
		}
		l.meshctl(t, "status", both).want(t, 0, "cluster1 does not import from cluster2.", "cluster2 does not import from cluster1.")
		until(t, "the export of cluster2", func() error {
			return l.meshctl(t, explain...).check(3, "First broken: peer of cluster2 in cluster1: cluster1 has no MeshCluster cluster2",
				"meshctl connect --context cluster1 --destination-context cluster2")
		})
	})

	step("two administrators", func(t *testing.T) {
		// One works on this machine and can reach cluster1 only, the other on a node of cluster2.
		first := filepath.Join(t.TempDir(), "kubeconfig")
		if err := os.WriteFile(first, l.only(t, "cluster1", ""), 0o600); err != nil {
			t.Fatal(err)
		}
		onNode := []string{"--node", "cluster2-node1", "--"}
		l.lab(t, string(l.only(t, "cluster2", "https://172.31.2.2:6443")), "exec", append(onNode, "sh", "-c", "umask 077; cat >/tmp/second")...).want(t, 0)
		second := func(input string, args ...string) outcome {
			return l.lab(t, input, "exec", append(append(onNode, "/opt/lab/bin/meshctl", "--kubeconfig", "/tmp/second"), args...)...)
		}
		second("", "status", "--context", "cluster1").want(t, 2, `no context "cluster1"`)
		bare := l.made(t)

		line := l.meshctl(t, "invite", "--kubeconfig", first, "--context", "cluster1", "--cluster-name", "cluster2").want(t, 0).out
		// From here cluster1's nodes cannot be reached: that uses up nothing.
		l.run(t, line, "meshctl", "join", "--context", "cluster2", "-").want(t, 1, "none of its addresses answers")
		second(line, "join", "--context", "cluster2", "-").want(t, 0, "cluster2 is importing from cluster1", "cluster1 is importing from cluster2")
		connected := l.made(t)
		second(line, "join", "--context", "cluster2", "-").want(t, 1, "cluster1")
		invitation := func(name string) outcome {
			return l.kubectl(t, "cluster1", "-n", "mesh-system", "get", "serviceaccount,secret,role,rolebinding", "-o", "name",
				"--field-selector", "metadata.name=mesh-invite-"+name).want(t, 0)
		}
		gone := func(name string) {
			t.Helper()
			until(t, "what is left of the invitation", func() error {
				if left := invitation(name).out; left != "" {
					return errors.New(left)
				}
				return nil
			})
		}
		gone("cluster2")
		if now := l.made(t); !slices.Equal(slices.DeleteFunc(connected, func(s string) bool { return strings.Contains(s, " mesh-invite-") }), now) {
			t.Errorf("using the invitation again has changed something: there were %q, there are %q", connected, now)
		}
		if slices.Equal(bare, connected) {
			t.Error("connecting has made nothing, so this proves nothing")
		}

		// Nobody comes, and its time is over.
		l.meshctl(t, "invite", "--kubeconfig", first, "--context", "cluster1", "--cluster-name", "cluster3").want(t, 0)
		if n := strings.Count(invitation("cluster3").out, "mesh-invite-cluster3"); n != 4 {
			t.Errorf("an invitation consists of %d objects", n)
		}
		l.kubectl(t, "cluster1", "-n", "mesh-system", "patch", "secret", "mesh-invite-cluster3", "-p", `{"stringData":{"expires":"2020-01-01T00:00:00Z"}}`).want(t, 0)
		gone("cluster3")
		l.meshctl(t, "disconnect", "--context", "cluster1", "--peer", "cluster3").want(t, 0)
	})

	step("status --wait", func(t *testing.T) {
		healthy(t)
		l.meshctl(t, "status", "--context", "cluster2", "--wait").want(t, 0, "Cluster cluster2 (ID 2, context cluster2): healthy")
		if got := l.meshctl(t, "status", both, "--wait", "-o", "json").want(t, 0).states(t); len(got) != 2 {
			t.Errorf("the states are %v", got)
		}
		if got := l.meshctl(t, "status", "--context", "cluster1", "--wait", "-o", "json").want(t, 0).states(t); got["cluster1"] != "healthy" || len(got) != 1 {
			t.Errorf("the states are %v", got)
		}
	})

	step("sockets and IP families", l.families)

	step("explain names what is broken", func(t *testing.T) {
		annotate := func(cluster, annotation string) {
			l.kubectl(t, cluster, "-n", "song", "annotate", "--overwrite", "service", "userlist-svc", annotation).want(t, 0)
		}
		agents := func(change string) {
			l.kubectl(t, "cluster1", "-n", "mesh-system", "patch", "daemonset", "mesh-agent", "--type", "merge", "-p", change).want(t, 0)
		}
		drain := []string{"service", "drain", "song/userlist-svc", "--context", "cluster1", "--cluster", "cluster2"}
		port := func(name string) {
			l.kubectl(t, "cluster2", "-n", "song", "patch", "service", "userlist-svc", "-p", fmt.Sprintf(`{"spec":{"ports":[{"port":80,"name":%q}]}}`, name)).want(t, 0)
		}
		for _, fault := range []struct {
			name        string
			make, undo  func()
			firstBroken string
		}{
			{"no annotation", func() { annotate("cluster1", "service.cilium.io/global-") }, func() { annotate("cluster1", "service.cilium.io/global=true") },
				"annotation in cluster1: neither the Service nor its Namespace has the annotation"},
			{"no annotation in the peer", func() { annotate("cluster2", "service.cilium.io/global-") }, func() { annotate("cluster2", "service.cilium.io/global=true") },
				"export in cluster2: not global there"},
			{"not shared", func() { annotate("cluster2", "service.cilium.io/shared=false") }, func() { annotate("cluster2", "service.cilium.io/shared=true") },
				"export in cluster2: cluster2 keeps its backends to itself"},
			{"drained", func() { l.meshctl(t, drain...).want(t, 0) }, func() { l.meshctl(t, append(drain, "--undo")...).want(t, 0) },
				"share of cluster2 in cluster1: weight 0 (spec)"},
			{"another port", func() { port("web") }, func() { port("") },
				"merge of cluster2 in cluster1: cluster2 has 1/1 endpoints ready in the GlobalService; conflict: "},
			{"no agent", func() { agents(`{"spec":{"template":{"spec":{"nodeSelector":{"no":"where"}}}}}`) },
				func() { agents(`{"spec":{"template":{"spec":{"nodeSelector":{"no":null}}}}}`) },
				"agent in cluster1: no mesh-agent runs on cluster1-node1"},
			{"a cut", func() { l.lab(t, "", "cut", "cluster2").want(t, 0) }, func() { l.lab(t, "", "mend", "cluster2").want(t, 0) },
				"peer of cluster2 in cluster1: cluster2 was last heard of "},
		} {
			began := time.Now()
			fault.make()
			until(t, "explain naming "+fault.name, func() error { return l.meshctl(t, explain...).check(3, "First broken: "+fault.firstBroken) })
			t.Logf("%s: named after %v", fault.name, time.Since(began).Round(100*time.Millisecond))
			if fault.name == "a cut" {
				l.meshctl(t, "status", "--context", "cluster1").want(t, 3, "last heard of")
				l.meshctl(t, "troubleshoot", "--context", "cluster1").want(t, 3, "last heard of")
			}
			fault.undo()
			until(t, "a whole chain after "+fault.name, func() error { return l.meshctl(t, explain...).check(0, "No link is broken.") })
		}
	})

	step("connected already", func(t *testing.T) {
		before := l.made(t)
		l.meshctl(t, connect...).want(t, 0, "The clusters are already connected: nothing was changed")
		if now := l.made(t); !slices.Equal(before, now) {
			t.Errorf("there were %q, there are %q", before, now)
		}
	})

	step("half connected", func(t *testing.T) {
		l.meshctl(t, "disconnect", "--context", "cluster1", "--peer", "cluster2").want(t, 0, "cluster1 is parted from cluster2", "meshctl disconnect --context <context of cluster2> --peer cluster1")
		l.meshctl(t, "status", both).want(t, 0, "cluster1 does not import from cluster2, which imports from it.")
		l.meshctl(t, connect...).want(t, 0, "the credentials that \"cluster2\" has for \"cluster1\" are of no use any more and made anew",
			"cluster1 is importing from cluster2", "cluster2 is importing from cluster1")
		healthy(t)

		l.meshctl(t, "disconnect", "--context", "cluster2", "--destination-context", "cluster1").want(t, 0, "cluster2 and cluster1 are parted")
		l.meshctl(t, append(connect, "--one-way")...).want(t, 0, "cluster1 is importing from cluster2")
		l.meshctl(t, "status", both).want(t, 0, "cluster2 does not import from cluster1, which imports from it.", "cluster2 2 cluster2 healthy 1/1 0/0")
		l.meshctl(t, connect...).want(t, 0, "cluster2 is importing from cluster1")
		healthy(t)
		l.meshctl(t, "disconnect", "--context", "cluster1", "--destination-context", "cluster2").want(t, 0, "cluster1 and cluster2 are parted")
		l.meshctl(t, "disconnect", "--context", "cluster1", "--destination-context", "cluster2").want(t, 0, "there was nothing to remove")
	})

	step("a peer that cannot be reached", func(t *testing.T) {
		before := l.made(t)
		l.lab(t, "", "cut", "cluster2").want(t, 0)
		l.meshctl(t, append(connect, "--timeout", "8s")...).want(t, 4, "is not in sync with", "What this run had made is undone")
		l.lab(t, "", "mend", "cluster2").want(t, 0)
		if now := l.made(t); !slices.Equal(before, now) {
			t.Errorf("there were %q, there are %q", before, now)
		}
		l.meshctl(t, connect...).want(t, 0, "cluster1 is importing from cluster2")
		healthy(t)
	})

	step("a peer that is dead", func(t *testing.T) {
		l.lab(t, "", "kill", "cluster2/etcd", "cluster2/kube-apiserver", "cluster2/kube-controller-manager", "cluster2/kube-scheduler").want(t, 0)
		if got := l.meshctl(t, "status", both, "-o", "json").want(t, 3).states(t); got["cluster2"] != "unreachable" {
			t.Errorf("the states are %v", got)
		}
		l.meshctl(t, connect...).want(t, 1, `"cluster2"`)
		l.meshctl(t, "disconnect", "--context", "cluster1", "--destination-context", "cluster2").want(t, 1, "meshctl disconnect --context cluster1 --peer NAME; its peers are cluster2")
		l.meshctl(t, "disconnect", "--context", "cluster1", "--peer", "cluster2").want(t, 0, "cluster1 is parted from cluster2")
		l.meshctl(t, "status", "--context", "cluster1").want(t, 0, "Peers none")

		l.up(t, port)
		// cluster2 has kept its side, and the mesh API there has to be found again first.
		until(t, "connecting again", func() error { return l.meshctl(t, connect...).check(0, "cluster2 is importing from cluster1") })
		healthy(t)
	})
}
