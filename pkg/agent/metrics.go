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
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"mesh.io/clustermesh/pkg/agent/datapath"
)

// metrics are what the agent counts as it goes. What it is asked for is collected by
// the collector in status.go.
type metrics struct {
	registry        *prometheus.Registry
	sync            prometheus.Histogram
	build           prometheus.Histogram
	apply           prometheus.Histogram
	propagation     *prometheus.HistogramVec
	applyErrors     prometheus.Counter
	serviceFailures prometheus.Counter
	snapshotErrors  *prometheus.CounterVec
	attachErrors    prometheus.Counter
	drifts          *prometheus.CounterVec
	canaryErrors    prometheus.Counter
}

// fast are the bounds of what takes microseconds to a second.
var fast = []float64{
	.00001, .000025, .00005, .0001, .00025, .0005, .001, .0015, .002, .003, .004, .005, .0075,
	.01, .015, .025, .05, .1, .25, .5, 1, 2.5, 5, 10,
}

// slow are those of what crosses clusters.
var slow = []float64{
	.001, .002, .003, .004, .005, .006, .007, .008, .009, .01, .0125, .015, .0175, .02, .025, .03, .035, .04, .05,
	.075, .1, .15, .25, .5, 1, 2.5, 5, 10, 30, 60,
}

func newMetrics() *metrics {
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		sync:     histogram("mesh_agent_sync_seconds", "From the first event of a round to the end of its programming.", fast),
		build:    histogram("mesh_agent_build_seconds", "Building the changed services of a round.", fast),
		apply:    histogram("mesh_agent_apply_seconds", "Writing a round into the kernel.", fast),
		propagation: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mesh_agent_propagation_seconds",
			Help:    "From an endpoint's change in another cluster, by that cluster's clock, to its programming here, by this node's.",
			Buckets: slow,
		}, []string{"cluster"}),
		applyErrors:     counter("mesh_agent_apply_errors_total", "Rounds that the kernel did not take."),
		serviceFailures: counter("mesh_agent_service_failures_total", "Frontends that could not be programmed and were left to kube-proxy, each attempt."),
		snapshotErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_agent_snapshot_errors_total",
			Help: "Snapshots that could not be read (refused as a whole) or written.",
		}, []string{"operation"}),
		attachErrors: counter("mesh_agent_attach_errors_total", "Failures to attach the programs to cgroups."),
	}
	m.drifts = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mesh_agent_drift_total",
		Help: "What was found otherwise in the kernel than the agent had left it, by kind.",
	}, []string{"kind"})
	for _, kind := range datapath.DriftKinds {
		m.drifts.WithLabelValues(string(kind))
	}
	m.canaryErrors = counter("mesh_agent_canary_errors_total", "Connections of the agent's own that were not balanced as they should be.")
	m.snapshotErrors.WithLabelValues("read")
	m.snapshotErrors.WithLabelValues("write")
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.sync, m.build, m.apply, m.propagation, m.applyErrors, m.serviceFailures, m.snapshotErrors, m.attachErrors,
		m.drifts, m.canaryErrors,
	)
	return m
}

// seconds is what histograms take.
func seconds(d time.Duration) float64 { return max(0, d.Seconds()) }
