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
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
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
// others have done to those that were there.
func (a *attachment) keep(force bool) error {
	if a.root == "" {
		return nil
	}
	cgroups, err := servedCgroups(a.root)
	if err != nil {
		return err
	}
	if !force && slices.Equal(cgroups, a.last) {
		return nil
	}
	if err := a.kernel.Attach(cgroups); err != nil {
		return errors.Join(errors.New("attaching to cgroups"), err)
	}
	a.last = cgroups
	return nil
}
