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
	"maps"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

var (
	// ErrLocked is returned by Open if another process has the data path open.
	ErrLocked = errors.New("another process writes this data path")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("the data path is closed")
)

// Datapath is this process's hold on the kernel's table. It is the only writer of
// the maps. Its methods may be called from several goroutines.
type Datapath struct {
	mu       sync.Mutex
	closed   bool
	dir      string   // of the pins of our schema
	lock     *os.File // in the state folder
	pins     *os.File // the pin folder, which is locked too
	set      *mapSet
	programs map[string]*ebpf.Program

	services map[desired.Frontend]*service
	clusters map[uint16]string

	// tail is what programs go on counting in maps that were replaced; nil if none do.
	tail *tail
	// retired is called with what a backend that goes has met, if it met anything.
	retired func(*BackendTraffic)

	indexes  *ids
	backends *ids
	ranges   *ranges
	grave    graveyard

	// reaper destroys UDP sockets that have lost their backend; nil if they are kept.
	reaper *reaper
	// stranded says that the update under way may have left some, whole that one of
	// the whole table was made; unheld are the frontends that are not as they should be.
	stranded, whole bool
	unheld          map[desired.Frontend]bool

	// What Keep has attached to, and what it could not put our programs before.
	kept    map[uint64]bool
	unmoved map[string]bool
}

// service is a service in the maps, and what is needed to change it.
type service struct {
	index uint32
	// now is what the maps hold. Its Backends are shared with the caller of Apply.
	now    desired.Service
	placed []placed // the entry of each backend of now
	span   extent   // the range that belongs to the service
	// damaged is set if the slots must be written anew.
	damaged bool
}

// Open loads the programs, takes over the pinned maps or makes them, and attaches to
// the cgroups, if any are given. What the maps hold goes on being served, as it is,
// until Apply.
func Open(cfg Config) (_ *Datapath, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	d := &Datapath{dir: filepath.Join(cfg.PinDir, schemaDir)}
	defer func() {
		if err != nil {
			_ = d.release()
		}
	}()
	if d.lock, err = lockState(cfg.StateDir); err != nil {
		return nil, err
	}
	// Asked first, as making a folder elsewhere would be refused in other words.
	if err := requireBPFFS(cfg.PinDir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(d.dir, linksDir), 0o700); err != nil {
		return nil, fmt.Errorf("making pin folder: %w", err)
	}
	// Two that have different state folders must not write the same maps either.
	if d.pins, err = os.Open(cfg.PinDir); err != nil {
		return nil, fmt.Errorf("opening pin folder: %w", err)
	}
	if err := flock(d.pins); err != nil {
		return nil, err
	}
	// Kernels before 5.11 count maps against this limit.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raising the limit of locked memory: %w", err)
	}
	objects, err := specs(&cfg)
	if err != nil {
		return nil, err
	}
	if err := refuseNewer(cfg.PinDir); err != nil {
		return nil, err
	}
	var made bool
	if d.set, made, d.tail, err = openOrMake(cfg.PinDir, objects); err != nil {
		return nil, err
	}
	if err := d.restore(); err != nil {
		return nil, fmt.Errorf("reading the pinned maps: %w", err)
	}
	if !made {
		// Lookups may still read what the last agent had retired.
		d.grave.wait()
	}
	if err := d.load(objects); err != nil {
		return nil, err
	}
	if len(cfg.Cgroups) > 0 {
		if err := d.attach(cfg.Cgroups); err != nil {
			return nil, err
		}
	}
	if !cfg.KeepStaleUDP {
		d.reaper = newReaper(d, &cfg)
	}
	return d, nil
}

// Sizes returns what the maps really hold: more than was asked for, if what was pinned
// needs more.
func (d *Datapath) Sizes() Sizes {
	return Sizes{
		Frontends: d.set.vip().MaxEntries(),
		Backends:  uint32(len(d.set.backends.items)) - 1,
		Slots:     uint32(len(d.set.slots.items)),
	}
}

// load loads the programs of the objects over our maps: all at once, as most of the time
// that a start takes is the kernel's, which checks each of them.
func (d *Datapath) load(objects []*ebpf.CollectionSpec) error {
	d.programs = map[string]*ebpf.Program{}
	var mu sync.Mutex // guards programs and failed
	var failed error
	var loading sync.WaitGroup
	for _, object := range objects {
		for name := range object.Programs {
			loading.Go(func() {
				program, err := loadProgram(object, name, d.set.byName)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					failed = errors.Join(failed, fmt.Errorf("loading program %s: %w", name, err))
					return
				}
				d.programs[name] = program
			})
		}
	}
	loading.Wait()
	return failed
}

// loadProgram loads one program of an object.
func loadProgram(object *ebpf.CollectionSpec, name string, pinned map[string]*ebpf.Map) (*ebpf.Program, error) {
	one := object.Copy()
	maps.DeleteFunc(one.Programs, func(other string, _ *ebpf.ProgramSpec) bool { return other != name })
	loaded, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{MapReplacements: pinned})
	if err != nil {
		return nil, err
	}
	defer loaded.Close()
	return loaded.DetachProgram(name), nil
}

// restore makes this process know what the maps hold.
func (d *Datapath) restore() error {
	names, err := readNames(d.set)
	if err != nil {
		return err
	}
	held, err := readNamedServices(d.set, names)
	if err != nil {
		return err
	}
	if d.clusters, err = readClusters(d.set); err != nil {
		return err
	}
	d.indexes = newIDs(uint32(len(d.set.service.items) - 1))
	d.backends = newIDs(uint32(len(d.set.backends.items) - 1))
	d.ranges = newRanges(uint32(len(d.set.slots.items)))
	d.grave = graveyard{wait: waitForLookups, release: d.reuse}
	d.services = make(map[desired.Frontend]*service, len(held))
	d.unheld = map[desired.Frontend]bool{}

	byIndex := map[uint32]bool{}
	usedBackends := map[uint32]bool{}
	var used []extent
	nextIndex := uint32(1)
	for _, h := range held {
		s := &service{index: h.index, now: h.service, placed: h.placed, damaged: h.damaged}
		for i, p := range s.placed {
			usedBackends[p.id] = true
			// An agent may have ended between the slots and the flag.
			d.set.backends.items[p.id].Picked = picked(&s.now.Backends[i])
			// As above; or the maps are of an agent that did not count.
			if d.set.traffic.items[p.id].Generation != p.generation {
				d.beginTraffic(p.id, p.generation)
			}
		}
		byIndex[h.index] = true
		nextIndex = max(nextIndex, h.index+1)
		d.services[h.service.Frontend] = s
		// Ranges of undamaged services cannot overlap: a slot names its service.
		if !s.damaged && h.descriptor.length() > 0 {
			s.span = extent{h.descriptor.base(), h.descriptor.length()}
			used = append(used, s.span)
		}
	}
	var nobody []uint32 // had a frontend once, or were about to
	for index := range names {
		if !byIndex[index] {
			nobody = append(nobody, index)
		}
	}
	reach("old names' end")
	if err := deleteAll(d.set.serviceName(), nobody); err != nil {
		return fmt.Errorf("removing the names of services that are gone: %w", err)
	}
	d.ranges.restore(used)
	d.indexes.restore(func(id uint32) bool { return byIndex[id] }, nextIndex)
	nextBackend := uint32(1)
	for id := range d.set.backends.items {
		entry := &d.set.backends.items[id]
		if entry.Generation != 0 {
			nextBackend = uint32(id) + 1
		}
		if (entry.Used != 0 || entry.Picked != 0) && !usedBackends[uint32(id)] {
			reach("free")
			entry.Used, entry.Picked = 0, 0 // of a service that was being added or removed
		}
		if entry.Generation != 0 && !usedBackends[uint32(id)] {
			d.endTraffic(uint32(id))
		}
	}
	d.backends.restore(func(id uint32) bool { return usedBackends[id] }, nextBackend)
	return nil
}

// Close lets go of the maps. Everything stays pinned and attached.
func (d *Datapath) Close() error {
	var err error
	if d.reaper != nil {
		err = d.reaper.close() // which may be waiting for the lock
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	return errors.Join(err, d.release())
}

func (d *Datapath) release() error {
	d.closed = true
	var errs []error
	for _, p := range d.programs {
		errs = append(errs, p.Close())
	}
	errs = append(errs, d.tail.end())
	if d.set != nil {
		errs = append(errs, d.set.close())
	}
	for _, f := range []*os.File{d.lock, d.pins} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// lockFile is held by the writer for as long as it lives.
const lockFile = "datapath.lock"

func lockState(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making state folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening lock: %w", err)
	}
	if err := flock(f); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// flock locks a file or folder until it is closed, or this process ends. It returns
// ErrLocked if another process has the lock.
func flock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return fmt.Errorf("%w: %q is locked", ErrLocked, f.Name())
	case err != nil:
		return fmt.Errorf("locking %q: %w", f.Name(), err)
	}
	return nil
}

// Heartbeat says that the agent lives and its sources are as they should be. Call
// it every few seconds, and never for Apply alone: an agent that hears of remote
// changes only does not keep local backends fresh. Once it is older than
// Config.StaleAfter, services with ready local backends are left to kube-proxy.
func (d *Datapath) Heartbeat() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	return d.heartbeat()
}

func (d *Datapath) heartbeat() error {
	now, err := monotonic()
	if err != nil {
		return err
	}
	atomic.StoreUint64(&d.set.meta.items[0].HeartbeatNs, now)
	return nil
}

// monotonic returns the time as bpf_ktime_get_ns() does.
func monotonic() (uint64, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("reading the clock: %w", err)
	}
	return uint64(now.Nano()), nil
}
