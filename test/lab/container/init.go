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

package container

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Init makes the calling process, which was started in new namespaces by a shim,
// the container's program. It must be called on the main thread and returns only
// with an error.
func Init(dir string) error {
	var config Config
	if err := ReadJSON(ConfigFile(dir), &config); err != nil {
		return err
	}
	if !config.Privileged {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("making cgroup namespace: %w", err)
		}
	}
	if err := containerRoot(config); err != nil {
		return err
	}
	if config.TTY {
		unix.CloseOnExec(terminalSocket)
		if err := takeTerminal(terminalSocket, config.Credentials); err != nil {
			return err
		}
	}
	cwd := config.Cwd
	if cwd == "" {
		cwd = "/"
	}
	// Images name directories that the host's files do not have.
	_ = os.MkdirAll(cwd, 0o755)
	if err := os.Chdir(cwd); err != nil {
		return fmt.Errorf("changing to working directory: %w", err)
	}
	if err := config.Credentials.limit(); err != nil {
		return err
	}
	path, err := lookPath(config.Args, config.Env)
	if err != nil {
		return err
	}
	if err := config.Credentials.become(); err != nil {
		return err
	}
	// A container does not outlive its shim. Not left to the shim's fork: the check that
	// Go makes there takes a parent in another process namespace for a dead one.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("tying the container to its shim: %w", err)
	}
	if err := unix.Exec(path, config.Args, config.Env); err != nil {
		return fmt.Errorf("exec: %q: %w", path, err)
	}
	return nil
}

// lookPath finds the program by the container's own PATH.
func lookPath(args, env []string) (string, error) {
	if len(args) == 0 {
		return "", errors.New("no command given, neither by the image nor by the pod")
	}
	for _, variable := range env {
		if value, ok := strings.CutPrefix(variable, "PATH="); ok {
			if err := os.Setenv("PATH", value); err != nil {
				return "", fmt.Errorf("setting PATH: %w", err)
			}
		}
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return "", err
	}
	return path, nil
}

// limit lowers what the calling thread can gain. It keeps the rights it has.
func (c Credentials) limit() error {
	if c.All {
		return nil
	}
	keep := map[int]bool{}
	for _, capability := range c.Capabilities {
		keep[capability] = true
	}
	for capability := 0; capability <= unix.CAP_LAST_CAP; capability++ {
		if keep[capability] {
			continue
		}
		// An older kernel does not know the newest ones.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("dropping capability %d: %w", capability, err)
		}
	}
	return nil
}

// become switches to the user and group.
func (c Credentials) become() error {
	if c.UID != 0 || c.GID != 0 || len(c.Groups) > 0 {
		groups := make([]int, 0, len(c.Groups))
		for _, group := range c.Groups {
			groups = append(groups, int(group))
		}
		if err := syscall.Setgroups(groups); err != nil {
			return fmt.Errorf("setting groups: %w", err)
		}
		if err := syscall.Setgid(int(c.GID)); err != nil {
			return fmt.Errorf("setting group: %w", err)
		}
		if err := syscall.Setuid(int(c.UID)); err != nil {
			return fmt.Errorf("setting user: %w", err)
		}
	}
	if c.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("forbidding new privileges: %w", err)
		}
	}
	return nil
}

// tree is a copy of a mount that is attached nowhere yet.
type tree struct {
	Mount
	fd  int
	dir bool
}

// openTree copies a mount with everything below it. Because the copy is held by a
// descriptor, it can be attached after the root has changed, when the target path
// resolves as the container's program will see it.
func openTree(m Mount) (tree, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return tree{}, fmt.Errorf("copying mount %s: %w", m.Source, err)
	}
	var info unix.Stat_t
	if err := unix.Fstat(fd, &info); err != nil {
		return tree{}, fmt.Errorf("copying mount %s: %w", m.Source, err)
	}
	return tree{Mount: m, fd: fd, dir: info.Mode&unix.S_IFMT == unix.S_IFDIR}, nil
}

func (t tree) attach() error {
	defer unix.Close(t.fd)
	if err := mountPoint(t.Target, t.dir); err != nil {
		return err
	}
	if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, t.Target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", t.Source, t.Target, err)
	}
	if t.ReadOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, t.Target, unix.AT_RECURSIVE, &attr); err != nil {
			return fmt.Errorf("making %s read-only: %w", t.Target, err)
		}
	}
	if t.Propagation == Private {
		if err := unix.Mount("", t.Target, "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("making %s private: %w", t.Target, err)
		}
	}
	return nil
}

func mountPoint(path string, dir bool) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	parent := path
	if !dir {
		parent = filepath.Dir(path)
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("making mount point: %w", err)
	}
	if dir {
		return nil
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("making mount point: %w", err)
	}
	return file.Close()
}

func containerRoot(config Config) error {
	mounts, err := copyMounts(config.Mounts)
	if err != nil {
		return err
	}
	devices, links, err := copyDevices(config.Privileged)
	if err != nil {
		return err
	}
	layers := filepath.Join(layersDir, config.ID)
	upper, work, root := filepath.Join(layers, "upper"), filepath.Join(layers, "work"), filepath.Join(layers, "root")
	for _, dir := range []string{filepath.Join(upper, "etc"), work, root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("making root: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(upper, "etc", "nsswitch.conf"), []byte(nsswitch), 0o644); err != nil {
		return fmt.Errorf("making root: %w", err)
	}
	if err := mount("overlay", root, "overlay", 0, "lowerdir="+hostDir+",upperdir="+upper+",workdir="+work); err != nil {
		return err
	}
	extra, err := os.ReadFile(extraMounts)
	if err != nil {
		return fmt.Errorf("making root: %w", err)
	}
	for path := range strings.FieldsSeq(string(extra)) {
		if err := bind(path, filepath.Join(root, path), true); err != nil {
			return err
		}
	}
	if err := pivot(root); err != nil {
		return err
	}
	if err := kernelMounts(config.Privileged); err != nil {
		return err
	}
	for _, device := range devices {
		if err := device.attach(); err != nil {
			return err
		}
	}
	for name, target := range links {
		if err := os.Symlink(target, name); err != nil {
			return fmt.Errorf("making devices: %w", err)
		}
	}
	for _, m := range mounts {
		if err := m.attach(); err != nil {
			return err
		}
	}
	if config.ReadOnlyRoot {
		return mount("", "/", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	return nil
}

// copyMounts copies what the container is to see of the node. On return no further
// mount of this process can reach the node, except below bidirectional ones.
func copyMounts(mounts []Mount) ([]tree, error) {
	trees := make([]tree, len(mounts))
	// Copied while everything is still shared with the node, they stay shared.
	for i, m := range mounts {
		if m.Propagation != Bidirectional {
			continue
		}
		t, err := openTree(m)
		if err != nil {
			return nil, err
		}
		trees[i] = t
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return nil, fmt.Errorf("cutting mounts off: %w", err)
	}
	for i, m := range mounts {
		if m.Propagation == Bidirectional {
			continue
		}
		t, err := openTree(m)
		if err != nil {
			return nil, err
		}
		trees[i] = t
	}
	return trees, nil
}

// copyDevices copies the device files of the node that the container is to have.
func copyDevices(all bool) (devices []tree, links map[string]string, err error) {
	links = map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1",
		"/dev/stderr": "/proc/self/fd/2", "/dev/ptmx": "pts/ptmx",
	}
	names := []string{"null", "zero", "full", "random", "urandom", "tty"}
	if all {
		entries, err := os.ReadDir("/dev")
		if err != nil {
			return nil, nil, fmt.Errorf("copying devices: %w", err)
		}
		names = nil
		for _, entry := range entries {
			path := "/dev/" + entry.Name()
			switch {
			case entry.Name() == "pts" || entry.Name() == "shm" || links[path] != "":
			case entry.Type()&os.ModeSymlink != 0:
				if links[path], err = os.Readlink(path); err != nil {
					return nil, nil, fmt.Errorf("copying devices: %w", err)
				}
			case entry.IsDir() || entry.Type()&os.ModeDevice != 0:
				names = append(names, entry.Name())
			}
		}
	}
	for _, name := range names {
		t, err := openTree(Mount{Source: "/dev/" + name, Target: "/dev/" + name})
		if err != nil {
			return nil, nil, err
		}
		devices = append(devices, t)
	}
	return devices, links, nil
}

// kernelMounts mounts the kernel's own file systems into the new root.
func kernelMounts(privileged bool) error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	readOnly := uintptr(unix.MS_RDONLY)
	if privileged {
		readOnly = 0
	}
	mounts := []struct {
		source, target, fsType string
		flags                  uintptr
		data                   string
	}{
		{"proc", "/proc", "proc", safe, ""},
		{"sysfs", "/sys", "sysfs", safe | readOnly, ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", safe | readOnly, ""},
		{"tmpfs", "/dev", "tmpfs", unix.MS_NOSUID, "mode=755"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"},
		{"tmpfs", "/dev/shm", "tmpfs", safe, "mode=1777"},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("making mount point: %w", err)
		}
		if err := mount(m.source, m.target, m.fsType, m.flags, m.data); err != nil {
			return err
		}
	}
	return nil
}

// Cleanup removes the writable layer of a container that has ended.
func Cleanup(id string) error {
	if err := os.RemoveAll(filepath.Join(layersDir, id)); err != nil {
		return fmt.Errorf("removing the container's layer: %w", err)
	}
	return nil
}
