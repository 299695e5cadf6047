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

package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/test/lab/cgroup"
)

// Down removes the lab, in whatever state it is, and a "lab up" that is at work.
func (l *Lab) Down() error {
	if _, err := os.Stat(l.cgroup); err == nil {
		// Before the lock: a start that hangs holds it.
		if err := cgroup.Kill(l.cgroup, 20*time.Second); err != nil {
			return err
		}
	}
	lock, err := l.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := l.remove(); err != nil {
		return err
	}
	l.say("The lab is down")
	return nil
}

// remove ends all processes; with them go namespaces, devices, mounts, and what was
// pinned or attached. Then it removes cgroups and files.
func (l *Lab) remove() error {
	known, err := l.ours()
	if err != nil {
		return err
	}
	if err := cgroup.Kill(l.cgroup, 20*time.Second); err != nil {
		return err
	}
	if err := cgroup.Remove(l.cgroup); err != nil {
		return err
	}
	if !known {
		return nil
	}
	if err := l.unmount(); err != nil {
		return err
	}
	published := l.state.Options.Kubeconfig
	if published == "" {
		published = l.options.Kubeconfig
	}
	if published != "" {
		if err := os.Remove(published); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing kubeconfig: %w", err)
		}
		// Only where nothing else is in it.
		_ = os.Remove(filepath.Dir(published))
	}
	if err := os.RemoveAll(l.options.StateDir); err != nil {
		return fmt.Errorf("removing state directory: %w", err)
	}
	l.state = state{Holders: l.state.Holders}
	clear(l.state.Holders)
	return nil
}

// ours tells whether the state directory is a lab's. Of any other nothing is removed.
func (l *Lab) ours() (bool, error) {
	if l.state.Boot != "" {
		return true, nil
	}
	if _, err := os.Stat(l.stateFile()); err == nil {
		// A half-written file is as good: its place says whose it is.
		_, _ = l.load()
		return true, nil
	}
	entries, err := os.ReadDir(l.options.StateDir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading state directory: %w", err)
	}
	for _, entry := range entries {
		// What is there before the first state file.
		if entry.Name() != "log" && entry.Name() != "lab.json.new" {
			return false, fmt.Errorf("state directory %s holds something that is not a lab; nothing in it was removed", l.options.StateDir)
		}
	}
	return true, nil
}

// unmount removes mounts below the state directory. There are none unless somebody
// has made one by hand: nodes and containers have mount namespaces of their own.
func (l *Lab) unmount() error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("listing mounts: %w", err)
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], l.options.StateDir+"/") {
			points = append(points, fields[4])
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(points)))
	for _, point := range points {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmounting %s: %w", point, err)
		}
	}
	return nil
}
