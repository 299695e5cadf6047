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
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// retired is what no new lookup can find, but a running one may still read.
type retired struct {
	services []uint32
	backends []uint32
	ranges   []extent
}

func (r *retired) empty() bool {
	return len(r.services) == 0 && len(r.backends) == 0 && len(r.ranges) == 0
}

// graveyard keeps what was retired until every lookup that could see it has ended.
// It waits in the background, so that publishing never does.
type graveyard struct {
	wait    func() // returns when every running lookup has ended
	release func(retired)

	filling retired       // since the wait began
	waiting retired       // what the wait is for
	done    chan struct{} // closed when it is over; nil when there is none
}

// collect releases what has rested, and begins a wait for the rest. It never blocks.
func (g *graveyard) collect() {
	if g.done != nil {
		select {
		case <-g.done:
			g.finish()
		default:
			return
		}
	}
	if !g.filling.empty() {
		g.waiting, g.filling = g.filling, retired{}
		done := make(chan struct{})
		g.done = done
		go func() {
			g.wait()
			close(done)
		}()
	}
}

// drain releases everything, and waits as long as that takes.
func (g *graveyard) drain() {
	for g.collect(); g.done != nil; g.collect() {
		<-g.done
	}
}

// empty reports whether there is nothing that could be released.
func (g *graveyard) empty() bool { return g.filling.empty() && g.waiting.empty() }

func (g *graveyard) finish() {
	g.release(g.waiting)
	g.waiting, g.done = retired{}, nil
}

// gracePeriod is how long a lookup could last where the kernel cannot tell. The
// programs run for microseconds and never sleep.
const gracePeriod = time.Second

// waitForLookups returns when every program that runs now has ended.
// MEMBARRIER_CMD_GLOBAL is synchronize_rcu(), except on one CPU, where it returns
// at once, and with nohz_full, where it is refused.
func waitForLookups() {
	reach("grace")
	const cmdGlobal = 1
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, cmdGlobal, 0, 0)
	if errno != 0 || runtime.NumCPU() == 1 {
		time.Sleep(gracePeriod)
	}
}
