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
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// foreignProgram is someone else's program that lets all pass, or, with an address,
// turns every IPv4 connect() into one to there.
func foreignProgram(t *testing.T, to netip.Addr) *ebpf.Program {
	t.Helper()
	instructions := asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}
	if to.IsValid() {
		b := to.As4()
		// struct bpf_sock_addr has user_ip4 at 4.
		instructions = append(asm.Instructions{
			asm.Mov.Imm(asm.R2, int32(uint32(b[0])|uint32(b[1])<<8|uint32(b[2])<<16|uint32(b[3])<<24)),
			asm.StoreMem(asm.R1, 4, asm.R2, asm.Word),
		}, instructions...)
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect,
		Instructions: instructions, License: "GPL",
	})
	must(t, err)
	t.Cleanup(func() { _ = program.Close() })
	return program
}

// attachForeign attaches someone else's program with the flags.
func attachForeign(t *testing.T, cgroup string, program *ebpf.Program, flags uint32) {
	t.Helper()
	dir, err := os.Open(cgroup)
	must(t, err)
	defer dir.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{
		Target: int(dir.Fd()), Attach: ebpf.AttachCGroupInet4Connect, Program: program, Flags: flags,
	})
	if errors.Is(err, unix.EINVAL) && flags != 0 {
		t.Skip("the kernel does not order programs (6.17)")
	}
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
}

// describe tells of drifts, without what differs from run to run.
func describe(drifts []Drift) []string {
	var lines []string
	for _, d := range drifts {
		where := filepath.Base(d.Where)
		if strings.HasPrefix(d.Where, "cgroup ") {
			where = "cgroup"
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s repaired=%t", d.Kind, where, d.What, d.Repaired)))
	}
	slices.Sort(lines)
	return lines
}

func TestKeepFindsAndRepairsDrift(t *testing.T) {
	frontend := netip.MustParseAddrPort("10.96.0.1:80")
	backend := netip.MustParseAddrPort("10.1.0.1:8181")
	evil := netip.MustParseAddr("10.1.9.9")
	// connected returns where a connection goes, and what it shows as its peer.
	connected := func(t *testing.T) (truly netip.Addr, shown netip.AddrPort) {
		t.Helper()
		fd := newSocket(t, unix.AF_INET, unix.SOCK_DGRAM)
		must(t, unix.Connect(fd, sockaddr(unix.AF_INET, frontend)))
		// The prefixes have no source of their own: it is the true peer's.
		own, err := unix.Getsockname(fd)
		must(t, err)
		shown, err = peerOf(fd)
		must(t, err)
		return netip.AddrFrom4(own.(*unix.SockaddrInet4).Addr), shown
	}
	served := func(t *testing.T, want bool) {
		t.Helper()
		// A link whose pin was removed goes some time later; as long as it and its
		// successor run the second one forgets what the first one noted.
		for deadline := time.Now().Add(10 * time.Second); ; {
			truly, shown := connected(t)
			if (truly == backend.Addr()) == want && (!want || shown == frontend) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("connected to %s, shown as %s; balanced should be %t", truly, shown, want)
			}
		}
	}
	tests := map[string]struct {
		harm func(*testing.T, *node, *Datapath)
		// broken says that connections are not balanced until Keep is called, and
		// healed that they are then.
		broken, healed bool
		want           []string
	}{
		"nothing happened": {
			harm:   func(*testing.T, *node, *Datapath) {},
			healed: true,
		},
		"a cgroup was removed and made again": {
			harm: func(t *testing.T, n *node, _ *Datapath) {
				moveTo(t, os.Getenv(envCgroup))
				must(t, os.Remove(n.cgroup))
				must(t, os.Mkdir(n.cgroup, 0o755))
				moveTo(t, n.cgroup)
			},
			broken: true, healed: true,
			want: []string{"cgroup_gone cgroup  repaired=true", "cgroup_new NODE  repaired=true"},
		},
		"a link was detached by force": {
			harm: func(t *testing.T, n *node, _ *Datapath) {
				l, err := link.LoadPinnedLink(linkPin(t, n, "connect4"), nil)
				must(t, err)
				defer l.Close()
				must(t, l.Detach())
			},
			broken: true, healed: true,
			want: []string{"link_severed NODE connect4 repaired=true"},
		},
		"the link that counts was detached by force": {
			harm: func(t *testing.T, n *node, _ *Datapath) {
				l, err := link.LoadPinnedLink(linkPin(t, n, "sock_ops"), nil)
				must(t, err)
				defer l.Close()
				must(t, l.Detach())
			},
			healed: true,
			want:   []string{"link_severed NODE sock_ops repaired=true"},
		},
		"a link's pin was removed": {
			harm: func(t *testing.T, n *node, _ *Datapath) {
				must(t, os.Remove(linkPin(t, n, "connect4")))
			},
			broken: true, healed: true,
			want: []string{"pin_missing NODE connect4 repaired=true"},
		},
		"a map's pin was removed": {
			harm: func(t *testing.T, n *node, _ *Datapath) {
				must(t, os.Remove(filepath.Join(n.PinDir, schemaDir, mapsDir, connectMapVip)))
			},
			healed: true,
			want:   []string{"pin_missing vip vip repaired=true"},
		},
		"all pins were removed": {
			harm:   func(t *testing.T, n *node, _ *Datapath) { must(t, os.RemoveAll(n.PinDir)) },
			healed: true,
			want: func() (lines []string) {
				for _, h := range hooks {
					lines = append(lines, "pin_missing NODE "+h.name+" repaired=true")
				}
				for _, name := range pinnedMaps {
					lines = append(lines, "pin_missing "+name+" "+name+" repaired=true")
				}
				slices.Sort(lines)
				return lines
			}(),
		},
		"a link was given another program": {
			harm: func(t *testing.T, n *node, _ *Datapath) {
				l, err := link.LoadPinnedLink(linkPin(t, n, "connect4"), nil)
				must(t, err)
				defer l.Close()
				must(t, l.Update(foreignProgram(t, netip.Addr{})))
			},
			broken: true, healed: true,
			want: []string{"program_replaced NODE connect4 repaired=true"},
		},
		"a foreign program came behind": {
			harm: func(t *testing.T, n *node, _ *Datapath) {
				attachForeign(t, n.cgroup, foreignProgram(t, netip.Addr{}), 0)
			},
			healed: true,
		},
		"a foreign program went before": {
			harm: func(t *testing.T, n *node, _ *Datapath) {
				attachForeign(t, n.cgroup, foreignProgram(t, evil), unix.BPF_F_BEFORE)
				served(t, false)
			},
			// It still turns the backend's address into its own, but it is not asked first.
			broken: true,
			want:   []string{"foreign_first NODE connect4 repaired=true"},
		},
		"a foreign program is before because it is above and asked for that": {
			harm: func(t *testing.T, _ *node, _ *Datapath) {
				attachForeign(t, os.Getenv(envCgroup), foreignProgram(t, netip.Addr{}), unix.BPF_F_PREORDER)
			},
			healed: true,
			want:   []string{"foreign_first NODE connect4 repaired=false"},
		},
		"a foreign program came inside": {
			harm: func(t *testing.T, n *node, _ *Datapath) {
				inside := filepath.Join(n.cgroup, "inside")
				must(t, os.Mkdir(inside, 0o755))
				t.Cleanup(func() { _ = os.Remove(inside) })
				attachForeign(t, inside, foreignProgram(t, netip.Addr{}), 0)
			},
			healed: true,
			want:   []string{"foreign_inside inside connect4 repaired=false"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			d := n.open(t)
			mustApply(t, d, serviceAt(frontend.String()+"/UDP", backendAt(backend.String())))
			if drifts, err := d.Keep(n.Cgroups); err != nil || len(drifts) > 0 {
				t.Fatalf("the first Keep finds %v, %v", drifts, err)
			}
			served(t, true)
			test.harm(t, n, d)
			if test.broken {
				served(t, false)
			}
			drifts, err := d.Keep(n.Cgroups)
			must(t, err)
			want := slices.Clone(test.want)
			for i := range want {
				want[i] = strings.ReplaceAll(want[i], "NODE", filepath.Base(n.cgroup))
			}
			slices.Sort(want)
			if got := describe(drifts); !slices.Equal(got, want) {
				t.Errorf("Keep finds\n%q, want\n%q", got, want)
			}
			if test.healed {
				served(t, true)
			}
			// What is repaired stays so; what is not is told again.
			drifts, err = d.Keep(n.Cgroups)
			must(t, err)
			for _, drift := range drifts {
				if !drift.Foreign() || drift.Repaired {
					t.Errorf("the next Keep finds %s, repaired %t", drift, drift.Repaired)
				}
			}
			// The next process finds everything.
			must(t, d.Close())
			next := n.open(t)
			expectContent(t, n, serviceAt(frontend.String()+"/UDP", backendAt(backend.String())))
			if test.healed {
				served(t, true)
			}
			must(t, next.Close())
		})
	}
}

func TestKeepPutsOursFirst(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	must(t, func() error { _, err := d.Keep(n.Cgroups); return err }())
	foreign := foreignProgram(t, netip.Addr{})
	attachForeign(t, n.cgroup, foreign, unix.BPF_F_BEFORE)
	id, err := programID(foreign)
	must(t, err)
	connect4 := hooks[slices.IndexFunc(hooks, func(h hook) bool { return h.name == "connect4" })]
	ours, err := programID(d.programs["connect4"])
	must(t, err)
	order := func() []ebpf.ProgramID {
		programs, err := queryPrograms(n.cgroup, connect4, unix.BPF_F_QUERY_EFFECTIVE)
		must(t, err)
		return programs
	}
	if got := order(); !slices.Equal(got, []ebpf.ProgramID{id, ours}) {
		t.Fatalf("before: %v, want %d and then %d", got, id, ours)
	}
	_, err = d.Keep(n.Cgroups)
	must(t, err)
	if got := order(); !slices.Equal(got, []ebpf.ProgramID{ours, id}) {
		t.Errorf("after: %v, want %d and then %d", got, ours, id)
	}
}
