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

package connectivity

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/agent/dump"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/probe"
	"mesh.io/clustermesh/pkg/layout/golden"
	"mesh.io/clustermesh/pkg/policy"
)

func party(name string, imports bool, nodes int) Party {
	p := Party{Name: name, Imports: imports}
	for i := range nodes {
		p.Clients = append(p.Clients, Client{Node: fmt.Sprintf("node%d", i+1), Pod: fmt.Sprintf("client-%d", i+1), Address: fmt.Sprintf("10.%s.0.%d", name[1:], i+1)})
	}
	return p
}

// wants lists, by scenario, whom the clients of each cluster should reach.
func wants(scenarios []Scenario) []string {
	var lines []string
	for _, s := range scenarios {
		seen := map[string]bool{}
		for _, c := range s.Checks {
			line := fmt.Sprintf("%s: %s wants %s", s.Title, c.From.Cluster, strings.Join(c.Want, "+"))
			if !seen[line] {
				seen[line] = true
				lines = append(lines, line)
			}
		}
	}
	return lines
}

func TestMatrixOfConnectedClusters(t *testing.T) {
	matrix := Matrix(party("c1", true, 2), party("c2", true, 1), "mesh-test")
	want := []string{
		"Pod to pod of the other cluster, by address: c1 wants c2",
		"Pod to pod of the other cluster, by address: c2 wants c1",
		"Global service: the backends of all clusters: c1 wants c1+c2",
		"Global service: the backends of all clusters: c2 wants c2+c1",
		"Affinity local: the own cluster's backends: c1 wants c1",
		"Affinity local: the own cluster's backends: c2 wants c2",
		"Affinity remote: the other cluster's backends: c1 wants c2",
		"Affinity remote: the other cluster's backends: c2 wants c1",
		"shared=false in c2: its backends are for itself: c1 wants c1",
		"shared=false in c2: its backends are for itself: c2 wants c2+c1",
		"Drained: weight 0 for the other cluster: c1 wants c1",
		"Drained: weight 0 for the other cluster: c2 wants c2",
		"No longer drained: c1 wants c1+c2",
		"No longer drained: c2 wants c2+c1",
		"Failover: no pod in c2: c1 wants c1",
		"Failover: no pod in c2: c2 wants c1",
		"The pods of c2 are back: c1 wants c1+c2",
		"The pods of c2 are back: c2 wants c2+c1",
		"Failover: no pod in c1: c1 wants c2",
		"Failover: no pod in c1: c2 wants c2",
		"The pods of c1 are back: c1 wants c1+c2",
		"The pods of c1 are back: c2 wants c2+c1",
	}
	if diff := cmp.Diff(want, wants(matrix)); diff != "" {
		t.Errorf("the matrix differs (-want +got):\n%s", diff)
	}
	// Every node asks every pod of the other side, over both protocols.
	if n := len(matrix[0].Checks); n != 2*1*2+1*2*2 {
		t.Errorf("%d checks from pod to pod", n)
	}
	if n := len(matrix[1].Checks); n != 3*2 {
		t.Errorf("%d checks of the global service", n)
	}
}

func TestMatrixOfOneWay(t *testing.T) {
	var c2 []string
	for _, line := range wants(Matrix(party("c1", true, 1), party("c2", false, 1), "mesh-test")[1:]) {
		if _, want, ok := strings.Cut(line, "c2 wants "); ok {
			c2 = append(c2, want)
		}
	}
	// It never reaches the other, and asks nobody while its own pods are gone.
	if len(c2) != 9 {
		t.Errorf("the cluster that imports nothing is asked in %d scenarios", len(c2))
	}
	for _, want := range c2 {
		if want != "c2" {
			t.Errorf("the cluster that imports nothing wants %s", want)
		}
	}
}

func TestServices(t *testing.T) {
	reader := policy.Reader{}
	got := map[string]string{}
	for _, private := range []bool{false, true} {
		for _, s := range services(Options{Namespace: "n"}, private) {
			p := reader.Service(s.Annotations, nil, nil)
			if !p.Global.Value || len(p.Problems) > 0 || len(s.Spec.Ports) != 2 {
				t.Errorf("Service %s: %+v", s.Name, p)
			}
			got[fmt.Sprintf("%s private=%t", s.Name, private)] = fmt.Sprintf("%s %t", p.Affinity.Value, p.Shared.Value)
		}
	}
	want := map[string]string{
		"echo private=false": "None true", "echo private=true": "None true",
		"echo-local private=false": "Local true", "echo-local private=true": "Local true",
		"echo-remote private=false": "Remote true", "echo-remote private=true": "Remote true",
		"echo-private private=false": "None true", "echo-private private=true": "None false",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the Services differ (-want +got):\n%s", diff)
	}
}

func TestJudge(t *testing.T) {
	service := &Check{Want: []string{"c1", "c2"}}
	pod := &Check{Want: []string{"c2"}, toNode: "n1"}
	for name, test := range map[string]struct {
		check  *Check
		result probe.Result
		want   Verdict
	}{
		"both answer":        {service, probe.Result{Answers: map[string]int{"c1": 1, "c2": 19}}, Verdict{}},
		"one does not":       {service, probe.Result{Answers: map[string]int{"c1": 20}}, Verdict{Missing: []string{"c2"}}},
		"one too many":       {service, probe.Result{Answers: map[string]int{"c1": 1, "c2": 1, "c3": 1}}, Verdict{Unexpected: []string{"c3"}}},
		"a try that fails":   {service, probe.Result{Answers: map[string]int{"c1": 1, "c2": 1}, Errors: map[string]int{"refused": 1}}, Verdict{Errors: []string{"refused"}}},
		"nobody":             {service, probe.Result{Errors: map[string]int{"timeout": 6}}, Verdict{Missing: []string{"c1", "c2"}, Errors: []string{"timeout (6 times)"}}},
		"the right pod":      {pod, probe.Result{Answers: map[string]int{"c2": 3}, Nodes: map[string]int{"c2/n1": 3}}, Verdict{}},
		"another node's pod": {pod, probe.Result{Answers: map[string]int{"c2": 3}, Nodes: map[string]int{"c2/n2": 3}}, Verdict{Unexpected: []string{"c2/n2"}}},
	} {
		got := Judge(test.check, &test.result)
		if diff := cmp.Diff(test.want, got); diff != "" || got.OK() != (len(test.want.Missing)+len(test.want.Unexpected)+len(test.want.Errors) == 0) {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func table(cluster string, known, preferred int) *dump.Document {
	var backends []string
	for i := range known {
		backends = append(backends, fmt.Sprintf(`{"cluster":%q,"state":"active","preferred":%t}`, cluster, i < preferred))
	}
	d := &dump.Document{}
	document := fmt.Sprintf(`{"services":[{"namespace":"mesh-test","name":"echo","protocol":"TCP","backends":[%s]}]}`, strings.Join(backends, ","))
	if err := json.Unmarshal([]byte(document), d); err != nil {
		panic(err)
	}
	return d
}

// whole are the facts of a chain without a break.
func whole() *Facts {
	return &Facts{
		Service: "mesh-test/echo", Client: Place{"c1", "n1"}, Exporter: "c2", Backends: 2, ExportedService: true, ExportedReady: 2,
		Member: &v1alpha1.MeshCluster{}, ImportedService: true, ImportedReady: 2, Agent: AgentFacts{Pod: "mesh-agent-1", Ready: true, Dump: table("c2", 2, 2)},
	}
}

func TestTheFirstBrokenLinkIsNamed(t *testing.T) {
	old := 90.0
	for name, test := range map[string]struct {
		change func(f *Facts)
		want   string
	}{
		"nothing":                  {func(*Facts) {}, "connection: node n1 has the backends of c2, but they were not reached: dial tcp: timeout"},
		"no pod":                   {func(f *Facts) { f.Backends, f.ExportedService = 0, false }, "backends: c2 has no ready pod behind mesh-test/echo"},
		"not exported":             {func(f *Facts) { f.ExportedService, f.ImportedService, f.Agent.Pod = false, false, "" }, "export: c2 has no ExportedService mesh-test/echo: does its mesh-controller lead?"},
		"no ready export":          {func(f *Facts) { f.ExportedReady = 0 }, "export: c2 exports mesh-test/echo without a ready endpoint, though it has 2"},
		"the peer's API is dead":   {func(f *Facts) { f.ExporterProblem, f.ImportedService = "503", false }, "export: the mesh API of c2 does not answer: 503"},
		"the same, imported":       {func(f *Facts) { f.ExporterProblem, f.Agent.Dump = "503", table("c2", 0, 0) }, "agent: the table of node n1 has no backend of c2 behind mesh-test/echo"},
		"the own API is dead":      {func(f *Facts) { f.ImporterProblem = "503" }, "import: the mesh API of c1 does not answer: 503"},
		"not connected":            {func(f *Facts) { f.Member, f.ImportedService = nil, false }, "import: c1 has no MeshCluster c2: connect it with meshctl connect"},
		"no contact":               {func(f *Facts) { f.ImportedReady = 0; unreachable(f) }, "import: in c1, MeshCluster c2 has Connected=False (Unreachable): no way"},
		"no contact, but imported": {unreachable, "connection: node n1 has the backends of c2, but they were not reached: dial tcp: timeout"},
		"refused": {func(f *Facts) {
			f.ImportedReady = 0
			f.Member.Status.Refusals = []string{"slice other/c2.x: AddressNotAllowed: no", "slice mesh-test/c2.echo-abc: AddressNotAllowed: 127.0.0.1 is not allowed"}
		}, "import: c1 refuses of c2: slice mesh-test/c2.echo-abc: AddressNotAllowed: 127.0.0.1 is not allowed"},
		"no agent":     {func(f *Facts) { f.Agent = AgentFacts{} }, "agent: no mesh-agent runs on node n1"},
		"a hung agent": {func(f *Facts) { f.Agent.Dump = &dump.Document{HeartbeatAgeSeconds: &old} }, "agent: node n1 has not programmed mesh-test/echo over TCP: the agent on node n1 (pod mesh-agent-1) was last alive 1m30s ago"},
		"not ready":    {func(f *Facts) { f.Agent.Ready, f.Agent.NotReady, f.Agent.Dump = false, "[-]mesh-api: no", nil }, "agent: the agent on node n1 (pod mesh-agent-1) is not ready: [-]mesh-api: no"},
		"not used":     {func(f *Facts) { f.Agent.Dump = table("c2", 2, 0) }, "agent: the table of node n1 has 2 backends of c2 behind mesh-test/echo, and gives none of them connections"},
	} {
		f := whole()
		test.change(f)
		if got := Missing(f, "tcp", []string{"dial tcp: timeout"}); got != test.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, test.want)
		}
	}
}

func unreachable(f *Facts) {
	f.Member.Status.Conditions = []metav1.Condition{{Type: "Connected", Status: "False", Reason: "Unreachable", Message: "no way"}}
}

func TestWhyAClusterAnswersThatShouldNot(t *testing.T) {
	f := whole()
	if got := Unexpected(f, "tcp", "c2"); got != "agent: the table of node n1 still gives connections to 2 backends of c2" {
		t.Error(got)
	}
	f.Agent.Dump = &dump.Document{}
	if got := Unexpected(f, "tcp", "c1"); got != "agent: node n1 has not programmed mesh-test/echo over TCP, so that kube-proxy serves it" {
		t.Error(got)
	}
}

// TestGolden pins what a person reads.
func TestGolden(t *testing.T) {
	report := Report{Passed: 1, Failed: 3, NotRun: 2, Seconds: 12.34, Leftovers: []string{"Namespace mesh-test of cluster2 was not removed to the end: some finalizer. The next test removes it first."}}
	reason := "import: in cluster1, MeshCluster cluster2 has Connected=False (Unreachable): The peer's mesh API cannot be reached."
	report.Results = []Result{
		{From: Place{"cluster1", "node1"}, Network: "tcp", To: "echo", OK: true, Milliseconds: 34, Answers: map[string]int{"cluster1": 9, "cluster2": 11}, Want: []string{"cluster1", "cluster2"}},
		{From: Place{"cluster1", "a-node-with-a-long-name"}, Network: "udp", To: "cluster2/another-long-name", OK: true, Milliseconds: 3, Answers: map[string]int{"cluster2": 3}},
		{From: Place{"cluster1", "node1"}, Network: "tcp", To: "echo", Milliseconds: 20034, Answers: map[string]int{"cluster1": 20}, Want: []string{"cluster1", "cluster2"}, Reasons: []string{reason}},
		{From: Place{"cluster1", "node1"}, Network: "udp", To: "echo", Milliseconds: 3034, Answers: map[string]int{}, Want: []string{"cluster2"}, Reasons: []string{reason}},
		{From: Place{strings.Repeat("c", 32), strings.Repeat("n", 63)}, Network: "tcp", To: strings.Repeat("d", 32) + "/" + strings.Repeat("m", 63), Milliseconds: 3034, Answers: map[string]int{strings.Repeat("c", 32): 20}, Want: []string{strings.Repeat("d", 32)},
			Reasons: []string{"pod network: no way from node " + strings.Repeat("c", 32) + "/" + strings.Repeat("n", 63)}},
		{From: Place{"cluster2", "node2"}, Milliseconds: 60000, Reasons: []string{"pod mesh-test/client-x on node node2 is not ready: ErrImagePull"}},
	}
	golden.Print(t, "report", func(w io.Writer, width int) error {
		for i := range report.Results {
			fmt.Fprint(w, report.Results[i].Text(width))
		}
		_, err := io.WriteString(w, report.Summary(width))
		return err
	})
}
