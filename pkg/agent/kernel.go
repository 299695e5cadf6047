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

	"mesh.io/clustermesh/pkg/agent/datapath"
	"mesh.io/clustermesh/pkg/agent/desired"
)

// Kernel is the table that new connections are balanced by. It outlives the agent.
type Kernel interface {
	// Held returns the table as the last agent left it.
	Held() (desired.Table, error)
	// Apply makes the kernel hold the table and nothing else.
	Apply(ctx context.Context, table desired.Table) (datapath.Report, error)
	// ApplyServices makes it hold the changed services and not the removed ones.
	ApplyServices(ctx context.Context, changed []desired.Service, removed []desired.Frontend,
		clusters map[uint16]string) (datapath.Report, error)
	// Heartbeat says that the table is kept fresh.
	Heartbeat() error
	// Keep makes the given cgroups the ones that are served, and says what it found
	// otherwise than it had left it.
	Keep(cgroups []string) ([]datapath.Drift, error)
	// OptOut makes the programs leave processes in these cgroups alone, and no others.
	OptOut(cgroups []string) error
	// Usage returns how much of the maps is taken, of how much there is.
	Usage() (used, capacity datapath.Sizes, err error)
	// Counters says what connections met, by name.
	Counters() (map[string]uint64, error)
	// StaleSockets counts what was done about UDP sockets whose backends are gone.
	StaleSockets() datapath.StaleSockets
	// Traffic calls the function with each backend that anything was sent to.
	Traffic(each func(*datapath.BackendTraffic)) error
	// OnRetired has the function called with what each backend that goes has met. It is
	// part of an update, and must not call back.
	OnRetired(retired func(*datapath.BackendTraffic))
	// Close lets go of the table and leaves it at work.
	Close() error
}

// eBPF is the real one.
type eBPF struct{ *datapath.Datapath }

func (k eBPF) Held() (desired.Table, error) {
	snapshot, err := k.Snapshot()
	if err != nil {
		return desired.Table{}, err
	}
	table := desired.Table{
		Services: make(map[desired.Frontend]desired.Service, len(snapshot.Services)),
		Clusters: snapshot.Clusters,
	}
	for _, s := range snapshot.Services {
		if s.Frontend.IsCanary() {
			continue
		}
		service := desired.Service{Frontend: s.Frontend, Port: s.Port, LocalReady: s.LocalReady, AffinitySeconds: s.AffinitySeconds}
		for _, b := range s.Backends {
			service.Backends = append(service.Backends, b.Backend)
		}
		table.Services[s.Frontend] = service
	}
	return table, nil
}
