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
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/cilium/ebpf"
)

// Maps cannot grow or change their form. So where others are wanted, new ones are made
// beside them and filled with all that the old ones hold, under the same IDs and
// generations: what sockets remember stays true. Old programs go on with the old maps
// until Attach puts ours in their place, hook by hook, the reverse ones first. The state
// of sockets and clients is shared by both, so that each answers for what the other has
// translated.
// Nobody writes the old maps meanwhile: that is this process's lock.

// kept are the maps that stay when the others are replaced: what the programs know of
// sockets and clients, and who is left alone.
var kept = []string{connectMapOptout, connectMapOptoutLevels, connectMapSockState, connectMapSockSent, connectMapSentMore, connectMapAffinity}

// refuseNewer refuses to work beside an agent's maps of a later schema. Two programs
// would translate each connection, and nothing keeps the later one's maps fresh.
func refuseNewer(pinDir string) error {
	entries, err := os.ReadDir(pinDir)
	if err != nil {
		return fmt.Errorf("listing pins: %w", err)
	}
	for _, entry := range entries {
		number, ok := strings.CutPrefix(entry.Name(), "v")
		if n, err := strconv.ParseUint(number, 10, 32); ok && err == nil && n > schema {
			return fmt.Errorf("%w: %q is of a newer version; run cleanup of that version before going back to this one",
				ErrIncompatible, filepath.Join(pinDir, entry.Name()))
		}
	}
	return nil
}

// openOrMake opens the pinned maps; or it makes and pins them, from what an earlier
// agent left under another layout or with other sizes, if there is anything. It reports
// whether they were made, and what programs of then still count. The specs get the sizes
// of the maps.
func openOrMake(pinDir string, specs []*ebpf.CollectionSpec) (_ *mapSet, made bool, _ *tail, err error) {
	dir := filepath.Join(pinDir, schemaDir)
	pins := filepath.Join(dir, mapsDir)
	if err := recoverMaps(dir); err != nil {
		return nil, false, nil, fmt.Errorf("putting maps back in %q: %w", dir, err)
	}
	set, err := openLayout(pinDir, &current, specs[0])
	if err != nil {
		return nil, false, nil, err
	}
	from := set
	for i := range former {
		old, err := openLayout(pinDir, &former[i], specs[0])
		if err != nil {
			return nil, false, nil, errors.Join(err, closeSet(set))
		}
		if old == nil {
			continue
		}
		// Whoever was alive last knows best: an upgrade may have been taken back.
		if from == nil || old.heartbeat() > from.heartbeat() {
			old, from = from, old
		}
		if old != nil && old != set {
			if err := old.close(); err != nil {
				return nil, false, nil, errors.Join(err, from.close())
			}
		}
	}
	fits, err := fitSizes(specs, from)
	if err == nil && set != nil && from == set && fits {
		return set, false, nil, nil
	}
	if err == nil {
		err = makeMaps(dir, &current, specs[0], from)
	}
	old := takeTail(from)
	if from != set {
		err = errors.Join(err, closeSet(from))
	}
	if err = errors.Join(err, closeSet(set)); err != nil {
		return nil, false, nil, errors.Join(fmt.Errorf("making maps in %q: %w", dir, err), old.end())
	}
	set, err = openLayout(pinDir, &current, specs[0])
	if err == nil && set == nil {
		err = fmt.Errorf("%q is gone", pins)
	}
	if err != nil {
		return nil, false, nil, errors.Join(err, old.end())
	}
	old.begin(set)
	return set, true, old, nil
}

func closeSet(set *mapSet) error {
	if set == nil {
		return nil
	}
	return set.close()
}

// openLayout opens the pinned maps of a schema and checks that they are what they
// should be. It returns nil if there are none.
func openLayout(pinDir string, l *mapLayout, spec *ebpf.CollectionSpec) (*mapSet, error) {
	pins := filepath.Join(pinDir, l.dir, mapsDir)
	if _, err := os.Lstat(pins); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	set, err := openMaps(pins, l)
	if err != nil {
		return nil, err
	}
	var errs []error
	for name, m := range set.byName {
		want := spec.Maps[name].Copy()
		// Sizes may differ, and a later schema may count more.
		want.MaxEntries = m.MaxEntries()
		if err := want.Compatible(m); err != nil {
			errs = append(errs, fmt.Errorf("%w: %q: %w", ErrIncompatible, filepath.Join(pins, name), err))
		}
	}
	err = errors.Join(errs...)
	if err == nil && l == &current {
		err = addMaps(set, pins, spec)
	}
	if err == nil {
		err = errors.Join(set.mapArrays(true), checkMeta(set, pins, l))
	}
	if err != nil {
		return nil, errors.Join(err, set.close())
	}
	return set, nil
}

// addMaps makes the maps that an older agent of our schema did not have.
func addMaps(set *mapSet, pins string, spec *ebpf.CollectionSpec) error {
	for _, name := range added {
		if set.byName[name] != nil {
			continue
		}
		want := spec.Maps[name].Copy()
		if name == connectMapTraffic { // it goes by the same numbers
			want.MaxEntries = set.byName[connectMapBackends].MaxEntries()
		}
		m, err := ebpf.NewMap(want)
		if err != nil {
			return fmt.Errorf("map %q: %w", name, err)
		}
		set.byName[name] = m
		reach("added map pin")
		if err := m.Pin(filepath.Join(pins, name)); err != nil {
			return fmt.Errorf("map %q: %w", name, err)
		}
	}
	return nil
}

func (s *mapSet) heartbeat() uint64 { return atomic.LoadUint64(&s.meta.items[0].HeartbeatNs) }

// fitSizes makes the specs large enough for all that the maps hold, and reports whether
// the maps have these sizes.
func fitSizes(specs []*ebpf.CollectionSpec, from *mapSet) (fits bool, err error) {
	if from == nil {
		return false, nil
	}
	need := map[string]uint32{}
	// Where nothing is to shrink there is room.
	var services []*held
	if slices.ContainsFunc(sizedMaps, func(name string) bool {
		m := from.byName[name] // a former schema has fewer
		return m != nil && specs[0].Maps[name].MaxEntries < m.MaxEntries()
	}) {
		if services, err = readServices(from); err != nil {
			return false, fmt.Errorf("reading the pinned maps: %w", err)
		}
	}
	atLeast := func(name string, n uint32) { need[name] = max(need[name], n) }
	for _, s := range services {
		// One index is one frontend, so that many fit into the hashes.
		atLeast(connectMapVip, s.index)
		atLeast(connectMapServiceName, s.index)
		atLeast(connectMapService, s.index+1)
		if !s.damaged {
			atLeast(connectMapSlots, s.descriptor.base()+s.descriptor.length())
		}
		for _, p := range s.placed {
			atLeast(connectMapBackends, p.id+1)
			atLeast(connectMapTraffic, p.id+1)
		}
	}
	fits = true
	for _, name := range sizedMaps {
		size := max(specs[0].Maps[name].MaxEntries, need[name])
		for _, spec := range specs {
			spec.Maps[name].MaxEntries = size
		}
		if m := from.byName[name]; m != nil {
			fits = fits && m.MaxEntries() == size
		}
	}
	return fits, nil
}

// makeMaps pins all maps of a layout in the place of those that are pinned, or leaves
// those: they are made and filled in a folder that is then renamed.
func makeMaps(dir string, l *mapLayout, spec *ebpf.CollectionSpec, from *mapSet) error {
	fresh := filepath.Join(dir, newMapsDir)
	// What a crash left behind. Nothing else uses it.
	if err := removePins(fresh, l.maps); err != nil {
		return err
	}
	reach("maps folder")
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	for _, name := range l.maps {
		m, err := newMap(name, spec.Maps[name], from)
		if err != nil {
			return fmt.Errorf("map %q: %w", name, err)
		}
		reach("map pin")
		err = m.Pin(filepath.Join(fresh, name))
		if err == nil && name == connectMapMeta {
			err = m.Put(uint32(0), &metaEntry{Magic: metaMagic, Schema: l.schema})
		}
		_ = m.Close()
		if err != nil {
			return fmt.Errorf("map %q: %w", name, err)
		}
	}
	if from != nil {
		if err := fillMaps(fresh, l, from); err != nil {
			return fmt.Errorf("filling new maps: %w", err)
		}
	}
	return swapMaps(dir, l)
}

// newMap makes a map, or returns the one that is kept.
func newMap(name string, spec *ebpf.MapSpec, from *mapSet) (*ebpf.Map, error) {
	if from != nil {
		if m := from.byName[name]; m != nil && slices.Contains(kept, name) && spec.Compatible(m) == nil {
			return m.Clone()
		}
	}
	return ebpf.NewMap(spec)
}

// fillMaps copies all that the maps hold. Nothing writes them meanwhile, and nothing
// reads the new ones yet.
func fillMaps(pins string, l *mapLayout, from *mapSet) (err error) {
	to, err := openMaps(pins, l)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	if err := to.mapArrays(true); err != nil {
		return err
	}
	services, err := readServices(from)
	if err != nil {
		return err
	}
	reach("maps filling")
	copy(to.service.items, from.service.items)
	copy(to.slots.items, from.slots.items)
	copy(to.backends.items, from.backends.items)
	copy(to.traffic.items, from.traffic.items)
	keys, indexes := make([]vipKey, len(services)), make([]uint32, len(services))
	for i, s := range services {
		keys[i], indexes[i] = frontendKey(s.service.Frontend), s.index
	}
	if len(keys) > 0 {
		if err := putAll(to.vip(), keys, indexes, nil); err != nil {
			return err
		}
	}
	nameKeys, names, err := readHash[uint32, serviceName](from.serviceName())
	if err != nil {
		return err
	}
	clusterKeys, clusters, err := readHash[uint32, clusterName](from.clusterName())
	if err != nil {
		return err
	}
	to.meta.items[0].HeartbeatNs = from.heartbeat()
	return errors.Join(
		putAll(to.serviceName(), nameKeys, names, nil),
		putAll(to.clusterName(), clusterKeys, clusters, nil),
		copyCounters(to.counters(), from.counters()))
}

func copyCounters(to, from *ebpf.Map) error {
	for i := range min(to.MaxEntries(), from.MaxEntries()) {
		var perCPU []uint64
		if err := from.Lookup(i, &perCPU); err != nil {
			return fmt.Errorf("reading counter %d: %w", i, err)
		}
		if err := to.Put(i, perCPU); err != nil {
			return fmt.Errorf("writing counter %d: %w", i, err)
		}
	}
	return nil
}

// swapMaps puts the new maps' folder in the place of the old. recoverMaps ends what a
// crash leaves in the middle.
func swapMaps(dir string, l *mapLayout) error {
	pins, old := filepath.Join(dir, mapsDir), filepath.Join(dir, oldMapsDir)
	reach("old maps rename")
	if err := os.Rename(pins, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	reach("maps rename")
	if err := os.Rename(filepath.Join(dir, newMapsDir), pins); err != nil {
		return err
	}
	reach("old maps' end")
	return removePins(old, l.maps)
}

func recoverMaps(dir string) error {
	pins, old := filepath.Join(dir, mapsDir), filepath.Join(dir, oldMapsDir)
	if _, err := os.Lstat(old); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if _, err := os.Lstat(pins); errors.Is(err, fs.ErrNotExist) {
		return os.Rename(old, pins)
	}
	return removePins(old, current.maps)
}
