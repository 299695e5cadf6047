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
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// envBreakages makes TestBrokenOrdersAreNoticed build and run every breakage, which
// takes minutes: hack/break-update-order.sh. Without it, it proves that each still fits
// the source.
const envBreakages = "MESH_TEST_BREAKAGES"

// sourceEdit replaces a piece of a source file that occurs once: of this package, or
// below bpf/.
type sourceEdit struct{ file, from, to string }

// breakage is a change of the sources that breaks the order of updates, and the tests
// that must not pass with it. Production code has no switch for it: the sources are
// changed for the compilers alone (go build -overlay).
type breakage struct {
	name    string
	edits   []sourceEdit
	noticed []string
	// killAll is set where only one of the steps that a usual run leaves out tells.
	killAll bool
	// harmless is set for a change that these tests must pass with.
	harmless bool
}

// dawdle makes lookups take ten microseconds more between two of their reads.
var dawdle = []sourceEdit{
	{"bpf/lib/lookup.h", "/*\n * Picks slot number rand*length", `static __always_inline void dawdle(void)
{
	for (int i = 0; i < 400; i++)
		bpf_ktime_get_ns();
}

/*
 * Picks slot number rand*length`},
	{"bpf/lib/lookup.h", "__u64 *slot = bpf_map_lookup_elem(&slots, &at);", "__u64 *slot = (dawdle(), bpf_map_lookup_elem(&slots, &at));"},
}

var rangesDoNotRest = sourceEdit{
	"apply.go", "\tif change.method == rebuildSlots && s.span.size > 0 {\n\t\td.grave.filling.ranges = append(d.grave.filling.ranges, s.span)\n",
	"\tif change.method == rebuildSlots && s.span.size > 0 {\n\t\td.ranges.give(s.span)\n",
}

const (
	soak   = "TestSoak"
	killed = "TestKilledAtEveryStep"
	slow   = "TestLookupsInSlowMotion"
	model  = "TestModel"

	staleBefore = "TestStaleUDPSocketsOfBeforeAreDestroyed"
	staleLate   = "TestASocketThatIsLateIsDestroyed"
	removed     = "TestTrafficOfARemovedBackendCountsForNobody"
)

var breakages = []breakage{
	{name: "slots are written before the backends that they lead to", edits: []sourceEdit{
		{"apply.go", "\t\t*entry = backendEntry{\n", "\t\tentry = later(entry)\n\t\t*entry = backendEntry{\n"},
		{"apply.go", "\td.publishService(s.index, svc, span, length)\n", "\td.publishService(s.index, svc, span, length)\n\twriteLate()\n"},
		{"apply.go", "func sameService(", `var late []struct{ to, from *backendEntry }

func later(to *backendEntry) *backendEntry {
	from := &backendEntry{Generation: to.Generation}
	late = append(late, struct{ to, from *backendEntry }{to, from})
	return from
}

func writeLate() {
	for _, l := range late {
		reach("late backend")
		*l.to = *l.from
	}
	late = nil
}

func sameService(`},
	}, noticed: []string{soak, killed, slow}},
	{name: "the length changes before the slots", edits: []sourceEdit{
		{"apply.go", "stores, _ := edit(", "stores, changed := edit("},
		{"apply.go", "\tfor _, store := range stores {\n", `	entry := &d.set.service.items[s.index]
	old := descriptor(entry.Descriptor)
	atomic.StoreUint64(&entry.Descriptor, uint64(newDescriptor(old.base(), uint32(changed), old.flags())))
	for _, store := range stores {
`},
	}, noticed: []string{soak, slow}},
	{name: "the descriptor leads to a new range before it is filled", edits: []sourceEdit{
		{"apply.go", "\tswitch change.method {\n\tcase editSlots:\n\t\td.editSlots", `	if change.method == rebuildSlots {
		d.publishService(s.index, svc, span, length)
	}
	switch change.method {
	case editSlots:
		d.editSlots`},
	}, noticed: []string{soak, killed, slow}},
	{name: "a service is emptied and filled again", edits: []sourceEdit{
		{"apply.go", "\tswitch change.method {\n\tcase editSlots:\n\t\td.editSlots", `	if change.method == rebuildSlots {
		d.publishService(s.index, svc, span, 0)
	}
	switch change.method {
	case editSlots:
		d.editSlots`},
	}, noticed: []string{soak, killed, slow}},
	{name: "backends are given up before the slots that lead to them", edits: []sourceEdit{
		{"apply.go", "\tnext := d.placeBackends(s,", `	for _, i := range change.gone {
		d.set.backends.items[s.placed[i].id].Used = 0
		d.backends.free = append([]uint32{s.placed[i].id}, d.backends.free...)
	}
	next := d.placeBackends(s,`},
		{"apply.go", "\tfor _, i := range change.gone {\n\t\td.retireBackend(s, i)\n\t}\n", ""},
	}, noticed: []string{soak, killed, slow}},
	{name: "backends are marked as free before the slots that lead to them are gone", edits: []sourceEdit{
		{"apply.go", "\tnext := d.placeBackends(s,", `	for _, i := range change.gone {
		d.retireBackend(s, i)
	}
	next := d.placeBackends(s,`},
		{"apply.go", "\td.publishService(s.index, svc, span, length)\n\n\t// Nothing leads here any more.\n", "\td.publishService(s.index, svc, span, length)\n"},
		{"apply.go", "\tfor _, i := range change.gone {\n\t\td.retireBackend(s, i)\n\t}\n\tif !known", "\tif !known"},
	}, noticed: []string{killed}},
	{name: "there is no grace period", edits: []sourceEdit{
		{"grace.go", "\t\t\tg.wait()\n", ""},
	}, noticed: []string{slow}},
	{name: "there is no grace period at a restart", edits: []sourceEdit{
		{"datapath.go", "\t\td.grave.wait()\n", ""},
	}, noticed: []string{slow}},
	{name: "ranges do not rest", edits: []sourceEdit{rangesDoNotRest}, noticed: []string{slow}},
	{name: "numbers of services do not rest", edits: []sourceEdit{
		{"apply.go", "\td.grave.filling.services = append(d.grave.filling.services, s.index)\n", "\td.indexes.give(s.index)\n"},
	}, noticed: []string{slow}},
	{name: "numbers of backends do not rest", edits: []sourceEdit{
		{"apply.go", "\td.grave.filling.backends = append(d.grave.filling.backends, id)\n", "\td.backends.give(id)\n"},
	}, noticed: []string{slow}},
	{name: "a restart forgets which backends are in use", edits: []sourceEdit{
		{"datapath.go", "{ return usedBackends[id] }", "{ return false }"},
	}, noticed: []string{soak, killed, slow}},
	{name: "programs are detached and attached in the place of being replaced", edits: []sourceEdit{
		{"attach.go", "\terr = l.Update(program)\n", "\terr = errors.Join(l.Detach(), unix.ENOLINK)\n"},
	}, noticed: []string{soak, killed}},
	{name: "connect is attached before getpeername", edits: []sourceEdit{
		{"attach.go", "\tfor _, h := range hooks {\n\t\tfor id, path", "\tfor _, h := range slices.Backward(hooks) {\n\t\tfor id, path"},
	}, noticed: []string{killed}},
	{name: "an entry keeps its generation", edits: []sourceEdit{
		{"apply.go", "generation := entry.Generation + 1\n", "generation := entry.Generation | 1\n"},
	}, noticed: []string{model, "TestReusedBackendHasANewGeneration"}},
	{name: "a slot is followed whatever its generation", edits: []sourceEdit{
		{"bpf/lib/lookup.h", "word >> (SLOT_BACKEND_BITS + SLOT_SERVICE_BITS) != be->generation)", "!word)"},
	}, noticed: []string{"TestLookupRefusesWrongSlots"}},
	{name: "connections count for whoever has their backend's number", edits: []sourceEdit{
		{"bpf/lib/traffic.h", "READ_ONCE(entry->generation) !=\n\t\t\t      slot >> (SLOT_BACKEND_BITS + SLOT_SERVICE_BITS))", "!entry->generation)"},
	}, noticed: []string{removed}},
	{name: "connections to a backend that is gone are counted on", edits: []sourceEdit{
		{"apply.go", "\td.endTraffic(id)\n", ""},
	}, noticed: []string{removed}},
	{name: "counters go on from where the number's last owner left them", edits: []sourceEdit{
		{"traffic.go", "\t*e = trafficEntry{}\n", ""},
	}, noticed: []string{removed}},
	{name: "what is counted while maps are replaced is lost", edits: []sourceEdit{
		{"attach.go", "\td.catchUp()\n", ""},
	}, noticed: []string{"TestRestartsDoNotDisturbCounters"}},
	{name: "slots are followed unchecked, and ranges do not rest", edits: append([]sourceEdit{
		rangesDoNotRest,
		{"bpf/lib/lookup.h", `be->service != index ||
	    ((word >> SLOT_BACKEND_BITS) & MASK(SLOT_SERVICE_BITS)) != index ||
	    word >> (SLOT_BACKEND_BITS + SLOT_SERVICE_BITS) != be->generation)`, "!index)"},
	}, dawdle...), noticed: []string{soak, "TestLookupRefusesWrongSlots"}},
	{name: "slots are moved to where lookups may still read others", edits: []sourceEdit{
		{"full.go", "\t\t\tif at+s.span.size > left {\n\t\t\t\td.grave.wait()\n", "\t\t\tif at+s.span.size > left {\n"},
	}, noticed: []string{"TestSlotsAreMovedToWhereNobodyReads"}},
	{name: "moved slots are announced before they are there", edits: []sourceEdit{
		{"full.go", "func (d *Datapath) slide(s *service, base uint32) {\n", `func (d *Datapath) slide(s *service, base uint32) {
	e := &d.set.service.items[s.index]
	was := descriptor(e.Descriptor)
	atomic.StoreUint64(&e.Descriptor, uint64(newDescriptor(base, was.length(), was.flags())))
`},
	}, noticed: []string{slow}},
	{name: "a service that does not fit is removed while others make room", edits: []sourceEdit{
		{"full.go", "\t\t_ = r.putBackends(svc, []desired.Backend{narrow}) // or all stay\n", "\t\t_ = r.remove([]desired.Frontend{svc.Frontend})\n"},
	}, noticed: []string{"TestFullMapsRecoverWhenRoomComes"}},
	{name: "free slots are not gathered", edits: []sourceEdit{
		{"apply.go", "case r.squeezing && d.join(change.length):", "case false:"},
	}, noticed: []string{"TestFullMapsRecoverWhenRoomComes"}},
	{name: "new maps are in place before they are filled", edits: []sourceEdit{
		{"migrate.go", "\tif from != nil {\n\t\tif err := fillMaps(fresh, l, from); err != nil {", "\tif from != nil {\n\t\tif err := errors.Join(swapMaps(dir, l), fillMaps(filepath.Join(dir, mapsDir), l, from)); err != nil {"},
		{"migrate.go", "\treturn swapMaps(dir, l)\n}", "\tif from != nil {\n\t\treturn nil\n\t}\n\treturn swapMaps(dir, l)\n}"},
	}, noticed: []string{killed}, killAll: true},
	{name: "clients with session affinity get a backend by chance", edits: []sourceEdit{
		{"bpf/lib/lookup.h", "\tif (known &&\n\t    (__s64)(now", "\tif (known && now % 64 &&\n\t    (__s64)(now"},
	}, noticed: []string{soak}},
	{name: "clients with session affinity keep a backend that is gone", edits: []sourceEdit{
		{"bpf/lib/lookup.h", "\treturn word && follow(word, index, out) == PICKED &&\n\t       READ_ONCE(out->backend->picked);", "\treturn word && follow(word, index, out) == PICKED;"},
	}, noticed: []string{soak}},
	{name: "answers show the backend of a socket with many peers", edits: []sourceEdit{
		{"bpf/lib/sent.h", "\tif (!found && READ_ONCE(sent->spilt))\n\t\tfound = spilt_frontend", "\tif (!found && port == 1)\n\t\tfound = spilt_frontend"},
	}, noticed: []string{soak}},
	{name: "stale sockets are found by their backend's number, whatever its generation", edits: []sourceEdit{
		{"bpf/stale.c", "\tstruct pick noted;\n", "\tstruct pick noted;\n\t__u32 id = word & MASK(SLOT_BACKEND_BITS);\n"},
		{"bpf/stale.c", "follow(word, index, &noted) != PICKED ||", "!(noted.backend = bpf_map_lookup_elem(&backends, &id)) || noted.backend->service != index ||"},
	}, noticed: []string{staleBefore}},
	{name: "stale sockets are found whatever they are connected to now", edits: []sourceEdit{
		{"bpf/stale.c", "\tif (out.peer_port != noted->backend_port ||\n\t    !same_addr(out.peer_addr, noted->backend_addr))", "\tif (!out.peer_port)"},
	}, noticed: []string{staleLate}},
	{name: "stale sockets are destroyed though their backend's address serves", edits: []sourceEdit{
		{"stale.go", "if !serving[s.frontend][s.Peer] && ", "if "},
	}, noticed: []string{staleBefore}},
	{name: "stale sockets are not looked for again", edits: []sourceEdit{
		{"stale.go", "second = time.Now().Add(secondLook)", "second = time.Time{}"},
	}, noticed: []string{"TestWhenStaleSocketsAreLookedFor"}},
	{name: "stale sockets are not looked for at the start", edits: []sourceEdit{
		{"apply.go", "\t\td.stranded = true\n", ""},
	}, noticed: []string{staleBefore}},
	{name: "lookups that take long, and nothing else", edits: dawdle, noticed: []string{soak}, harmless: true},
}

// Each breakage of the update order makes the tests fail that should notice it. A test
// that cannot fail proves nothing.
func TestBrokenOrdersAreNoticed(t *testing.T) {
	run := os.Getenv(envBreakages) != ""
	for _, b := range breakages {
		t.Run(b.name, func(t *testing.T) {
			dir := t.TempDir()
			overlay := map[string]string{}
			bpf := false
			for _, e := range b.edits {
				source, err := filepath.Abs(e.file)
				must(t, err)
				broken := filepath.Join(dir, e.file)
				if strings.HasPrefix(e.file, "bpf/") {
					if !bpf {
						copyForBPF(t, dir)
						bpf = true
					}
					source = broken
				} else if overlay[source] != "" {
					source = broken // it has more than one edit
				} else {
					overlay[source] = broken
				}
				text, err := os.ReadFile(source)
				must(t, err)
				if n := strings.Count(string(text), e.from); n != 1 {
					t.Fatalf("the breakage does not fit any more: %s has this %d times:\n%s", e.file, n, e.from)
				}
				must(t, os.WriteFile(broken, []byte(strings.Replace(string(text), e.from, e.to, 1)), 0o600))
			}
			if !run {
				return
			}
			requireRoot(t)
			if bpf {
				out, err := exec.Command(filepath.Join(dir, "hack", "update-bpf.sh"), dir).CombinedOutput()
				if err != nil {
					t.Fatalf("compiling: %v\n%s", err, out)
				}
				objects, err := filepath.Glob(filepath.Join(dir, "*.o"))
				must(t, err)
				for _, object := range objects {
					source, err := filepath.Abs(filepath.Base(object))
					must(t, err)
					overlay[source] = object
				}
			}
			list, err := json.Marshal(map[string]any{"Replace": overlay})
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, "overlay.json"), list, 0o600))
			binary := filepath.Join(dir, "broken.test")
			if out, err := exec.Command("go", "test", "-c", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, ".").CombinedOutput(); err != nil {
				t.Fatalf("building: %v\n%s", err, out)
			}
			tests := b.noticed
			if os.Getenv(envBreakages) == "all" {
				tests = []string{soak, killed, slow, model}
			}
			for _, test := range tests {
				// It makes a node for itself, as if it was not inside one.
				cmd := exec.Command(binary, "-test.run=^"+test+"$")
				cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
					return strings.HasPrefix(v, envCgroup+"=") || strings.HasPrefix(v, envScratch+"=") || strings.HasPrefix(v, envBreakages+"=")
				})
				cmd.Env = append(cmd.Env, envRequireRoot+"=1")
				if b.killAll {
					cmd.Env = append(cmd.Env, envKillAll+"=1")
				}
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				switch {
				case b.harmless && err != nil:
					t.Errorf("%s: %v\n%s", test, err, out)
				case b.harmless:
				case err == nil:
					t.Errorf("%s does not notice it", test)
				case !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "--- FAIL: "+test):
					t.Errorf("%s ends otherwise than by failing: %v\n%s", test, err, out)
				default:
					lines := strings.SplitN(string(out), "\n", 4)
					t.Logf("%s notices it: %s", test, strings.Join(lines[:min(3, len(lines))], "\n"))
				}
			}
		})
	}
}

// copyForBPF copies into a folder what hack/update-bpf.sh needs.
func copyForBPF(t *testing.T, dir string) {
	t.Helper()
	root := filepath.Join("..", "..", "..")
	must(t, os.CopyFS(filepath.Join(dir, "bpf"), os.DirFS(filepath.Join(root, "bpf"))))
	must(t, os.Mkdir(filepath.Join(dir, "hack"), 0o755))
	for _, name := range []string{"go.mod", "go.sum", "hack/update-bpf.sh"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, name), text, 0o755))
	}
}
