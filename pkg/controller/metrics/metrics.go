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

// Package metrics holds what the mesh controller tells Prometheus.
package metrics

import (
	"sync"

	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	_ "k8s.io/component-base/metrics/prometheus/restclient" // latency and results of requests
	_ "k8s.io/component-base/metrics/prometheus/workqueue"  // depth and latency of the queues
)

const namespace = "mesh_controller"

var (
	// Writes counts writes to the mesh API by kind, operation and result.
	Writes = metrics.NewCounterVec(&metrics.CounterOpts{Namespace: namespace, Name: "writes_total", StabilityLevel: metrics.ALPHA,
		Help: "Writes to this cluster's mesh API, by kind, operation and result."}, []string{"kind", "operation", "result"})
	// Refusals is how many objects and endpoints of a peer are refused now.
	Refusals = metrics.NewGaugeVec(&metrics.GaugeOpts{Namespace: namespace, Name: "refused", StabilityLevel: metrics.ALPHA,
		Help: "Objects and endpoints of a peer that are refused now, by reason."}, []string{"cluster", "reason"})
	// Connected is 1 for each peer that answers.
	Connected = metrics.NewGaugeVec(&metrics.GaugeOpts{Namespace: namespace, Name: "peer_connected", StabilityLevel: metrics.ALPHA,
		Help: "1 while the peer's mesh API answers, else 0."}, []string{"cluster"})
	// Lag is how long a peer's change of endpoints took to arrive.
	Lag = metrics.NewHistogramVec(&metrics.HistogramOpts{Namespace: namespace, Name: "import_lag_seconds", StabilityLevel: metrics.ALPHA,
		Help:    "Time from a peer's controller seeing an EndpointSlice change to the change arriving here, by both clusters' clocks.",
		Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}, []string{"cluster"})
	// Leader is 1 in the process that leads.
	Leader = metrics.NewGauge(&metrics.GaugeOpts{Namespace: namespace, Name: "leader", StabilityLevel: metrics.ALPHA,
		Help: "1 while this process leads, else 0."})
	// CredentialsExpiry is when this cluster's token at a peer expires.
	CredentialsExpiry = metrics.NewGaugeVec(&metrics.GaugeOpts{Namespace: namespace, Name: "peer_credentials_expiry_timestamp_seconds", StabilityLevel: metrics.ALPHA,
		Help: "When the token that a peer has given to this cluster expires, in seconds since 1970, where the controller renews it."}, []string{"cluster"})
	// Renewals counts the attempts to renew it.
	Renewals = metrics.NewCounterVec(&metrics.CounterOpts{Namespace: namespace, Name: "peer_credentials_renewals_total", StabilityLevel: metrics.ALPHA,
		Help: "Attempts to renew the token that a peer has given to this cluster, by result: renewed or failed."}, []string{"cluster", "result"})

	once sync.Once
)

// Register makes the metrics visible.
func Register() {
	once.Do(func() {
		legacyregistry.MustRegister(Writes, Refusals, Connected, Lag, Leader, CredentialsExpiry, Renewals)
	})
}
