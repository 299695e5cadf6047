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

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// Snapshot is what the kernel's maps hold.
type Snapshot struct {
	// Services are sorted by ID.
	Services []Service
	// Clusters names cluster IDs.
	Clusters map[uint16]string
	// HeartbeatAge is how long ago an agent last said that it lives; negative if none
	// ever did.
	HeartbeatAge time.Duration
	// Counters say what the programs did since the maps were made, by name.
	Counters map[string]uint64
}

// Service is a service in the maps.
type Service struct {
	ID         uint32
	Frontend   desired.Frontend
	Port       desired.ServicePort
	LocalReady bool
	// AffinitySeconds is as in desired.Service.
	AffinitySeconds uint32
	// Backends are sorted by cluster ID and address.
	Backends []Backend
}

// Backend is a backend in the maps. Its Slots are counted, not remembered.
type Backend struct {
	desired.Backend
	// ID and Generation are what slots and sockets refer to it by. No other backend
	// ever has both.
	ID, Generation uint32
	// Traffic is what it met since it came; nil where the maps are of an agent that did
	// not count.
	Traffic *Traffic
}

// Read reads the maps that are pinned under the folder. It needs no agent, takes no
// lock and changes nothing. While an agent writes, each service is as it was at some
// moment. ErrNotLoaded says that there are no maps.
func Read(pinDir string) (*Snapshot, error) {
	r, err := OpenReader(pinDir)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.Snapshot()
}

// Reader reads pinned maps again and again, as Read does once.
type Reader struct {
	set *mapSet
}

// OpenReader opens the maps that are pinned under the folder.
func OpenReader(pinDir string) (*Reader, error) {
	pins := filepath.Join(pinDir, schemaDir, mapsDir)
	if _, err := os.Stat(pins); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no %q", ErrNotLoaded, pins)
	}
	set, err := openMaps(pins, &current)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(set.mapArrays(false), checkMeta(set, pins, &current)); err != nil {
		_ = set.close()
		return nil, err
	}
	return &Reader{set}, nil
}

// Snapshot reads all that the maps hold.
func (r *Reader) Snapshot() (*Snapshot, error) { return snapshot(r.set) }

// Slots returns how many slots new connections to the frontend are spread over; 0 if
// they are left alone. It costs one system call.
func (r *Reader) Slots(frontend desired.Frontend) (int, error) {
	key := frontendKey(frontend)
	var index uint32
	switch err := r.set.vip().Lookup(&key, &index); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("looking up %s: %w", frontend, err)
	}
	if index == 0 || int(index) >= len(r.set.service.items) || r.set.service.items[index].Key != key {
		return 0, nil // lookups leave it alone too
	}
	return int(descriptor(atomic.LoadUint64(&r.set.service.items[index].Descriptor)).length()), nil
}

// Close lets go of the maps.
func (r *Reader) Close() error { return r.set.close() }

// Snapshot reads the maps that this process writes.
func (d *Datapath) Snapshot() (*Snapshot, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, ErrClosed
	}
	return snapshot(d.set)
}

// Counters says what the programs did since the maps were made, by name.
func (d *Datapath) Counters() (map[string]uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, ErrClosed
	}
	return readCounters(d.set.counters())
}

func snapshot(set *mapSet) (*Snapshot, error) {
	held, err := readServices(set)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{HeartbeatAge: -1}
	if s.Clusters, err = readClusters(set); err != nil {
		return nil, err
	}
	if s.Counters, err = readCounters(set.counters()); err != nil {
		return nil, err
	}
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	if beat := atomic.LoadUint64(&set.meta.items[0].HeartbeatNs); beat != 0 {
		s.HeartbeatAge = max(0, time.Duration(now-beat))
	}
	for _, h := range held {
		svc := Service{
			ID:         h.index,
			Frontend:   h.service.Frontend,
			Port:       h.service.Port,
			LocalReady: h.service.LocalReady,
			Backends:   make([]Backend, len(h.placed)),

			AffinitySeconds: h.service.AffinitySeconds,
		}
		for i, p := range h.placed {
			svc.Backends[i] = Backend{h.service.Backends[i], p.id, p.generation, nil}
			if len(set.traffic.items) > int(p.id) {
				traffic := readTraffic(&set.traffic.items[p.id], p.generation)
				svc.Backends[i].Traffic = &traffic
			}
		}
		s.Services = append(s.Services, svc)
	}
	return s, nil
}

// counterNames are the names of the counters, as bpf/lib/maps.h has them.
var counterNames = [...]string{
	connectCounterCOUNTER_TRANSLATED:   "translated",
	connectCounterCOUNTER_MISS:         "miss",
	connectCounterCOUNTER_NO_BACKEND:   "no_backend",
	connectCounterCOUNTER_HANDED_BACK:  "handed_back",
	connectCounterCOUNTER_RETRY:        "retry",
	connectCounterCOUNTER_GAVE_UP:      "gave_up",
	connectCounterCOUNTER_NO_REVERSE:   "no_reverse",
	connectCounterCOUNTER_PEER_RENAMED: "peer_renamed",
	connectCounterCOUNTER_SENT:         "sent",
	connectCounterCOUNTER_SENT_SPILT:   "sent_spilt",
	connectCounterCOUNTER_SENT_DENIED:  "sent_denied",
	connectCounterCOUNTER_FROM_RENAMED: "from_renamed",
	connectCounterCOUNTER_AFFINE:       "affine",
	connectCounterCOUNTER_OPTED_OUT:    "opted_out",
}

func readCounters(m *ebpf.Map) (map[string]uint64, error) {
	counters := make(map[string]uint64, len(counterNames))
	for i, name := range counterNames[:min(len(counterNames), int(m.MaxEntries()))] { // former schemas have fewer
		var perCPU []uint64
		if err := m.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("reading counter %q: %w", name, err)
		}
		for _, n := range perCPU {
			counters[name] += n
		}
	}
	return counters, nil
}
