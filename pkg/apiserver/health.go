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

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	storagefactory "k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/klog/v2"
)

const (
	probePeriod  = 2 * time.Second
	probeTimeout = 2 * time.Second
)

var etcdUp = metrics.NewGauge(&metrics.GaugeOpts{
	Namespace:      "mesh_apiserver",
	Name:           "etcd_up",
	Help:           "1 while etcd answers reads that need a quorum, 0 while it does not. Open watches and reads with resourceVersion=0 work without it.",
	StabilityLevel: metrics.ALPHA,
})

func init() { legacyregistry.MustRegister(etcdUp) }

// etcdHealth knows whether etcd has a quorum. It is a check that shows so in the
// verbose output and at its own path, and never makes the server as a whole not
// ready: without etcd the server still answers from its caches, and nobody else can.
type etcdHealth struct {
	prober storagefactory.Prober

	mu        sync.Mutex
	err       error
	downSince time.Time
}

func newEtcdHealth(config storagebackend.Config) (*etcdHealth, error) {
	prober, err := storagefactory.CreateProber(config)
	if err != nil {
		return nil, fmt.Errorf("making a probe of etcd: %w", err)
	}
	return &etcdHealth{prober: prober}, nil
}

func (h *etcdHealth) close() error { return h.prober.Close() }

// run probes until the context ends.
func (h *etcdHealth) run(ctx context.Context) {
	logger := klog.FromContext(ctx)
	// The first collection of the metrics connects to etcd to learn its size, and
	// would hang if it were made without one.
	if _, err := legacyregistry.DefaultGatherer.Gather(); err != nil {
		logger.Error(err, "Could not collect metrics")
	}
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		begin := time.Now()
		probeCtx, cancel := context.WithTimeout(ctx, probeTimeout)
		err := h.prober.Probe(probeCtx)
		cancel()
		if ctx.Err() != nil {
			return
		}
		switch lost, found := h.record(err, begin); {
		case lost:
			logger.Error(err, "Lost etcd; serving watches and resourceVersion=0 reads from memory")
		case found > 0:
			logger.Info("Found etcd again", "after", found.Round(time.Second))
		}
	}, probePeriod)
}

// record notes the outcome of a probe. It says whether etcd was lost by it, or else
// for how long it had been.
func (h *etcdHealth) record(err error, now time.Time) (lost bool, found time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.err
	h.err = err
	if err != nil {
		etcdUp.Set(0)
		if was == nil {
			h.downSince = now
			return true, 0
		}
		return false, 0
	}
	etcdUp.Set(1)
	if was != nil {
		return false, now.Sub(h.downSince)
	}
	return false, 0
}

// Name is the line in the verbose output. It says what the mark before it cannot,
// because a check that fails there would make the server not ready.
func (h *etcdHealth) Name() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		return "etcd"
	}
	return fmt.Sprintf("etcd (no quorum for %s, serving from memory)", time.Since(h.downSince).Round(time.Second))
}

// Check fails at the check's own path only.
func (h *etcdHealth) Check(request *http.Request) error {
	if !strings.HasSuffix(request.URL.Path, "/etcd") {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// cacheFilled is the check that fails until every resource's cache has been filled
// once. Later the caches are served whatever happens to etcd.
type cacheFilled struct {
	ready []func() error
	done  atomic.Bool
}

func (*cacheFilled) Name() string { return "caches-filled" }

func (c *cacheFilled) Check(*http.Request) error {
	if c.done.Load() {
		return nil
	}
	var errs []error
	for _, ready := range c.ready {
		errs = append(errs, ready())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	c.done.Store(true)
	return nil
}
