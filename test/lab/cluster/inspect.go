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
	"strings"
	"syscall"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/test/lab/cgroup"
	"mesh.io/clustermesh/test/lab/proc"
)

// errNone says that there is nothing to look at.
var errNone = errors.New("no lab is running here; start one with: lab up")

// Processes prints the table of the lab's programs.
func (l *Lab) Processes() error {
	if found, err := l.load(); err != nil || !found {
		return errors.Join(err, errNone)
	}
	w := tabwriter.NewWriter(l.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tPID\tSTATE\tLOG")
	for _, p := range l.state.Processes {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", p.Name, p.ID.PID, aliveWord(p.ID.Alive()), p.Log)
	}
	for _, name := range l.places() {
		id := l.holder(name)
		fmt.Fprintf(w, "%s (namespaces)\t%d\t%s\t%s\n", name, id.PID, aliveWord(id.Alive()), filepath.Join(l.cgroup, name))
	}
	return w.Flush()
}

func aliveWord(alive bool) string {
	if alive {
		return "running"
	}
	return "ended"
}

// places are the names that have namespaces of their own.
func (l *Lab) places() []string {
	names := []string{fabric}
	for _, cluster := range l.state.Plan.Clusters {
		names = append(names, controlName(cluster.Name))
		for _, node := range cluster.Nodes {
			names = append(names, node.Name)
		}
	}
	return names
}

// Kill ends programs of the lab at once, without asking them. A name is one of the
// table, or the first part of several; "lab up" starts those again. With a colon it
// is a place, or the first part of several, and a pattern for what runs there, in
// pods or beside them: cluster2:mesh-*. Kubelet starts the containers again.
func (l *Lab) Kill(names []string) error {
	if found, err := l.load(); err != nil || !found {
		return errors.Join(err, errNone)
	}
	for _, name := range names {
		var killed int
		var err error
		if place, pattern, ok := strings.Cut(name, ":"); ok {
			killed, err = l.killMatching(place, pattern)
		} else {
			killed, err = l.killNamed(name)
		}
		if err != nil {
			return err
		}
		if killed == 0 {
			return fmt.Errorf("no program %q is running; see: lab ps", name)
		}
	}
	return nil
}

func (l *Lab) killNamed(name string) (int, error) {
	killed := 0
	for _, p := range l.state.Processes {
		if p.Name != name && !strings.HasPrefix(p.Name, name+"/") || !p.ID.Alive() {
			continue
		}
		if err := p.ID.Signal(syscall.SIGKILL); err != nil {
			return killed, err
		}
		l.say("Killed %s", p.Name)
		killed++
	}
	return killed, nil
}

// killMatching looks at the processes of the lab's cgroups only.
func (l *Lab) killMatching(prefix, pattern string) (int, error) {
	if _, err := filepath.Match(pattern, ""); err != nil {
		return 0, fmt.Errorf("pattern %q: %w", pattern, err)
	}
	killed := 0
	for _, place := range l.places() {
		if place != prefix && !strings.HasPrefix(place, prefix+"-") {
			continue
		}
		for _, pid := range cgroup.Processes(filepath.Join(l.cgroup, place)) {
			id, err := proc.Find(pid)
			if err != nil {
				continue
			}
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err != nil {
				continue
			}
			program, _, _ := strings.Cut(string(line), "\x00")
			if match, _ := filepath.Match(pattern, filepath.Base(program)); !match {
				continue
			}
			if err := id.Signal(syscall.SIGKILL); err != nil {
				return killed, err
			}
			l.say("Killed %s on %s", filepath.Base(program), place)
			killed++
		}
	}
	return killed, nil
}

// Exec becomes a program of the host inside a place of the lab: a node with its
// network, mounts and cgroup, or the network of a control plane or of the fabric.
func (l *Lab) Exec(place string, args []string) error {
	if found, err := l.load(); err != nil || !found {
		return errors.Join(err, errNone)
	}
	if !l.holder(place).Alive() {
		return fmt.Errorf("%q is not running; there are: %s", place, strings.Join(l.places(), ", "))
	}
	dir := filepath.Join(l.cgroup, place)
	if _, isNode := l.state.Plan.Node(place); isNode {
		dir = filepath.Join(dir, "system")
	}
	if err := cgroup.Enter(dir); err != nil {
		return err
	}
	command := append(l.enter(place), args...)
	if err := unix.Exec(command[0], command, os.Environ()); err != nil {
		return fmt.Errorf("starting %s: %w", command[0], err)
	}
	return nil
}
