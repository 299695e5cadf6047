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
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// picker runs the choice of a backend alone, over the maps of a data path.
type picker struct {
	program *ebpf.Program
	picks   *ebpf.Map
}

func newPicker(t testing.TB, d *Datapath) *picker {
	t.Helper()
	spec, err := loadPick()
	must(t, err)
	spec.Maps[pickMapPicks].MaxEntries = d.set.byName[connectMapBackends].MaxEntries()
	for name, ours := range d.set.byName {
		if m := spec.Maps[name]; m != nil {
			m.MaxEntries = ours.MaxEntries()
		}
	}
	objects, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: d.set.byName})
	must(t, err)
	t.Cleanup(objects.Close)
	return &picker{objects.Programs["pick"], objects.Maps[pickMapPicks]}
}

// run picks for a service, that many times, and counts by backend ID; 0 is none.
func (p *picker) run(t testing.TB, index uint32, times uint32) map[uint32]int {
	t.Helper()
	counts := make([]uint64, p.picks.MaxEntries())
	ids := make([]uint32, len(counts))
	for i := range ids {
		ids[i] = uint32(i)
	}
	_, err := p.picks.BatchUpdate(ids, counts, nil)
	must(t, err)
	_, err = p.program.Run(p.options(index, times))
	must(t, err)
	var cursor ebpf.MapBatchCursor
	_, err = p.picks.BatchLookup(&cursor, ids, counts, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // which says that the map ends
		t.Fatal(err)
	}
	got := map[uint32]int{}
	for i, id := range ids {
		if counts[i] > 0 {
			got[id] = int(counts[i])
		}
	}
	return got
}

func (p *picker) options(index, times uint32) *ebpf.RunOptions {
	// Nobody looks at the packet itself.
	return &ebpf.RunOptions{Data: make([]byte, 64), Context: markedPacket{Mark: index}, Repeat: times}
}

// markedPacket is the beginning of the kernel's struct __sk_buff.
type markedPacket struct {
	Len, PktType, Mark uint32
}

// Two million picks for each shape of a service: a share that is off by a per mille is
// noticed, and so is a slot that is never reached.
func TestPickKeepsToShares(t *testing.T) {
	const times = 2_000_000
	n := newNode(t)
	n.Sizes = DefaultSizes
	d := n.open(t)
	p := newPicker(t, d)
	with := func(shares ...uint32) (backends []desired.Backend) {
		backends = manyBackends(0, len(shares))
		for i, share := range shares {
			backends[i].Slots = share
		}
		return backends
	}
	many := make([]uint32, 1000)
	for i := range many {
		many[i] = uint32(1 + i%3)
	}
	for name, backends := range map[string][]desired.Backend{
		"one":                       with(1),
		"two":                       with(1, 1),
		"seven":                     with(1, 1, 1, 1, 1, 1, 1),
		"uneven":                    with(1, 2, 3, 10),
		"one in a hundred":          with(99, 1),
		"drained":                   with(5, 0, 5),
		"a thousand, 1 to 3 shares": with(many...),
	} {
		t.Run(name, func(t *testing.T) {
			// Beside others, whose slots are before and behind.
			mustApply(t, d, serviceAt("10.96.0.1:80/TCP", with(1, 1, 1)...), serviceAt("10.96.0.2:80/TCP", backends...),
				serviceAt("10.96.0.3:80/TCP", with(1, 1, 1)...))
			svc := d.services[vip("10.96.0.2:80/TCP")]
			shares, total := map[netip.AddrPort]float64{}, 0.0
			for _, b := range backends {
				total += float64(b.Slots)
			}
			for _, b := range backends {
				if b.Slots > 0 {
					shares[b.Addr] = float64(b.Slots) / total
				}
			}
			got := map[netip.AddrPort]int{}
			for id, picks := range p.run(t, svc.index, times) {
				if id == 0 {
					t.Fatalf("%d of %d picks led nowhere", picks, times)
				}
				got[d.set.backends.items[id].addrPort()] = picks
			}
			for addr, picks := range got {
				if shares[addr] == 0 {
					t.Errorf("%s has no share, and was picked %d times", addr, picks)
				}
			}
			if chi2, freedom := statistic(shares, got, times); freedom > 0 && chi2 > chiSquare(freedom, 1e-6) {
				t.Errorf("χ² is %.1f with %d degrees of freedom, over %.1f", chi2, freedom, chiSquare(freedom, 1e-6))
			}
		})
	}
}

// A slot that does not lead to a backend of the service is picked as often as any
// other, and not followed.
func TestPickRefusesOneWrongSlot(t *testing.T) {
	const times = 1_000_000
	d := newNode(t).open(t)
	p := newPicker(t, d)
	svc := serviceAt("10.96.0.1:80/TCP", manyBackends(0, 10)...)
	mustApply(t, d, svc)
	s := d.services[svc.Frontend]
	wrong := s.placed[3]
	d.set.slots.items[s.span.base+3] = uint64(newSlot(wrong.id, s.index, wrong.generation+1))
	got := p.run(t, s.index, times)
	if len(got) != 10 || got[wrong.id] != 0 {
		t.Errorf("picked %v, want nine backends, not %d, and nothing a tenth of the time", got, wrong.id)
	}
	if nothing := float64(got[0]) / times; nothing < 0.09 || nothing > 0.11 {
		t.Errorf("%.4f of the picks led nowhere, want a tenth", nothing)
	}
}

// The choice alone, without the frontend's lookup and the socket's state.
func BenchmarkPick(b *testing.B) {
	const times = 1000
	d := benchNode(b).open(b)
	p := newPicker(b, d)
	mustApply(b, d, benchServices(1, 4)...)
	index := d.services[vip("10.96.0.0:80/TCP")].index
	for b.Loop() {
		if _, err := p.program.Run(p.options(index, times)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/times, "ns/pick")
}
