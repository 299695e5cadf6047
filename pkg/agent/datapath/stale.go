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
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"mesh.io/clustermesh/pkg/agent/datapath/sockdiag"
	"mesh.io/clustermesh/pkg/agent/desired"
)

// A UDP socket that was connected to a backend which is gone would send into the void
// for ever: nothing tells its application. So such sockets are destroyed, and the
// application connects again. (A datagram of a socket that is not connected is led
// anew each time; TCP finds out by itself, and must be left to drain.)
//
// This happens in the background, after backends of UDP services went and after the
// first Apply, for those that went with no agent there. What is looked for is every
// socket, in any network namespace, that
//
//   - is a connected UDP socket with its peer being what the programs have noted in it,
//   - by the way of a frontend that has no serving backend of this address now.
//
// That is what kube-proxy does to flows in conntrack. A backend that serves while it
// terminates, is drained, or is not preferred, keeps its sockets. A frontend that could
// not be programmed as it should be says nothing about its backends.

const (
	// secondLook is when sockets are looked for again after a change: those whose
	// lookup or connect() was under way when it was published.
	secondLook = gracePeriod
	// leastPause is the least time between two looks; in it, what changes waits for
	// the next one.
	leastPause = 50 * time.Millisecond
	// mostPause is the most, so that the next change is looked at within a second.
	mostPause = 500 * time.Millisecond
	// pauseShare bounds what looks cost to one of pauseShare parts of one CPU's time, as
	// long as mostPause lets it.
	pauseShare = 10
)

// StaleSweep is one look for UDP sockets that are connected to backends that are gone.
type StaleSweep struct {
	// By is how they were looked for: by SweepIterator or SweepDiag, or SweepNone.
	By string
	// Found is how many there were, Destroyed how many of them were destroyed, Failed
	// how many could not be. What is missing in the sum went by itself.
	Found, Destroyed, Failed int
	// Netns is in how many network namespaces they were.
	Netns int
	Took  time.Duration
	// Err is why sockets could not be looked for, or the first of the reasons why one
	// could not be destroyed.
	Err error
}

// The ways in which sockets are looked for.
const (
	// SweepIterator: a BPF iterator shows those of all namespaces at once.
	SweepIterator = "iterator"
	// SweepDiag: the kernel is asked in each namespace (no BTF, or Linux before 5.12).
	// Sockets that are bound to an interface are not found then.
	SweepDiag = "sock_diag"
	// SweepNone: the kernel lets us find none.
	SweepNone = "none"
)

// StaleSockets counts what was done about UDP sockets since Open.
type StaleSockets struct {
	Destroyed uint64
	// Failed counts each attempt, and a sweep that found nothing because it failed.
	Failed uint64
	Sweeps uint64
	// Last is how long the last sweep took.
	Last time.Duration
}

// StaleSockets says what was done about UDP sockets that were connected to backends
// that are gone.
func (d *Datapath) StaleSockets() StaleSockets {
	if d.reaper == nil {
		return StaleSockets{}
	}
	d.reaper.mu.Lock()
	defer d.reaper.mu.Unlock()
	return d.reaper.stats
}

// staleSocket is a socket that is connected to what the programs have noted in it.
type staleSocket struct {
	sockdiag.Socket
	frontend desired.Frontend
}

// finder finds sockets that may be stale; it need not know for sure.
type finder interface {
	find(*sockdiag.Namespaces) ([]staleSocket, error)
	name() string
	close() error
}

// reaper destroys stale sockets in the background.
type reaper struct {
	proc   string
	report func(StaleSweep)
	// open makes the finder, which takes some time.
	open func() finder
	// judge leaves those that are stale for sure.
	judge func([]staleSocket) []staleSocket

	wake chan struct{}
	stop context.CancelFunc
	done chan struct{}

	// Of the goroutine alone.
	finder finder
	missed map[uint64]bool // cookies that the kernel did not find at the last look

	mu    sync.Mutex
	stats StaleSockets
}

func newReaper(d *Datapath, cfg *Config) *reaper {
	ctx, cancel := context.WithCancel(context.Background())
	r := &reaper{
		proc:   cfg.Proc,
		report: cfg.OnStaleSweep,
		open:   func() finder { return newFinder(d.set, cfg.noIterator) },
		judge:  d.judgeStale,
		wake:   make(chan struct{}, 1),
		stop:   cancel,
		done:   make(chan struct{}),
	}
	go r.run(ctx)
	return r
}

// look makes the reaper look for sockets soon. It never blocks.
func (r *reaper) look() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// close ends the reaper, after the sweep that is under way.
func (r *reaper) close() error {
	r.stop()
	<-r.done
	if r.finder == nil {
		return nil
	}
	return r.finder.close()
}

func (r *reaper) run(ctx context.Context) {
	defer close(r.done)
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	var second time.Time // when the second look is due
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
			second = time.Now().Add(secondLook)
		case <-timer.C:
			if !time.Now().Before(second) {
				second = time.Time{}
			}
		}
		if r.finder == nil {
			r.finder = r.open()
		}
		start := time.Now()
		again := r.sweep(ctx)
		pause := min(max(leastPause, (pauseShare-1)*time.Since(start)), mostPause)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		switch {
		case again:
			timer.Reset(0)
		case !second.IsZero():
			timer.Reset(time.Until(second))
		default:
			timer.Stop()
		}
	}
}

// sweep looks for stale sockets and destroys them. It reports whether to look again:
// what comes and goes while sockets are listed can hide others.
func (r *reaper) sweep(ctx context.Context) (again bool) {
	start := time.Now()
	sweep := StaleSweep{By: r.finder.name()}
	namespaces, err := sockdiag.NewNamespaces(r.proc)
	if err == nil {
		var found []staleSocket
		found, err = r.finder.find(namespaces)
		found = r.judge(found)
		sweep.Found = len(found)
		again = r.destroy(ctx, namespaces, found, &sweep)
	}
	if err != nil {
		sweep.Err = err
	}
	sweep.Took = time.Since(start)

	r.mu.Lock()
	r.stats.Sweeps++
	r.stats.Destroyed += uint64(sweep.Destroyed)
	r.stats.Failed += uint64(sweep.Failed)
	if err != nil {
		r.stats.Failed++
	}
	r.stats.Last = sweep.Took
	r.mu.Unlock()
	if r.report != nil {
		r.report(sweep)
	}
	return again
}

func (r *reaper) destroy(ctx context.Context, namespaces *sockdiag.Namespaces, found []staleSocket, sweep *StaleSweep) (again bool) {
	byNetns := map[sockdiag.Netns][]staleSocket{}
	for _, s := range found {
		byNetns[s.Netns] = append(byNetns[s.Netns], s)
	}
	sweep.Netns = len(byNetns)
	fail := func(n int, err error) {
		sweep.Failed += n
		if sweep.Err == nil {
			sweep.Err = err
		}
	}
	missed := map[uint64]bool{}
	for netns, sockets := range byNetns {
		left := sockets
		err := namespaces.In(netns, func(conn *sockdiag.Conn) error {
			for len(left) > 0 && ctx.Err() == nil {
				var hidden []staleSocket
				for _, s := range left {
					switch err := conn.Destroy(&s.Socket); {
					case err == nil:
						sweep.Destroyed++
						again = true
					case errors.Is(err, sockdiag.ErrGone):
						hidden = append(hidden, s)
					default:
						fail(1, err)
					}
				}
				// Of several with the same addresses the kernel finds one after the other.
				if len(hidden) == len(left) {
					break
				}
				left = hidden
			}
			return nil
		})
		switch {
		case err != nil:
			fail(len(left), err)
		case ctx.Err() == nil:
			for _, s := range left {
				if r.missed[s.Cookie] {
					fail(1, errHidden)
					continue
				}
				missed[s.Cookie] = true // it has gone, or will be found again
				again = true
			}
		}
	}
	r.missed = missed
	return again
}

// errHidden is why a socket that is there cannot be destroyed: one that is to stay has
// the same addresses (SO_REUSEPORT) and comes first.
var errHidden = errors.New("the kernel does not find a socket by its addresses: it has no udp_diag, or another socket has the same ones")

// strand notes that sockets may have lost their backend by the update under way.
func (d *Datapath) strand(protocol desired.Protocol) {
	d.stranded = d.stranded || protocol == desired.UDP
}

// judgeStale returns those whose frontend has no serving backend at the address of
// their peer, and is programmed as it should be.
func (d *Datapath) judgeStale(sockets []staleSocket) (stale []staleSocket) {
	backends := map[desired.Frontend][]desired.Backend{}
	doubtful := map[desired.Frontend]bool{}
	for i := range sockets {
		backends[sockets[i].frontend] = nil
	}
	// The loop must not wait for more than this.
	d.mu.Lock()
	for frontend := range backends {
		if svc := d.services[frontend]; svc != nil {
			backends[frontend] = svc.now.Backends
		}
		doubtful[frontend] = d.unheld[frontend]
	}
	d.mu.Unlock()

	serving := map[desired.Frontend]map[netip.AddrPort]bool{}
	for frontend, list := range backends {
		serving[frontend] = map[netip.AddrPort]bool{}
		for i := range list {
			if list[i].State != desired.NotReady {
				serving[frontend][list[i].Addr] = true
			}
		}
	}
	for _, s := range sockets {
		if !serving[s.frontend][s.Peer] && !doubtful[s.frontend] {
			stale = append(stale, s)
		}
	}
	return stale
}

// noteUpdate ends an update of these frontends: it keeps which of them are not as they
// should be, and has sockets looked for that may have lost their backend.
func (d *Datapath) noteUpdate(changed []*desired.Service, removed []desired.Frontend, failed []*ServiceError) {
	before := len(d.unheld)
	for _, svc := range changed {
		delete(d.unheld, svc.Frontend)
	}
	for _, frontend := range removed {
		delete(d.unheld, frontend)
	}
	// Those of the others may have been spared.
	d.stranded = d.stranded || len(d.unheld) < before
	for _, failure := range failed {
		d.unheld[failure.Frontend] = true
	}
	if d.stranded && d.reaper != nil {
		d.reaper.look()
	}
	d.stranded = false
}
