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

// Package lab tests the lab as a whole: a cluster is started, used with kubectl,
// broken, and removed, and then nothing of it may be left.
package lab

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"mesh.io/clustermesh/test/lab/cgroup"
	"mesh.io/clustermesh/test/lab/proc"
)

// Beside a lab of the usual name, which may be running.
const (
	stateDir = "/run/mesh-lab-test"
	port     = "17541"
)

const manifest = `
apiVersion: v1
kind: Pod
metadata: {name: userlist, labels: {app: userlist}}
spec:
  initContainers:
  - {name: first, image: busybox, command: [sh, -c, echo first]}
  containers:
  - name: userlist
    image: ssongman/userlist:v1
    readinessProbe: {httpGet: {path: /healthz, port: 8181}, periodSeconds: 1}
    livenessProbe: {exec: {command: [test, -e, /etc/hosts]}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: userlist-svc}
spec:
  selector: {app: userlist}
  ports: [{port: 80, targetPort: 8181}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: client, image: curlimages/curl, command: [sleep, "3600"]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger}
spec:
  containers:
  - {name: stranger, image: "nginx:1.27"}
`

// keeper keeps a file on a volume, as a user that owns no folder of a node.
const keeper = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOncePod]
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532}
  containers:
  - name: keeper
    image: busybox
    command: [sh, -c, "touch /data/kept && cat /data/kept && echo kept >> /data/kept && sleep 3600"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
`

// machine runs the programs of one lab.
type machine struct {
	*testing.T
	bin string
}

// needed skips, or fails where tests must run, as "make test" demands.
func needed(t *testing.T) machine {
	t.Helper()
	bin, err := filepath.Abs("../../_output/bin")
	if err != nil {
		t.Fatal(err)
	}
	var missing error
	if os.Geteuid() != 0 {
		missing = errors.New("needs root")
	}
	for _, program := range []string{"lab", "lab-cri", "lab-shim", "kubectl", "kubelet", "kube-apiserver"} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			missing = errors.Join(missing, err)
		}
	}
	switch {
	case os.Getenv("MESH_LAB_TESTS") == "":
		t.Skip("set MESH_LAB_TESTS=1 to start a cluster")
	case missing != nil:
		t.Fatal(missing)
	}
	return machine{t, bin}
}

func (m machine) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(m.bin, program), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+stateDir+"/kubeconfig")
	return cmd
}

func (m machine) try(program string, args ...string) (string, error) {
	out, err := m.command(program, args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (m machine) must(program string, args ...string) string {
	m.Helper()
	out, err := m.try(program, args...)
	if err != nil {
		m.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return out
}

func (m machine) lab(command string, args ...string) string {
	m.Helper()
	return m.must("lab", m.labArgs(command, args...)...)
}

func (m machine) labArgs(command string, args ...string) []string {
	return append([]string{
		command, "--clusters=1", "--nodes=1", "--port=" + port, "--state-dir=" + stateDir, "--bin-dir=" + m.bin, "--kubeconfig=",
	}, args...)
}

// eventually repeats a command until its output contains a text.
func (m machine) eventually(want string, args ...string) {
	m.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		out, err := m.try("kubectl", args...)
		if err == nil && strings.Contains(out, want) {
			return
		}
		select {
		case <-ctx.Done():
			m.Fatalf("kubectl %s does not say %q but: %v\n%s", strings.Join(args, " "), want, err, out)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func TestAClusterIsUsableAndLeavesNothingBehind(t *testing.T) {
	m := needed(t)
	t.Cleanup(func() { m.lab("down") })
	m.lab("down")
	m.lab("up")

	m.apply(manifest)
	m.must("kubectl", "wait", "--for=condition=Ready", "pod/userlist", "pod/client", "--timeout=60s")

	if out := m.must("kubectl", "logs", "userlist"); !strings.Contains(out, "pod userlist") {
		t.Errorf("the log is %q", out)
	}
	if out := m.must("kubectl", "logs", "userlist", "-c", "first"); !strings.Contains(out, "first") {
		t.Errorf("the log of the init container is %q", out)
	}
	get := []string{"exec", "client", "--", "curl", "-s", "-m", "3", "userlist-svc.default.svc:80/users/1"}
	m.eventually(`"pod":"userlist","cluster":"cluster1"`, get...)
	var exit *exec.ExitError
	if _, err := m.try("kubectl", "exec", "client", "--", "sh", "-c", "exit 7"); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exec of a program that ends with 7: %v", err)
	}
	echo := m.command("kubectl", "exec", "-i", "client", "--", "cat")
	echo.Stdin = strings.NewReader("there and back")
	if out, err := echo.Output(); err != nil || !bytes.Equal(out, []byte("there and back")) {
		t.Errorf("exec with input: %q, %v", out, err)
	}
	if out := m.must("kubectl", "exec", "client", "--", "ps", "-eo", "comm"); strings.Contains(out, "kubelet") {
		t.Errorf("a container sees the host's processes:\n%s", out)
	}
	m.eventually("ErrImagePull", "describe", "pod", "stranger")
	m.eventually("docker.io/library/nginx:1.27 is not in the lab's image table", "describe", "pod", "stranger")

	m.volumes()

	// Pods go on without the runtime and kubelet, and are taken over by the next ones.
	address := m.must("kubectl", "get", "pod", "userlist", "-o", "jsonpath={.status.podIP}")
	m.lab("kill", "cluster1-node1/lab-cri", "cluster1-node1/kubelet")
	if out := m.must("lab", m.labArgs("exec", "--node=cluster1-node1", "--", "curl", "-s", "-m", "3", address+":8181/healthz")...); out != "ok" {
		t.Errorf("the pod does not answer while the runtime is dead: %q", out)
	}
	m.lab("up")
	m.eventually(`"pod":"userlist"`, get...)
	if out := m.must("kubectl", "get", "pods", "userlist", "client", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}"); out != "0 0" {
		t.Errorf("containers were restarted: %s", out)
	}

	mount, err := cgroup.Mount()
	if err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(mount, filepath.Base(stateDir))
	before := identities(t, group)
	m.lab("kill", "cluster1-node1/lab-cri")
	m.lab("down")
	nothingLeft(t, group, before)

	// A start that is killed half way.
	up := m.command("lab", m.labArgs("up")...)
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	before = identities(t, group)
	_ = up.Process.Kill()
	_ = up.Wait()
	m.lab("down")
	nothingLeft(t, group, before)
	m.lab("down")
}

func (m machine) apply(manifest string) {
	m.Helper()
	cmd := m.command("kubectl", "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.Fatalf("applying: %v\n%s", err, out)
	}
}

// volumes keep their data from one pod to the next, and go with their claim, which can
// then be made again.
func (m machine) volumes() {
	folders := filepath.Join(stateDir, "nodes", "cluster1-node1", "var-lib", "volumes")
	for range 2 {
		m.apply(keeper)
		m.must("kubectl", "wait", "--for=condition=Ready", "pod/keeper", "--timeout=60s")
		if out := m.must("kubectl", "logs", "keeper"); out != "" {
			m.Errorf("a new volume has data: %q", out)
		}
		m.must("kubectl", "delete", "pod", "keeper")
		m.apply(keeper)
		m.eventually("kept", "logs", "keeper")
		if entries, err := os.ReadDir(folders); err != nil || len(entries) != 1 {
			m.Errorf("the node has the volumes %v, %v", entries, err)
		}
		m.must("kubectl", "delete", "pod/keeper", "pvc/data")
		m.eventually("No resources found", "get", "pv")
		if entries, err := os.ReadDir(folders); err != nil || len(entries) != 0 {
			m.Errorf("what is left of the volumes: %v, %v", entries, err)
		}
	}
}

// trace is a process of the lab and the network namespace that it was in.
type trace struct {
	proc.ID
	network string
}

func identities(t *testing.T, group string) []trace {
	t.Helper()
	var found []trace
	for _, pid := range cgroup.Processes(group) {
		id, err := proc.Find(pid)
		if err != nil {
			continue
		}
		network, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "ns", "net"))
		if err == nil {
			found = append(found, trace{id, network})
		}
	}
	if len(found) < 5 {
		t.Fatalf("only %d processes of the lab were found", len(found))
	}
	return found
}

func nothingLeft(t *testing.T, group string, before []trace) {
	t.Helper()
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	gone := map[string]bool{}
	for _, process := range before {
		if process.Alive() {
			t.Errorf("process %d is left", process.PID)
		}
		if process.network != own {
			gone[process.network] = true
		}
	}
	networks, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range networks {
		if network, err := os.Readlink(path); err == nil && gone[network] {
			t.Errorf("a network namespace is left: %s", path)
		}
	}
	for _, path := range []string{group, stateDir} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left", path)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), stateDir) {
		t.Errorf("mounts are left:\n%s", mounts)
	}
}
