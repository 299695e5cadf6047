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
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// ErrFull is the cause of a ServiceError if a map has no room.
var ErrFull = errors.New("map is full")

// ServiceError says why a service is not, or not wholly, in the maps. Its address,
// or what of it is missing, is left to kube-proxy.
type ServiceError struct {
	Frontend desired.Frontend
	Port     desired.ServicePort
	// Partial is set if the service is served, but by a part of its backends.
	Partial bool
	Err     error
}

func (e *ServiceError) Error() string {
	what := "is not programmed"
	if e.Partial {
		what = "is programmed in part"
	}
	return fmt.Sprintf("service %s at %s %s: %v", e.Port, e.Frontend, what, e.Err)
}

func (e *ServiceError) Unwrap() error { return e.Err }

// Report says what a call of Apply or ApplyServices has done.
type Report struct {
	Added, Changed, Removed, Unchanged int
	// Rebuilt is how many services got a new range of slots.
	Rebuilt int
	// Failed names the services that are not in the maps as they should be. They are
	// tried again whenever they are given again.
	Failed []*ServiceError
	// Names is why people may see numbers for the names of services or clusters.
	// Traffic is as it should be.
	Names error
}

// Apply makes the maps hold the table and nothing else. Services that are as they
// were cost a comparison. The table must not be changed afterwards: it is what the
// next one is compared with. The error is about the call as a whole; services that
// cannot be held are in the report, and do not keep the others out.
func (d *Datapath) Apply(ctx context.Context, table desired.Table) (Report, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var changed []*desired.Service
	unchanged := 0
	for frontend, svc := range table.Services {
		if s := d.services[frontend]; s != nil && !s.damaged && sameService(&s.now, &svc) {
			unchanged++
			continue
		}
		wanted := svc // its own copy, so that unchanged ones cost no memory
		wanted.Frontend = frontend
		changed = append(changed, &wanted)
	}
	var removed []desired.Frontend
	for frontend := range d.services {
		if _, wanted := table.Services[frontend]; !wanted {
			removed = append(removed, frontend)
		}
	}
	// Who gets in when there is no room for all must not depend on chance.
	slices.SortFunc(changed, func(a, b *desired.Service) int { return compareFrontends(a.Frontend, b.Frontend) })
	if !d.whole {
		// Backends may have gone while no agent was there, or none that looked for sockets.
		d.stranded = true
	}
	report, err := d.update(ctx, changed, removed, table.Clusters)
	d.whole = d.whole || err == nil
	report.Unchanged = unchanged
	return report, err
}

// ApplyServices makes the maps hold the changed services and not the removed ones,
// and leaves all others. Clusters are those that occur in any service. As with
// Apply, what is given must not be changed afterwards.
func (d *Datapath) ApplyServices(ctx context.Context, changed []desired.Service, removed []desired.Frontend,
	clusters map[uint16]string,
) (Report, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	pointers := make([]*desired.Service, 0, len(changed))
	unchanged := 0
	for i := range changed {
		svc := &changed[i]
		if s := d.services[svc.Frontend]; s != nil && !s.damaged && sameService(&s.now, svc) {
			unchanged++
			continue
		}
		pointers = append(pointers, svc)
	}
	report, err := d.update(ctx, pointers, removed, clusters)
	report.Unchanged = unchanged
	return report, err
}

func compareFrontends(a, b desired.Frontend) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
}

func sameService(a, b *desired.Service) bool {
	return a.LocalReady == b.LocalReady && a.AffinitySeconds == b.AffinitySeconds && a.Port == b.Port && slices.Equal(a.Backends, b.Backends)
}

// update is one round of changes: additions first, then removals, then what only
// fits now.
func (d *Datapath) update(ctx context.Context, changed []*desired.Service, removed []desired.Frontend,
	clusters map[uint16]string,
) (report Report, err error) {
	if d.closed {
		return report, ErrClosed
	}
	d.grave.collect()
	defer func() { d.noteUpdate(changed, removed, report.Failed) }()
	removed = slices.Clip(removed) // the caller's
	r := round{d: d, report: &report}
	var full []*desired.Service
	for _, svc := range changed {
		if err := ctx.Err(); err != nil {
			r.publish()
			return report, err
		}
		if err := check(svc); err != nil {
			// What it held before is not what is wanted either.
			r.fail(svc, false, err)
			removed = append(removed, svc.Frontend)
			continue
		}
		if err := r.put(svc); errors.Is(err, ErrFull) {
			full = append(full, svc)
		} else if err != nil {
			r.fail(svc, false, err)
		}
	}
	r.publish()
	err = r.remove(removed)
	report.Names = errors.Join(report.Names, d.nameClusters(clusters))
	if len(full) > 0 {
		r.squeeze(full)
	}
	d.grave.collect()
	return report, err
}

// nameClusters writes the names of clusters. Names that are no longer given stay:
// nothing but a printed table reads them, and an ID is not soon given to another.
func (d *Datapath) nameClusters(clusters map[uint16]string) error {
	var errs []error
	for id, name := range clusters {
		if old, ok := d.clusters[id]; ok && old == name {
			continue
		}
		reach("cluster name")
		var value clusterName
		putString(value.Name[:], name)
		if err := d.set.clusterName().Put(uint32(id), &value); err != nil {
			errs = append(errs, fmt.Errorf("naming cluster %d: %w", id, err))
			continue
		}
		d.clusters[id] = name
	}
	return errors.Join(errs...)
}

// round collects what a round of changes does to the hash maps, to write it in
// batches.
type round struct {
	d      *Datapath
	report *Report
	// squeezing is set once there is not room for all. Waiting is worth its time then.
	squeezing bool

	fresh      []*service // whose frontend is not in the vip map yet
	named      []*service // whose name is new
	nameKeys   []uint32
	nameValues []serviceName
}

func (r *round) fail(svc *desired.Service, partial bool, err error) {
	r.report.Failed = append(r.report.Failed, &ServiceError{svc.Frontend, svc.Port, partial, err})
}

// put makes the maps hold the service. It takes all that it needs before it writes
// anything, so an error leaves the service as it was.
//
// The order of writing is the promise of this package: backends, then the slots
// that lead to them, then the descriptor that leads to the slots, then (in publish)
// the frontend that leads to the descriptor; what nothing leads to any more, last.
func (r *round) put(svc *desired.Service) error {
	d := r.d
	s := d.services[svc.Frontend]
	known := s != nil
	if !known {
		s = &service{}
	}
	change := compare(s.now.Backends, svc.Backends)
	if s.damaged {
		change.method = rebuildSlots
	}
	if change.method == editSlots && change.length > s.span.size {
		change.method = rebuildSlots
	}

	if change.added > d.backends.available() {
		return fmt.Errorf("%w: backends", ErrFull)
	}
	index := s.index
	if !known {
		if index = d.indexes.take(); index == 0 {
			return fmt.Errorf("%w: frontends", ErrFull)
		}
	}
	span := s.span
	if change.method == rebuildSlots {
		span = extent{}
		if change.length > 0 {
			var ok bool
			span, ok = d.ranges.take(change.length)
			switch {
			case ok:
			case r.squeezing && change.length <= s.span.size:
				change.method, span, ok = rewriteSlots, s.span, true
			case r.squeezing && d.join(change.length):
				span, ok = d.ranges.take(change.length)
			}
			if !ok {
				if !known {
					d.indexes.give(index)
				}
				return fmt.Errorf("%w: slots", ErrFull)
			}
		}
	}
	s.index = index

	next := d.placeBackends(s, svc.Backends, change.from)
	length := change.length
	switch change.method {
	case editSlots:
		d.editSlots(s, svc.Backends, next, &change)
	case rebuildSlots:
		d.writeSlots(s.index, span.base, svc.Backends, next)
	case rewriteSlots:
		d.rewriteSlots(s, svc.Backends, next)
	case keepSlots:
	}
	d.publishService(s.index, svc, span, length)

	// Nothing leads here any more.
	if change.method == rebuildSlots && s.span.size > 0 {
		d.grave.filling.ranges = append(d.grave.filling.ranges, s.span)
	}
	for _, i := range change.gone {
		d.retireBackend(s, i)
	}
	if !known || s.now.Port != svc.Port {
		r.named = append(r.named, s)
		r.nameKeys = append(r.nameKeys, s.index)
		r.nameValues = append(r.nameValues, newServiceName(svc.Port))
	}
	s.now, s.placed, s.span, s.damaged = *svc, next, span, false
	d.services[svc.Frontend] = s
	switch {
	case known:
		r.report.Changed++
	default:
		r.fresh = append(r.fresh, s)
		r.report.Added++
	}
	if known && change.method == rebuildSlots {
		r.report.Rebuilt++
	}
	return nil
}

// placeBackends gives each backend an entry: its own, or a new one that is written
// here. The caller has made sure that there are enough.
func (d *Datapath) placeBackends(s *service, backends []desired.Backend, from []int) []placed {
	next := make([]placed, len(backends))
	for i := range backends {
		b := &backends[i]
		if from[i] >= 0 {
			reach("state")
			next[i] = s.placed[from[i]]
			entry := &d.set.backends.items[next[i].id]
			if b.State == desired.NotReady && entry.State != uint8(desired.NotReady) {
				d.strand(s.now.Frontend.Protocol)
			}
			entry.State, entry.Picked = uint8(b.State), picked(b)
			continue
		}
		id := d.backends.take()
		entry := &d.set.backends.items[id]
		generation := entry.Generation + 1
		if generation > maxGeneration {
			generation = 1
		}
		reach("backend")
		*entry = backendEntry{
			Addr:       addrWords(b.Addr.Addr()),
			Port:       networkPort(b.Addr.Port()),
			Cluster:    b.ClusterID,
			Service:    s.index,
			Generation: generation,
			State:      uint8(b.State),
			Used:       1,
			Picked:     picked(b),
		}
		d.beginTraffic(id, generation)
		next[i] = placed{id, generation}
	}
	return next
}

// picked is the flag that lets a client go back to a backend of its own. It may be
// ahead of the slots, by no more than the call of Apply that changes both: a client
// then gets what others get before or after it.
func picked(b *desired.Backend) uint8 {
	if b.Slots > 0 {
		return 1
	}
	return 0
}

// retireBackend makes the entry of a service's backend free after a grace period. What
// lookups read of it stays until it is used again, but for the flag: no client goes back
// to it. Connections to it go on, but count for nobody.
func (d *Datapath) retireBackend(s *service, i int) {
	id := s.placed[i].id
	reach("retire")
	entry := &d.set.backends.items[id]
	entry.Used, entry.Picked = 0, 0
	d.strand(s.now.Frontend.Protocol)
	d.endTraffic(id)
	if d.retired != nil && d.set.traffic.items[id].Attempts > 0 {
		d.retired(d.backendTraffic(s, id))
	}
	d.grave.filling.backends = append(d.grave.filling.backends, id)
}

// editSlots changes the slots within the range, one store after the other.
func (d *Datapath) editSlots(s *service, backends []desired.Backend, next []placed, change *diff) {
	lose := map[uint32]bool{}
	for _, i := range change.gone {
		lose[s.placed[i].id] = true
	}
	var add []slot
	for i := range backends {
		before := uint32(0)
		if from := change.from[i]; from >= 0 {
			before = s.now.Backends[from].Slots
		}
		if before > 0 && backends[i].Slots == 0 {
			lose[next[i].id] = true
		}
		if before == 0 {
			for range backends[i].Slots {
				add = append(add, newSlot(next[i].id, s.index, next[i].generation))
			}
		}
	}
	length := descriptor(d.set.service.items[s.index].Descriptor).length()
	stores, _ := edit(d.set.slots.items[s.span.base:s.span.base+length], lose, add)
	for _, store := range stores {
		reach("slot")
		atomic.StoreUint64(&d.set.slots.items[s.span.base+uint32(store.at)], uint64(store.slot))
	}
}

// writeSlots fills a range that nothing leads to yet.
func (d *Datapath) writeSlots(index, base uint32, backends []desired.Backend, next []placed) {
	reach("range")
	at := base
	for i := range backends {
		word := uint64(newSlot(next[i].id, index, next[i].generation))
		for range backends[i].Slots {
			d.set.slots.items[at] = word
			at++
		}
	}
}

// rewriteSlots writes all slots anew, in the range that lookups read, one store after the
// other: for a moment the shares are neither the old nor the new ones, but each slot is of
// a backend of then or of now.
func (d *Datapath) rewriteSlots(s *service, backends []desired.Backend, next []placed) {
	at := s.span.base
	for i := range backends {
		word := uint64(newSlot(next[i].id, s.index, next[i].generation))
		for range backends[i].Slots {
			reach("slot")
			atomic.StoreUint64(&d.set.slots.items[at], word)
			at++
		}
	}
}

// publishService makes lookups see the slots: by one store, which follows all that
// was written before in the order that other CPUs see, too.
func (d *Datapath) publishService(index uint32, svc *desired.Service, span extent, length uint32) {
	flags := uint16(0)
	if svc.LocalReady {
		flags |= serviceHandback
	}
	entry := &d.set.service.items[index]
	if key := frontendKey(svc.Frontend); entry.Key != key {
		reach("key")
		entry.Key = key // a new service: the vip map does not lead here yet
	}
	reach("affinity")
	atomic.StoreUint32(&entry.AffinityS, svc.AffinitySeconds)
	reach("descriptor")
	atomic.StoreUint64(&entry.Descriptor, uint64(newDescriptor(span.base, length, flags)))
}

// publish writes the names and the frontends of new services.
func (r *round) publish() {
	d := r.d
	if len(r.nameKeys) > 0 {
		reach("names")
		err := putAll(d.set.serviceName(), r.nameKeys, r.nameValues, func(i int, _ error) {
			// The next Apply finds another name than it wants.
			r.named[i].now.Port = desired.ServicePort{}
		})
		if err != nil {
			r.report.Names = errors.Join(r.report.Names, fmt.Errorf("naming services: %w", err))
		}
	}
	if len(r.fresh) > 0 {
		keys := make([]vipKey, len(r.fresh))
		indexes := make([]uint32, len(r.fresh))
		for i, s := range r.fresh {
			keys[i], indexes[i] = frontendKey(s.now.Frontend), s.index
		}
		reach("frontends")
		var nobody []uint32
		_ = putAll(d.set.vip(), keys, indexes, func(i int, err error) {
			s := r.fresh[i]
			if errors.Is(err, unix.E2BIG) {
				err = fmt.Errorf("%w: %w", ErrFull, err)
			}
			r.fail(&s.now, false, fmt.Errorf("adding the frontend: %w", err))
			r.report.Added--
			nobody = append(nobody, s.index)
			d.bury(s)
		})
		if err := deleteAll(d.set.serviceName(), nobody); err != nil {
			r.report.Names = errors.Join(r.report.Names, fmt.Errorf("removing the names of services: %w", err))
		}
	}
	r.fresh, r.named, r.nameKeys, r.nameValues = nil, nil, nil, nil
}

// putAll writes in one batch. If that fails it writes one by one, and tells which
// fail, so that one bad element does not keep the others out.
func putAll[K, V any](m *ebpf.Map, keys []K, values []V, failed func(int, error)) error {
	if len(keys) > 1 {
		if _, err := m.BatchUpdate(keys, values, nil); err == nil {
			return nil
		}
	}
	var errs []error
	for i := range keys {
		if err := m.Put(&keys[i], &values[i]); err != nil {
			errs = append(errs, err)
			if failed != nil {
				failed(i, err)
			}
		}
	}
	return errors.Join(errs...)
}

// remove takes services out of the maps: the way to them first.
func (r *round) remove(frontends []desired.Frontend) error {
	d := r.d
	var keys []vipKey
	var indexes []uint32
	var gone []*service
	for _, frontend := range frontends {
		if s := d.services[frontend]; s != nil {
			keys = append(keys, frontendKey(frontend))
			indexes = append(indexes, s.index)
			gone = append(gone, s)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	// What lookups may still find must not be reused: it stays ours, and is removed
	// when that is asked for again.
	reach("frontends' end")
	if err := deleteAll(d.set.vip(), keys); err != nil {
		return fmt.Errorf("removing frontends: %w", err)
	}
	reach("names' end")
	if err := deleteAll(d.set.serviceName(), indexes); err != nil {
		r.report.Names = errors.Join(r.report.Names, fmt.Errorf("removing the names of services: %w", err))
	}
	for _, s := range gone {
		if d.services[s.now.Frontend] == s { // it may have been given twice
			d.bury(s)
			r.report.Removed++
		}
	}
	return nil
}

func deleteAll[K any](m *ebpf.Map, keys []K) error {
	if len(keys) > 1 {
		if _, err := m.BatchDelete(keys, nil); err == nil {
			return nil
		}
	}
	var errs []error
	for i := range keys {
		if err := m.Delete(&keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// bury retires all that a service had, once its frontend is out of the vip map.
func (d *Datapath) bury(s *service) {
	delete(d.services, s.now.Frontend)
	for i := range s.placed {
		d.retireBackend(s, i)
	}
	if s.span.size > 0 {
		d.grave.filling.ranges = append(d.grave.filling.ranges, s.span)
	}
	d.grave.filling.services = append(d.grave.filling.services, s.index)
}

// reuse takes back what no lookup can see any more.
func (d *Datapath) reuse(r retired) {
	d.indexes.give(r.services...)
	d.backends.give(r.backends...)
	for _, e := range r.ranges {
		d.ranges.give(e)
	}
}
