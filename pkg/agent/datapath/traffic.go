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
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// Traffic is what became of the connections to a backend since it came. Of UDP there are
// attempts only: the kernel does not know whether a datagram met anybody.
type Traffic struct {
	// Attempts are the connections for which a SYN was sent; of UDP the sockets that were
	// led to the backend, by connect() or, once, by their datagrams.
	Attempts uint64
	// Established are those that got through.
	Established uint64
	// Refused are those that the other side ended with a RST before that.
	Refused uint64
	// TimedOut are those that got no answer and were given up, by the kernel or by the
	// application, after the first timeout of the kernel (a second).
	TimedOut uint64
	// Aborted are those that ended otherwise: the application gave up before that, or an
	// ICMP error came. What is in none of these four is on its way, or lost without a SYN.
	Aborted uint64
	// Active are the established ones that no side has closed. Those of before the backend
	// was removed and came again do not count.
	Active uint64
	// RTT is the sum of the round trips of the handshakes, and Measured their number: all
	// that were established but those whose SYN was repeated where no timestamps are used.
	RTT      time.Duration
	Measured uint64
}

// MeanRTT is the mean round trip; 0 if none was measured.
func (t *Traffic) MeanRTT() time.Duration {
	if t.Measured == 0 {
		return 0
	}
	return (t.RTT / time.Duration(t.Measured)).Truncate(time.Microsecond)
}

// BackendTraffic is one backend of one frontend, and its traffic.
type BackendTraffic struct {
	// ID and Generation are the backend's alone, as in Backend.
	ID, Generation uint32
	Frontend       desired.Frontend
	Port           desired.ServicePort
	// Cluster is the cluster's name, or a number that stands for it.
	Cluster string
	Addr    netip.AddrPort
	Traffic
}

// readTraffic reads counters that may be counting. They are another backend's, or
// nobody's, if the generation is not the expected one.
func readTraffic(e *trafficEntry, generation uint32) Traffic {
	if atomic.LoadUint32(&e.Generation) != generation {
		return Traffic{}
	}
	return sum(e)
}

func sum(e *trafficEntry) Traffic {
	// Closed first: a connection that is established and closed meanwhile must not be seen
	// closed only.
	closed, unmeasured := atomic.LoadUint64(&e.Closed), atomic.LoadUint32(&e.Unmeasured)
	t := Traffic{
		Established: atomic.LoadUint64(&e.Established),
		Refused:     atomic.LoadUint64(&e.Refused),
		TimedOut:    atomic.LoadUint64(&e.TimedOut),
		Aborted:     atomic.LoadUint64(&e.Aborted),
		RTT:         time.Duration(atomic.LoadUint64(&e.RttUs)) * time.Microsecond,
	}
	t.Attempts = atomic.LoadUint64(&e.Attempts)
	t.Measured = t.Established - min(t.Established, uint64(unmeasured))
	// A program of someone else may have asked for the end of a connection whose beginning
	// was not counted.
	t.Active = t.Established - min(t.Established, closed)
	return t
}

// Traffic calls the function with each backend of the table that anything was sent to.
// Programs count meanwhile, and updates wait.
func (d *Datapath) Traffic(each func(*BackendTraffic)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	// Line after line, as that is fast: most lines are of backends that this node has
	// nothing to do with.
	byIndex := make([]*service, len(d.set.service.items))
	for _, s := range d.services {
		byIndex[s.index] = s
	}
	for id := range d.set.traffic.items {
		e := &d.set.traffic.items[id]
		if e.Generation == 0 || atomic.LoadUint64(&e.Attempts) == 0 {
			continue
		}
		if s := byIndex[d.set.backends.items[id].Service]; s != nil {
			each(d.backendTraffic(s, uint32(id)))
		}
	}
	return nil
}

// OnRetired has the function called with what each backend that goes has met, if it met
// anything: Traffic does not show it any more. The call is part of an update, and must
// not call back.
func (d *Datapath) OnRetired(retired func(*BackendTraffic)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.retired = retired
}

func (d *Datapath) backendTraffic(s *service, id uint32) *BackendTraffic {
	b := &d.set.backends.items[id]
	return &BackendTraffic{
		ID: id, Generation: b.Generation, Frontend: s.now.Frontend, Port: s.now.Port,
		Cluster: clusterLabel(d.clusters, b.Cluster), Addr: b.addrPort(), Traffic: sum(&d.set.traffic.items[id]),
	}
}

// beginTraffic makes programs count for the backend, from 0. Nobody else counts there:
// what led to the entry's last owner, or checked that it was still that one's, has ended
// a grace period ago. No slot leads to the backend yet.
func (d *Datapath) beginTraffic(id, generation uint32) {
	reach("traffic")
	e := &d.set.traffic.items[id]
	*e = trafficEntry{}
	atomic.StoreUint32(&e.Generation, generation)
}

// endTraffic makes programs count for nobody. Those that have checked already, and add
// within the grace period, add to what nobody reads.
func (d *Datapath) endTraffic(id uint32) {
	e := &d.set.traffic.items[id]
	if e.Generation != 0 {
		reach("traffic's end")
		atomic.StoreUint32(&e.Generation, 0)
	}
}

// tail is what programs go on counting in maps that were replaced, until they are
// replaced, too. Were it lost, connections of then would count as open for ever, or be
// closed more often than established.
type tail struct {
	from array[trafficEntry]
	// copied is what the new maps were given.
	copied []trafficEntry
}

// takeTail keeps the counters of maps that are about to be closed.
func takeTail(from *mapSet) *tail {
	if from == nil || len(from.traffic.items) == 0 {
		return nil
	}
	t := &tail{from: from.traffic}
	from.traffic = array[trafficEntry]{} // the mapping keeps the map
	return t
}

// begin notes what the new maps hold. No program has them yet.
func (t *tail) begin(to *mapSet) {
	if t != nil {
		t.copied = slices.Clone(to.traffic.items)
	}
}

// end lets go of the old maps.
func (t *tail) end() error {
	if t == nil {
		return nil
	}
	return t.from.unmap()
}

// catchUp adds what was counted in old maps since they were copied. All programs that
// are attached are ours now.
func (d *Datapath) catchUp() {
	t := d.tail
	if t == nil {
		return
	}
	d.grave.wait() // for those that run the old ones
	for id := range min(len(t.copied), len(t.from.items)) {
		to, from, copied := &d.set.traffic.items[id], &t.from.items[id], &t.copied[id]
		// A backend that is gone meanwhile counts no more.
		if copied.Generation == 0 || to.Generation != copied.Generation || from.Generation != copied.Generation {
			continue
		}
		reach("traffic's tail")
		atomic.AddUint32(&to.Unmeasured, from.Unmeasured-copied.Unmeasured)
		for _, n := range [][3]*uint64{
			{&to.Attempts, &from.Attempts, &copied.Attempts},
			{&to.Established, &from.Established, &copied.Established},
			{&to.Refused, &from.Refused, &copied.Refused},
			{&to.TimedOut, &from.TimedOut, &copied.TimedOut},
			{&to.Aborted, &from.Aborted, &copied.Aborted},
			{&to.Closed, &from.Closed, &copied.Closed},
			{&to.RttUs, &from.RttUs, &copied.RttUs},
		} {
			atomic.AddUint64(n[0], *n[1]-*n[2])
		}
	}
	_ = t.end()
	d.tail = nil
}
