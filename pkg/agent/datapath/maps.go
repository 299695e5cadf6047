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
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The marks of our maps. The schema changes whenever an older agent or program
// would misread them; each schema has pins of its own.
const (
	metaMagic  = 0x6d657368 // "mesh"
	schema     = 1
	schemaDir  = "v1"
	mapsDir    = "maps"
	newMapsDir = "maps-new" // while they are made
	linksDir   = "links"
)

// What can be wrong with pins.
var (
	// ErrNotLoaded is returned by Read if nothing is pinned.
	ErrNotLoaded = errors.New("the data path is not loaded")
	// ErrIncompatible means that the pinned maps are of another schema or size. Traffic
	// goes on with what they hold; Cleanup gives way to new ones.
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
}

func (s *mapSet) vip() *ebpf.Map         { return s.byName[connectMapVip] }
func (s *mapSet) serviceName() *ebpf.Map { return s.byName[connectMapServiceName] }
func (s *mapSet) clusterName() *ebpf.Map { return s.byName[connectMapClusterName] }
func (s *mapSet) counters() *ebpf.Map    { return s.byName[connectMapCounters] }

func (s *mapSet) close() error {
	errs := []error{s.meta.unmap(), s.service.unmap(), s.slots.unmap(), s.backends.unmap()}
	for _, m := range s.byName {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// mapArrays maps the arrays into memory.
func (s *mapSet) mapArrays(writable bool) error {
	return errors.Join(
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

// specs returns the objects of bpf/, sized: reverse hooks first, so that no socket
// is translated whose peer name could not be restored.
func specs(cfg *Config) ([]*ebpf.CollectionSpec, error) {
	reverse, err := loadGetpeername()
	if err != nil {
		return nil, err
	}
	forward, err := loadConnect()
	if err != nil {
		return nil, err
	}
	stale := forward.Variables[connectVarStaleAfterNs]
	if err := stale.Set(uint64(cfg.StaleAfter.Nanoseconds())); err != nil {
		return nil, fmt.Errorf("setting %s: %w", connectVarStaleAfterNs, err)
	}
	all := []*ebpf.CollectionSpec{reverse, forward}
	for _, spec := range all {
		spec.Maps[connectMapVip].MaxEntries = cfg.Sizes.Frontends
		spec.Maps[connectMapServiceName].MaxEntries = cfg.Sizes.Frontends
		// Number 0 is never used.
		spec.Maps[connectMapService].MaxEntries = cfg.Sizes.Frontends + 1
		spec.Maps[connectMapBackends].MaxEntries = cfg.Sizes.Backends + 1
		spec.Maps[connectMapSlots].MaxEntries = cfg.Sizes.Slots
	}
	return all, nil
}

// sizedMaps are those whose size a person may choose.
var sizedMaps = []string{connectMapVip, connectMapServiceName, connectMapService, connectMapBackends, connectMapSlots}

// pinnedMaps are the names of the maps that are kept.
var pinnedMaps = []string{
	connectMapBackends,
	connectMapClusterName,
	connectMapCounters,
	connectMapMeta,
	connectMapOptout,
	connectMapOptoutLevels,
	connectMapService,
	connectMapServiceName,
	connectMapSlots,
	connectMapSockState,
	connectMapVip,
}

// addedMaps came after the schema: programs of before did not need them. They are made
// where they are not pinned.
var addedMaps = []string{connectMapOptout, connectMapOptoutLevels}

// openOrMake opens the pinned maps, or makes and pins them. It reports which. Maps
// that are pinned keep their sizes, and the specs follow: a flag that was changed must
// not stop what works.
func openOrMake(dir string, specs []*ebpf.CollectionSpec) (set *mapSet, made bool, err error) {
	spec := specs[0]
	pins := filepath.Join(dir, mapsDir)
	if _, err := os.Lstat(pins); errors.Is(err, fs.ErrNotExist) {
		if err := makeMaps(dir, spec); err != nil {
			return nil, false, fmt.Errorf("making maps in %q: %w", dir, err)
		}
		made = true
	} else if err != nil {
		return nil, false, err
	} else if err := addMaps(pins, spec); err != nil {
		return nil, false, err
	}
	set, err = openMaps(pins)
	if err != nil {
		return nil, false, err
	}
	for _, name := range sizedMaps {
		for _, spec := range specs {
			spec.Maps[name].MaxEntries = set.byName[name].MaxEntries()
		}
	}
	for name, m := range set.byName {
		if err := spec.Maps[name].Compatible(m); err != nil {
			_ = set.close()
			return nil, false, fmt.Errorf("%w: %q: %w", ErrIncompatible, filepath.Join(pins, name), err)
		}
	}
	if err := errors.Join(set.mapArrays(true), checkMeta(set, pins)); err != nil {
		_ = set.close()
		return nil, false, err
	}
	return set, made, nil
}

// makeMaps pins all maps, or none: they are made in a folder that is then renamed.
func makeMaps(dir string, spec *ebpf.CollectionSpec) error {
	fresh := filepath.Join(dir, newMapsDir)
	// What a crash left behind. Nothing else uses it.
	if err := removePins(fresh, pinnedMaps); err != nil {
		return err
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	for _, name := range pinnedMaps {
		m, err := ebpf.NewMap(spec.Maps[name])
		if err != nil {
			return fmt.Errorf("map %q: %w", name, err)
		}
		err = m.Pin(filepath.Join(fresh, name))
		if err == nil && name == connectMapMeta {
			err = m.Put(uint32(0), &metaEntry{Magic: metaMagic, Schema: schema})
		}
		_ = m.Close()
		if err != nil {
			return fmt.Errorf("map %q: %w", name, err)
		}
	}
	return os.Rename(fresh, filepath.Join(dir, mapsDir))
}

// addMaps makes those of addedMaps that are not there.
func addMaps(pins string, spec *ebpf.CollectionSpec) error {
	for _, name := range addedMaps {
		pin := filepath.Join(pins, name)
		if _, err := os.Lstat(pin); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		m, err := ebpf.NewMap(spec.Maps[name])
		if err == nil {
			err = errors.Join(m.Pin(pin), m.Close())
		}
		if err != nil {
			return fmt.Errorf("map %q: %w", name, err)
		}
	}
	return nil
}

// openMaps opens all maps for writing, as only those can be mapped into memory, even
// if that is for reading.
func openMaps(pins string) (*mapSet, error) {
	set := &mapSet{byName: map[string]*ebpf.Map{}}
	for _, name := range pinnedMaps {
		path := filepath.Join(pins, name)
		m, err := ebpf.LoadPinnedMap(path, nil)
		if err != nil {
			_ = set.close()
			return nil, fmt.Errorf("%w: opening map %q: %w", ErrForeign, path, err)
		}
		set.byName[name] = m
	}
	return set, nil
}

func checkMeta(set *mapSet, pins string) error {
	if len(set.meta.items) != 1 {
		return nil // not mapped; that error is the one to report
	}
	switch m := &set.meta.items[0]; {
	case m.Magic != metaMagic:
		return fmt.Errorf("%w: %q has magic %#x, not %#x", ErrForeign, pins, m.Magic, metaMagic)
	case m.Schema != schema:
		return fmt.Errorf("%w: %q has schema %d, not %d", ErrIncompatible, pins, m.Schema, schema)
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
