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
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// DriftKind says in what way the kernel was not as this process had left it.
type DriftKind string

const (
	// CgroupNew: a cgroup is served that was not before.
	CgroupNew DriftKind = "cgroup_new"
	// CgroupGone: a cgroup that was served is no longer given, or does not exist.
	CgroupGone DriftKind = "cgroup_gone"
	// LinkSevered: a link was detached by force.
	LinkSevered DriftKind = "link_severed"
	// PinMissing: someone removed the pin of a link, and the link with it, or of a map.
	PinMissing DriftKind = "pin_missing"
	// ProgramReplaced: someone put another program in the place of ours.
	ProgramReplaced DriftKind = "program_replaced"
	// ForeignFirst: in a served cgroup, or above it, a program of someone else runs
	// before ours, and may turn a frontend's address into something that we don't know.
	ForeignFirst DriftKind = "foreign_first"
	// ForeignInside is the same in a cgroup inside a served one: such programs always
	// run before ours. They are reported and left alone.
	ForeignInside DriftKind = "foreign_inside"
)

// DriftKinds are all of them.
var DriftKinds = []DriftKind{CgroupNew, CgroupGone, LinkSevered, PinMissing, ProgramReplaced, ForeignFirst, ForeignInside}

// Drift is one thing that was not as this process had left it.
type Drift struct {
	Kind DriftKind
	// Where is the cgroup's path or ID, or the pin's path.
	Where string
	// What is the program's name, or the map's; empty where all are meant.
	What string
	// By names the foreign program, if there is one.
	By string
	// Repaired says whether it is as it should be again.
	Repaired bool
}

// Foreign says whether it is a program of someone else.
func (d Drift) Foreign() bool { return d.Kind == ForeignFirst || d.Kind == ForeignInside }

func (d Drift) String() string {
	text := strings.ReplaceAll(string(d.Kind), "_", " ")
	if d.What != "" {
		text += " " + d.What
	}
	text += " at " + d.Where
	if d.By != "" {
		text += " by " + d.By
	}
	return text
}

// Keep does what Attach does, and says what it found otherwise than this process had
// left it. Beyond Attach, it pins maps again whose pins are missing, and looks for
// programs that run before ours, which it moves behind them where the kernel lets it
// (6.17) and that helps. Nothing of that is an error; an error is what could not be
// attached. The first call after Open reports no cgroup as new.
func (d *Datapath) Keep(cgroups []string) ([]Drift, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, ErrClosed
	}
	// A bpffs that was emptied, or mounted anew, has no folders either.
	for _, dir := range []string{linksDir, mapsDir} {
		if err := os.MkdirAll(filepath.Join(d.dir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("making pin folder: %w", err)
		}
	}
	wanted := map[uint64]string{}
	for _, path := range cgroups {
		if id, err := cgroupID(path); err == nil { // attach reports the others
			wanted[id] = path
		}
	}
	drifts, err := d.severed(wanted)
	if err != nil {
		return nil, err
	}
	if err := d.attach(cgroups); err != nil {
		for i := range drifts {
			drifts[i].Repaired = false
		}
		return drifts, err
	}
	pins, err := d.keepMaps()
	drifts = append(drifts, pins...)
	order, orderErr := d.keepFirst(wanted)
	drifts = append(drifts, order...)
	d.kept = map[uint64]bool{}
	for id := range wanted {
		d.kept[id] = true
	}
	return drifts, errors.Join(err, orderErr)
}

// severed lists what attach will find to repair.
func (d *Datapath) severed(wanted map[uint64]string) ([]Drift, error) {
	links := filepath.Join(d.dir, linksDir)
	pins, err := os.ReadDir(links)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	pinned := map[string]bool{}
	gone := map[uint64]bool{}
	for _, pin := range pins {
		pinned[pin.Name()] = true
		if i, id := parsePinName(pin.Name()); i >= 0 && wanted[id] == "" {
			gone[id] = true
		}
	}
	var drifts []Drift
	for id := range gone {
		drifts = append(drifts, Drift{Kind: CgroupGone, Where: fmt.Sprintf("cgroup %d", id), Repaired: true})
	}
	for id, path := range wanted {
		if d.kept == nil {
			continue
		}
		if !d.kept[id] {
			drifts = append(drifts, Drift{Kind: CgroupNew, Where: path, Repaired: true})
			continue
		}
		for _, h := range hooks {
			drift := Drift{Where: path, What: h.name, Repaired: true}
			if !pinned[h.pinName(id)] {
				drift.Kind = PinMissing
			} else if drift.Kind = d.severedLink(h, id); drift.Kind == "" {
				continue
			}
			drifts = append(drifts, drift)
		}
	}
	return drifts, nil
}

// severedLink says what happened to a link that is pinned; "" for nothing. What cannot
// be told is attach's to report.
func (d *Datapath) severedLink(h hook, id uint64) DriftKind {
	l, err := link.LoadPinnedLink(filepath.Join(d.dir, linksDir, h.pinName(id)), nil)
	if err != nil {
		return ""
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil || info.Cgroup() == nil {
		return ""
	}
	if info.Cgroup().CgroupId == 0 {
		return LinkSevered
	}
	if ours, err := programID(d.programs[h.name]); err == nil && info.Program != ours {
		return ProgramReplaced
	}
	return ""
}

func programID(program *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := program.Info()
	if err != nil {
		return 0, err
	}
	id, ok := info.ID()
	if !ok {
		return 0, errors.New("the kernel does not tell the IDs of programs")
	}
	return id, nil
}

// keepMaps pins maps again whose pins are missing: this process holds them, but the
// next one would not find them.
func (d *Datapath) keepMaps() ([]Drift, error) {
	var drifts []Drift
	var errs []error
	for _, name := range pinnedMaps {
		pin := filepath.Join(d.dir, mapsDir, name)
		if _, err := os.Lstat(pin); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		drift := Drift{Kind: PinMissing, Where: pin, What: name, Repaired: true}
		// A map remembers where it was pinned, and would be moved from there.
		m, err := d.set.byName[name].Clone()
		if err == nil {
			err = errors.Join(m.Pin(pin), m.Close())
		}
		if err != nil {
			drift.Repaired = false
			errs = append(errs, fmt.Errorf("pinning map %q again: %w", name, err))
		}
		drifts = append(drifts, drift)
	}
	return drifts, errors.Join(errs...)
}

// forward says whether a hook's programs see what applications ask for. Of programs
// that see answers, the order does not matter: each changes only what it knows.
func (h hook) forward() bool {
	return strings.HasPrefix(h.name, "connect") || strings.HasPrefix(h.name, "sendmsg")
}

// keepFirst looks for programs that run before ours, and puts ours before them.
func (d *Datapath) keepFirst(wanted map[uint64]string) ([]Drift, error) {
	var drifts []Drift
	var errs []error
	unmoved := map[string]bool{}
	for id, path := range wanted {
		for _, h := range hooks {
			if !h.forward() {
				continue
			}
			ours, err := programID(d.programs[h.name])
			if err != nil {
				return nil, err
			}
			before, err := runBefore(path, h, ours)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if len(before) == 0 {
				continue
			}
			drift := Drift{Kind: ForeignFirst, Where: path, What: h.name, By: programNames(before)}
			key := fmt.Sprintf("%s %d %v", h.name, id, before)
			// What did not help once is not done again: it is not quite without a trace.
			if !d.unmoved[key] {
				if err := d.moveFirst(path, h, id); err == nil {
					before, err = runBefore(path, h, ours)
					drift.Repaired = err == nil && len(before) == 0
				}
			}
			if !drift.Repaired {
				unmoved[key] = true
			}
			drifts = append(drifts, drift)
		}
		drifts = append(drifts, foreignInside(path)...)
	}
	d.unmoved = unmoved
	return drifts, errors.Join(errs...)
}

// runBefore returns the programs that run before ours for processes of the cgroup.
func runBefore(cgroup string, h hook, ours ebpf.ProgramID) ([]ebpf.ProgramID, error) {
	programs, err := queryPrograms(cgroup, h, unix.BPF_F_QUERY_EFFECTIVE)
	if err != nil {
		return nil, fmt.Errorf("asking which programs of %s run in cgroup %q: %w", h.name, cgroup, err)
	}
	i := slices.Index(programs, ours)
	if i < 0 {
		return nil, fmt.Errorf("%s is attached to cgroup %q, and yet the kernel does not run it", h.name, cgroup)
	}
	return programs[:i], nil
}

func queryPrograms(cgroup string, h hook, flags uint32) ([]ebpf.ProgramID, error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	result, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: h.attach, QueryFlags: flags})
	if err != nil {
		return nil, err
	}
	var ids []ebpf.ProgramID
	for _, program := range result.Programs {
		ids = append(ids, program.ID)
	}
	return ids, nil
}

// moveFirst puts a new link of ours before all that is attached to the cgroup, in the
// place of the old one. For an instant both run, never none; a connection of that
// instant is balanced, and its getpeername() shows the backend.
func (d *Datapath) moveFirst(cgroup string, h hook, id uint64) error {
	pin := filepath.Join(d.dir, linksDir, h.pinName(id))
	old, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return err
	}
	defer old.Close()
	dir, err := os.Open(cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	first, err := link.AttachRawLink(link.RawLinkOptions{
		Target: int(dir.Fd()), Attach: h.attach, Program: d.programs[h.name], Flags: unix.BPF_F_BEFORE,
	})
	if err != nil {
		return err // an older kernel
	}
	defer first.Close() // the pin keeps it
	if err := os.Remove(pin); err != nil {
		return err
	}
	if err := first.Pin(pin); err != nil {
		return errors.Join(err, old.Pin(pin))
	}
	// Once it is closed it is detached anyway, some time later.
	_ = old.Detach()
	return nil
}

// foreignInside lists programs in the cgroups inside a served one. They come and go
// with pods, so what cannot be read is passed over.
func foreignInside(served string) []Drift {
	var drifts []Drift
	_ = filepath.WalkDir(served, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return fs.SkipDir
		case !entry.IsDir() || path == served:
			return nil
		}
		for _, h := range hooks {
			if !h.forward() {
				continue
			}
			if programs, err := queryPrograms(path, h, 0); err == nil && len(programs) > 0 {
				drifts = append(drifts, Drift{Kind: ForeignInside, Where: path, What: h.name, By: programNames(programs)})
			}
		}
		return nil
	})
	return drifts
}

// programNames names programs for people. Names may be read with CAP_SYS_ADMIN only.
func programNames(ids []ebpf.ProgramID) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = fmt.Sprintf("program %d", id)
		program, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue
		}
		if info, err := program.Info(); err == nil && info.Name != "" {
			names[i] += " (" + info.Name + ")"
		}
		_ = program.Close()
	}
	return strings.Join(names, ", ")
}
