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
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/agent/bypass"
)

// SkipServiceChains says which new connections are led past kube-proxy's chains of
// iptables.
type SkipServiceChains string

// The values of SkipServiceChains.
const (
	SkipOff    SkipServiceChains = "off"    // none
	SkipRemote SkipServiceChains = "remote" // those to other clusters' backends
	SkipAll    SkipServiceChains = "all"    // those to this cluster's backends of global Services, too
)

// lookShare bounds the part of the time that is spent with looking at other programs'
// chains, of which there can be very many: one in so many.
const lookShare = 100

// serviceChains keeps the bypass as the table wants it.
type serviceChains struct {
	agent *Agent
	which SkipServiceChains

	mu       sync.Mutex
	statuses []bypass.Status
}

// run works until ctx ends, and leaves all as it is. The kernel must never wait for it, so
// it is apart from the loop.
func (s *serviceChains) run(ctx context.Context) {
	past := bypass.New()
	timing := s.agent.config.Timing
	tick := time.NewTicker(timing.Scan)
	defer tick.Stop()
	var done uint64 // the version of the table that the kernel has the addresses of
	var looked time.Time
	var took time.Duration
	for {
		version, ready := s.agent.builtVersion()
		look := time.Since(looked) >= max(timing.Repair, lookShare*took)
		if ready && (look || version != done) {
			done = version
			start := time.Now()
			s.set(ctx, past.Keep(s.agent.backendAddresses(s.which == SkipAll), look))
			if look {
				looked, took = time.Now(), time.Since(start)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *serviceChains) set(ctx context.Context, statuses []bypass.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	logger := klog.FromContext(ctx)
	for i, now := range statuses {
		if i < len(s.statuses) && s.statuses[i].State == now.State && s.statuses[i].Reason == now.Reason {
			continue
		}
		switch now.State {
		case bypass.Active:
			logger.Info("New connections to backends are led past kube-proxy's chains", "family", now.Family, "addresses", now.Addresses)
		case bypass.Unneeded:
			logger.V(2).Info("kube-proxy has no chains of iptables that connections to backends could be led past", "family", now.Family)
		default:
			logger.Info("New connections to backends walk through all of kube-proxy's chains", "family", now.Family, "reason", now.Reason)
		}
	}
	s.statuses = statuses
}

func (s *serviceChains) status() []bypass.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.statuses
}

// check is a line of /readyz. It costs time, and nothing else, where it cannot be done.
func (s *serviceChains) check() check {
	var parts []string
	for _, status := range s.status() {
		text := fmt.Sprintf("%s %s", status.Family, status.State)
		if status.State == bypass.Active {
			text += fmt.Sprintf(" for %d addresses", status.Addresses)
		}
		if status.Reason != "" {
			text += " (" + status.Reason + ")"
		}
		parts = append(parts, text)
	}
	return check{name: "skip-service-chains", note: strings.Join(parts, "; ")}
}

// backendAddresses returns the addresses of the other clusters' backends in the table, and
// of this one's where local is set, without those that are a Service's own: kube-proxy's
// chains are for these.
func (a *Agent) backendAddresses(local bool) (addresses []netip.Addr) {
	services := a.state.ServiceAddresses()
	a.mu.Lock()
	for _, result := range a.built {
		for i := range result.Services {
			for j := range result.Services[i].Backends {
				if b := &result.Services[i].Backends[j]; local || a.clusterNames[b.ClusterID] != a.config.Cluster {
					addresses = append(addresses, b.Addr.Addr())
				}
			}
		}
	}
	a.mu.Unlock()
	return slices.DeleteFunc(addresses, func(addr netip.Addr) bool { _, is := services[addr]; return is })
}

// builtVersion changes with the table. It is not ready until the kernel has taken one.
func (a *Agent) builtVersion() (version uint64, ready bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.builds, !a.status.applied.IsZero()
}
