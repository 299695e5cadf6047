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
	"slices"
	"sync"

	"mesh.io/clustermesh/pkg/agent/datapath"
	"mesh.io/clustermesh/pkg/agent/desired"
)

// FakeKernel is a Kernel in memory, for tests. It outlives the agent as the real one
// does: give it to the next agent.
type FakeKernel struct {
	mu       sync.Mutex
	table    desired.Table
	beats    int
	applied  int
	closed   int
	cgroups  []string
	optOut   []string
	fail     error
	refuse   map[desired.ServicePort]error
	onChange func()
	met      []datapath.BackendTraffic
}

// NewFakeKernel returns an empty one.
func NewFakeKernel() *FakeKernel {
	return &FakeKernel{table: desired.Table{Services: map[desired.Frontend]desired.Service{}, Clusters: map[uint16]string{}}}
}

// Fail makes every following Apply fail; nil makes them work again.
func (k *FakeKernel) Fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = err
}

// Refuse makes one service fail; nil makes it work again.
func (k *FakeKernel) Refuse(port desired.ServicePort, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refuse == nil {
		k.refuse = map[desired.ServicePort]error{}
	}
	k.refuse[port] = err
}

// OnChange calls f, from the goroutine of the agent, after each change of the table.
func (k *FakeKernel) OnChange(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.onChange = f
}

// Beats counts heartbeats.
func (k *FakeKernel) Beats() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.beats
}

// Applied counts calls of Apply and ApplyServices.
func (k *FakeKernel) Applied() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.applied
}

// Held returns a copy of the table.
func (k *FakeKernel) Held() (desired.Table, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	table := desired.Table{Services: map[desired.Frontend]desired.Service{}, Clusters: map[uint16]string{}}
	for frontend, service := range k.table.Services {
		service.Backends = slices.Clone(service.Backends)
		table.Services[frontend] = service
	}
	for id, name := range k.table.Clusters {
		table.Clusters[id] = name
	}
	return table, nil
}

// Apply takes the table.
func (k *FakeKernel) Apply(ctx context.Context, table desired.Table) (datapath.Report, error) {
	changed := make([]desired.Service, 0, len(table.Services))
	for _, service := range table.Services {
		changed = append(changed, service)
	}
	var removed []desired.Frontend
	k.mu.Lock()
	for frontend := range k.table.Services {
		if _, ok := table.Services[frontend]; !ok {
			removed = append(removed, frontend)
		}
	}
	k.mu.Unlock()
	return k.ApplyServices(ctx, changed, removed, table.Clusters)
}

// ApplyServices takes the changes.
func (k *FakeKernel) ApplyServices(_ context.Context, changed []desired.Service, removed []desired.Frontend,
	clusters map[uint16]string,
) (report datapath.Report, err error) {
	k.mu.Lock()
	k.applied++
	if k.fail != nil {
		defer k.mu.Unlock()
		return report, k.fail
	}
	for _, service := range changed {
		if err := k.refuse[service.Port]; err != nil {
			report.Failed = append(report.Failed, &datapath.ServiceError{Frontend: service.Frontend, Port: service.Port, Err: err})
			continue
		}
		service.Backends = slices.Clone(service.Backends)
		k.table.Services[service.Frontend] = service
	}
	for _, frontend := range removed {
		delete(k.table.Services, frontend)
	}
	for id, name := range clusters {
		k.table.Clusters[id] = name
	}
	onChange := k.onChange
	k.mu.Unlock()
	if onChange != nil {
		onChange()
	}
	return report, nil
}

// Heartbeat counts.
func (k *FakeKernel) Heartbeat() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.beats++
	return nil
}

// Keep takes the cgroups.
func (k *FakeKernel) Keep(cgroups []string) ([]datapath.Drift, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cgroups = slices.Clone(cgroups)
	return nil, nil
}

// OptOut takes the cgroups.
func (k *FakeKernel) OptOut(cgroups []string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.optOut = slices.Clone(cgroups)
	return nil
}

// Usage says that all of the default sizes is free.
func (k *FakeKernel) Usage() (used, capacity datapath.Sizes, err error) {
	return datapath.Sizes{}, datapath.DefaultSizes, nil
}

// Counters returns none.
func (k *FakeKernel) Counters() (map[string]uint64, error) { return nil, nil }

// StaleSockets says that there was nothing to do.
func (k *FakeKernel) StaleSockets() datapath.StaleSockets { return datapath.StaleSockets{} }

// Meet sets what backends met so far.
func (k *FakeKernel) Meet(met ...datapath.BackendTraffic) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.met = met
}

// Traffic tells what was set.
func (k *FakeKernel) Traffic(each func(*datapath.BackendTraffic)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.met {
		each(&k.met[i])
	}
	return nil
}

// OnRetired does nothing: backends that go have met nothing more.
func (k *FakeKernel) OnRetired(func(*datapath.BackendTraffic)) {}

// Close leaves the table as it is.
func (k *FakeKernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed++
	return nil
}
