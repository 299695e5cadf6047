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
	"fmt"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOptOut(t *testing.T) {
	const (
		frontend = "10.96.0.1:80"
		backend  = "10.1.0.1:8181"
	)
	n := newNode(t)
	d := n.open(t)
	mustApply(t, d, serviceAt(frontend+"/UDP", backendAt(backend)))
	n.showBackends(t) // getpeername tells the truth
	pods := map[string]string{}
	for _, name := range []string{"out", "in"} {
		pods[name] = filepath.Join(n.cgroup, "kubepods", "pod"+name)
		must(t, os.MkdirAll(filepath.Join(pods[name], "container"), 0o755))
	}
	t.Cleanup(func() {
		moveTo(t, os.Getenv(envCgroup))
		removeCgroups(filepath.Join(n.cgroup, "kubepods"))
	})
	expect := func(when, cgroup string, balanced bool) {
		t.Helper()
		moveTo(t, cgroup)
		defer moveTo(t, n.cgroup)
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			want := frontend
			if balanced {
				want = backend
			}
			if got, err := dial(family, netip.MustParseAddrPort(frontend)); err != nil || got.String() != want {
				t.Errorf("%s: from %s over family %d connections go to %s, %v, want %s", when, cgroup, family, got, err, want)
			}
		}
	}
	all := []string{pods["out"], filepath.Join(pods["out"], "container"), pods["in"], filepath.Join(pods["in"], "container"), n.cgroup}
	out := func(when string, first int) {
		t.Helper()
		for i, cgroup := range all {
			expect(when, cgroup, i >= first)
		}
	}
	out("at first", 0)
	must(t, d.OptOut([]string{pods["out"], pods["out"] + "-absent"}))
	out("one pod is left alone", 2)
	must(t, d.Close())
	out("without an agent", 2)
	d = n.open(t)
	n.showBackends(t)
	out("with the next agent", 2)
	must(t, d.OptOut([]string{pods["out"], pods["in"]}))
	out("both", 4)
	must(t, d.OptOut([]string{pods["out"]}))
	out("one again", 2)
	counters, err := d.Counters()
	must(t, err)
	if counters["opted_out"] == 0 {
		t.Error("nothing is counted")
	}
	must(t, d.OptOut(nil))
	out("none", 0)
	if err := d.OptOut([]string{t.TempDir()}); err == nil {
		t.Error("a folder that is no cgroup can be left alone")
	}
}

// A socket that was balanced before, and is left alone now, shows what it connects to.
func TestOptedOutSocketsForget(t *testing.T) {
	n := newNode(t)
	d := n.open(t)
	mustApply(t, d, serviceAt("10.96.0.1:80/UDP", backendAt("10.1.0.1:8181")))
	fd := newSocket(t, unix.AF_INET, unix.SOCK_DGRAM)
	shows := func(to, want string) {
		t.Helper()
		if to != "" {
			must(t, unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort(to))))
		}
		if got, err := peerOf(fd); err != nil || got.String() != want {
			t.Errorf("connected to %q, it shows %s, %v, want %s", to, got, err, want)
		}
	}
	shows("10.96.0.1:80", "10.96.0.1:80")
	must(t, d.OptOut([]string{n.cgroup}))
	shows("", "10.96.0.1:80") // what is connected stays
	shows("10.1.0.1:8181", "10.1.0.1:8181")
}

func TestOptedOutDatagrams(t *testing.T) {
	const (
		frontend = "10.96.0.1:80"
		backend  = "10.1.0.1:8181"
	)
	n := newNode(t)
	d := n.open(t)
	mustApply(t, d, serviceAt(frontend+"/UDP", backendAt(backend)))
	servers := map[string]int{}
	for _, at := range []string{frontend, backend} {
		servers[at] = newSocket(t, unix.AF_INET, unix.SOCK_DGRAM)
		must(t, unix.Bind(servers[at], sockaddr(unix.AF_INET, netip.MustParseAddrPort(at))))
	}
	// One socket, whose datagrams went to the backend before, and a new one.
	old := newSocket(t, unix.AF_INET, unix.SOCK_DGRAM)
	arrives := func(when string, fd int, want string) {
		t.Helper()
		must(t, unix.Sendto(fd, []byte("x"), 0, sockaddr(unix.AF_INET, netip.MustParseAddrPort(frontend))))
		for at, server := range servers {
			_, _, err := unix.Recvfrom(server, make([]byte, 1), unix.MSG_DONTWAIT)
			if (err == nil) != (at == want) {
				t.Errorf("%s: a datagram has come to %s: %t (%v), want it at %s", when, at, err == nil, err, want)
			}
		}
	}
	arrives("at first", old, backend)
	must(t, d.OptOut([]string{n.cgroup}))
	arrives("left alone", old, frontend)
	arrives("left alone, a new socket", newSocket(t, unix.AF_INET, unix.SOCK_DGRAM), frontend)
	must(t, d.OptOut(nil))
	arrives("balanced again", old, backend)
}

func TestCgroupLevels(t *testing.T) {
	n := newNode(t)
	root, err := cgroup2Root()
	must(t, err)
	rel, err := filepath.Rel(root, n.cgroup)
	must(t, err)
	want := 1
	for dir := filepath.Dir(rel); dir != "."; dir = filepath.Dir(dir) {
		want++
	}
	if got, err := cgroupLevels(n.cgroup); err != nil || got != 1<<want {
		t.Errorf("%s: levels %b, %v, want %d", rel, got, err, want)
	}
	// A part of the tree, as a container has it.
	part := t.TempDir()
	must(t, unix.Mount(filepath.Dir(n.cgroup), part, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(part, unix.MNT_DETACH) })
	got, err := cgroupLevels(filepath.Join(part, filepath.Base(n.cgroup)))
	if err != nil || got>>want&1 == 0 || bits.TrailingZeros64(got) < 2 {
		t.Errorf("in a part of the tree: levels %b, %v, want %d among them and not the first", got, err, want)
	}
	deep := n.cgroup
	for range optoutLevels {
		deep = filepath.Join(deep, "deeper")
	}
	must(t, os.MkdirAll(deep, 0o755))
	t.Cleanup(func() { removeCgroups(filepath.Join(n.cgroup, "deeper")) })
	if got, err := cgroupLevels(deep); err == nil {
		t.Errorf("too deep: levels %s", fmt.Sprintf("%b", got))
	}
}
