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
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/agent/bypass"
	"mesh.io/clustermesh/pkg/agent/datapath"
	"mesh.io/clustermesh/pkg/agent/dump"
	"mesh.io/clustermesh/pkg/agent/source"
)

// status is what the loop says about itself.
type status struct {
	tick      time.Time // when the loop last went round
	applied   time.Time // when the kernel last took what it was given
	remote    bool      // whether the kernel has what is remote since the start
	applyErr  error
	attachErr error
	drifts    []datapath.Drift // what was found and could not be repaired
	canary    canaryResult
	saved     time.Time // when the snapshot was written
	reports   uint64    // counts the changes of what is left to kube-proxy
}

// canaryResult is how the last connection to the canary went.
type canaryResult struct {
	err     error
	skipped string // why there was none
}

// canaryAbsent is why there is no connection to the canary at first.
const canaryAbsent = "the canary is not programmed"

// deadLoop is how long the loop may take for one turn before the agent counts as hung.
const deadLoop = time.Minute

// check is one line of /readyz. An empty problem is good; a note is for people.
type check struct{ name, problem, note string }

// checks says what the agent is still waiting for, and what people should know.
func (a *Agent) checks() []check {
	var checks []check
	for _, contact := range a.config.Local.Contacts() {
		c := check{name: "local-" + contact.Resource}
		if !contact.Synced {
			c.problem = "not in sync yet" + because(contact.Err)
		} else if contact.Err != nil {
			c.note = "no contact " + age(contact.Since) + because(contact.Err)
		}
		checks = append(checks, c)
	}

	_, meshSynced := a.state.Synced()
	mesh := check{name: "mesh-api"}
	missing := lost(a.config.Mesh.Contacts())
	switch {
	case missing == "" && !a.state.Local():
		mesh.note = fmt.Sprintf("there is no MeshCluster %s: its controller has not run yet, or --cluster-name is wrong", a.config.Cluster)
	case missing == "":
	case meshSynced:
		mesh.note = "no contact, the last known state stays: " + missing
	case a.state.Loaded():
		mesh.note = "not read since the start, the snapshot stands in: " + missing
	default:
		mesh.problem = "not in sync yet, and there is no snapshot: " + missing
	}
	checks = append(checks, mesh)

	if a.config.CA != nil {
		ca := check{name: "mesh-ca"}
		switch missing := lost(a.config.CA.Contacts()); {
		case missing != "":
			ca.note = missing
		case !a.config.CA.Present():
			ca.note = "kube-apiserver has no ConfigMap with the CA of the mesh API: has mesh-apiserver ever run?"
		}
		checks = append(checks, ca)
	}

	doubt := check{name: "doubt"}
	if d := a.state.Doubt(); d.Any() && meshSynced {
		doubt.note = "kept although the mesh API does not list it, until it is known to be gone: " + d.String()
	}
	checks = append(checks, doubt)

	a.mu.Lock()
	defer a.mu.Unlock()
	table := check{name: "table"}
	switch {
	case a.status.applyErr != nil:
		table.problem = "the kernel did not take the last change" + because(a.status.applyErr)
	case a.status.applied.IsZero():
		table.problem = "not applied yet"
	case !a.status.remote:
		table.problem = "without the other clusters' backends yet"
	}
	attached := check{name: "cgroups"}
	if a.status.attachErr != nil {
		attached.problem = a.status.attachErr.Error()
	}
	canary := check{name: "canary", note: a.status.canary.skipped}
	if a.status.canary.err != nil {
		canary.problem = a.status.canary.err.Error()
	}
	foreign := check{name: "foreign-programs", note: firstOf(a.status.drifts, datapath.Drift.String)}
	left := check{name: "left-to-kube-proxy"}
	if lines := a.left(); len(lines) > 0 {
		left.note = firstOf(lines, func(l dump.Left) string { return l.Service + " (" + l.Reason + ")" })
	}
	checks = append(checks, table, attached, canary, foreign, left)
	if a.optOut != nil {
		checks = append(checks, a.optOut.check())
	}
	if a.skip != nil {
		checks = append(checks, a.skip.check())
	}
	if a.taint != nil {
		checks = append(checks, check{name: startupTaintCheck, note: a.taint.note()})
	}
	return checks
}

// missing names the checks that find a problem.
func (a *Agent) missing() []string {
	var names []string
	for _, c := range a.checks() {
		if c.problem != "" {
			names = append(names, c.name)
		}
	}
	return names
}

// firstOf names the first of the items, and says how many more there are.
func firstOf[T any](items []T, name func(T) string) string {
	const most = 10
	var names []string
	for i, item := range items {
		if i == most {
			names = append(names, fmt.Sprintf("and %d more", len(items)-most))
			break
		}
		names = append(names, name(item))
	}
	return strings.Join(names, "; ")
}

func age(since time.Time) string {
	if since.IsZero() {
		return "since the start"
	}
	return "for " + time.Since(since).Round(time.Second).String()
}

// lost says which watches are not as they should be, and why: those with one cause
// together.
func lost(contacts []source.Contact) string {
	byCause := map[string][]string{}
	for _, contact := range contacts {
		if contact.Synced && contact.Err == nil {
			continue
		}
		cause := contact.Err
		var request *url.Error
		if errors.As(cause, &request) {
			cause = request.Err // without the long URL
		}
		text := age(contact.Since) + because(cause)
		byCause[text] = append(byCause[text], contact.Resource)
	}
	var parts []string
	for _, cause := range slices.Sorted(maps.Keys(byCause)) {
		slices.Sort(byCause[cause])
		parts = append(parts, strings.Join(byCause[cause], ", ")+" "+cause)
	}
	return strings.Join(parts, "; ")
}

// left lists what people should know of services, sorted. The caller holds a.mu.
func (a *Agent) left() []dump.Left {
	var lines []dump.Left
	for _, result := range a.built {
		for _, left := range result.Left {
			lines = append(lines, dump.Left{Service: left.Service.String(), Reason: left.Text()})
		}
		for _, port := range result.Unheld {
			lines = append(lines, dump.Left{Service: port.String(), Reason: "its weights need more slots than a service may have: served by the nearest shares"})
		}
	}
	for _, failure := range a.failed {
		if failure.Frontend.IsCanary() {
			continue // the check of its name tells it
		}
		reason := failure.Err.Error()
		if failure.Partial {
			reason = "served by a part of its backends: " + reason
		}
		lines = append(lines, dump.Left{Service: failure.Port.String(), Reason: reason})
	}
	slices.SortFunc(lines, func(a, b dump.Left) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Reason, b.Reason))
	})
	return slices.Compact(lines)
}

// statusFile tells `mesh-agent dump`, in the state folder, what the maps cannot.
const statusFile = "status.json"

// Reports is what the status file holds.
type Reports struct {
	Written time.Time   `json:"written"`
	Left    []dump.Left `json:"leftToKubeProxy"`
	// Health is where the agent serves /readyz; empty for nowhere.
	Health string `json:"health,omitempty"`
}

// saveReports writes the status file if it has changed since the last call.
func (a *Agent) saveReports(ctx context.Context, last *uint64) {
	a.mu.Lock()
	reports := a.status.reports
	// 0 is the start: what the last agent reported is not true any more.
	if a.status.applied.IsZero() || reports+1 == *last {
		a.mu.Unlock()
		return
	}
	content := Reports{Written: time.Now(), Left: a.left(), Health: a.config.Health}
	a.mu.Unlock()
	data, err := json.Marshal(content)
	if err == nil {
		path := filepath.Join(a.config.StateDir, statusFile)
		if err = os.WriteFile(path+".tmp", data, 0o600); err == nil {
			err = os.Rename(path+".tmp", path)
		}
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Cannot write the status file")
		return
	}
	*last = reports + 1
}

// readReports reads the status file; absent is empty.
func readReports(folder string) (Reports, error) {
	var reports Reports
	data, err := os.ReadFile(filepath.Join(folder, statusFile))
	if errors.Is(err, fs.ErrNotExist) {
		return reports, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &reports)
	}
	if err != nil {
		return reports, fmt.Errorf("reading status file: %w", err)
	}
	return reports, nil
}

// Handler serves /metrics, /livez and /readyz.
func (a *Agent) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		a.mu.Lock()
		idle := time.Since(a.status.tick)
		a.mu.Unlock()
		if idle > deadLoop {
			http.Error(w, fmt.Sprintf("the loop has not gone round for %s", idle.Round(time.Second)), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		var all, bad strings.Builder
		for _, c := range a.checks() {
			if c.problem != "" {
				fmt.Fprintf(&bad, "[-]%s: %s\n", c.name, c.problem)
				fmt.Fprintf(&all, "[-]%s: %s\n", c.name, c.problem)
				continue
			}
			fmt.Fprintf(&all, "[+]%s ok", c.name)
			if c.note != "" {
				fmt.Fprintf(&all, ": %s", c.note)
			}
			all.WriteByte('\n')
		}
		_, verbose := r.URL.Query()["verbose"]
		switch {
		case bad.Len() > 0 && verbose:
			http.Error(w, all.String(), http.StatusServiceUnavailable)
		case bad.Len() > 0:
			http.Error(w, bad.String(), http.StatusServiceUnavailable)
		case verbose:
			fmt.Fprint(w, all.String())
		default:
			fmt.Fprintln(w, "ok")
		}
	})
	return mux
}

// serve serves the handler on an address until ctx ends.
func (a *Agent) serve(ctx context.Context, address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listening for metrics and health: %w", err)
	}
	server := &http.Server{Handler: a.Handler(), ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving metrics and health: %w", err)
	}
	return nil
}

// collector collects what the agent is asked for.
type collector struct{ agent *Agent }

var (
	descFrontends = prometheus.NewDesc("mesh_agent_frontends", "Frontends in the table.", nil, nil)
	descServices  = prometheus.NewDesc("mesh_agent_services", "Global Services with a frontend in the table.", nil, nil)
	descBackends  = prometheus.NewDesc("mesh_agent_backends", "Backends in the table, each once for every frontend.", []string{"cluster"}, nil)
	descPicked    = prometheus.NewDesc("mesh_agent_backends_picked", "Backends that take new connections.", []string{"cluster"}, nil)
	descLeft      = prometheus.NewDesc("mesh_agent_services_left", "Global Services, or ports of them, that are left to kube-proxy, by reason.", []string{"reason"}, nil)
	descFailed    = prometheus.NewDesc("mesh_agent_frontends_failed", "Frontends that are not in the kernel's table as they should be.", nil, nil)
	descSynced    = prometheus.NewDesc("mesh_agent_source_synced", "1 once a resource has been read to the end since the start.", []string{"source", "resource"}, nil)
	descContact   = prometheus.NewDesc("mesh_agent_source_lost_seconds", "How long there has been no contact to a source; 0 while there is.", []string{"source", "resource"}, nil)
	descHeld      = prometheus.NewDesc("mesh_agent_held_slices", "Slices that are kept though the mesh API does not list them, on doubt.", []string{"cluster"}, nil)
	descApplied   = prometheus.NewDesc("mesh_agent_last_apply_timestamp_seconds", "When the kernel last took a change.", nil, nil)
	descSaved     = prometheus.NewDesc("mesh_agent_snapshot_timestamp_seconds", "When the snapshot on disk was written; 0 if there is none.", nil, nil)
	descCanary    = prometheus.NewDesc("mesh_agent_canary_up", "1 while connections of the agent's own are balanced, 0 while they are not; absent while none can be tried.", nil, nil)
	descForeign   = prometheus.NewDesc("mesh_agent_foreign_programs", "Hooks where a program of someone else runs before ours.", []string{"kind"}, nil)
	descUsed      = prometheus.NewDesc("mesh_agent_map_used", "How much of the kernel's maps is taken: frontends, backends, slots.", []string{"of"}, nil)
	descCapacity  = prometheus.NewDesc("mesh_agent_map_capacity", "How much the kernel's maps hold.", []string{"of"}, nil)
	descMemory    = prometheus.NewDesc("mesh_agent_map_memory_bytes", "The kernel's memory that the maps take, but for names and what is in sockets, computed from their sizes.", nil, nil)
	descOptedOut  = prometheus.NewDesc("mesh_agent_pods_opted_out", "Pods of this node that want to be left alone: left, or, without a cgroup yet, waiting.", []string{"state"}, nil)
	descTainted   = prometheus.NewDesc("mesh_agent_startup_taint", "1 while the node has the startup taint; absent where the agent is not asked to remove it.", nil, nil)
	descStaleUDP  = prometheus.NewDesc("mesh_agent_stale_udp_sockets_total", "UDP sockets that were connected to backends which are gone: destroyed, or failed, each attempt.", []string{"result"}, nil)
	descSweeps    = prometheus.NewDesc("mesh_agent_stale_udp_sweeps_total", "Looks for UDP sockets that are connected to backends which are gone.", nil, nil)
	descSweep     = prometheus.NewDesc("mesh_agent_stale_udp_sweep_seconds", "How long the last such look took, in the background.", nil, nil)
	descSkipped   = prometheus.NewDesc("mesh_agent_service_chains_skipped", "1 while new connections to backends don't walk through kube-proxy's chains of iptables, 0 while they have to though the agent is asked for it; absent where it is not, or there are none.", []string{"family"}, nil)
	descKernel    = prometheus.NewDesc("mesh_agent_datapath_events_total", "What connections and datagrams met in the kernel.", []string{"event"}, nil)
)

// Describe names what is collected.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descFrontends, descServices, descBackends, descPicked, descLeft, descFailed, descSynced, descContact, descHeld,
		descApplied, descSaved, descKernel, descCanary, descForeign,
		descTainted, descOptedOut, descSkipped, descUsed, descCapacity, descMemory, descOverflow, descStaleUDP, descSweeps, descSweep,
	} {
		out <- d
	}
	descTraffic.describe(out)
	descBackend.describe(out)
}

// Collect collects it.
func (c collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	a := c.agent
	for cluster, n := range a.state.Doubt().Slices {
		gauge(descHeld, float64(n), cluster)
	}
	for from, watches := range map[string]*source.Watches{"kube-apiserver": a.config.Local, "mesh-apiserver": a.config.Mesh} {
		for _, contact := range watches.Contacts() {
			synced, lost := 0.0, 0.0
			if contact.Synced {
				synced = 1
			}
			if contact.Err != nil {
				lost = time.Since(contact.Since).Seconds()
			}
			gauge(descSynced, synced, from, contact.Resource)
			gauge(descContact, lost, from, contact.Resource)
		}
	}
	if used, capacity, err := a.kernel.Usage(); err == nil {
		for of, n := range map[string][2]uint32{
			"frontends": {used.Frontends, capacity.Frontends},
			"backends":  {used.Backends, capacity.Backends},
			"slots":     {used.Slots, capacity.Slots},
		} {
			gauge(descUsed, float64(n[0]), of)
			gauge(descCapacity, float64(n[1]), of)
		}
		gauge(descMemory, float64(capacity.Memory()))
	}
	if counters, err := a.kernel.Counters(); err == nil {
		for event, n := range counters {
			out <- prometheus.MustNewConstMetric(descKernel, prometheus.CounterValue, float64(n), event)
		}
	}
	stale := a.kernel.StaleSockets()
	out <- prometheus.MustNewConstMetric(descStaleUDP, prometheus.CounterValue, float64(stale.Destroyed), "destroyed")
	out <- prometheus.MustNewConstMetric(descStaleUDP, prometheus.CounterValue, float64(stale.Failed), "failed")
	out <- prometheus.MustNewConstMetric(descSweeps, prometheus.CounterValue, float64(stale.Sweeps))
	gauge(descSweep, stale.Last.Seconds())
	a.collectTraffic(out)

	a.mu.Lock()
	defer a.mu.Unlock()
	services, frontends := 0, 0
	left := map[string]int{}
	for _, result := range a.built {
		if len(result.Services) > 0 {
			services++
			frontends += len(result.Services)
		}
		for _, l := range result.Left {
			left[l.Reason]++
		}
	}
	gauge(descServices, float64(services))
	gauge(descFrontends, float64(frontends))
	for reason, n := range left {
		gauge(descLeft, float64(n), reason)
	}
	for id, n := range a.counts {
		cluster, ok := a.clusterNames[id]
		if !ok {
			cluster = fmt.Sprintf("cluster-id:%d", id)
		}
		gauge(descBackends, float64(n.known), cluster)
		gauge(descPicked, float64(n.picked), cluster)
	}
	gauge(descFailed, float64(len(a.failed)))
	if a.status.canary.skipped == "" {
		up := 1.0
		if a.status.canary.err != nil {
			up = 0
		}
		gauge(descCanary, up)
	}
	if a.optOut != nil {
		left, waiting := a.optOut.count()
		gauge(descOptedOut, float64(left), "left")
		gauge(descOptedOut, float64(waiting), "waiting")
	}
	if a.skip != nil {
		for _, status := range a.skip.status() {
			switch status.State {
			case bypass.Active:
				gauge(descSkipped, 1, status.Family)
			case bypass.Refused, bypass.Failed:
				gauge(descSkipped, 0, status.Family)
			}
		}
	}
	if a.taint != nil {
		tainted := 0.0
		if a.taint.tainted() {
			tainted = 1
		}
		gauge(descTainted, tainted)
	}
	foreign := map[datapath.DriftKind]int{datapath.ForeignFirst: 0, datapath.ForeignInside: 0}
	for _, drift := range a.status.drifts {
		foreign[drift.Kind]++
	}
	for kind, n := range foreign {
		gauge(descForeign, float64(n), string(kind))
	}
	gauge(descApplied, timestamp(a.status.applied))
	gauge(descSaved, timestamp(a.status.saved))
}

func timestamp(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}
