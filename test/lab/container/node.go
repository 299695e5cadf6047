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
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/test/lab/cgroup"
	"mesh.io/clustermesh/test/lab/image"
)

// Places inside a node.
const (
	// privateDir holds what containers are made of; nothing of Kubernetes looks there.
	privateDir = "/.lab"
	// hostDir is the host's root file system, the lowest layer of every container.
	hostDir = privateDir + "/host"
	// layersDir holds the writable layers of containers, in memory.
	layersDir = privateDir + "/containers"
	// extraMounts lists further host file systems that belong into a root, one path each line.
	extraMounts = privateDir + "/mounts"
	// KubeletDir is kubelet's root directory.
	KubeletDir = "/var/lib/kubelet"
	// VolumesDir holds the node's PersistentVolumes.
	VolumesDir = "/var/lib/volumes"
)

// NodeConfig describes a node to its holder.
type NodeConfig struct {
	Name string `json:"name"`
	// StateDir is the node's own directory on the host, at the same path inside.
	StateDir string `json:"stateDir"`
	// LabDir is the state directory of the whole lab, of which nothing else is visible inside.
	LabDir string `json:"labDir"`
	BinDir string `json:"binDir"`
	// Cgroup is the node's cgroup as the host sees it; the root of cgroups inside.
	Cgroup string `json:"cgroup"`
	// Hosts is the content of /etc/hosts.
	Hosts string `json:"hosts"`
}

// ReadyFile says that the node's file system is complete.
func ReadyFile(stateDir string) string { return filepath.Join(stateDir, "ready") }

// Hold makes the calling process, which was started in new namespaces, the node.
// The caller must run on the main thread, and goes on to sleep.
func Hold(config NodeConfig) error {
	// The cgroup namespace takes the cgroup of this moment as its root.
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("making cgroup namespace: %w", err)
	}
	if err := cgroup.Enter(filepath.Join(config.Cgroup, "system")); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(config.Name)); err != nil {
		return fmt.Errorf("setting host name: %w", err)
	}
	if err := nodeRoot(config); err != nil {
		return err
	}
	if err := os.WriteFile(ReadyFile(config.StateDir), nil, 0o644); err != nil {
		return fmt.Errorf("reporting: %w", err)
	}
	return nil
}

func nodeRoot(config NodeConfig) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	extra, err := hostMounts(config.LabDir)
	if err != nil {
		return err
	}

	// In memory, because an overlay cannot have its upper layer inside its lower one.
	stage := filepath.Join(config.StateDir, "mnt")
	if err := os.MkdirAll(stage, 0o755); err != nil {
		return fmt.Errorf("making root: %w", err)
	}
	if err := mount("tmpfs", stage, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	upper, work, root := filepath.Join(stage, "upper"), filepath.Join(stage, "work"), filepath.Join(stage, "root")
	layers, host := filepath.Join(stage, "containers"), filepath.Join(stage, "host")
	for _, dir := range []string{upper, work, root, layers, host} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("making root: %w", err)
		}
	}
	if err := mount("/", host, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := mount("overlay", root, "overlay", 0, "lowerdir=/,upperdir="+upper+",workdir="+work); err != nil {
		return err
	}
	for _, path := range extra {
		if err := bind(path, filepath.Join(root, path), true); err != nil {
			return err
		}
	}

	mounts := []struct {
		source, target, fsType string
		flags                  uintptr
		data                   string
	}{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"/dev", "/dev", "", unix.MS_BIND | unix.MS_REC, ""},
		// A new one shows the devices of this network namespace.
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		// Each mount of bpffs is an instance of its own.
		{"bpf", "/sys/fs/bpf", "bpf", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=700"},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		// On disk: what keeps its data on the node means its fsync.
		{filepath.Join(config.StateDir, "var-lib"), "/var/lib", "", unix.MS_BIND, ""},
		{config.StateDir, config.StateDir, "", unix.MS_BIND, ""},
		{filepath.Join(config.StateDir, "kubelet"), KubeletDir, "", unix.MS_BIND, ""},
		{config.BinDir, image.BinDir, "", unix.MS_BIND, ""},
		{host, hostDir, "", unix.MS_BIND, ""},
		{layers, layersDir, "", unix.MS_BIND, ""},
	}
	for _, m := range mounts {
		target := filepath.Join(root, m.target)
		if m.target == config.StateDir {
			// Nothing of the lab's other nodes is to be seen.
			if err := hide(config.LabDir, root); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(target, 0o755); err != nil {
			return fmt.Errorf("making mount point: %w", err)
		}
		if err := mount(m.source, target, m.fsType, m.flags, m.data); err != nil {
			return err
		}
	}

	files := map[string]string{
		"/etc/hosts":         config.Hosts,
		"/etc/hostname":      config.Name + "\n",
		"/etc/resolv.conf":   "# Nodes of the lab have no name server.\n",
		"/etc/nsswitch.conf": nsswitch,
		extraMounts:          strings.Join(extra, "\n"),
	}
	for path, content := range files {
		if err := replaceFile(filepath.Join(root, path), content); err != nil {
			return err
		}
	}
	if err := pivot(root); err != nil {
		return err
	}
	// Containers ask for mounts that appear later to reach them, or those of theirs to reach the node.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("making mounts shared: %w", err)
	}
	return nil
}

// nsswitch keeps name lookups to files and DNS, whatever the host is set up for.
const nsswitch = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n"

// hide covers a directory with an empty one.
func hide(dir, root string) error {
	target := filepath.Join(root, dir)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("making mount point: %w", err)
	}
	return mount("tmpfs", target, "tmpfs", 0, "mode=755")
}

// replaceFile writes a file anew, so that a link to elsewhere is not followed.
func replaceFile(path, content string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	return nil
}

// hostMounts lists file systems with programs and libraries that the host has
// mounted below its root: an overlay over the root does not include them.
func hostMounts(labDir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	return storageMounts(string(b), labDir), nil
}

func storageMounts(mountinfo, labDir string) []string {
	var paths []string
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 {
			continue
		}
		path, fsType, _ := fields[4], after, 0
		fsType, _, _ = strings.Cut(fsType, " ")
		switch fsType {
		case "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "overlay", "squashfs", "erofs", "virtiofs", "9p":
		default:
			continue
		}
		// Single files, such as those that container engines mount, are not worth it.
		if info, err := os.Stat(path); path == "/" || err != nil || !info.IsDir() {
			continue
		}
		if below(path, "/proc", "/sys", "/dev", "/run", "/tmp", labDir) {
			continue
		}
		paths = append(paths, path)
	}
	return paths
}

func below(path string, dirs ...string) bool {
	for _, dir := range dirs {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return false
}

func mount(source, target, fsType string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fsType, flags, data); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", source, target, err)
	}
	return nil
}

func bind(source, target string, readOnly bool) error {
	if err := mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if !readOnly {
		return nil
	}
	return mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// pivot makes a mount the root and drops the old one.
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("changing root: %w", err)
	}
	// With both names the same the old root ends up on top of the new one.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("changing root: %w", err)
	}
	if err := unix.Mount("", ".", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("changing root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("dropping the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("changing root: %w", err)
	}
	return nil
}

// ReadJSON reads a configuration file.
func ReadJSON(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading configuration: %w", err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	return nil
}

// WriteJSON replaces a file in one step.
func WriteJSON(path string, value any) error {
	b, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	return nil
}
