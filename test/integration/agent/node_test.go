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

package agent

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tests run in a child process that is a node of its own: with a network, a mount
// namespace and a cgroup that end with it.
const (
	envCgroup      = "MESH_TEST_AGENT_CGROUP" // set for the child: the node's cgroup
	envScratch     = "MESH_TEST_AGENT_SCRATCH"
	envRequireRoot = "MESH_REQUIRE_ROOT" // "1" turns skips into failures
	cgroupPrefix   = "mesh-agent-test-"
)

// errUnavailable says why there is no node here.
var errUnavailable = errors.New("needs root, for BPF, cgroups and namespaces")

func TestMain(m *testing.M) {
	switch {
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

func requireNode(t *testing.T) {
	t.Helper()
	switch {
	case errUnavailable == nil:
	case os.Getenv(envRequireRoot) == "1":
		t.Fatal(errUnavailable)
	default:
		t.Skip(errUnavailable)
	}
}

// runInNode runs the tests in the child. An error means that it could not start.
func runInNode() (code int, err error) {
	root, err := cgroup2Root()
	if err != nil {
		return 0, err
	}
	// What a killed run left behind; removing a cgroup in use fails.
	if old, err := filepath.Glob(filepath.Join(root, cgroupPrefix+"*")); err == nil {
		for _, dir := range old {
			removeCgroups(dir)
		}
	}
	node, err := os.MkdirTemp(root, cgroupPrefix)
	if err != nil {
		return 0, err
	}
	defer removeCgroups(node)
	// Programs are served in the children of the node's cgroup.
	pods := filepath.Join(node, "kubepods")
	if err := os.Mkdir(pods, 0o755); err != nil {
		return 0, err
	}
	scratch, err := os.MkdirTemp("", cgroupPrefix)
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(scratch)
	dir, err := os.Open(pods)
	if err != nil {
		return 0, err
	}
	defer dir.Close()

	// Parent death signals belong to the thread.
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), envCgroup+"="+node, envScratch+"="+scratch)
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

// enterNode makes this process's namespaces a node: a bpffs, and addresses for
// Services and pods that all lead to the node itself.
func enterNode() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	bpffs := bpffsDir()
	if err := os.MkdirAll(bpffs, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mounting bpffs: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, prefix := range []string{"10.0.0.0/8", advertised + "/32"} {
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

// advertised is an address that kube-apiserver may call its own.
const advertised = "192.0.2.1"

func bpffsDir() string { return filepath.Join(os.Getenv(envScratch), "bpf") }
