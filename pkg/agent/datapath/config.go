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
	"path/filepath"
	"time"
)

// Sizes are the capacities of the maps. Their memory is taken when they are made.
type Sizes struct {
	// Frontends is the number of addresses: one for each port of each virtual IP.
	Frontends uint32
	// Backends is the number of endpoints, counted once for each frontend.
	Backends uint32
	// Slots is the number of shares of all services together. A service needs the
	// sum of its backends' Slots, rounded up by at most a quarter.
	Slots uint32
}

// DefaultSizes are enough for 50,000 frontends and 100,000 backends.
var DefaultSizes = Sizes{Frontends: 50_000, Backends: 100_000, Slots: 1 << 20}

// The number of elements of the maps for sockets with many peers, and for clients of
// services with session affinity.
const (
	sentMore = 16384
	clients  = 16384
)

// Memory returns roughly how many bytes of the kernel's memory the maps take, all
// but the names, which take about 250 bytes for each frontend in use, and what is in
// sockets.
func (s Sizes) Memory() uint64 {
	const (
		hashElement = 48 + 24 + 8 // element, key, value
		hashBucket  = 16
		service     = 32
		backend     = 32 + 64 // with its counters
		slot        = 8
		lruElement  = 56
		sent        = lruElement + 32 + 32 + hashBucket
		client      = lruElement + 16 + 16 + hashBucket
	)
	buckets := uint64(1)
	for buckets < uint64(s.Frontends) {
		buckets *= 2
	}
	return sentMore*sent + clients*client + uint64(s.Frontends)*(hashElement+service) + 2*buckets*hashBucket +
		uint64(s.Backends)*backend + uint64(s.Slots)*slot
}

// DefaultPinDir is the pin folder of a node that has one data path.
const DefaultPinDir = "/sys/fs/bpf/clustermesh"

// DefaultStaleAfter is how old a heartbeat may be before services with ready local
// backends are handed back to kube-proxy.
const DefaultStaleAfter = 5 * time.Minute

// Config says where the data path lives and how large it is.
type Config struct {
	// PinDir is a folder on a bpffs, made if absent, that belongs to this node's
	// data path alone: usually DefaultPinDir. Each schema has a folder in it.
	PinDir string
	// StateDir is a folder on a disk or tmpfs, made if absent. It holds the lock.
	StateDir string
	// Cgroups are the paths of the cgroups (v2) whose processes are served. If any are
	// given, at least one must exist, and all that do must let us attach. Attach can
	// be called later, too.
	Cgroups []string
	// Sizes default, each where it is 0, to DefaultSizes. Where pinned maps have others,
	// their content moves to new maps; nothing is lost, so they may stay larger.
	Sizes Sizes
	// StaleAfter defaults to DefaultStaleAfter.
	StaleAfter time.Duration
	// KeepStaleUDP leaves UDP sockets alone that are connected to backends which are
	// gone; else they are destroyed. In other network namespaces than this process's
	// that takes CAP_SYS_ADMIN, and, before Linux 6.18, CAP_SYS_PTRACE.
	KeepStaleUDP bool
	// Proc is a procfs that shows all processes of the node, to find their network
	// namespaces; /proc by default.
	Proc string
	// OnStaleSweep is called, from another goroutine, after each look for such sockets;
	// nil for no call.
	OnStaleSweep func(StaleSweep) `json:"-"`

	noIterator bool // as where the kernel has none; for tests
}

// withDefaults returns the config that is used, or everything that is wrong with it.
func (c Config) withDefaults() (Config, error) {
	for _, d := range []struct{ value, fallback *uint32 }{
		{&c.Sizes.Frontends, &DefaultSizes.Frontends},
		{&c.Sizes.Backends, &DefaultSizes.Backends},
		{&c.Sizes.Slots, &DefaultSizes.Slots},
	} {
		if *d.value == 0 {
			*d.value = *d.fallback
		}
	}
	if c.StaleAfter == 0 {
		c.StaleAfter = DefaultStaleAfter
	}
	if c.Proc == "" {
		c.Proc = "/proc"
	}

	var errs []error
	if !filepath.IsAbs(c.PinDir) {
		errs = append(errs, fmt.Errorf("pin folder %q is not an absolute path", c.PinDir))
	}
	if !filepath.IsAbs(c.StateDir) {
		errs = append(errs, fmt.Errorf("state folder %q is not an absolute path", c.StateDir))
	}
	if c.StaleAfter < 0 {
		errs = append(errs, fmt.Errorf("stale time %s is negative", c.StaleAfter))
	}
	for _, l := range []struct {
		what  string
		value uint32
		bits  int
	}{
		{"frontends", c.Sizes.Frontends, slotServiceBits},
		{"backends", c.Sizes.Backends, slotBackendBits},
		{"slots", c.Sizes.Slots, descriptorBaseBits},
	} {
		// Number 0 is never used, so the largest is the size itself.
		if l.value >= 1<<l.bits {
			errs = append(errs, fmt.Errorf("%d %s are more than %d", l.value, l.what, 1<<l.bits-1))
		}
	}
	return c, errors.Join(errs...)
}
