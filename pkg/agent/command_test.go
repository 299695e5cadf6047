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

package agent

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/datapath"
	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/agent/dump"
	"mesh.io/clustermesh/pkg/layout/golden"
)

func TestDumpDocument(t *testing.T) {
	table := &datapath.Snapshot{
		Clusters: map[uint16]string{2: "cluster2"}, HeartbeatAge: 1500 * time.Millisecond, Counters: map[string]uint64{"translated": 7},
		Services: []datapath.Service{{
			ID: 1, LocalReady: true,
			Frontend: desired.Frontend{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Protocol: desired.TCP},
			Port:     desired.ServicePort{Namespace: "song", Name: "userlist", Port: "http"},
			Backends: []datapath.Backend{{ID: 3, Generation: 9, Backend: desired.Backend{
				Addr: netip.MustParseAddrPort("10.2.0.1:8181"), ClusterID: 2, State: desired.Terminating, Slots: 2,
			}}},
		}},
	}
	counted := table.Services[0]
	counted.Backends = slices.Clone(counted.Backends)
	counted.Backends[0].Traffic = &datapath.Traffic{
		Attempts: 15, Established: 9, Refused: 3, TimedOut: 2, Aborted: 1, Active: 4, Measured: 8, RTT: 16 * time.Millisecond,
	}
	udp := counted
	udp.Frontend.Protocol = desired.UDP
	for want, service := range map[string]datapath.Service{
		`{"attempts":15,"tcp":{"established":9,"refused":3,"timedOut":2,"aborted":1,"active":4,"rttSeconds":{"sum":0.016,"count":8}}}`: counted,
		`{"attempts":15}`: udp,
	} {
		document := newDumpDocument(&datapath.Snapshot{Services: []datapath.Service{service}}, Reports{})
		got, err := json.Marshal(document.Services[0].Backends[0].Traffic)
		if err != nil || string(got) != want {
			t.Errorf("%v, got\n%s, want\n%s", err, got, want)
		}
	}
	got, err := json.Marshal(newDumpDocument(table, Reports{Left: []dump.Left{{Service: "song/other", Reason: "it has no cluster IP"}}}))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"services":[{"id":1,"address":"10.96.0.1","port":80,"protocol":"TCP","namespace":"song","name":"userlist",` +
		`"portName":"http","localReady":true,"backends":[{"id":3,"address":"10.2.0.1","port":8181,"cluster":"cluster2",` +
		`"clusterID":2,"state":"terminating","slots":2,"preferred":true}]}],"heartbeatAgeSeconds":1.5,` +
		`"events":{"translated":7},"leftToKubeProxy":[{"service":"song/other","reason":"it has no cluster IP"}]}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("document (-want +got):\n%s", diff)
	}
}

func TestAskAgent(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.String() != "/readyz?verbose" {
			http.NotFound(w, r)
			return
		}
		http.Error(w, "[+]table ok\n[-]mesh-api: not in sync yet", http.StatusServiceUnavailable)
	}))
	defer server.Close()
	got, err := askAgent(strings.TrimPrefix(server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	want := &dump.Agent{Checks: []dump.Check{{Name: "table", OK: true}, {Name: "mesh-api", Message: "not in sync yet"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, address := range []string{"", "0", "127.0.0.1:1"} {
		if _, err := askAgent(address); err == nil {
			t.Errorf("%q answers", address)
		}
	}
}

func TestCleanupRefusesWhileAnAgentRuns(t *testing.T) {
	where := &places{BPFFS: t.TempDir(), StateDir: t.TempDir()}
	lock, err := os.Create(filepath.Join(where.StateDir, lockFile))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := cleanup(os.Stdout, where, nil); err == nil || !strings.Contains(err.Error(), "an agent runs on this node") {
		t.Errorf("got %v", err)
	}
}

func TestCommandNamesWhatIsWrong(t *testing.T) {
	for _, args := range [][]string{{}, {"--cluster-name=default"}, {"dump", "-o", "yaml"}, {"dump", "--bpffs=/nowhere"}, {"extra"}} {
		command := NewCommand()
		command.SetArgs(args)
		if err := command.ExecuteContext(t.Context()); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
}

func TestDumpSays(t *testing.T) {
	table := &datapath.Snapshot{HeartbeatAge: 3 * time.Minute, Clusters: map[uint16]string{2: "cluster2"}, Services: []datapath.Service{{
		ID:       1,
		Frontend: desired.Frontend{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Protocol: desired.TCP},
		Port:     desired.ServicePort{Namespace: "song", Name: "userlist", Port: "http"},
		Backends: []datapath.Backend{{ID: 3, Backend: desired.Backend{
			Addr: netip.MustParseAddrPort("10.2.0.1:8181"), ClusterID: 2, State: desired.Active, Slots: 1,
		}, Traffic: &datapath.Traffic{Attempts: 7, Established: 6, TimedOut: 1, Active: 2, Measured: 6, RTT: 3 * time.Millisecond}}},
	}}}
	left := Reports{Left: []dump.Left{
		{Service: "song/other", Reason: "it has no cluster IP"},
		{Service: strings.Repeat("n", 63) + "/" + strings.Repeat("s", 63), Reason: "it has sessionAffinity ClientIP, which is not balanced over clusters yet"},
	}}
	golden.Print(t, "dump", func(w io.Writer, width int) error { return writeDump(w, width, table, left, false) })
	golden.Print(t, "dump-wide", func(w io.Writer, width int) error { return writeDump(w, width, table, left, true) })
	golden.Print(t, "dump-empty", func(w io.Writer, width int) error {
		return writeDump(w, width, &datapath.Snapshot{HeartbeatAge: -1}, Reports{}, false)
	})
}
