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
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"mesh.io/clustermesh/pkg/agent/datapath"
	"mesh.io/clustermesh/pkg/agent/desired"
)

// pair is what connections are counted by.
type pair struct {
	service desired.Name
	cluster string
}

// otherService stands for all Services that have no series of their own. No Service can
// have the name, and no namespace is "".
var otherService = desired.Name{Name: "_other"}

// totals are what the connections to the backends of a pair met since the agent's start.
type totals struct {
	attempts, established, refused, timedOut, aborted, measured, flows uint64

	rtt time.Duration
}

// add adds what a backend met since it was looked at last.
func (t *totals) add(protocol desired.Protocol, now, last *datapath.Traffic) {
	if protocol == desired.UDP {
		t.flows += grown(now.Attempts, last.Attempts)
		return
	}
	t.attempts += grown(now.Attempts, last.Attempts)
	t.established += grown(now.Established, last.Established)
	t.refused += grown(now.Refused, last.Refused)
	t.timedOut += grown(now.TimedOut, last.TimedOut)
	t.aborted += grown(now.Aborted, last.Aborted)
	t.measured += grown(now.Measured, last.Measured)
	t.rtt += time.Duration(grown(uint64(now.RTT), uint64(last.RTT)))
}

// grown is the growth of a counter that never shrinks.
func grown(now, last uint64) uint64 { return now - min(now, last) }

// account is what of a backend is in the totals.
type account struct {
	generation uint32
	last       datapath.Traffic
}

// ledger sums what connections met by Service and cluster. Its sums only grow, whatever
// backends come and go and whoever has their numbers: what is added is what a backend met
// since it was looked at last, and, when it goes, since then.
//
// A pair gets its own series when it is first connected to, as long as there are fewer
// than most; after that it is counted under otherService, by cluster, until a Service
// that has series goes.
type ledger struct {
	most int

	mu       sync.Mutex
	accounts map[uint32]account // by backend ID; without those that met nothing
	series   map[pair]*totals
	others   map[string]*totals // by cluster
}

func newLedger(most int) *ledger {
	return &ledger{most: most, accounts: map[uint32]account{}, series: map[pair]*totals{}, others: map[string]*totals{}}
}

// begin makes what the backends met so far the beginning: a monitor that sees the agent
// start anew must not take all of it for new.
func (l *ledger) begin(kernel Kernel) error {
	kernel.OnRetired(l.retire)
	return kernel.Traffic(func(b *datapath.BackendTraffic) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.accounts[b.ID] = account{b.Generation, b.Traffic}
	})
}

// add takes up what a backend met, and returns the pair that it is counted under. The
// caller holds l.mu.
func (l *ledger) add(b *datapath.BackendTraffic) pair {
	of := pairOf(b)
	to := l.series[of]
	if to == nil && len(l.series) < l.most {
		to = &totals{}
		l.series[of] = to
	}
	if to == nil {
		of.service = otherService
		if to = l.others[b.Cluster]; to == nil {
			to = &totals{}
			l.others[b.Cluster] = to
		}
	}
	known := l.accounts[b.ID]
	if known.generation != b.Generation {
		known = account{}
	}
	// It is a difference of two counters, which may be looked at between their changes.
	b.Measured = max(b.Measured, known.last.Measured)
	to.add(b.Frontend.Protocol, &b.Traffic, &known.last)
	l.accounts[b.ID] = account{b.Generation, b.Traffic}
	return of
}

func pairOf(b *datapath.BackendTraffic) pair {
	return pair{desired.Name{Namespace: b.Port.Namespace, Name: b.Port.Name}, b.Cluster}
}

// retire takes up what a backend met that goes.
func (l *ledger) retire(b *datapath.BackendTraffic) {
	if b.Frontend.IsCanary() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(b)
	delete(l.accounts, b.ID)
}

// reading is what a look at the kernel's counters found.
type reading struct {
	totals map[pair]totals
	active map[pair]uint64
	// overflow is the number of pairs that have backends which were connected to, and no
	// series of their own.
	overflow int
	// backends are those that were connected to, if they are asked for.
	backends []datapath.BackendTraffic
}

// read looks at the kernel's counters. The series of pairs that are not there any more,
// and have no backends that were connected to, end.
func (l *ledger) read(kernel Kernel, backends bool, there func(pair) bool) (*reading, error) {
	r := &reading{totals: map[pair]totals{}, active: map[pair]uint64{}}
	overflow := map[pair]struct{}{}
	err := kernel.Traffic(func(b *datapath.BackendTraffic) {
		if b.Frontend.IsCanary() {
			return
		}
		l.mu.Lock() // for each: updates, which call retire, wait for all
		of := l.add(b)
		l.mu.Unlock()
		r.active[of] += b.Active
		if of.service == otherService {
			overflow[pairOf(b)] = struct{}{}
		}
		if backends {
			r.backends = append(r.backends, *b)
		}
	})
	if err != nil {
		return nil, err
	}
	r.overflow = len(overflow)
	l.mu.Lock()
	defer l.mu.Unlock()
	for p, t := range l.series {
		if _, used := r.active[p]; !used && !there(p) {
			delete(l.series, p)
			continue
		}
		r.totals[p] = *t
	}
	for cluster, t := range l.others {
		r.totals[pair{otherService, cluster}] = *t
	}
	return r, nil
}

// trafficDescs describe the metrics of connections, by some labels.
type trafficDescs struct {
	attempts, established, failed, active, rtt, flows *prometheus.Desc
}

func newTrafficDescs(prefix, to string, labels ...string) trafficDescs {
	desc := func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc(prefix+name, help, append(append([]string{}, labels...), more...), nil)
	}
	return trafficDescs{
		attempts:    desc("connection_attempts_total", "TCP connections that were begun to "+to+"."),
		established: desc("connections_established_total", "TCP connections to "+to+" that were established."),
		failed: desc("connections_failed_total", "TCP connections to "+to+" that were not established: refused by a RST; timed_out, given up without an answer after a second or more; "+
			"aborted before that, by the application or by an ICMP error.", "reason"),
		active: desc("connections_active", "TCP connections to "+to+" that are established now, and that no side has closed."),
		rtt:    desc("connection_rtt_seconds", "Round trips of the handshakes of TCP connections to "+to+"."),
		flows:  desc("udp_flows_total", "UDP sockets that were led to "+to+", by connect() or by their first datagram."),
	}
}

var (
	descTraffic = newTrafficDescs("mesh_agent_", "the backends of a Service in a cluster", "namespace", "service", "cluster")
	descBackend = newTrafficDescs("mesh_agent_backend_", "a backend of a frontend, since it came",
		"namespace", "service", "port", "frontend", "cluster", "backend")
	descOverflow = prometheus.NewDesc("mesh_agent_services_without_series",
		"Pairs of a Service and a cluster whose connections are counted under service=\"_other\", as --max-service-series others have series of their own.", nil, nil)
)

func (d *trafficDescs) describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{d.attempts, d.established, d.failed, d.active, d.rtt, d.flows} {
		out <- desc
	}
}

// send sends the metrics. What has not been used has none: of TCP, or of UDP.
func (d *trafficDescs) send(out chan<- prometheus.Metric, t *totals, active uint64, labels ...string) {
	counter := func(desc *prometheus.Desc, n uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), labels...)
	}
	if t.flows > 0 {
		counter(d.flows, t.flows, labels...)
	}
	if t.attempts == 0 && active == 0 {
		return
	}
	counter(d.attempts, t.attempts, labels...)
	counter(d.established, t.established, labels...)
	for reason, n := range map[string]uint64{"refused": t.refused, "timed_out": t.timedOut, "aborted": t.aborted} {
		counter(d.failed, n, append(append([]string{}, labels...), reason)...)
	}
	out <- prometheus.MustNewConstMetric(d.active, prometheus.GaugeValue, float64(active), labels...)
	out <- prometheus.MustNewConstSummary(d.rtt, t.measured, t.rtt.Seconds(), nil, labels...)
}

// collectTraffic sends what connections met.
func (a *Agent) collectTraffic(out chan<- prometheus.Metric) {
	a.mu.Lock()
	services := make(map[desired.Name]struct{}, len(a.built))
	for name, result := range a.built {
		if len(result.Services) > 0 {
			services[name] = struct{}{}
		}
	}
	clusters := make(map[string]struct{}, len(a.clusterNames))
	for _, name := range a.clusterNames {
		clusters[name] = struct{}{}
	}
	whole := !a.status.applied.IsZero()
	a.mu.Unlock()
	r, err := a.ledger.read(a.kernel, a.config.PerBackendMetrics, func(p pair) bool {
		_, service := services[p.service]
		_, cluster := clusters[p.cluster]
		return !whole || service && cluster // before that, nobody knows
	})
	if err != nil {
		return // closed: the agent ends
	}
	for p, t := range r.totals {
		descTraffic.send(out, &t, r.active[p], p.service.Namespace, p.service.Name, p.cluster)
	}
	out <- prometheus.MustNewConstMetric(descOverflow, prometheus.GaugeValue, float64(r.overflow))
	// By what is shown: no two must be the same, and a cluster may have had another ID.
	type labels [6]string
	type values struct {
		totals
		active uint64
	}
	backends := map[labels]values{}
	for i := range r.backends {
		b := &r.backends[i]
		key := labels{b.Port.Namespace, b.Port.Name, b.Port.Port, b.Frontend.String(), b.Cluster, b.Addr.String()}
		v := backends[key]
		v.add(b.Frontend.Protocol, &b.Traffic, &datapath.Traffic{})
		v.active += b.Active
		backends[key] = v
	}
	for key, v := range backends {
		descBackend.send(out, &v.totals, v.active, key[:]...)
	}
}
