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
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"mesh.io/clustermesh/pkg/cli"
	"mesh.io/clustermesh/test/lab/plan"
)

// step is one line that is run as it is written.
type step struct {
	line string
	// typed is what a person types to it.
	typed string
	// pastes is the line whose answer a person pastes to it.
	pastes string
	// prepares is set if no help shows the line: it makes what the next ones need.
	prepares bool
	// says is what the answer has to have in it.
	says string
}

// walk has each line that the help of a command shows as an example, in an order in
// which each of them works: from bare clusters to bare clusters.
var walk = []step{
	{line: "meshctl version --client"},
	{line: "meshctl version"},
	{line: "mkdir -p ~/.local/share/bash-completion/completions"},
	{line: "meshctl completion bash > ~/.local/share/bash-completion/completions/meshctl"},
	{line: "mkdir -p ~/.zsh"},
	{line: "meshctl completion zsh > ~/.zsh/_meshctl"},
	{line: "mkdir -p ~/.config/fish/completions"},
	{line: "meshctl completion fish > ~/.config/fish/completions/meshctl.fish"},
	{line: "meshctl completion powershell > ~/meshctl.ps1"},

	{line: "meshctl install --context cluster1 --cluster-name cluster1 --cluster-id 1 --set persistence.type=hostPath --dry-run"},
	{line: "meshctl install --context cluster1 --cluster-name cluster1 --cluster-id 1"},
	{line: "meshctl install --context cluster2 --cluster-name cluster2 --cluster-id 2 --mesh-contexts cluster1"},
	// It is installed already: that is no mistake.
	{line: "meshctl install --context cluster2 --cluster-name cluster2 --cluster-id 2"},

	// The service of the examples, in both clusters.
	{prepares: true, line: "for c in cluster1 cluster2; do kubectl --context $c create namespace song; kubectl --context $c -n song apply -f $EXAMPLES/userlist.yaml; done"},
	{line: "meshctl connect --context cluster1 --destination-context cluster2 --one-way"},
	{line: "meshctl connect --context cluster1 --destination-context cluster2"},
	{line: "meshctl connect --context cluster1 --destination-context cluster2 --renew"},
	{prepares: true, line: "for c in cluster1 cluster2; do kubectl --context $c -n song rollout status --timeout 60s deploy/userlist; done"},
	{line: "meshctl status --contexts cluster1,cluster2 --wait"},
	{prepares: true, line: "kubectl --context cluster1 -n song wait globalservice/userlist-svc --for=condition=Ready --timeout=60s"},

	{line: "meshctl status"},
	{line: "meshctl status --context cluster1"},
	{line: "meshctl status --contexts cluster1,cluster2 -o json"},
	{line: "meshctl version --context cluster1 -o json"},
	{line: "meshctl troubleshoot --context cluster1"},
	{line: "meshctl troubleshoot --contexts cluster1,cluster2"},
	{line: "meshctl troubleshoot --contexts cluster1,cluster2 -o json"},
	{line: "meshctl bundle --context cluster1"},
	{line: "meshctl bundle --context cluster1 -o cluster1.tar.gz"},
	{line: "kubectl mesh service list -A"},
	{line: "meshctl service list -A"},
	{line: "meshctl service list -n song --contexts cluster1,cluster2"},
	{line: "meshctl service list -A --context cluster1 --node cluster1-node1"},
	{line: "meshctl service get song/userlist-svc --contexts cluster1,cluster2"},
	{line: "meshctl service get song/userlist-svc --context cluster1 --node cluster1-node1"},
	{line: "meshctl service explain song/userlist-svc --from cluster1/cluster1-node1 --contexts cluster1,cluster2"},
	{line: "meshctl service explain song/userlist-svc --from cluster1/cluster1-node1 --to cluster2"},
	{line: "meshctl service drain song/userlist-svc --context cluster1 --cluster cluster2"},
	{line: "meshctl service drain song/userlist-svc --context cluster1 --cluster cluster2 --undo"},
	{line: "meshctl service weight song/userlist-svc --context cluster1 --cluster cluster2 25"},
	{line: "meshctl service weight song/userlist-svc --context cluster1 --cluster cluster2 --unset"},
	{line: "meshctl service affinity song/userlist-svc --context cluster1 Local"},
	{line: "meshctl service affinity song/userlist-svc --context cluster1 --unset"},
	// What a shell asks for when a person presses Tab.
	{prepares: true, line: "meshctl __complete service get --contexts cluster1,cluster2 ''", says: "song/userlist-svc\n"},
	{prepares: true, line: "meshctl __complete service drain song/userlist-svc --cluster ''", says: "cluster2\n"},
	{prepares: true, line: "meshctl __complete service explain song/userlist-svc --contexts cluster2 --from ''", says: "cluster2/cluster2-node1\n"},
	{prepares: true, line: "kubectl_complete-mesh disconnect --peer ''", says: "cluster2\n"},
	{line: "meshctl connectivity test --context cluster1 --multi-cluster cluster2"},
	{line: "meshctl connectivity test --context cluster1 --multi-cluster cluster2 --timeout 5m -o json > report.json"},
	{line: "meshctl connectivity test --context cluster1 --multi-cluster cluster2 --namespace mesh-test-2 --keep"},

	{line: "meshctl upgrade --context cluster1 --dry-run"},
	{line: "meshctl upgrade --context cluster1"},
	{line: "meshctl upgrade --context cluster1 --set controller.replicas=3"},

	// An invitation is good for one join.
	{line: "meshctl disconnect --context cluster1 --destination-context cluster2"},
	{line: "meshctl invite --context cluster1 --cluster-name cluster2 --withdraw"},
	{line: "meshctl join --context cluster2 -", pastes: "meshctl invite --context cluster1 --cluster-name cluster2"},
	{line: "meshctl disconnect --context cluster1 --peer cluster2"},
	{line: "umask 077; meshctl invite --context cluster1 --cluster-name cluster2 --ttl 1h > invitation"},
	{line: "meshctl join --context cluster2 --one-way - < invitation"},
	{line: "umask 077; meshctl invite --context cluster1 --cluster-name cluster2 --ttl 1h > invitation"},
	{line: "meshctl join --context cluster2 - < invitation"},

	{line: "meshctl uninstall --context cluster1 --dry-run"},
	{line: "meshctl uninstall --context cluster1", typed: "y\n"},
	{line: "meshctl uninstall --context cluster1 --yes --purge-data"},
}

// examples are the lines that the help of all commands shows, with the commands.
func examples() map[string]string {
	lines := map[string]string{}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		for line := range strings.Lines(strings.ReplaceAll(c.Example, "\\\n", " ")) {
			line = strings.TrimSpace(line)
			if line != "" && !strings.HasPrefix(line, "#") {
				lines[line] = c.CommandPath()
			}
		}
		for _, child := range c.Commands() {
			if !child.Hidden {
				visit(child)
			}
		}
	}
	visit(cli.NewCommand(cli.Streams{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard}))
	return lines
}

// TestEveryExampleIsWalked keeps the walk from falling behind what help shows.
func TestEveryExampleIsWalked(t *testing.T) {
	walked := map[string]bool{}
	for _, s := range walk {
		if !s.prepares {
			walked[s.line] = true
		}
		if s.pastes != "" {
			walked[s.pastes] = true
		}
	}
	shown := examples()
	for line, command := range shown {
		if !walked[line] {
			t.Errorf("an example of %s has no place in the walk: %s", command, line)
		}
	}
	for line := range walked {
		if shown[line] == "" {
			t.Errorf("the walk has a line that no help shows: %s", line)
		}
	}
}

// TestExamples runs each example exactly as it is written, on a lab of its own: each
// ends with 0. It runs them in the network that joins the clusters, as a person has it
// who reaches the nodes of both.
func TestExamples(t *testing.T) {
	if os.Getuid() != 0 || os.Getenv("MESH_LAB_TESTS") != "1" {
		t.Skip("the lab needs root, and MESH_LAB_TESTS=1")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	const (
		state = "/run/mesh-lab-examples"
		port  = 18241
	)
	bin, home := filepath.Join(root, "_output", "bin"), t.TempDir()
	lab := func(ctx context.Context, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, filepath.Join(bin, "lab"), append([]string{args[0], "--state-dir", state, "--bin-dir", bin}, args[1:]...)...)
		cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
		return cmd
	}
	t.Cleanup(func() {
		if err := lab(context.Background(), "down").Run(); err != nil {
			t.Errorf("removing the lab: %v", err)
		}
	})
	if err := lab(t.Context(), "down").Run(); err != nil {
		t.Fatalf("removing what is left of an earlier lab: %v", err)
	}
	if err := lab(t.Context(), "up", "--clusters", "2", "--nodes", "1", "--port", fmt.Sprint(port), "--kubeconfig", "").Run(); err != nil {
		t.Fatalf("starting the lab: %v", err)
	}
	kubeconfig, err := os.ReadFile(filepath.Join(state, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	lan, err := plan.New(2, 1)
	if err != nil {
		t.Fatal(err)
	}
	for i, cluster := range lan.Clusters {
		kubeconfig = bytes.ReplaceAll(kubeconfig, fmt.Appendf(nil, "127.0.0.1:%d", port+i), []byte(cluster.Control.String()+":6443"))
	}
	if err := os.WriteFile(filepath.Join(home, "kubeconfig"), kubeconfig, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(line, input string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		cmd := lab(ctx, "exec", "--node", "fabric", "--", "sh", "-c", line)
		cmd.Dir = home
		cmd.Env = append(os.Environ(), "HOME="+home, "KUBECONFIG="+filepath.Join(home, "kubeconfig"),
			"EXAMPLES="+filepath.Join(root, "artifacts", "examples"), "PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
		cmd.Stdin = strings.NewReader(input)
		var out, all bytes.Buffer
		cmd.Stdout, cmd.Stderr = io.MultiWriter(&out, &all), &all
		began := time.Now()
		if err := cmd.Run(); err != nil {
			t.Fatalf("$ %s\n%s\n%v", line, &all, err)
		}
		t.Logf("%5.1f s $ %s", time.Since(began).Seconds(), line)
		return out.String()
	}
	for _, s := range walk {
		input := s.typed
		if s.pastes != "" {
			input = run(s.pastes, "")
		}
		if out := run(s.line, input); !strings.Contains(out, s.says) {
			t.Errorf("$ %s\ndoes not say %q:\n%s", s.line, s.says, out)
		}
	}
}
