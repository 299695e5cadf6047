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
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// world is what some services should have: the slots of each member, by service. A
// service that is not in it has no frontend.
type world map[int]map[int]uint32

// table returns the world as a table. Those whose number is a multiple of 4 have a port
// with the given name, and a cluster is named for it.
func (w world) table(port string) desired.Table {
	table := tableOf()
	for s, members := range w {
		svc := boardService(s, members)
		if s%4 == 0 {
			svc.Port.Port = port
			for i := range svc.Backends {
				svc.Backends[i].State = desired.State(len(port) % 4)
			}
		}
		svc.LocalReady = s%4 == 1 && port == "new"
		table.Services[svc.Frontend] = svc
	}
	if port != "" {
		table.Clusters[uint16(len(port))] = port
	}
	return table
}

// slots is how many slots all services have together.
func (w world) slots() (n uint32) {
	for _, members := range w {
		for _, slots := range members {
			n += slots
		}
	}
	return n
}

// writerOrder is what a writer in a process of its own is told to do.
type writerOrder struct {
	Config Config
	After  world
	Port   string
	// Step is the number of the step before which it dies, from 1; 0 for never.
	Step int64
}

const envWriter = "MESH_TEST_WRITER"

// envKillAll makes TestKilledAtEveryStep kill writers at every step of the way back,
// too; without it at every fourth.
const envKillAll = "MESH_KILL_ALL"

// TestWriterThatIsKilled is the writer of TestKilledAtEveryStep, which runs it. By
// itself it does nothing.
func TestWriterThatIsKilled(t *testing.T) {
	order := writerOrder{}
	if os.Getenv(envWriter) == "" {
		return
	}
	must(t, json.Unmarshal([]byte(os.Getenv(envWriter)), &order))
	var steps atomic.Int64
	fault = func(next string) {
		if next != "grace" && steps.Add(1) == order.Step {
			fmt.Printf("dies before %q\n", next)
			if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
				panic(err)
			}
			select {}
		}
	}
	d, err := Open(order.Config)
	must(t, err)
	must(t, d.Heartbeat())
	report, err := d.Apply(context.Background(), order.After.table(order.Port))
	must(t, err)
	if len(report.Failed) > 0 {
		t.Fatal(report.Failed)
	}
}

// runWriter runs the writer, and says before what it died; "" if it has lived.
func runWriter(t *testing.T, order writerOrder) string {
	t.Helper()
	text, err := json.Marshal(order)
	must(t, err)
	writer := exec.Command("/proc/self/exe", "-test.run=^TestWriterThatIsKilled$")
	// The child must not set up the namespaces again: it shares ours.
	writer.Env = append(os.Environ(), envInside+"=1", envWriter+"="+string(text))
	out, err := writer.CombinedOutput()
	if err == nil {
		return ""
	}
	_, step, died := strings.Cut(string(out), "dies before ")
	if status, ok := writer.ProcessState.Sys().(syscall.WaitStatus); !ok || !died || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the writer did not kill itself: %v\n%s", err, out)
	}
	return strings.TrimSpace(step)
}

// A writer is killed before each of the steps of some changes. Whatever it leaves, no
// connect fails or gets a backend that was removed, before the next writer takes over,
// while it does, and after; and the next one makes the maps hold exactly what they
// should, with nothing lost. Now and then the next one is killed, too.
func TestKilledAtEveryStep(t *testing.T) {
	const services, pool = 16, 12
	old := world{
		0: {0: 1, 1: 1, 2: 1}, 1: {0: 1, 1: 1}, 2: {0: 1, 1: 1}, 3: {0: 1}, 5: {0: 1, 1: 1}, 6: {}, 7: {0: 1, 1: 1},
		8: {0: 1, 1: 1}, 9: {0: 1, 1: 1}, 10: {0: 1, 1: 1, 2: 0}, 11: {0: 1, 1: 1, 2: 1, 3: 1}, 12: {0: 1},
	}
	changed := world{
		0:  {1: 1, 2: 1, 3: 1},                                           // one goes, one comes
		1:  {2: 1, 3: 1},                                                 // all are replaced
		2:  {0: 1, 1: 3},                                                 // shares change
		4:  {0: 1, 1: 1},                                                 // a frontend comes; 3 goes
		5:  {},                                                           // nobody is left
		6:  {0: 1},                                                       // the first comes
		7:  {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1}, // it outgrows its range
		8:  {0: 1, 1: 1},                                                 // a name and states change
		9:  {0: 1, 1: 1},                                                 // nothing, but the flag
		10: {0: 0, 1: 0, 2: 1},                                           // another tier takes over
		11: {3: 1},                                                       // it shrinks
		12: {0: 0},                                                       // it is drained
		13: {5: 1},
	}
	room := Sizes{Frontends: 64, Backends: 256, Slots: 1024}
	tests := map[string]struct {
		sizes      Sizes
		old, after world
		prepare    func(t *testing.T, n *node, d *Datapath)
		mayMiss    bool // the programs are not attached all the time
		// resized are the sizes that the way there asks for: maps are replaced by others.
		resized Sizes
	}{
		"changes": {sizes: room, old: old, after: changed},
		// Little fits before something else has rested; a backend is to spare.
		"full maps": {
			sizes: Sizes{Frontends: 3, Backends: 8, Slots: 9},
			old:   world{0: {0: 1, 1: 1, 2: 1}, 1: {0: 1, 1: 1}, 2: {0: 1, 1: 1}},
			after: world{0: {3: 1, 4: 1}, 1: {1: 1, 2: 2}, 3: {0: 1, 1: 1, 2: 1}},
		},
		"maps of other sizes": {
			sizes: room, old: old, after: world{0: {1: 1, 2: 1, 3: 1}, 1: {0: 1, 1: 1}, 6: {0: 1}, 12: {0: 1}},
			resized: Sizes{Frontends: 70, Backends: 300, Slots: 2000},
		},
		"nothing is attached yet": {
			sizes: room, old: world{0: {0: 1}, 1: {0: 1}}, after: world{0: {0: 1}, 1: {0: 1}}, mayMiss: true,
			prepare: func(t *testing.T, n *node, _ *Datapath) {
				must(t, detach(filepath.Join(n.PinDir, schemaDir, linksDir), func(uint64) bool { return true }))
			},
		},
		"the cgroup was made anew": {
			sizes: room, old: world{0: {0: 1}, 1: {0: 1}}, after: world{0: {0: 1}, 1: {0: 1}}, mayMiss: true,
			prepare: func(t *testing.T, n *node, _ *Datapath) {
				moveTo(t, os.Getenv(envCgroup))
				must(t, os.Remove(n.cgroup))
				must(t, os.Mkdir(n.cgroup, 0o755))
				moveTo(t, n.cgroup)
			},
		},
		"a cgroup is let go": {
			sizes: room, old: world{0: {0: 1}, 1: {0: 1}}, after: world{0: {0: 1}, 1: {0: 1}},
			prepare: func(t *testing.T, n *node, d *Datapath) {
				other := n.cgroup + "-other"
				must(t, os.MkdirAll(other, 0o755))
				t.Cleanup(func() { _ = os.Remove(other) })
				must(t, d.Attach([]string{n.cgroup, other}))
			},
		},
	}
	all := os.Getenv(envKillAll) != ""
	for name, test := range tests {
		sound := t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.Sizes = test.sizes
			b := newBoard(t, filepath.Join(t.TempDir(), "board"), services, pool)
			config := func(port string) Config {
				config := n.Config
				if port == "new" && test.resized != (Sizes{}) {
					config.Sizes = test.resized
				}
				return config
			}
			write := func(w world, port string, prepare func(*testing.T, *node, *Datapath)) {
				t.Helper()
				d, err := Open(config(port))
				must(t, err)
				defer d.Close()
				must(t, d.Heartbeat())
				for s := range services {
					b.announce(s, w[s])
				}
				table := w.table(port)
				report, err := d.Apply(context.Background(), table)
				if err != nil || len(report.Failed) > 0 {
					t.Fatalf("Apply: %v, %v", err, report.Failed)
				}
				for s := range services {
					b.finish(s)
				}
				if diff := cmp.Diff(table.Services, content(t, read(t, n)), compareAddrs, compareAddrPorts); diff != "" {
					t.Errorf("maps (-want +got):\n%s", diff)
				}
				audit(t, n, d)
				if prepare != nil {
					prepare(t, n, d)
				}
			}
			write(test.old, "", test.prepare)
			dial := n.dialAndAskTheSocket(t)
			sound := func(random *rand.Rand, s int) error {
				if !test.mayMiss {
					return b.connect(random, s, dial)
				}
				to := boardFrontend(s)
				began := b.began(s)
				peer, err := dial(unix.AF_INET6, netip.AddrPortFrom(to.Addr, to.Port))
				if err == nil && peer.Addr() != to.Addr {
					err = b.judge(s, began, peer)
				}
				return err
			}
			sample := func(when string) {
				t.Helper()
				random := rand.New(rand.NewPCG(1, 1))
				for s := range services {
					for range 12 {
						if err := sound(random, s); err != nil {
							t.Errorf("%s: %v", when, err)
						}
					}
				}
			}

			var now atomic.Value
			now.Store("at first")
			stop := make(chan struct{})
			var dialer sync.WaitGroup
			dialer.Go(func() {
				random := rand.New(rand.NewPCG(2, 2))
				for wrong := 0; wrong < 5 && !test.mayMiss; {
					select {
					case <-stop:
						return
					default:
					}
					if err := sound(random, random.IntN(services)); err != nil {
						wrong++
						t.Errorf("%s: %v", now.Load(), err)
					}
					time.Sleep(50 * time.Microsecond) // the writers need the processor, too
				}
			})
			defer dialer.Wait()
			defer close(stop)

			random := rand.New(rand.NewPCG(3, 3))
			steps := map[string]int{}
			// turn lets a writer die on the way from what is to what is wanted, and the next
			// one get there. It reports whether the writer has died.
			turn := func(step int64, want world, port string, had world, before string) bool {
				for s := range services {
					b.announce(s, want[s])
				}
				order := writerOrder{config(port), want, port, step}
				died := runWriter(t, order)
				when := fmt.Sprintf("killed before step %d to %q, %s", step, port, died)
				now.Store(when)
				if died != "" {
					sample(when)
					steps[died]++
				}
				if died != "" && random.IntN(5) == 0 {
					order.Step = 1 + random.Int64N(step)
					died := runWriter(t, order)
					when += fmt.Sprintf(", and the next one before its step %d, %s", order.Step, died)
					now.Store(when)
					sample(when)
				}
				if random.IntN(3) == 0 {
					// What was wanted may be different by now.
					write(had, before, nil)
					sample(when + ", and taken back")
				}
				write(want, port, test.prepare)
				sample(when + ", and taken over")
				if t.Failed() {
					t.Fatal(when)
				}
				return died != ""
			}
			step, stride := int64(1), int64(1)
			if test.resized != (Sizes{}) && !all {
				stride = 4 // other maps take long to make
				step += rand.Int64N(stride)
			}
			for there, back := true, true; there || back; step += stride {
				if there {
					there = turn(step, test.after, "new", test.old, "")
				} else {
					write(test.after, "new", test.prepare)
				}
				if back && (all || step/stride%4 == 0) {
					back = turn(step, test.old, "", test.after, "new")
				} else {
					write(test.old, "", test.prepare)
				}
			}
			t.Logf("%d steps, %d connects: %v", step-1, b.common(cellConnects).Load(), steps)
			if step < 4 {
				t.Errorf("the writer has only %d steps", step-1)
			}
			if test.resized != (Sizes{}) && steps[`"map pin"`] == 0 {
				t.Error("no maps were replaced")
			}
		})
		if !sound {
			break
		}
	}
}

// A writer is killed before each step of an upgrade from a former schema, which replaces
// maps and programs. (Of the steps, every third in a usual run.)
func TestKilledAtEveryStepOfAnUpgrade(t *testing.T) {
	const services, pool = 2, 4
	n := newNode(t)
	before, after := world{0: {0: 1, 1: 1}, 1: {0: 1, 1: 1}}, world{0: {0: 1, 1: 1}, 1: {1: 1, 2: 1}}
	stride := int64(3)
	if os.Getenv(envKillAll) != "" {
		stride = 1
	}
	steps := map[string]int{}
	for step := 1 + rand.Int64N(stride); ; step += stride {
		b := newBoard(t, filepath.Join(t.TempDir(), "board"), services, pool)
		old := openSchema1(t, n)
		for s := range services {
			b.announce(s, before[s])
		}
		var all []desired.Service
		for _, svc := range before.table("").Services {
			all = append(all, svc)
		}
		applySchema1(t, old, all...)
		for s := range services {
			b.finish(s)
		}
		dial := dialAndAskTheSocket(t, filepath.Join(old.dir, mapsDir))
		must(t, old.Close())

		random := rand.New(rand.NewPCG(uint64(step), 5))
		sample := func(when string) {
			t.Helper()
			for range 40 {
				if err := b.connect(random, random.IntN(services), dial); err != nil {
					t.Errorf("killed before step %d, %s: %v", step, when, err)
				}
			}
		}
		for s := range services {
			b.announce(s, after[s])
		}
		died := runWriter(t, writerOrder{n.Config, after, "new", step})
		steps[died]++
		sample(died)
		d, err := Open(n.Config)
		if err != nil {
			t.Fatalf("killed before step %d, %s: %v", step, died, err)
		}
		sample(died + ", and opened again")
		report, err := d.Apply(context.Background(), after.table("new"))
		if err != nil || len(report.Failed) > 0 {
			t.Fatalf("Apply: %v, %v", err, report.Failed)
		}
		for s := range services {
			b.finish(s)
		}
		sample(died + ", and taken over")
		if diff := cmp.Diff(after.table("new").Services, content(t, read(t, n)), compareAddrs, compareAddrPorts); diff != "" {
			t.Errorf("killed before step %d, %s: maps (-want +got):\n%s", step, died, diff)
		}
		audit(t, n, d)
		expectGone(t, filepath.Join(n.PinDir, former[0].dir))
		must(t, d.Close())
		must(t, Cleanup(n.PinDir))
		if t.Failed() {
			t.Fatalf("killed before step %d, %s", step, died)
		}
		if died == "" {
			break
		}
	}
	t.Logf("killed before: %v", steps)
	if steps[`"map pin"`] == 0 || steps[`"link move"`]+steps[`"link update"`]+steps[`"link attach"`] == 0 {
		t.Error("nothing was replaced")
	}
}

// A writer is killed before each step of its very first start on a node.
func TestKilledAtEveryStepOfTheFirstStart(t *testing.T) {
	n := newNode(t)
	after := world{0: {0: 1, 1: 1}, 1: {0: 2, 1: 1}}
	for step := int64(1); ; step++ {
		died := runWriter(t, writerOrder{n.Config, after, "new", step})
		for s := range 2 {
			to := boardFrontend(s)
			if _, err := dial(unix.AF_INET6, netip.AddrPortFrom(to.Addr, to.Port)); err != nil {
				t.Errorf("killed before step %d, %s: %v", step, died, err)
			}
		}
		if _, err := Read(n.PinDir); err != nil && !errors.Is(err, ErrNotLoaded) {
			t.Errorf("killed before step %d, %s: %v", step, died, err)
		}
		d, err := Open(n.Config)
		if err != nil {
			t.Fatalf("killed before step %d, %s: %v", step, died, err)
		}
		report, err := d.Apply(context.Background(), after.table("new"))
		if err != nil || len(report.Failed) > 0 {
			t.Fatalf("Apply: %v, %v", err, report.Failed)
		}
		if diff := cmp.Diff(after.table("new").Services, content(t, read(t, n)), compareAddrs, compareAddrPorts); diff != "" {
			t.Errorf("killed before step %d, %s: maps (-want +got):\n%s", step, died, diff)
		}
		audit(t, n, d)
		must(t, d.Close())
		if died == "" {
			t.Logf("%d steps", step-1)
			break
		}
		must(t, Cleanup(n.PinDir))
		if t.Failed() {
			t.Fatalf("killed before step %d, %s", step, died)
		}
	}
}
