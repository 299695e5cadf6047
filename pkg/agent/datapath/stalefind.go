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
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"mesh.io/clustermesh/pkg/agent/datapath/sockdiag"
)

// newFinder returns the best finder that the kernel lets us have.
func newFinder(set *mapSet, noIterator bool) finder {
	err := ebpf.ErrNotSupported
	if !noIterator {
		var it *iterator
		if it, err = newIterator(set); err == nil {
			return it
		}
	}
	f, diagErr := newDiagFinder(set, err)
	if diagErr != nil {
		return noFinder{errors.Join(err, diagErr)}
	}
	return f
}

// loadOver loads an object over our maps.
func loadOver(spec *ebpf.CollectionSpec, set *mapSet) (*ebpf.Collection, error) {
	for name, m := range spec.Maps {
		if ours := set.byName[name]; ours != nil {
			m.MaxEntries = ours.MaxEntries()
		}
	}
	return ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: set.byName})
}

// iterator shows the stale sockets of all network namespaces, by the program of
// bpf/stale.c: it costs what passes over the sockets that were ever connected by us.
type iterator struct {
	program *ebpf.Program
	link    *link.Iter
}

func newIterator(set *mapSet) (_ *iterator, err error) {
	spec, err := loadStale()
	if err != nil {
		return nil, err
	}
	objects, err := loadOver(spec, set)
	if err != nil {
		return nil, fmt.Errorf("loading the iterator: %w", err)
	}
	defer objects.Close()
	it := &iterator{program: objects.DetachProgram(staleProgStale)}
	it.link, err = link.AttachIter(link.IterOptions{Program: it.program, Map: set.byName[connectMapSockState]})
	if err != nil {
		return nil, errors.Join(err, it.program.Close())
	}
	return it, nil
}

func (it *iterator) name() string { return SweepIterator }

func (it *iterator) close() error { return errors.Join(it.link.Close(), it.program.Close()) }

func (it *iterator) find(*sockdiag.Namespaces) ([]staleSocket, error) {
	sockets, err := it.link.Open()
	if err != nil {
		return nil, err
	}
	defer sockets.Close()
	// Each read begins where the last one ended by counting, so there should be few.
	text := bytes.NewBuffer(make([]byte, 0, 64<<10))
	if _, err := text.ReadFrom(sockets); err != nil {
		return nil, fmt.Errorf("listing UDP sockets: %w", err)
	}
	size := int(unsafe.Sizeof(staleStaleSocket{}))
	found := make([]staleSocket, 0, text.Len()/size)
	for text.Len() > 0 {
		raw := text.Next(size)
		if len(raw) < size {
			return nil, fmt.Errorf("listing UDP sockets: %w", io.ErrUnexpectedEOF)
		}
		s := (*staleStaleSocket)(unsafe.Pointer(unsafe.SliceData(bytes.Clone(raw))))
		found = append(found, staleSocket{
			Socket: sockdiag.Socket{
				Netns:     sockdiag.Netns{Inum: s.NetnsInum, ID: s.NetnsId},
				Family:    uint8(s.Family),
				Local:     netip.AddrPortFrom(wordsAddr(s.LocalAddr), networkPort(s.LocalPort)),
				Peer:      netip.AddrPortFrom(wordsAddr(s.PeerAddr), networkPort(s.PeerPort)),
				Interface: s.Ifindex,
				Cookie:    s.Cookie,
			},
			frontend: keyFrontend(vipKey(s.Vip)),
		})
	}
	return found, nil
}

// diagFinder asks the kernel in each network namespace, one after the other, for all
// connected UDP sockets, and bpf/noted.c for what the programs have noted in each. It
// needs nothing that Linux 5.10 lacks, and costs a pass over all UDP sockets of the
// node for each namespace. It does not find sockets that are bound to an interface.
type diagFinder struct {
	noIterator error // why there is none

	program *ebpf.Program
	answer  *ebpf.Map
}

func newDiagFinder(set *mapSet, noIterator error) (*diagFinder, error) {
	spec, err := loadNoted()
	if err != nil {
		return nil, err
	}
	objects, err := loadOver(spec, set)
	if err != nil {
		return nil, fmt.Errorf("loading the program that asks sockets: %w", err)
	}
	defer objects.Close()
	return &diagFinder{noIterator, objects.DetachProgram(notedProgNoted), objects.DetachMap(notedMapAnswer)}, nil
}

func (f *diagFinder) name() string { return SweepDiag }

func (f *diagFinder) close() error { return errors.Join(f.program.Close(), f.answer.Close()) }

func (f *diagFinder) find(namespaces *sockdiag.Namespaces) (found []staleSocket, err error) {
	var errs []error
	for _, netns := range namespaces.All() {
		err := namespaces.In(netns, func(conn *sockdiag.Conn) error {
			sockets, err := conn.Connected()
			if err != nil {
				return err
			}
			for i := range sockets {
				entry, err := f.ask(&sockets[i])
				if err != nil {
					return err
				}
				// Whoever connected to something else since is not concerned.
				if entry.Slot != 0 && sockets[i].Peer == netip.AddrPortFrom(wordsAddr(entry.BackendAddr), networkPort(entry.BackendPort)) {
					found = append(found, staleSocket{sockets[i], keyFrontend(entry.Vip)})
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, sockdiag.ErrNoNetns) { // it may have gone
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return found, fmt.Errorf("in %d network namespaces: %w (there is no iterator: %w)", len(errs), errs[0], f.noIterator)
	}
	return found, nil
}

// ask returns what is noted in a socket of this thread's network namespace.
func (f *diagFinder) ask(s *sockdiag.Socket) (entry connectSockEntry, err error) {
	const ethernetHeader = 14
	question := notedNotedQuestion{
		PeerAddr:  addrWords(s.Peer.Addr()),
		LocalAddr: addrWords(s.Local.Addr()),
		PeerPort:  networkPort(s.Peer.Port()),
		LocalPort: networkPort(s.Local.Port()),
	}
	if s.Peer.Addr().Is4() {
		question.Ipv4 = 1
	}
	packet := make([]byte, ethernetHeader, ethernetHeader+unsafe.Sizeof(question))
	if packet, err = binary.Append(packet, binary.NativeEndian, &question); err != nil {
		return entry, err
	}
	if _, err := f.program.Run(&ebpf.RunOptions{Data: packet}); err != nil {
		return entry, fmt.Errorf("asking a socket: %w", err)
	}
	if err := f.answer.Lookup(uint32(0), &entry); err != nil {
		return entry, fmt.Errorf("asking a socket: %w", err)
	}
	return entry, nil
}

// noFinder is for a kernel that lets us find nothing.
type noFinder struct{ err error }

func (f noFinder) name() string                                     { return SweepNone }
func (f noFinder) close() error                                     { return nil }
func (f noFinder) find(*sockdiag.Namespaces) ([]staleSocket, error) { return nil, f.err }
