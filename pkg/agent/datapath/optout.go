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
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// OptOut makes processes in the given cgroups, and in those inside them, be left alone,
// and no others: what they connect to is not changed, from the next connection on. What
// they have connected goes on as it was. Cgroups that do not exist are passed over.
// It outlives this process.
func (d *Datapath) OptOut(cgroups []string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	wanted := map[uint64]bool{}
	levels := uint64(0)
	for _, path := range cgroups {
		id, err := cgroupID(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		bits, err := cgroupLevels(path)
		if err != nil {
			return err
		}
		wanted[id], levels = true, levels|bits
	}
	held, err := readOptOut(d.set)
	if err != nil {
		return err
	}
	m := d.set.byName[connectMapOptout]
	var errs []error
	for id := range wanted {
		if !held[id] {
			if err := m.Put(id, uint32(1)); err != nil {
				errs = append(errs, fmt.Errorf("leaving cgroup %d alone: %w", id, err))
			}
		}
	}
	// Programs look for what is there only; it is not told before it is.
	if err := d.set.byName[connectMapOptoutLevels].Put(uint32(0), levels); err != nil {
		errs = append(errs, fmt.Errorf("saying how deep cgroups are to be looked for: %w", err))
	}
	for id := range held {
		if !wanted[id] {
			if err := m.Delete(id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, fmt.Errorf("no longer leaving cgroup %d alone: %w", id, err))
			}
		}
	}
	return errors.Join(errs...)
}

// readOptOut returns the IDs of the cgroups that are left alone.
func readOptOut(set *mapSet) (map[uint64]bool, error) {
	ids := map[uint64]bool{}
	var id uint64
	var value uint32
	entries := set.byName[connectMapOptout].Iterate()
	for entries.Next(&id, &value) {
		ids[id] = true
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("reading which cgroups are left alone: %w", err)
	}
	return ids, nil
}

// rootInode is that of the root of the whole tree of cgroups.
const rootInode = 1

// optoutLevels is OPTOUT_LEVELS of bpf/lib/maps.h.
const optoutLevels = 16

// cgroupLevels returns the level that a cgroup is on, as a bit. Where the root of the
// tree is not to be seen from here, as in a part of it that was given to a container,
// it returns all bits that there may be: searching them all costs some nanoseconds
// each.
func cgroupLevels(path string) (uint64, error) {
	level := 0
	for dir := filepath.Clean(path); ; dir = filepath.Dir(dir) {
		var stat unix.Stat_t
		var mount unix.Statfs_t
		if err := errors.Join(unix.Stat(dir, &stat), unix.Statfs(dir, &mount)); err != nil {
			return 0, fmt.Errorf("looking at cgroup %q: %w", dir, err)
		}
		if mount.Type != unix.CGROUP2_SUPER_MAGIC {
			// The step before was the last one inside, and not the root.
			return (1<<optoutLevels - 1) &^ (1<<level - 1), nil
		}
		if stat.Ino == rootInode {
			if level >= optoutLevels {
				return 0, fmt.Errorf("cgroup %q is %d levels below the root, and %d are looked at", path, level, optoutLevels-1)
			}
			return 1 << level, nil
		}
		level++
	}
}
