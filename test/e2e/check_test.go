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
	"archive/tar"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestChecks runs the commands that look for faults on a lab of their own: in a whole
// mesh they find none, and of a broken one they name what is broken.
func TestChecks(t *testing.T) {
	if os.Getuid() != 0 || os.Getenv("MESH_LAB_TESTS") != "1" {
		t.Skip("the lab needs root, and MESH_LAB_TESTS=1")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(root, "_output", "bin")
	const state = "/run/mesh-lab-checks"
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	run := func(program string, args ...string) (string, int) {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, program), args...)
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatalf("%s %v: %v", program, args, err)
		}
		if s := errs.String(); s != "" {
			t.Logf("%s %s:\n%s", program, strings.Join(args, " "), s)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	must := func(program string, args ...string) string {
		t.Helper()
		out, code := run(program, args...)
		if code != 0 {
			t.Fatalf("%s %v ends with %d:\n%s", program, args, code, out)
		}
		return out
	}
	must("lab", "down", "--state-dir", state)
	t.Cleanup(func() { run("lab", "down", "--state-dir", state) })
	up := exec.Command("hack/lab-up.sh", "--clusters", "2", "--nodes", "1", "--state-dir", state, "--port", "17841")
	up.Dir, up.Env = root, append(os.Environ(), "MESH_LAB_KUBECONFIG="+kubeconfig)
	up.Stdout, up.Stderr = t.Output(), t.Output()
	if err := up.Run(); err != nil {
		t.Fatalf("starting the lab: %v", err)
	}
	test := []string{"connectivity", "test", "--context", "cluster1", "--multi-cluster", "cluster2", "--settle", "10s"}

	t.Run("a whole mesh", func(t *testing.T) {
		out, code := run("meshctl", test...)
		if code != 0 || !strings.Contains(out, "All 34 checks passed") {
			t.Errorf("it ends with %d:\n%s", code, out)
		}
		if out, code := run("meshctl", "troubleshoot", "--contexts", "cluster1,cluster2"); code != 0 {
			t.Errorf("troubleshoot ends with %d:\n%s", code, out)
		}
		for _, cluster := range []string{"cluster1", "cluster2"} {
			if _, code := run("kubectl", "--context", cluster, "get", "namespace", "mesh-test"); code == 0 {
				t.Errorf("the test's namespace stays in %s", cluster)
			}
		}
	})

	t.Run("a bundle has no secret", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "bundle.tar.gz")
		must("meshctl", "bundle", "--context", "cluster1", "-o", path)
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the file is %v, %v", info, err)
		}
		files := unpack(t, path)
		for _, want := range []string{"manifest.json", "mesh.io/meshclusters.json", "kubernetes/secrets-outline.json", "/dump.json", "/readyz.txt", "/metrics.txt", "mesh-agent.log"} {
			found := false
			for name := range files {
				found = found || strings.HasSuffix(name, want)
			}
			if !found {
				t.Errorf("the bundle has no %s", want)
			}
		}
		values := secretValues(t, must("kubectl", "--context", "cluster1", "get", "secrets", "-A", "-o", "json"))
		if len(values) < 3 {
			t.Fatalf("the cluster has only %d secret values", len(values))
		}
		for name, content := range files {
			for _, value := range values {
				if strings.Contains(content, value) {
					t.Errorf("a secret value stands in %s", name)
				}
			}
		}
	})

	t.Run("an agent that does not run", func(t *testing.T) {
		must("kubectl", "--context", "cluster1", "-n", "mesh-system", "patch", "ds", "mesh-agent", "--type", "merge",
			"-p", `{"spec":{"template":{"spec":{"nodeSelector":{"no":"where"}}}}}`)
		must("kubectl", "--context", "cluster1", "-n", "mesh-system", "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=mesh-agent", "--timeout=60s")
		out, code := run("meshctl", append(test, "-o", "json")...)
		var report struct {
			Results []struct {
				From    struct{ Cluster string }
				OK      bool
				Reasons []string
			}
		}
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Fatal(err)
		}
		failed := 0
		for _, r := range report.Results {
			if r.OK {
				continue
			}
			failed++
			if r.From.Cluster != "cluster1" || len(r.Reasons) == 0 || !strings.Contains(r.Reasons[0], "no mesh-agent runs on node cluster1-node1") {
				t.Errorf("a check of %s failed for %q", r.From.Cluster, r.Reasons)
			}
		}
		if code != 3 || failed == 0 {
			t.Errorf("it ends with %d, and %d checks failed", code, failed)
		}
		if out, code := run("meshctl", "troubleshoot", "--context", "cluster1"); code != 3 || !strings.Contains(out, "1 of 1 nodes have no agent") {
			t.Errorf("troubleshoot ends with %d:\n%s", code, out)
		}
		must("kubectl", "--context", "cluster1", "-n", "mesh-system", "patch", "ds", "mesh-agent", "--type", "json",
			"-p", `[{"op":"remove","path":"/spec/template/spec/nodeSelector"}]`)
		must("kubectl", "--context", "cluster1", "-n", "mesh-system", "rollout", "status", "ds/mesh-agent", "--timeout", "60s")
	})

	t.Run("a link that is cut", func(t *testing.T) {
		must("lab", "cut", "--state-dir", state, "cluster2")
		// The controller notices within seconds.
		must("kubectl", "--context", "cluster1", "wait", "--for=condition=Connected=false", "meshcluster/cluster2", "--timeout", "90s")
		out, code := run("meshctl", test...)
		for _, want := range []string{"pod network: no way from node cluster1/cluster1-node1", "MeshCluster cluster2 has Connected=False"} {
			if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
				t.Errorf("it does not say %q", want)
			}
		}
		if code != 3 {
			t.Errorf("it ends with %d", code)
		}
		if t.Failed() {
			t.Log(out)
		}
		must("lab", "mend", "--state-dir", state, "cluster2")
	})

	t.Run("Ctrl-C", func(t *testing.T) {
		cmd := exec.Command(filepath.Join(bin, "meshctl"), test...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
			if out, code := run("kubectl", "--context", "cluster2", "-n", "mesh-test", "get", "pods", "-o", "name"); code == 0 && out != "" {
				break
			}
			if time.Since(began) > 30*time.Second {
				t.Fatal("the test deploys nothing")
			}
		}
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("it ends with %d", code)
		}
		for _, cluster := range []string{"cluster1", "cluster2"} {
			if _, code := run("kubectl", "--context", cluster, "get", "namespace", "mesh-test"); code == 0 {
				t.Errorf("the test's namespace stays in %s", cluster)
			}
		}
	})
}

func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	zipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for reader := tar.NewReader(zipped); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = string(content)
	}
}

// secretValues are those of a list of Secrets, as they are and in base64, without
// certificates, which are public.
func secretValues(t *testing.T, list string) []string {
	t.Helper()
	var secrets struct {
		Items []struct{ Data map[string][]byte }
	}
	if err := json.Unmarshal([]byte(list), &secrets); err != nil {
		t.Fatal(err)
	}
	var values []string
	add := func(value string) {
		if value = strings.TrimSpace(value); len(value) >= 8 {
			values = append(values, value, base64.StdEncoding.EncodeToString([]byte(value)))
		}
	}
	for _, secret := range secrets.Items {
		for key, value := range secret.Data {
			if strings.HasSuffix(key, ".crt") {
				continue
			}
			add(string(value))
			// Each line of a key, and the token of a kubeconfig.
			for line := range strings.Lines(string(value)) {
				line = strings.TrimSpace(line)
				if token, ok := strings.CutPrefix(line, "token: "); ok {
					add(token)
				} else if strings.HasSuffix(key, ".key") && !strings.HasPrefix(line, "-----") {
					add(line)
				}
			}
		}
	}
	return values
}
