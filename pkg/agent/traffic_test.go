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
	"fmt"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mesh.io/clustermesh/pkg/agent/datapath"
	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/agent/source"
)

// met is a backend that some connections went to, all of which were established, 100 µs
// away, and are open.
func met(id, generation uint32, service, cluster string, n uint64) datapath.BackendTraffic {
	return datapath.BackendTraffic{
		ID: id, Generation: generation, Cluster: cluster,
		Frontend: desired.Frontend{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Protocol: desired.TCP},
		Port:     desired.ServicePort{Namespace: "song", Name: service, Port: "http"},
		Addr:     netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(id)}), 8181),
		Traffic: datapath.Traffic{
			Attempts: n, Established: n, Measured: n, Active: n, RTT: time.Duration(n) * 100 * time.Microsecond,
		},
	}
}

// dipped is as if a connection's round trip was not known to be missing before.
func dipped(b datapath.BackendTraffic) datapath.BackendTraffic {
	b.Measured--
	return b
}

func inSong(service, cluster string) pair {
	return pair{desired.Name{Namespace: "song", Name: service}, cluster}
}

func TestLedgerOnlyGrows(t *testing.T) {
	type step struct {
		now     []datapath.BackendTraffic
		retired []datapath.BackendTraffic // before
		want    map[pair]uint64           // attempts
		active  uint64                    // of all
	}
	users, names := inSong("users", "cluster1"), inSong("names", "cluster2")
	for name, steps := range map[string][]step{
		"what was before is not new": {
			{now: []datapath.BackendTraffic{met(1, 1, "users", "cluster1", 7)}, want: map[pair]uint64{users: 0}, active: 7},
			{now: []datapath.BackendTraffic{met(1, 1, "users", "cluster1", 9)}, want: map[pair]uint64{users: 2}, active: 9},
		},
		"two backends": {
			{now: nil, want: map[pair]uint64{}},
			{now: []datapath.BackendTraffic{met(1, 1, "users", "cluster1", 1), met(2, 1, "users", "cluster1", 2)}, want: map[pair]uint64{users: 3}, active: 3},
		},
		"one goes": {
			{now: []datapath.BackendTraffic{met(1, 1, "users", "cluster1", 5), met(2, 1, "users", "cluster1", 5)}, want: map[pair]uint64{users: 0}, active: 10},
			{
				now:     []datapath.BackendTraffic{met(2, 1, "users", "cluster1", 6)},
				retired: []datapath.BackendTraffic{met(1, 1, "users", "cluster1", 9)},
				want:    map[pair]uint64{users: 5}, active: 6,
			},
			{now: []datapath.BackendTraffic{met(2, 1, "users", "cluster1", 6)}, want: map[pair]uint64{users: 5}, active: 6},
		},
		"the number of round trips dips": {
			{now: nil, want: map[pair]uint64{}},
			{now: []datapath.BackendTraffic{met(1, 1, "users", "cluster1", 5)}, want: map[pair]uint64{users: 5}, active: 5},
			{now: []datapath.BackendTraffic{dipped(met(1, 1, "users", "cluster1", 5))}, want: map[pair]uint64{users: 5}, active: 5},
			{now: []datapath.BackendTraffic{met(1, 1, "users", "cluster1", 6)}, want: map[pair]uint64{users: 6}, active: 6},
		},
		"one comes and goes between two looks": {
			{now: nil, want: map[pair]uint64{}},
			{retired: []datapath.BackendTraffic{met(1, 1, "users", "cluster1", 4)}, want: map[pair]uint64{users: 4}},
		},
		"a number is used again": {
			{now: []datapath.BackendTraffic{met(1, 1, "users", "cluster1", 5)}, want: map[pair]uint64{users: 0}, active: 5},
			{
				now:     []datapath.BackendTraffic{met(1, 2, "names", "cluster2", 7)},
				retired: []datapath.BackendTraffic{met(1, 1, "users", "cluster1", 6)},
				want:    map[pair]uint64{users: 1, names: 7}, active: 7,
			},
		},
		"and nobody heard that the last one went": {
			{now: []datapath.BackendTraffic{met(1, 1, "users", "cluster1", 5)}, want: map[pair]uint64{users: 0}, active: 5},
			{now: []datapath.BackendTraffic{met(1, 2, "users", "cluster1", 7)}, want: map[pair]uint64{users: 7}, active: 7},
		},
	} {
		t.Run(name, func(t *testing.T) {
			kernel := NewFakeKernel()
			l := newLedger(10)
			for i, step := range steps {
				kernel.Meet(step.now...)
				if i == 0 {
					if err := l.begin(kernel); err != nil {
						t.Fatal(err)
					}
				}
				for _, b := range step.retired {
					l.retire(&b)
				}
				r, err := l.read(kernel, false, func(pair) bool { return true })
				if err != nil {
					t.Fatal(err)
				}
				got, active := map[pair]uint64{}, uint64(0)
				for p, sums := range r.totals {
					got[p] = sums.attempts
					if sums.attempts != sums.established || sums.attempts != sums.measured || sums.rtt != time.Duration(sums.attempts)*100*time.Microsecond {
						t.Errorf("step %d: %+v", i, sums)
					}
				}
				for _, n := range r.active {
					active += n
				}
				if diff := cmp.Diff(step.want, got, cmp.AllowUnexported(pair{})); diff != "" {
					t.Errorf("step %d (-want +got):\n%s", i, diff)
				}
				if active != step.active {
					t.Errorf("step %d: %d are active, want %d", i, active, step.active)
				}
			}
		})
	}
}

func TestLedgerHasBounds(t *testing.T) {
	kernel := NewFakeKernel()
	l := newLedger(3)
	var all []datapath.BackendTraffic
	for i := range uint32(10) {
		all = append(all, met(i+1, 1, fmt.Sprint("s", i), "cluster1", 0), met(i+101, 1, fmt.Sprint("s", i), "cluster2", 0))
	}
	gone := map[pair]bool{}
	read := func() *reading {
		t.Helper()
		kernel.Meet(all...)
		r, err := l.read(kernel, false, func(p pair) bool { return !gone[p] })
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	connect := func(n uint64) {
		for i := range all {
			all[i].Traffic = met(0, 0, "", "", all[i].Attempts+n).Traffic
		}
	}
	connect(2)
	r := read()
	other1, other2 := pair{otherService, "cluster1"}, pair{otherService, "cluster2"}
	if len(r.totals) != 5 || r.overflow != 17 {
		t.Errorf("%d series, %d pairs without, want 5 and 17", len(r.totals), r.overflow)
	}
	sum := r.totals[other1].attempts + r.totals[other2].attempts
	if sum != 34 || r.active[other1]+r.active[other2] != 34 {
		t.Errorf("the others have %d attempts", sum)
	}
	// Services with series go, and the room is that of others, from then on.
	all = slices.DeleteFunc(all, func(b datapath.BackendTraffic) bool {
		if l.series[pairOf(&b)] == nil {
			return false
		}
		l.retire(&b)
		gone[pairOf(&b)] = true
		return true
	})
	read()
	connect(1)
	r = read()
	if len(r.totals) != 5 || r.overflow != 14 {
		t.Errorf("%d series, %d pairs without, want 5 and 14", len(r.totals), r.overflow)
	}
	own := uint64(0)
	for p, sums := range r.totals {
		if p.service != otherService {
			own += sums.attempts
		}
	}
	if others := r.totals[other1].attempts + r.totals[other2].attempts; others != 34+14 || own != 3 {
		t.Errorf("the others have %d attempts, those with series %d", others, own)
	}
}

// lines returns the samples of connections that an agent serves.
func (w *world) lines(a *Agent) string {
	w.Helper()
	recorder := httptest.NewRecorder()
	a.Handler().ServeHTTP(recorder, httptest.NewRequest("GET", "/metrics", nil))
	if recorder.Code != 200 {
		w.Fatalf("%d: %s", recorder.Code, recorder.Body)
	}
	var lines []string
	for line := range strings.Lines(recorder.Body.String()) {
		for _, prefix := range []string{"mesh_agent_connection", "mesh_agent_udp", "mesh_agent_backend_", "mesh_agent_services_without"} {
			if strings.HasPrefix(line, prefix) {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
	}
	return strings.Join(lines, "\n")
}

func TestTrafficMetrics(t *testing.T) {
	w := newWorld(t)
	state := source.NewState(source.Config{Cluster: "cluster1", Namespace: "mesh-system"})
	agent := New(Config{
		Cluster: "cluster1", StateDir: w.folder, Kernel: w.kernel, State: state, ServiceSeries: 1, PerBackendMetrics: true,
		Local: source.NewLocal(state, w.kube, w.meta, "mesh-system", func() {}), Mesh: source.NewMesh(state, w.mesh),
	})
	tcp := met(1, 1, "users", "cluster1", 9)
	tcp.Traffic = datapath.Traffic{
		Attempts: 15, Established: 9, Refused: 3, TimedOut: 2, Aborted: 1, Active: 4, Measured: 8, RTT: 16 * time.Millisecond,
	}
	udp := met(2, 1, "names", "cluster2", 0)
	udp.Frontend.Protocol, udp.Traffic = desired.UDP, datapath.Traffic{Attempts: 5}
	canary := met(3, 1, "", "cluster1", 1)
	canary.Frontend = desired.Canary().Frontend
	w.kernel.Meet(tcp, udp, canary)
	// Labels come sorted.
	backend := func(name, reason string) string {
		return "mesh_agent_backend_" + name + `{backend="10.1.0.1:8181",cluster="cluster1",frontend="10.96.0.1:80/TCP",namespace="song",port="http",` + reason + `service="users"}`
	}
	service := func(name, reason string) string {
		return "mesh_agent_" + name + `{cluster="cluster1",namespace="song",` + reason + `service="users"}`
	}
	var want []string
	for _, of := range []func(name, reason string) string{backend, service} {
		want = append(want,
			of("connection_attempts_total", "")+" 15",
			of("connection_rtt_seconds_sum", "")+" 0.016",
			of("connection_rtt_seconds_count", "")+" 8",
			of("connections_active", "")+" 4",
			of("connections_established_total", "")+" 9",
			of("connections_failed_total", `reason="aborted",`)+" 1",
			of("connections_failed_total", `reason="refused",`)+" 3",
			of("connections_failed_total", `reason="timed_out",`)+" 2")
	}
	want = slices.Insert(want, 8, `mesh_agent_backend_udp_flows_total{backend="10.1.0.2:8181",cluster="cluster2",frontend="10.96.0.1:80/UDP",namespace="song",port="http",service="names"} 5`)
	want = append(want, "mesh_agent_services_without_series 1", `mesh_agent_udp_flows_total{cluster="cluster2",namespace="",service="_other"} 5`)
	if diff := cmp.Diff(strings.Join(want, "\n"), w.lines(agent)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	quiet := New(Config{
		Cluster: "cluster1", StateDir: w.folder, Kernel: w.kernel, State: state, ServiceSeries: 1,
		Local: source.NewLocal(state, w.kube, w.meta, "mesh-system", func() {}), Mesh: source.NewMesh(state, w.mesh),
	})
	tcp.Attempts++
	w.kernel.Meet(tcp)
	if got := w.lines(quiet); strings.Contains(got, "mesh_agent_backend") ||
		!strings.Contains(got, `mesh_agent_connection_attempts_total{cluster="cluster1",namespace="song",service="users"} 1`) {
		t.Errorf("an agent that begins now, and is asked for no backends:\n%s", got)
	}
}

func TestOptionsOfMetrics(t *testing.T) {
	o := NewOptions()
	o.ClusterName, o.ServiceSeries = "cluster1", -1
	if err := o.Validate(); err == nil || !strings.Contains(err.Error(), "--max-service-series") {
		t.Errorf("got %v", err)
	}
}
