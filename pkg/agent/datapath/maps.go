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
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The marks of our maps. The schema changes whenever an older agent or program
// would misread them; each schema has pins of its own.
const (
	metaMagic  = 0x6d657368 // "mesh"
	schema     = 2
	schemaDir  = "v2"
	mapsDir    = "maps"
	newMapsDir = "maps-new" // while they are made
	oldMapsDir = "maps-old" // while the new ones take their place
	linksDir   = "links"
)

// mapLayout is a schema: where its pins are, and of which maps.
type mapLayout struct {
	schema uint32
	dir    string
	maps   []string
}

var current = mapLayout{schema, schemaDir, pinnedMaps}

// former are the layouts that this version takes over from. What their maps hold has
// the same form as in ours; a field that they do not know is 0 in them.
var former = []mapLayout{{
	schema: 1, // without session affinity and datagrams of sockets that are not connected
	dir:    "v1",
	maps: []string{
		connectMapBackends,
		connectMapClusterName,
		connectMapCounters,
		connectMapMeta,
		connectMapService,
		connectMapServiceName,
		connectMapSlots,
		connectMapSockState,
		connectMapVip,
	},
}}

// added are the maps of our schema that came after others of it. Pins that an older
// agent made lack them, and get them.
var added = []string{connectMapTraffic}

// What can be wrong with pins.
var (
	// ErrNotLoaded is returned by Read if nothing is pinned.
	ErrNotLoaded = errors.New("the data path is not loaded")
	// ErrIncompatible means that the pinned maps are of a schema that is not known here.
	// Traffic goes on with what they hold; Cleanup, of the version that made them, gives
	// way to new ones.
	ErrIncompatible = errors.New("pinned maps do not fit")
	// ErrForeign means that a pin is not what its name says.
	ErrForeign = errors.New("pin is not ours")
)

// mapSet holds the pinned maps, with the arrays mapped into memory.
type mapSet struct {
	byName map[string]*ebpf.Map

	meta     array[metaEntry]
	service  array[serviceEntry]
	slots    array[uint64]
	backends array[backendEntry]
	traffic  array[trafficEntry] // empty in maps of an agent that did not count
}

func (s *mapSet) vip() *ebpf.Map         { return s.byName[connectMapVip] }
func (s *mapSet) serviceName() *ebpf.Map { return s.byName[connectMapServiceName] }
func (s *mapSet) clusterName() *ebpf.Map { return s.byName[connectMapClusterName] }
func (s *mapSet) counters() *ebpf.Map    { return s.byName[connectMapCounters] }

func (s *mapSet) close() error {
	errs := []error{s.meta.unmap(), s.service.unmap(), s.slots.unmap(), s.backends.unmap(), s.traffic.unmap()}
	for _, m := range s.byName {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// mapArrays maps the arrays into memory.
func (s *mapSet) mapArrays(writable bool) error {
	var traffic error
	if m := s.byName[connectMapTraffic]; m != nil {
		traffic = s.traffic.mmap(m, writable)
	}
	return errors.Join(
		traffic,
		s.meta.mmap(s.byName[connectMapMeta], writable),
		s.service.mmap(s.byName[connectMapService], writable),
		s.slots.mmap(s.byName[connectMapSlots], writable),
		s.backends.mmap(s.byName[connectMapBackends], writable),
	)
}

// array is a BPF array in this process's memory.
type array[T any] struct {
	memory []byte
	items  []T
}

func (a *array[T]) mmap(m *ebpf.Map, writable bool) error {
	var item T
	if size := unsafe.Sizeof(item); size != uintptr(m.ValueSize()) || size%8 != 0 {
		return fmt.Errorf("%w: entries of %s have %d bytes, not %d", ErrIncompatible, m, m.ValueSize(), size)
	}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	page := os.Getpagesize()
	length := (int(m.ValueSize())*int(m.MaxEntries()) + page - 1) / page * page
	memory, err := unix.Mmap(m.FD(), 0, length, prot, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mapping %s into memory: %w", m, err)
	}
	a.memory = memory
	a.items = unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(memory))), m.MaxEntries())
	return nil
}

func (a *array[T]) unmap() error {
	memory := a.memory
	a.memory, a.items = nil, nil
	if memory == nil {
		return nil
	}
	return unix.Munmap(memory)
}

// specs returns the objects of bpf/, sized.
func specs(cfg *Config) ([]*ebpf.CollectionSpec, error) {
	var all []*ebpf.CollectionSpec
	for _, load := range []func() (*ebpf.CollectionSpec, error){loadRecvmsg, loadGetpeername, loadSockops, loadSendmsg, loadConnect} {
		spec, err := load()
		if err != nil {
			return nil, err
		}
		// Only the programs that look frontends up have it.
		if stale := spec.Variables[connectVarStaleAfterNs]; stale != nil {
			if err := stale.Set(uint64(cfg.StaleAfter.Nanoseconds())); err != nil {
				return nil, fmt.Errorf("setting %s: %w", connectVarStaleAfterNs, err)
			}
		}
		all = append(all, spec)
	}
	for _, spec := range all {
		spec.Maps[connectMapVip].MaxEntries = cfg.Sizes.Frontends
		spec.Maps[connectMapServiceName].MaxEntries = cfg.Sizes.Frontends
		// Number 0 is never used.
		spec.Maps[connectMapService].MaxEntries = cfg.Sizes.Frontends + 1
		spec.Maps[connectMapBackends].MaxEntries = cfg.Sizes.Backends + 1
		spec.Maps[connectMapTraffic].MaxEntries = cfg.Sizes.Backends + 1
		spec.Maps[connectMapSlots].MaxEntries = cfg.Sizes.Slots
	}
	return all, nil
}

// sizedMaps are those whose size a person may choose.
var sizedMaps = []string{connectMapVip, connectMapServiceName, connectMapService, connectMapBackends, connectMapTraffic, connectMapSlots}

// pinnedMaps are the names of the maps that are kept.
var pinnedMaps = []string{
	connectMapAffinity,
	connectMapBackends,
	connectMapClusterName,
	connectMapCounters,
	connectMapMeta,
	connectMapOptout,
	connectMapOptoutLevels,
	connectMapSentMore,
	connectMapService,
	connectMapServiceName,
	connectMapSlots,
	connectMapSockSent,
	connectMapSockState,
	connectMapTraffic,
	connectMapVip,
}

// openMaps opens all maps of a layout for writing, as only those can be mapped into
// memory, even if that is for reading. Of those that were added, there may be none.
func openMaps(pins string, l *mapLayout) (*mapSet, error) {
	set := &mapSet{byName: map[string]*ebpf.Map{}}
	for _, name := range l.maps {
		path := filepath.Join(pins, name)
		m, err := ebpf.LoadPinnedMap(path, nil)
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(added, name) {
			continue
		}
		if err != nil {
			_ = set.close()
			return nil, fmt.Errorf("%w: opening map %q: %w", ErrForeign, path, err)
		}
		set.byName[name] = m
	}
	return set, nil
}

func checkMeta(set *mapSet, pins string, l *mapLayout) error {
	if len(set.meta.items) != 1 {
		return nil // not mapped; that error is the one to report
	}
	switch m := &set.meta.items[0]; {
	case m.Magic != metaMagic:
		return fmt.Errorf("%w: %q has magic %#x, not %#x", ErrForeign, pins, m.Magic, metaMagic)
	case m.Schema != l.schema:
		return fmt.Errorf("%w: %q has schema %d, not %d", ErrIncompatible, pins, m.Schema, l.schema)
	}
	return nil
}

// requireBPFFS says clearly what pinning would answer with EINVAL, or making the
// folder with EPERM. The folder need not exist yet.
func requireBPFFS(dir string) error {
	var stat unix.Statfs_t
	err := unix.Statfs(dir, &stat)
	for ; errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir); err = unix.Statfs(dir, &stat) {
		dir = filepath.Dir(dir)
	}
	if err != nil {
		return fmt.Errorf("looking at %q: %w", dir, err)
	}
	if stat.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%q is not on a bpf file system; mount one (mount -t bpf bpf /sys/fs/bpf)", dir)
	}
	return nil
}

// removePins removes the named pins and their folder. A folder that holds anything
// else stays, and is an error.
func removePins(dir string, names []string) error {
	var errs []error
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
