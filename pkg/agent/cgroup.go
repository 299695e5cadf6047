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
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/datapath"
)

// usualRoots are where the root of the cgroup2 tree is found: alone, or beside
// version 1.
var usualRoots = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}

// findCgroupRoot returns the first of the paths that is a cgroup2 tree.
func findCgroupRoot(paths []string) (string, error) {
	for _, path := range paths {
		var stat unix.Statfs_t
		if err := unix.Statfs(path, &stat); err == nil && stat.Type == unix.CGROUP2_SUPER_MAGIC {
			return path, nil
		}
	}
	return "", fmt.Errorf("none of %q is a cgroup (version 2) tree: say where it is with --cgroup-root", paths)
}

// servedCgroups are the first-level cgroups below the root: programs there run before
// those that others attach to the root, and kernel threads, whose sockets carry the
// root, are spared. A root without any is served itself.
func servedCgroups(root string) ([]string, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("reading cgroups: %w", err)
	}
	var cgroups []string
	for _, entry := range entries {
		if entry.IsDir() {
			cgroups = append(cgroups, filepath.Join(root, entry.Name()))
		}
	}
	if len(cgroups) == 0 {
		return []string{root}, nil
	}
	return cgroups, nil
}

// attachment keeps the programs attached to what servedCgroups says.
type attachment struct {
	root   string
	kernel Kernel
	last   []string
}

// keep attaches to cgroups that have come since the last call. force repairs too what
// others have done to those that were there. looked says whether the kernel was looked
// at; then drifts is what was found.
func (a *attachment) keep(force bool) (drifts []datapath.Drift, looked bool, err error) {
	if a.root == "" {
		return nil, false, nil
	}
	cgroups, err := servedCgroups(a.root)
	if err != nil {
		return nil, true, err
	}
	if !force && slices.Equal(cgroups, a.last) {
		return nil, false, nil
	}
	drifts, err = a.kernel.Keep(cgroups)
	if err != nil {
		return drifts, true, errors.Join(errors.New("attaching to cgroups"), err)
	}
	a.last = cgroups
	return drifts, true, nil
}

// serves says whether this process is served, so that its connections must be
// balanced; if not, why.
func (a *attachment) serves() (bool, string) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err.Error()
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return false, err.Error()
	}
	// Of several mounts at one place this is the one that is seen.
	var root unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, a.root, 0, unix.STATX_MNT_ID, &root); err != nil {
		return false, fmt.Sprintf("asking what is mounted at %q: %v", a.root, err)
	}
	return servesProcess(string(mounts), root.Mnt_id, string(own), a.root, a.last)
}

// servesProcess says, by what /proc has of a process, and by the ID of the mount that
// the root is in, whether it is in one of the served cgroups below the root.
func servesProcess(mountinfo string, mount uint64, ownCgroup, root string, served []string) (bool, string) {
	// Where that is mounted, and the part of the tree that it shows.
	var mountedAt, shows string
	for line := range strings.Lines(mountinfo) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[0] == strconv.FormatUint(mount, 10) {
			shows, mountedAt = fields[3], fields[4]
		}
	}
	own := ""
	for line := range strings.Lines(ownCgroup) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			own = strings.TrimSuffix(path, "\n")
		}
	}
	switch {
	case mountedAt == "" || own == "":
		return false, "this process's place in the tree of cgroups is not known"
	case strings.HasPrefix(shows, "/.."):
		// This process's namespace begins somewhere inside what is mounted.
		if mountedAt == root {
			return true, ""
		}
		return false, "this process's cgroup namespace hides where in the tree it is"
	}
	below, inside := relativeTo(shows, own)
	if !inside {
		return false, "this process is outside of the tree that is served"
	}
	place := filepath.Join(mountedAt, below)
	for _, cgroup := range served {
		if _, inside := relativeTo(cgroup, place); inside {
			return true, ""
		}
	}
	return false, fmt.Sprintf("this process is in cgroup %s, which is not served", place)
}

// relativeTo returns the path from the folder, if it is in the folder or is it.
func relativeTo(folder, path string) (string, bool) {
	rel, err := filepath.Rel(folder, path)
	return rel, err == nil && filepath.IsLocal(rel)
}

// watchFolder calls changed whenever a folder comes or goes in the given one, until
// ctx ends. Who looks there from time to time needs it to be told at once.
func watchFolder(ctx context.Context, path string, changed func()) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("making an inotify instance: %w", err)
	}
	// As a file that can be polled, its reads end when it is closed.
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		return fmt.Errorf("watching %q: %w", path, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = events.Close() })
	defer stop()
	buffer := make([]byte, 64<<10)
	for {
		if _, err := events.Read(buffer); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watching %q: %w", path, err)
		}
		changed()
	}
}
