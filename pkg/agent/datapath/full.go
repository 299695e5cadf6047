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
	"slices"
	"sync/atomic"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// squeeze makes the best of services that did not fit. Whoever fits into what others
// have given up by now gets in, in turns, as that makes room again. Of the others stays
// what is in the maps already and still wanted, and then all, if that makes room; else
// that part; else nothing, so that kube-proxy serves the service. It never leaves
// backends that are not wanted. But until it knows better it keeps one of them, so that
// a service that does fit in the end is not left alone on the way there.
func (r *round) squeeze(full []*desired.Service) {
	r.squeezing = true
	if full = r.fit(full); len(full) == 0 {
		return
	}
	strangers := map[*desired.Service]bool{} // nothing that is wanted of them is in the maps
	for _, svc := range full {
		if !r.shrink(svc) {
			strangers[svc] = true
		}
	}
	full = r.fit(full)
	for _, svc := range full {
		if strangers[svc] {
			r.putSome(svc)
		}
	}
	full = slices.DeleteFunc(r.fit(full), r.putInItsOwnRoom)
	for _, svc := range full {
		if strangers[svc] {
			if err := r.remove([]desired.Frontend{svc.Frontend}); err != nil {
				r.fail(svc, false, err)
			}
		}
	}
	for _, svc := range r.fit(full) {
		if err := r.put(svc); err != nil {
			r.fail(svc, r.d.services[svc.Frontend] != nil, err)
		}
	}
	r.publish()
}

// fit puts whatever fits, until no more does, and returns the others.
func (r *round) fit(full []*desired.Service) []*desired.Service {
	for fitted := true; fitted && len(full) > 0; {
		r.d.grave.drain()
		waiting := len(full)
		full = slices.DeleteFunc(full, func(svc *desired.Service) bool { return r.put(svc) == nil })
		r.publish()
		fitted = len(full) < waiting
	}
	return full
}

// shrink leaves of a service what is in the maps already and still wanted, with the
// shares that are wanted if they fit. If that is nothing, it leaves one of the backends
// that are not wanted, to go on with for now, and returns false.
func (r *round) shrink(svc *desired.Service) bool {
	s := r.d.services[svc.Frontend]
	if s == nil {
		return true
	}
	var wanted, held []desired.Backend
	change := compare(s.now.Backends, svc.Backends)
	for i, from := range change.from {
		if from < 0 || svc.Backends[i].Slots == 0 {
			continue
		}
		wanted = append(wanted, svc.Backends[i])
		if before := s.now.Backends[from].Slots; before > 0 {
			held = append(held, svc.Backends[i])
			held[len(held)-1].Slots = before
		}
	}
	for _, part := range [][]desired.Backend{wanted, held} {
		if len(part) > 0 && r.putBackends(svc, part) == nil {
			return true
		}
	}
	var one *desired.Backend
	for _, i := range change.gone {
		if b := &s.now.Backends[i]; b.Slots > 0 && (one == nil || b.Slots < one.Slots) {
			one = b
		}
	}
	if one != nil {
		narrow := *one
		narrow.Slots = 1
		_ = r.putBackends(svc, []desired.Backend{narrow}) // or all stay
	}
	return false
}

// putSome puts as many of a service's backends as there is room for, if any.
func (r *round) putSome(svc *desired.Service) {
	var some []desired.Backend
	for i := range svc.Backends {
		if svc.Backends[i].Slots > 0 {
			some = append(some, svc.Backends[i])
		}
	}
	for n := min(len(some), r.d.backends.available()); n > 0; n /= 2 {
		if r.putBackends(svc, some[:n]) == nil {
			return
		}
	}
}

// putInItsOwnRoom puts a service that fits only if it gives up its own slots first: all
// but one, while it gets others. It returns whether it did.
func (r *round) putInItsOwnRoom(svc *desired.Service) bool {
	d := r.d
	s := d.services[svc.Frontend]
	if s == nil {
		return false
	}
	d.grave.drain()
	change := compare(s.now.Backends, svc.Backends)
	others := uint32(0)
	for _, o := range d.services {
		if o != s && o.span.size > 0 {
			others += descriptor(d.set.service.items[o.index].Descriptor).length()
		}
	}
	if len(change.gone) > 0 || change.added > d.backends.available() || others+1+change.length > d.ranges.limit {
		return false
	}
	before, one := s.now.Backends, slices.Clone(s.now.Backends)
	length := uint32(0)
	for i := range one {
		one[i].Slots = min(one[i].Slots, 1-length)
		length += one[i].Slots
	}
	if length == 0 || r.putBackends(svc, one) != nil {
		return false
	}
	d.grave.drain()
	if r.put(svc) == nil {
		return true
	}
	_ = r.putBackends(svc, before)
	return false
}

func (r *round) putBackends(svc *desired.Service, backends []desired.Backend) error {
	part := *svc
	part.Backends = slices.Clone(backends)
	return r.put(&part)
}

// join moves services closer together until n slots in a row are free, if there are so
// many at all, and waits as long as that takes.
func (d *Datapath) join(n uint32) bool {
	d.grave.drain()
	d.grave.wait() // for those who may still read what services have shrunk out of
	var services []*service
	for _, s := range d.services {
		if s.span.size > 0 {
			s.span.size = descriptor(d.set.service.items[s.index].Descriptor).length()
			services = append(services, s)
		}
	}
	slices.SortFunc(services, func(a, b *service) int { return cmp.Compare(a.span.base, b.span.base) })
	spans := func() (spans []extent) {
		for _, s := range services {
			spans = append(spans, s.span)
		}
		return spans
	}
	from, to, ok := gather(spans(), d.ranges.limit, n)
	if ok {
		at := uint32(0)
		if from > 0 {
			at = services[from-1].span.base + services[from-1].span.size
		}
		left := d.ranges.limit // from here on, somebody may still read what a service has left
		for _, s := range services[from:to] {
			if at+s.span.size > left {
				d.grave.wait()
				left = d.ranges.limit
			}
			left = min(left, max(at+s.span.size, s.span.base))
			d.slide(s, at)
			at += s.span.size
		}
		d.grave.wait()
	}
	d.ranges.restore(spans())
	return ok
}

// slide moves a service's slots down. Old and new range may overlap: whatever is in
// either is a slot of the service at all times.
func (d *Datapath) slide(s *service, base uint32) {
	for i := range s.span.size {
		reach("slide")
		atomic.StoreUint64(&d.set.slots.items[base+i], d.set.slots.items[s.span.base+i])
	}
	entry := &d.set.service.items[s.index]
	old := descriptor(entry.Descriptor)
	reach("descriptor")
	atomic.StoreUint64(&entry.Descriptor, uint64(newDescriptor(base, old.length(), old.flags())))
	s.span.base = base
}
