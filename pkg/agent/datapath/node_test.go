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
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// The tests that need a kernel run in a child process with a network, a mount
// namespace and a cgroup of its own, so that all they make ends with it.
const (
	envCgroup      = "MESH_TEST_CGROUP" // set for the child
	envScratch     = "MESH_TEST_SCRATCH"
	envInside      = "MESH_TEST_INSIDE"  // set for a child of the child
	envRequireRoot = "MESH_REQUIRE_ROOT" // "1" turns skips into failures
	cgroupPrefix   = "mesh-datapath-test-"
)

// errUnavailable says why the tests that need a kernel cannot run here.
var errUnavailable = errors.New("needs root, for BPF, cgroups and namespaces")

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(envInside) != "":
		errUnavailable = nil
	case os.Getenv(envCgroup) != "":
		errUnavailable = enterNode()
	case os.Geteuid() == 0:
		var code int
		if code, errUnavailable = runInNode(); errUnavailable == nil {
			os.Exit(code)
		}
	}
	os.Exit(m.Run())
}

// runInNode runs the tests in the child. An error means that it could not start.
func runInNode() (code int, err error) {
	root, err := cgroup2Root()
	if err != nil {
		return 0, err
	}
	// What a killed run left behind. Another run may have cgroups that nothing is in yet.
	if old, err := filepath.Glob(filepath.Join(root, cgroupPrefix+"*")); err == nil {
		for _, dir := range old {
			pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), cgroupPrefix), "-")
			if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
				removeCgroups(dir)
			}
		}
	}
	cgroup, err := os.MkdirTemp(root, fmt.Sprintf("%s%d-", cgroupPrefix, os.Getpid()))
	if err != nil {
		return 0, err
	}
	defer removeCgroups(cgroup)
	scratch, err := os.MkdirTemp("", cgroupPrefix)
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(scratch)
	dir, err := os.Open(cgroup)
	if err != nil {
		return 0, err
	}
	defer dir.Close()

	// Parent death signals belong to the thread.
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), envCgroup+"="+cgroup, envScratch+"="+scratch)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		UseCgroupFD:  true,
		CgroupFD:     int(dir.Fd()),
		Pdeathsig:    syscall.SIGKILL,
	}
	// The terminal signals the child as well; this process stays to clean up.
	signal.Ignore(syscall.SIGINT)
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), nil
	case errors.As(err, &exit):
		return 1, nil // killed
	}
	return 0, err
}

// removeCgroups removes a cgroup and those in it.
func removeCgroups(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeCgroups(filepath.Join(dir, e.Name()))
		}
	}
	_ = os.Remove(dir)
}

func cgroup2Root() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		mount, fs, _ := strings.Cut(lines.Text(), " - ")
		if fields := strings.Fields(mount); strings.HasPrefix(fs, "cgroup2 ") && len(fields) > 4 {
			return fields[4], nil
		}
	}
	return "", errors.New("cgroup v2 is not mounted")
}

// Every address of these prefixes is local in the test's network namespace.
var localPrefixes = []string{
	"10.96.0.0/16", // virtual IPs, so that one left alone has a route
	"10.1.0.0/16",  // backends
	"fd00:96::/64",
	"fd00:1::/64",
}

func enterNode() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("bpf", os.Getenv(envScratch), "bpf", 0, ""); err != nil {
		return fmt.Errorf("mounting bpffs: %w", err)
	}
	return makeLocal()
}

// makeLocal makes the prefixes local in the network namespace of this thread.
func makeLocal() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, prefix := range localPrefixes {
		dst, err := netlink.ParseIPNet(prefix)
		if err != nil {
			return err
		}
		route := &netlink.Route{
			LinkIndex: lo.Attrs().Index,
			Dst:       dst,
			Type:      unix.RTN_LOCAL,
			Table:     unix.RT_TABLE_LOCAL,
			Scope:     netlink.SCOPE_HOST,
		}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("adding route %s: %w", prefix, err)
		}
	}
	return nil
}

func requireRoot(t testing.TB) {
	t.Helper()
	switch {
	case errUnavailable == nil:
	case os.Getenv(envRequireRoot) == "1":
		t.Fatal(errUnavailable)
	default:
		t.Skip(errUnavailable)
	}
}

// node is a cgroup with a data path for it. This process is in the cgroup.
type node struct {
	Config
	cgroup string
}

func newNode(t testing.TB) *node {
	t.Helper()
	requireRoot(t)
	top := os.Getenv(envCgroup)
	name := strings.Map(func(r rune) rune {
		if strings.ContainsRune("./ ", r) {
			return '_'
		}
		return r
	}, t.Name())
	n := &node{cgroup: filepath.Join(top, name)}
	n.Config = Config{
		PinDir:   filepath.Join(os.Getenv(envScratch), name),
		StateDir: t.TempDir(),
		Cgroups:  []string{n.cgroup},
		Sizes:    Sizes{Frontends: 64, Backends: 256, Slots: 1024},
		// What most tests ask a socket must not be taken from it meanwhile.
		KeepStaleUDP: true,
	}
	if err := os.Mkdir(n.cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		moveTo(t, top)
		if err := Cleanup(n.PinDir); err != nil {
			t.Errorf("cleaning up: %v", err)
		}
		if err := os.Remove(n.cgroup); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
	moveTo(t, n.cgroup)
	return n
}

func moveTo(t testing.TB, cgroup string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
}

// open opens the data path, and closes it with the test if the test has not.
func (n *node) open(t testing.TB) *Datapath {
	t.Helper()
	d, err := Open(n.Config)
	if err != nil {
		t.Fatalf("Open: %+v", err)
	}
	// As an agent does whose sources are sound.
	if err := d.Heartbeat(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

// showBackends detaches the reverse hooks: getpeername() tells the truth then.
func (n *node) showBackends(t testing.TB) {
	t.Helper()
	for _, name := range []string{"getpeername4", "getpeername6"} {
		pins, err := filepath.Glob(filepath.Join(n.PinDir, schemaDir, linksDir, name+"-*"))
		if err != nil || len(pins) != 1 {
			t.Fatalf("pins of %s: %v, %v", name, pins, err)
		}
		if err := removeLink(pins[0]); err != nil {
			t.Fatal(err)
		}
	}
}

func apply(t testing.TB, d *Datapath, services ...desired.Service) Report {
	t.Helper()
	report, err := d.Apply(context.Background(), tableOf(services...))
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	return report
}

func mustApply(t testing.TB, d *Datapath, services ...desired.Service) {
	t.Helper()
	if report := apply(t, d, services...); len(report.Failed) > 0 {
		t.Fatalf("Apply: %v", report.Failed)
	}
}

func tableOf(services ...desired.Service) desired.Table {
	table := desired.Table{
		Services: map[desired.Frontend]desired.Service{},
		Clusters: map[uint16]string{1: "cluster1", 2: "cluster2"},
	}
	for _, svc := range services {
		table.Services[svc.Frontend] = svc
	}
	return table
}

// vip returns a frontend such as "10.96.0.1:80/TCP".
func vip(s string) desired.Frontend {
	addr, protocol, _ := strings.Cut(s, "/")
	ap := netip.MustParseAddrPort(addr)
	f := desired.Frontend{Addr: ap.Addr(), Port: ap.Port(), Protocol: desired.TCP}
	if protocol == "UDP" {
		f.Protocol = desired.UDP
	}
	return f
}

// backendAt returns an active backend of cluster 1 with one slot.
func backendAt(addr string) desired.Backend {
	return desired.Backend{Addr: netip.MustParseAddrPort(addr), ClusterID: 1, Slots: 1}
}

func serviceAt(frontend string, backends ...desired.Backend) desired.Service {
	return desired.Service{
		Frontend: vip(frontend),
		Port:     desired.ServicePort{Namespace: "song", Name: "userlist"},
		Backends: backends,
	}
}

// sockaddr returns the address for a socket of the family; an IPv4 address for an
// AF_INET6 socket is mapped.
func sockaddr(family int, ap netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func newSocket(t testing.TB, family, kind int) int {
	t.Helper()
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// dial connects a new UDP socket and returns what getpeername() says.
func dial(family int, to netip.AddrPort) (netip.AddrPort, error) {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(family, to)); err != nil {
		return netip.AddrPort{}, err
	}
	return peerOf(fd)
}

// dialer connects a new socket and says where to.
type dialer func(family int, to netip.AddrPort) (netip.AddrPort, error)

// dialAndAskTheSocket returns a dialer that finds the backend in what the programs
// keep in the socket, and so needs no hook to be detached.
func (n *node) dialAndAskTheSocket(t testing.TB) dialer {
	return dialAndAskTheSocket(t, filepath.Join(n.PinDir, schemaDir, mapsDir))
}

// dialAndAskTheSocket does so with the maps that are pinned in the folder now.
func dialAndAskTheSocket(t testing.TB, maps string) dialer {
	t.Helper()
	state, err := ebpf.LoadPinnedMap(filepath.Join(maps, connectMapSockState), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = state.Close() })
	return func(family int, to netip.AddrPort) (netip.AddrPort, error) {
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return netip.AddrPort{}, err
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, sockaddr(family, to)); err != nil {
			return netip.AddrPort{}, err
		}
		shown, err := peerOf(fd)
		if err != nil || shown != to {
			return shown, errors.Join(err, fmt.Errorf("getpeername says %s", shown))
		}
		var entry connectSockEntry
		err = state.Lookup(int32(fd), &entry)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return to, nil // left alone
		}
		return netip.AddrPortFrom(wordsAddr(entry.BackendAddr), networkPort(entry.BackendPort)), err
	}
}

func peerOf(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return addrPort(sa), nil
}
