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

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// hook is one place in the kernel where a program of ours runs.
type hook struct {
	name   string // of the program, and of the pin
	attach ebpf.AttachType
}

// hooks in the order of attaching and updating: a socket must not be translated by
// a program whose counterpart cannot answer for it yet, nor connect to a backend
// without being counted. Detaching goes backwards.
var hooks = []hook{
	{"recvmsg6", ebpf.AttachCGroupUDP6Recvmsg},
	{"recvmsg4", ebpf.AttachCGroupUDP4Recvmsg},
	{"getpeername6", ebpf.AttachCgroupInet6GetPeername},
	{"getpeername4", ebpf.AttachCgroupInet4GetPeername},
	{"sock_ops", ebpf.AttachCGroupSockOps},
	{"sendmsg6", ebpf.AttachCGroupUDP6Sendmsg},
	{"sendmsg4", ebpf.AttachCGroupUDP4Sendmsg},
	{"connect6", ebpf.AttachCGroupInet6Connect},
	{"connect4", ebpf.AttachCGroupInet4Connect},
}

// pinName names a link. A cgroup is known by its ID: names on a bpffs must not have
// dots, and paths differ between one mount of the cgroup file system and another.
func (h hook) pinName(cgroupID uint64) string {
	return h.name + "-" + strconv.FormatUint(cgroupID, 10)
}

// parsePinName returns the hook of a link's pin, or -1 if the name is not ours.
func parsePinName(name string) (index int, cgroupID uint64) {
	prefix, number, _ := strings.Cut(name, "-")
	id, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return -1, 0
	}
	return slices.IndexFunc(hooks, func(h hook) bool { return h.name == prefix }), id
}

// cgroupID returns the ID of a cgroup (v2): the inode number of its folder.
func cgroupID(path string) (uint64, error) {
	var stat unix.Stat_t
	var mount unix.Statfs_t
	if err := unix.Stat(path, &stat); err != nil {
		return 0, fmt.Errorf("looking at cgroup %q: %w", path, err)
	}
	if err := unix.Statfs(path, &mount); err != nil {
		return 0, fmt.Errorf("looking at cgroup %q: %w", path, err)
	}
	if mount.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, fmt.Errorf("%q is not a cgroup of version 2", path)
	}
	return stat.Ino, nil
}

// Attach makes the given cgroups, and no others, the ones whose processes are served,
// with those of the cgroups inside them: it attaches what is missing, puts this
// process's programs in place of older ones without a gap, repairs links that were
// severed, and detaches the rest. Calling it again is cheap; call it when a cgroup may
// have come or gone. Cgroups that do not exist are passed over, as no process can be
// in them. None may be inside another.
func (d *Datapath) Attach(cgroups []string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	return d.attach(cgroups)
}

func (d *Datapath) attach(cgroups []string) error {
	if err := refuseNested(cgroups); err != nil {
		return err
	}
	var errs []error
	wanted := map[uint64]string{}
	for _, path := range cgroups {
		id, err := cgroupID(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			errs = append(errs, err)
		default:
			wanted[id] = path
		}
	}
	if len(wanted) == 0 && len(errs) == 0 {
		return fmt.Errorf("none of the cgroups %q exists", cgroups)
	}
	links := filepath.Join(d.dir, linksDir)
	for _, h := range hooks {
		for id, path := range wanted {
			err := d.attachLink(path, id, h)
			if err != nil {
				errs = append(errs, fmt.Errorf("attaching %s to cgroup %q: %w", h.name, path, err))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err // on doubt nothing is detached
	}
	err := errors.Join(
		detach(links, func(id uint64) bool { return wanted[id] == "" }),
		removeFormer(filepath.Dir(d.dir)))
	d.catchUp()
	return err
}

// refuseNested refuses cgroups of which one is inside another. Both programs would
// run, and the second, finding a backend's address, would make the socket forget.
func refuseNested(cgroups []string) error {
	var errs []error
	for _, inner := range cgroups {
		for _, outer := range cgroups {
			rel, err := filepath.Rel(outer, inner)
			if err == nil && rel != "." && filepath.IsLocal(rel) {
				errs = append(errs, fmt.Errorf("cgroup %q is inside %q: attach to one of them", inner, outer))
			}
		}
	}
	return errors.Join(errs...)
}

// attachLink makes sure that the pin is a living link of our program to the cgroup. A
// link that an agent of a former schema left gets the program and becomes ours.
func (d *Datapath) attachLink(cgroup string, id uint64, h hook) error {
	program := d.programs[h.name]
	pin := filepath.Join(d.dir, linksDir, h.pinName(id))
	l, err := updateLink(pin, h, id, program)
	if l != nil || err != nil {
		return errors.Join(err, closeLink(l))
	}
	for i := range former {
		old := filepath.Join(filepath.Dir(d.dir), former[i].dir, linksDir, h.pinName(id))
		l, err := updateLink(old, h, id, program)
		if err != nil {
			return err
		}
		if l != nil {
			reach("link move")
			return errors.Join(l.Pin(pin), closeLink(l)) // moves it
		}
	}
	reach("link attach")
	l, err = link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: h.attach, Program: program})
	if err != nil {
		return err
	}
	reach("link pin")
	return errors.Join(l.Pin(pin), closeLink(l)) // the pin keeps it
}

func closeLink(l link.Link) error {
	if l == nil {
		return nil
	}
	return l.Close()
}

// updateLink puts the program into a pinned link, if there is one that lives. The
// caller closes it.
func updateLink(pin string, h hook, id uint64, program *ebpf.Program) (_ link.Link, err error) {
	l, err := link.LoadPinnedLink(pin, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%w: opening link %q: %w", ErrForeign, pin, err)
	}
	if err := checkLink(l, pin, h, id); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	reach("link update")
	err = l.Update(program)
	if err == nil {
		return l, nil
	}
	defer l.Close()
	// The cgroup was removed, or someone detached the link by force.
	if !errors.Is(err, unix.ENOLINK) {
		return nil, fmt.Errorf("%w: updating link %q: %w", ErrForeign, pin, err)
	}
	reach("link unpin")
	if err := l.Unpin(); err != nil {
		return nil, fmt.Errorf("unpinning severed link %q: %w", pin, err)
	}
	return nil, nil
}

// checkLink refuses a link that is not what its pin says: the kernel would put the
// program in its place all the same.
func checkLink(l link.Link, pin string, h hook, id uint64) error {
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("%w: reading link %q: %w", ErrForeign, pin, err)
	}
	cgroup := info.Cgroup()
	if cgroup == nil || ebpf.AttachType(cgroup.AttachType) != h.attach {
		return fmt.Errorf("%w: link %q is not of %s", ErrForeign, pin, h.name)
	}
	// 0 is a link that was severed.
	if cgroup.CgroupId != id && cgroup.CgroupId != 0 {
		return fmt.Errorf("%w: link %q is of cgroup %d", ErrForeign, pin, cgroup.CgroupId)
	}
	return nil
}

// detach removes the links of those cgroups that the function picks. Pins that are
// not ours are left alone.
func detach(links string, from func(cgroupID uint64) bool) error {
	pins, err := os.ReadDir(links)
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	var errs []error
	for i := len(hooks) - 1; i >= 0; i-- {
		for _, pin := range pins {
			if index, id := parsePinName(pin.Name()); index == i && from(id) {
				errs = append(errs, removeLink(filepath.Join(links, pin.Name())))
			}
		}
	}
	return errors.Join(errs...)
}

// removeLink detaches before it removes the pin: the kernel would detach what is no
// longer pinned some time later.
func removeLink(pin string) error {
	if l, err := link.LoadPinnedLink(pin, nil); err == nil {
		reach("link detach")
		_ = l.Detach() // severed already, if that fails
		_ = l.Close()
	}
	reach("link pin's end")
	return os.Remove(pin)
}

// removeFormer removes what is left of former schemas, once our programs are in the
// place of theirs.
func removeFormer(pinDir string) error {
	var errs []error
	for i := range former {
		if _, err := os.Lstat(filepath.Join(pinDir, former[i].dir)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, removeLayout(pinDir, &former[i]))
		}
	}
	return errors.Join(errs...)
}

// removeLayout detaches the programs of a schema and removes its pins.
func removeLayout(pinDir string, l *mapLayout) error {
	dir := filepath.Join(pinDir, l.dir)
	links := filepath.Join(dir, linksDir)
	var errs []error
	if err := detach(links, func(uint64) bool { return true }); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	errs = append(errs, removePins(links, nil))
	for _, maps := range []string{newMapsDir, oldMapsDir, mapsDir} {
		errs = append(errs, removePins(filepath.Join(dir, maps), l.maps))
	}
	return errors.Join(append(errs, removePins(dir, nil))...)
}

// Cleanup detaches the programs and removes the maps and pins of this schema and of
// former ones, and whatever of the folder is empty then. It returns ErrLocked while a
// process has the data path open: that would go on with maps that nothing reads.
func Cleanup(pinDir string) error {
	pins, err := os.Open(pinDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("opening pin folder: %w", err)
	default:
		defer pins.Close()
		if err := flock(pins); err != nil {
			return err
		}
	}
	errs := []error{removeFormer(pinDir), removeLayout(pinDir, &current)}
	// A newer schema may still live beside it.
	if err := removePins(pinDir, nil); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
