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
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/test/lab/cgroup"
	"mesh.io/clustermesh/test/lab/container"
	"mesh.io/clustermesh/test/lab/proc"
)

const fabric = "fabric"

func controlName(cluster string) string { return cluster + "-control" }

// program is the path of a program of the build, as the host sees it.
func (l *Lab) program(name string) string { return filepath.Join(l.options.BinDir, name) }

// hold starts the holder of a network namespace without a file system of its own.
func (l *Lab) hold(name string) error {
	dir := filepath.Join(l.cgroup, name)
	if err := cgroup.Make(dir); err != nil {
		return err
	}
	cmd := exec.Command(l.program("lab-shim"), "hold")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	id, err := proc.Start(dir, l.path("log", name+".log"), cmd)
	if err != nil {
		return err
	}
	l.setHolder(name, id)
	return nil
}

// holdNode starts the holder of a node and waits until its file system is there.
func (l *Lab) holdNode(config container.NodeConfig) error {
	dir := filepath.Join(l.cgroup, config.Name)
	for _, part := range []string{"system", "kubepods"} {
		if err := cgroup.Make(filepath.Join(dir, part)); err != nil {
			return err
		}
	}
	config.Cgroup = dir
	file := filepath.Join(config.StateDir, "node.json")
	if err := container.WriteJSON(file, config); err != nil {
		return err
	}
	log := filepath.Join(config.StateDir, "log", "node.log")
	cmd := exec.Command(l.program("lab-shim"), "node", file)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	id, err := proc.Start(dir, log, cmd)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(container.ReadyFile(config.StateDir)); err == nil {
			break
		}
		if !id.Alive() || time.Now().After(deadline) {
			said, _ := os.ReadFile(log)
			return fmt.Errorf("starting node %s: %s", config.Name, strings.TrimSpace(string(said)))
		}
	}
	l.setHolder(config.Name, id)
	return nil
}

func (l *Lab) setHolder(name string, id proc.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Holders[name] = id
}

func (l *Lab) holder(name string) proc.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.Holders[name]
}

// run starts a program and adds it to the table, or starts it again.
func (l *Lab) run(p process) error {
	dir := filepath.Join(l.cgroup, p.Cgroup)
	if err := cgroup.Make(dir); err != nil {
		return err
	}
	args := p.Args
	if p.Holder != "" {
		args = append(l.enter(p.Holder), p.Args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"}
	id, err := proc.Start(dir, p.Log, cmd)
	if err != nil {
		return err
	}
	p.ID = id
	if err := l.answers(p); err != nil {
		return err
	}
	l.mu.Lock()
	replaced := false
	for i := range l.state.Processes {
		if l.state.Processes[i].Name == p.Name {
			l.state.Processes[i], replaced = p, true
		}
	}
	if !replaced {
		l.state.Processes = append(l.state.Processes, p)
	}
	l.mu.Unlock()
	return l.save()
}

// answers waits until the socket of a program does, if it has one.
func (l *Lab) answers(p process) error {
	if p.Socket == "" {
		return nil
	}
	path := fmt.Sprintf("/proc/%d/root%s", l.holder(p.Holder).PID, p.Socket)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn.Close()
		}
		if !p.ID.Alive() || time.Now().After(deadline) {
			return fmt.Errorf("starting %s: %w; its log %s ends with:\n%s", p.Name, err, p.Log, tail(p.Log, 6))
		}
	}
}

// enter is the command line that starts a program in a holder's namespaces.
func (l *Lab) enter(holder string) []string {
	which := "net"
	if _, isNode := l.state.Plan.Node(holder); isNode {
		which = "node"
	}
	return []string{l.program("lab-shim"), "enter", strconv.Itoa(l.holder(holder).PID), which}
}

// died tells which programs have ended, with the last words of each.
func (l *Lab) died() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	watchers := false
	for _, p := range l.state.Processes {
		if !p.ID.Alive() {
			last := tail(p.Log, 6)
			fmt.Fprintf(&b, "\n%s has ended; its log %s ends with:\n%s", p.Name, p.Log, last)
			watchers = watchers || strings.Contains(last, "too many open files")
		}
	}
	if watchers {
		b.WriteString("\nThe kernel lets no more files be watched, which is no fault of the lab: stop other labs and containers, or run\n" +
			"  sysctl fs.inotify.max_user_instances=1024")
	}
	return b.String()
}

func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return "  " + strings.Join(all, "\n  ")
}
