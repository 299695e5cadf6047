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
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// board is where those who write the maps and those who connect agree on what a
// connect may get. It lies in memory that processes share, so that it outlives a
// writer that is killed.
//
// Whoever changes a service announces the backends that it will have, writes, and says
// when that is finished. A connect must get a backend that the service had in the last
// change that was finished when it began, or in a later one. It may be left alone only
// if the service had none in such a change.
type board struct {
	services, pool int
	cells          []atomic.Int64
}

// The cells that are not of one service.
const (
	cellStop       = iota // not 0: the dialers end
	cellUpdates           // changes of services that were finished
	cellSwaps             // programs that were replaced in their links
	cellReopens           // writers that took the maps over within a process
	cellTakeover          // writers that took them over from another process
	cellMigrations        // of those, with maps of other sizes
	cellConnects          // of every kind
	cellAsked             // of those, datagrams of sockets that are not connected
	cellTCP               // of those, of TCP, to a server that answers
	cellStayed            // pairs of which the second had to get what the first had
	cellAlone             // connects that were left alone, and might be
	cellFailed
	cellWrong
	cellsCommon
)

// The cells of each service, before those of its backends.
const (
	cellFinished = iota // number of the last finished change
	cellAnnounced
	cellEmpty // the last change without a backend
	cellsOfService
)

// newBoard opens the board in the file, which is made if it is not there.
func newBoard(t testing.TB, path string, services, pool int) *board {
	t.Helper()
	size := 8 * (cellsCommon + services*(cellsOfService+pool))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(int64(size)))
	memory, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	t.Cleanup(func() { _ = unix.Munmap(memory) })
	return &board{services, pool, unsafe.Slice((*atomic.Int64)(unsafe.Pointer(unsafe.SliceData(memory))), size/8)}
}

func (b *board) common(cell int) *atomic.Int64 { return &b.cells[cell] }

func (b *board) of(service, cell int) *atomic.Int64 {
	return &b.cells[cellsCommon+service*(cellsOfService+b.pool)+cell]
}

func (b *board) in(service, member int) *atomic.Int64 {
	return b.of(service, cellsOfService+member)
}

// announce says which backends the service will have: those that are picked.
func (b *board) announce(service int, members map[int]uint32) {
	change := b.of(service, cellAnnounced).Add(1)
	empty := true
	for m, slots := range members {
		if slots > 0 {
			empty = false
			b.in(service, m).Store(change)
		}
	}
	if empty {
		b.of(service, cellEmpty).Store(change)
	}
}

// finish says that what was announced last has been written.
func (b *board) finish(service int) {
	b.of(service, cellFinished).Store(b.of(service, cellAnnounced).Load())
	b.common(cellUpdates).Add(1)
}

// began is the number of the change that a connect must not get anything older than.
func (b *board) began(service int) int64 { return b.of(service, cellFinished).Load() }

// judge says what is wrong with the peer that a connect got, if anything.
func (b *board) judge(service int, began int64, peer netip.AddrPort) error {
	to := boardFrontend(service)
	if peer == netip.AddrPortFrom(to.Addr, to.Port) {
		if b.of(service, cellEmpty).Load() >= began {
			b.common(cellAlone).Add(1)
			return nil
		}
		return fmt.Errorf("it was left alone, with backends since change %d", began)
	}
	for m := range b.pool {
		if boardBackend(service, m) == peer {
			if last := b.in(service, m).Load(); last < began {
				return fmt.Errorf("it got %s, which was last in change %d, and began after change %d", peer, last, began)
			}
			return nil
		}
	}
	return fmt.Errorf("it got %s, which is no backend of the service", peer)
}

// quiet returns the number of the last change, and whether it is finished.
func (b *board) quiet(service int) (int64, bool) {
	change := b.of(service, cellAnnounced).Load()
	return change, change == b.of(service, cellFinished).Load()
}

// connectTwice makes two connects, of which the second must get what the first has got
// if the service does not change meanwhile.
func (b *board) connectTwice(random *rand.Rand, service int, dial dialer) error {
	var got []netip.AddrPort
	seen := func(family int, to netip.AddrPort) (netip.AddrPort, error) {
		peer, err := dial(family, to)
		got = append(got, peer)
		return peer, err
	}
	before, wasQuiet := b.quiet(service)
	for range 2 {
		if err := b.connect(random, service, seen); err != nil {
			return err
		}
	}
	after, isQuiet := b.quiet(service)
	if !wasQuiet || !isQuiet || before != after {
		return nil
	}
	b.common(cellStayed).Add(1)
	if got[0] != got[1] {
		b.common(cellWrong).Add(1)
		return fmt.Errorf("service %d: it had %s, and then %s, with no change after change %d", service, got[0], got[1], before)
	}
	return nil
}

// connect makes one connect to the service, with a socket of either family where the
// address allows it, counts it, and says what was wrong with it.
func (b *board) connect(random *rand.Rand, service int, dial dialer) error {
	to := boardFrontend(service)
	family := unix.AF_INET6
	if to.Addr.Is4() && random.IntN(4) > 0 {
		family = unix.AF_INET
	}
	began := b.began(service)
	peer, err := dial(family, netip.AddrPortFrom(to.Addr, to.Port))
	b.common(cellConnects).Add(1)
	if err != nil {
		b.common(cellFailed).Add(1)
		return fmt.Errorf("connect to service %d: %w", service, err)
	}
	if err := b.judge(service, began, peer); err != nil {
		b.common(cellWrong).Add(1)
		return fmt.Errorf("connect to service %d: %w", service, err)
	}
	return nil
}

// boardFrontend returns a service's address: every second one has IPv6.
func boardFrontend(service int) desired.Frontend {
	addr := netip.AddrFrom4([4]byte{10, 96, 1, byte(service)})
	if service%2 == 1 {
		addr = netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x96, 14: 1, 15: byte(service)})
	}
	return desired.Frontend{Addr: addr, Port: 80, Protocol: desired.UDP}
}

func boardBackend(service, member int) netip.AddrPort {
	addr := netip.AddrFrom4([4]byte{10, 1, byte(service), byte(member + 1)})
	if service%2 == 1 {
		b := [16]byte{0: 0xfd, 3: 1}
		binary.BigEndian.PutUint16(b[12:], uint16(service))
		binary.BigEndian.PutUint16(b[14:], uint16(member+1))
		addr = netip.AddrFrom16(b)
	}
	return netip.AddrPortFrom(addr, uint16(8000+member))
}

// boardService returns the service with the members, each with its slots, 0 for one
// that is listed and not picked.
func boardService(service int, members map[int]uint32) desired.Service {
	svc := desired.Service{
		Frontend: boardFrontend(service),
		Port:     desired.ServicePort{Namespace: "song", Name: fmt.Sprint("service", service)},
	}
	for m, slots := range members {
		svc.Backends = append(svc.Backends, desired.Backend{
			Addr: boardBackend(service, m), ClusterID: uint16(1 + m%3), Slots: slots,
		})
	}
	slices.SortFunc(svc.Backends, func(a, b desired.Backend) int { return compareBackends(&a, &b) })
	return svc
}

// boardMembers returns which members a service has, as the maps hold it.
func boardMembers(svc *desired.Service, service, pool int) map[int]uint32 {
	members := map[int]uint32{}
	for _, b := range svc.Backends {
		for m := range pool {
			if boardBackend(service, m) == b.Addr {
				members[m] = b.Slots
			}
		}
	}
	return members
}

// audit fails the test unless every number, slot, name and pin of the data path is
// either of a service or free, once what rests has rested.
func audit(t testing.TB, n *node, d *Datapath) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.grave.drain()
	indexes := map[uint32]bool{}
	backends := map[uint32]bool{}
	owner := map[uint32]bool{} // of slots
	slotsUsed := 0
	frontends := map[vipKey]uint32{}
	for frontend, s := range d.services {
		if indexes[s.index] {
			t.Errorf("index %d is of two services", s.index)
		}
		indexes[s.index] = true
		frontends[frontendKey(frontend)] = s.index
		for i, p := range s.placed {
			if backends[p.id] {
				t.Errorf("backend %d is of two services", p.id)
			}
			backends[p.id] = true
			if want := picked(&s.now.Backends[i]); d.set.backends.items[p.id].Picked != want {
				t.Errorf("backend %d of %s with %d slots is marked as picked: %d", p.id, frontend, s.now.Backends[i].Slots, d.set.backends.items[p.id].Picked)
			}
		}
		for at := s.span.base; at < s.span.base+s.span.size; at++ {
			if owner[at] {
				t.Errorf("slot %d is of two services", at)
			}
			owner[at] = true
		}
		slotsUsed += int(s.span.size)
	}
	sizes := d.Sizes()
	if got, want := d.indexes.available()+len(indexes), int(sizes.Frontends); got != want {
		t.Errorf("%d of %d indexes are of a service or free", got, want)
	}
	if got, want := d.backends.available()+len(backends), int(sizes.Backends); got != want {
		t.Errorf("%d of %d backends are of a service or free", got, want)
	}
	slotsFree := int(d.ranges.limit - d.ranges.next)
	for size, bases := range d.ranges.free {
		slotsFree += int(size) * len(bases)
	}
	if got, want := slotsFree+slotsUsed, int(sizes.Slots); got != want {
		t.Errorf("%d of %d slots are of a service or free", got, want)
	}
	for id := range d.set.backends.items {
		if used := d.set.backends.items[id].Used != 0; used != backends[uint32(id)] {
			t.Errorf("backend %d is marked as taken: %t", id, used)
		}
	}

	keys, values, err := readHash[vipKey, uint32](d.set.vip())
	must(t, err)
	for i, key := range keys {
		if index, ok := frontends[key]; !ok || index != values[i] {
			t.Errorf("%s leads to %d, which is not its service", keyFrontend(key), values[i])
		}
	}
	if len(keys) != len(frontends) {
		t.Errorf("there are %d frontends, want %d", len(keys), len(frontends))
	}
	names, _, err := readHash[uint32, serviceName](d.set.serviceName())
	must(t, err)
	for _, index := range names {
		if !indexes[index] {
			t.Errorf("number %d has a name and no service", index)
		}
	}
	if len(names) != len(indexes) {
		t.Errorf("%d services have names, want %d", len(names), len(indexes))
	}
	n.auditPins(t)
}

// auditPins fails the test unless the pins are those of a whole data path.
func (n *node) auditPins(t testing.TB) {
	t.Helper()
	for folder, want := range map[string]int{"": 2, mapsDir: len(pinnedMaps), linksDir: len(hooks)} {
		pins, err := os.ReadDir(n.PinDir + "/" + schemaDir + "/" + folder)
		must(t, err)
		if len(pins) != want {
			t.Errorf("folder %q has %d pins, want %d: %v", folder, len(pins), want, pins)
		}
	}
}
