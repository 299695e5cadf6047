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

// Package cgroup finds the cgroup2 hierarchy and makes, kills and removes
// subtrees of it. The lab puts every process it starts into one subtree: that is
// how it finds them again, and why it never touches a process of anybody else.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Mount returns where the cgroup2 hierarchy is mounted in this mount namespace.
// Machines that still use version 1 have it beside that, at a place of their own.
func Mount() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("finding cgroup2: %w", err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if point, ok := cgroup2Point(s.Text()); ok {
			return point, nil
		}
	}
	if err := s.Err(); err != nil {
		return "", fmt.Errorf("finding cgroup2: %w", err)
	}
	return "", errors.New("finding cgroup2: no cgroup2 filesystem is mounted; try: mount -t cgroup2 none /sys/fs/cgroup")
}

// cgroup2Point returns the mount point of one mountinfo line that is a cgroup2 mount.
func cgroup2Point(line string) (string, bool) {
	before, after, ok := strings.Cut(line, " - ")
	if !ok || !strings.HasPrefix(after, "cgroup2 ") {
		return "", false
	}
	fields := strings.Fields(before)
	if len(fields) < 5 {
		return "", false
	}
	return fields[4], true
}

// Make creates a cgroup and its parents.
func Make(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making cgroup: %w", err)
	}
	return nil
}

// Enter moves the calling process into a cgroup.
func Enter(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
		return fmt.Errorf("entering cgroup: %w", err)
	}
	return nil
}

// Kill ends every process in the subtree and waits until none is left.
func Kill(dir string, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0o644)
		switch {
		case errors.Is(err, os.ErrNotExist):
			if _, statErr := os.Stat(dir); errors.Is(statErr, os.ErrNotExist) {
				return nil
			}
			// A kernel before 5.14 has no such file.
			killEach(dir)
		case err != nil:
			return fmt.Errorf("killing cgroup: %w", err)
		}
		for range 20 {
			if !Populated(dir) {
				return nil
			}
			time.Sleep(5 * time.Millisecond)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("killing cgroup %s: processes %v are still there", dir, Processes(dir))
		}
	}
}

func killEach(dir string) {
	for _, pid := range Processes(dir) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// Populated tells whether any process lives in the subtree. Zombies do not count.
func Populated(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		return false
	}
	return strings.Contains(string(b), "populated 1")
}

// Processes lists the processes of the subtree.
func Processes(dir string) []int {
	var pids []int
	_ = filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil
		}
		b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return nil
		}
		for _, field := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// Remove removes the subtree, which must have no processes. A cgroup is removed
// by rmdir alone; its files cannot be unlinked.
func Remove(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing cgroup: %w", err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := Remove(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	// A process that has just died may hold its cgroup for a moment longer.
	for range 200 {
		err = unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("removing cgroup %s: %w", dir, err)
}
