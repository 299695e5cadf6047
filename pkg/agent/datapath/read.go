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
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// held is a service as the maps hold it.
type held struct {
	index      uint32
	descriptor descriptor
	service    desired.Service // Slots as counted in the range
	placed     []placed        // the entry of each backend of service
	// damaged is set if a slot does not lead to a backend of the service. Lookups
	// leave the address alone when they meet one.
	damaged bool
}

// placed is the entry of a backend.
type placed struct {
	id         uint32
	generation uint32
}

// readServices reads every service that has a frontend in the vip map, by index.
// The maps may change meanwhile; then each service is as it was at some moment.
func readServices(set *mapSet) ([]*held, error) {
	keys, indexes, err := readHash[vipKey, uint32](set.vip())
	if err != nil {
		return nil, err
	}
	nameKeys, nameValues, err := readHash[uint32, serviceName](set.serviceName())
	if err != nil {
		return nil, err
	}
	names := make(map[uint32]*serviceName, len(nameKeys))
	for i, key := range nameKeys {
		names[key] = &nameValues[i]
	}

	var services []*held
	byIndex := make(map[uint32]*held, len(keys))
	for i, key := range keys {
		index := indexes[i]
		if index == 0 || int(index) >= len(set.service.items) || set.service.items[index].Key != key {
			continue // lookups leave it alone too
		}
		h := &held{
			index:      index,
			descriptor: descriptor(atomic.LoadUint64(&set.service.items[index].Descriptor)),
		}
		h.service.Frontend = keyFrontend(key)
		h.service.LocalReady = h.descriptor.flags()&serviceHandback != 0
		h.service.AffinitySeconds = atomic.LoadUint32(&set.service.items[index].AffinityS)
		if name := names[index]; name != nil {
			h.service.Port = servicePort(name)
		}
		byIndex[index] = h
		services = append(services, h)
	}
	slices.SortFunc(services, func(a, b *held) int { return cmp.Compare(a.index, b.index) })

	for id := range set.backends.items {
		entry := &set.backends.items[id]
		if h := byIndex[entry.Service]; h != nil && entry.Used != 0 {
			h.placed = append(h.placed, placed{uint32(id), entry.Generation})
		}
	}
	for _, h := range services {
		h.readBackends(set)
	}
	return services, nil
}

// readBackends counts the shares of the backends in h.placed and sorts them.
func (h *held) readBackends(set *mapSet) {
	shares := make(map[uint32]uint32, len(h.placed))
	for _, p := range h.placed {
		shares[p.id] = 0
	}
	end := int(h.descriptor.base()) + int(h.descriptor.length())
	if end > len(set.slots.items) {
		h.damaged = true
		end = int(h.descriptor.base())
	}
	for at := int(h.descriptor.base()); at < end; at++ {
		word := slot(atomic.LoadUint64(&set.slots.items[at]))
		id := word.backend()
		if _, known := shares[id]; !known || word.service() != h.index ||
			word.generation() != set.backends.items[id].Generation {
			h.damaged = true
			continue
		}
		shares[id]++
	}

	type pair struct {
		desired.Backend
		placed
	}
	pairs := make([]pair, 0, len(h.placed))
	for _, p := range h.placed {
		entry := &set.backends.items[p.id]
		pairs = append(pairs, pair{desired.Backend{
			Addr:      entry.addrPort(),
			ClusterID: entry.Cluster,
			State:     desired.State(entry.State),
			Slots:     shares[p.id],
		}, p})
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		return cmp.Or(compareBackends(&a.Backend, &b.Backend), cmp.Compare(a.id, b.id))
	})
	h.placed = h.placed[:0]
	for _, p := range pairs {
		h.service.Backends = append(h.service.Backends, p.Backend)
		h.placed = append(h.placed, p.placed)
	}
}

func readClusters(set *mapSet) (map[uint16]string, error) {
	keys, values, err := readHash[uint32, clusterName](set.clusterName())
	if err != nil {
		return nil, err
	}
	clusters := make(map[uint16]string, len(keys))
	for i, key := range keys {
		clusters[uint16(key)] = getString(values[i].Name[:])
	}
	return clusters, nil
}

// readHash returns the content of a hash map. An element that comes or goes
// meanwhile may be missed.
func readHash[K, V any](m *ebpf.Map) ([]K, []V, error) {
	// A batch must hold the longest chain of the hash, and grows until it does.
	for chunk := min(4096, int(m.MaxEntries())); ; chunk *= 2 {
		keys, values, err := readBatches[K, V](m, chunk)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return keys, values, nil
		}
		if chunk > 2*int(m.MaxEntries()) {
			return nil, nil, fmt.Errorf("reading %s: %w", m, err)
		}
	}
}

func readBatches[K, V any](m *ebpf.Map, chunk int) (keys []K, values []V, err error) {
	keyBuffer, valueBuffer := make([]K, chunk), make([]V, chunk)
	var cursor ebpf.MapBatchCursor
	for err == nil {
		var n int
		n, err = m.BatchLookup(&cursor, keyBuffer, valueBuffer, nil)
		if err == nil || errors.Is(err, ebpf.ErrKeyNotExist) {
			keys = append(keys, keyBuffer[:n]...)
			values = append(values, valueBuffer[:n]...)
		}
	}
	return keys, values, err
}
