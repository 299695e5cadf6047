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

package cli

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// clusterOf answers as the API servers of a cluster do, from what is given by path.
func clusterOf(t *testing.T, answers map[string]string) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, answer)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// completions are what a shell gets for a command line that has been begun, with the
// directive at its end.
func completions(t *testing.T, program string, args ...string) string {
	t.Helper()
	var out strings.Builder
	if code := Run(t.Context(), append([]string{program}, args...), Streams{In: strings.NewReader(""), Out: &out, Err: io.Discard}); code != ExitOK {
		t.Errorf("%q ends with %d", args, code)
	}
	return strings.Join(strings.Fields(out.String()), " ")
}

func TestCompletion(t *testing.T) {
	nodes := func(names ...string) string {
		return `{"kind":"NodeList","apiVersion":"v1","items":[{"metadata":{"name":"` + strings.Join(names, `"}},{"metadata":{"name":"`) + `"}}]}`
	}
	members := `{"kind":"MeshClusterList","apiVersion":"mesh.io/v1alpha1","items":[{"metadata":{"name":"east"},"spec":{"id":1}},{"metadata":{"name":"west"},"spec":{"id":2,"kubeconfigSecretRef":{"name":"s"}}}]}`
	one := clusterOf(t, map[string]string{
		"/api/v1/nodes":                         nodes("node-b", "node-a"),
		"/api/v1/namespaces":                    `{"kind":"NamespaceList","apiVersion":"v1","items":[{"metadata":{"name":"song"}},{"metadata":{"name":"mesh-system"}}]}`,
		"/apis/mesh.io/v1alpha1/meshclusters":   members,
		"/apis/mesh.io/v1alpha1/globalservices": `{"kind":"GlobalServiceList","apiVersion":"mesh.io/v1alpha1","items":[{"metadata":{"namespace":"song","name":"userlist-svc"}},{"metadata":{"namespace":"song","name":"names"}}]}`,
	})
	two := clusterOf(t, map[string]string{"/api/v1/nodes": nodes("node-c")})
	kubeconfig := filepath.Join(t.TempDir(), "config")
	content := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c1",
		"clusters":[{"name":"one","cluster":{"server":%q}},{"name":"two","cluster":{"server":%q}},{"name":"dead","cluster":{"server":"http://127.0.0.1:1"}}],
		"contexts":[{"name":"c1","context":{"cluster":"one"}},{"name":"c2","context":{"cluster":"two"}},{"name":"dead","context":{"cluster":"dead"}}]}`, one, two)
	if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", kubeconfig)
	for line, want := range map[string]string{
		// 4: nothing else, no files; 6: and no space behind it; 0: files.
		"status --context ":                           "c1 c2 dead :4",
		"status --contexts ":                          "c1 c2 dead :6",
		"status --contexts c1,":                       "c1,c2 c1,dead :6",
		"status --contexts c1,c2,d":                   "c1,c2,dead :6",
		"install --mesh-contexts c2,":                 "c2,c1 c2,dead :6",
		"connect --destination-context ":              "c1 c2 dead :4",
		"connect --node-address ":                     "internal external :4",
		"connectivity test --multi-cluster ":          "c1 c2 dead :4",
		"connectivity test --timeout ":                ":4",
		"disconnect --peer ":                          "west :4",
		"service get ":                                "song/names song/userlist-svc :4",
		"service get song/userlist-svc ":              ":4",
		"service affinity song/names ":                "None Local Remote :4",
		"service drain song/names --cluster ":         "east west :4",
		"service weight song/names --cluster ":        "east west :4",
		"service explain song/names --to east,":       "east,west :6",
		"service explain song/names --from ":          "east/node-a east/node-b :4",
		"service list --node ":                        "node-a node-b :4",
		"service list --context c2 --node ":           "node-c :4",
		"service list --contexts c1,c2 --node ":       "node-a node-b node-c :4",
		"service list --contexts c1,dead --node ":     "node-a node-b :4",
		"service list -n ":                            "mesh-system song :4",
		"service list --context dead -n ":             ":4",
		"service list --context nowhere --node ":      ":1",
		"service list --kubeconfig /nowhere --node ":  ":1",
		"status --mesh-namespace ":                    "mesh-system song :4",
		"status --kubeconfig ":                        ":0",
		"install --values ":                           ":0",
		"bundle -o ":                                  ":0",
		"status ":                                     ":4",
		"version -o ":                                 "table json yaml :4",
		"install --cluster-id ":                       ":4",
		"install --dry-run ":                          ":4",
		"uninstall --agent-image ":                    ":4",
		"service explain song/names --from east/node": "east/node-a east/node-b :4",
	} {
		got := completions(t, "meshctl", append([]string{cobra.ShellCompNoDescRequestCmd}, strings.Split(line, " ")...)...)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", line, diff)
		}
	}
	if got := completions(t, "/usr/bin/kubectl_complete-mesh", "service", "get", ""); got != "song/names song/userlist-svc :4" {
		t.Errorf("kubectl gets %q", got)
	}
}

// TestEverythingCompletes has each flag and argument say what completes it.
func TestEverythingCompletes(t *testing.T) {
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if _, known := c.GetFlagCompletionFunc(f.Name); !known && f.NoOptDefVal == "" && f.Name != "kubeconfig" && f.Name != "values" && f.Name != "output-file" {
				t.Errorf("--%s of %s completes files", f.Name, c.CommandPath())
			}
		})
		if c.Runnable() && c.ValidArgsFunction == nil {
			t.Errorf("the arguments of %s complete files", c.CommandPath())
		}
		for _, child := range c.Commands() {
			visit(child)
		}
	}
	visit(newTestCommand())
}

// A cluster that does not answer keeps a shell from nothing for long.
func TestCompletionGivesUp(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer server.Close()
	kubeconfig := filepath.Join(t.TempDir(), "config")
	content := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c1","clusters":[{"name":"one","cluster":{"server":%q}}],"contexts":[{"name":"c1","context":{"cluster":"one"}}]}`, server.URL)
	if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := completions(t, "meshctl", cobra.ShellCompNoDescRequestCmd, "--kubeconfig", kubeconfig, "service", "get", ""); got != ":4" {
		t.Errorf("got %q", got)
	}
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if got := completions(t, "meshctl", "completion", shell); !strings.Contains(got, "meshctl") || len(got) < 1000 {
			t.Errorf("%s: %s", shell, got)
		}
	}
}
