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

// Package proc names processes in a way that survives the reuse of process
// numbers, and runs code and programs inside the namespaces of a process.
package proc

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ID is a process: its number and the time it started at, in ticks since boot.
type ID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// Find returns the identity of a running process.
func Find(pid int) (ID, error) {
	state, start, err := stat(pid)
	if err != nil {
		return ID{}, err
	}
	if state == 'Z' || state == 'X' {
		return ID{}, fmt.Errorf("finding process %d: it has ended", pid)
	}
	return ID{PID: pid, Start: start}, nil
}

// Alive tells whether exactly this process still runs. A zombie does not.
func (id ID) Alive() bool {
	if id.PID == 0 {
		return false
	}
	state, start, err := stat(id.PID)
	return err == nil && start == id.Start && state != 'Z' && state != 'X'
}

// Signal sends a signal to exactly this process.
func (id ID) Signal(signal syscall.Signal) error {
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		return fmt.Errorf("signalling process %d: %w", id.PID, err)
	}
	defer unix.Close(fd)
	// The descriptor pins the process, so the comparison is not a race.
	if !id.Alive() {
		return fmt.Errorf("signalling process %d: it has ended", id.PID)
	}
	if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil {
		return fmt.Errorf("signalling process %d: %w", id.PID, err)
	}
	return nil
}

func stat(pid int) (state byte, start uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("finding process: %w", err)
	}
	return parseStat(string(b))
}

// parseStat reads state and start time from the content of /proc/<pid>/stat. The
// second field is the program's name in brackets and may contain anything.
func parseStat(line string) (state byte, start uint64, err error) {
	end := strings.LastIndexByte(line, ')')
	if end < 0 {
		return 0, 0, fmt.Errorf("finding process: odd stat line %q", line)
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) < 20 || len(fields[0]) != 1 {
		return 0, 0, fmt.Errorf("finding process: odd stat line %q", line)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("finding process: %w", err)
	}
	return fields[0][0], start, nil
}

// Namespaces are those of a process that one can join; a bit set of CLONE_NEW….
type Namespaces int

// Sets of namespaces that belong together in the lab.
const (
	Network Namespaces = unix.CLONE_NEWNET
	// Node is everything that makes a node, but for the process numbers: nodes share the host's.
	Node Namespaces = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP
	// Pod is what the containers of a pod share.
	Pod Namespaces = unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	// Container is everything.
	Container Namespaces = Node | unix.CLONE_NEWPID
)

// Enter moves the calling thread into namespaces of a process. The caller must
// have locked the thread and must not unlock it again.
func Enter(pid int, which Namespaces) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("entering namespaces of process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if which&unix.CLONE_NEWNS != 0 {
		// The kernel refuses a mount namespace to a thread that shares its root
		// and working directory with others.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("entering namespaces of process %d: unsharing: %w", pid, err)
		}
	}
	if err := unix.Setns(fd, int(which)); err != nil {
		return fmt.Errorf("entering namespaces of process %d: %w", pid, err)
	}
	return nil
}

// Do runs a function on a thread that is in namespaces of a process. The function
// must not start goroutines that need them too.
func Do(pid int, which Namespaces, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime then ends the thread with the goroutine.
		runtime.LockOSThread()
		if err := Enter(pid, which); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// Start starts a program in a cgroup as a process of its own session, with its
// output going to a file, and does not wait for it.
func Start(cgroupDir, logFile string, cmd *exec.Cmd) (ID, error) {
	group, err := os.Open(cgroupDir)
	if err != nil {
		return ID{}, fmt.Errorf("starting %s: %w", cmd.Path, err)
	}
	defer group.Close()
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return ID{}, fmt.Errorf("starting %s: %w", cmd.Path, err)
	}
	defer log.Close()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	// Born inside: there is no moment in which a kill of the lab would miss it.
	cmd.SysProcAttr.UseCgroupFD = true
	cmd.SysProcAttr.CgroupFD = int(group.Fd())
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return ID{}, fmt.Errorf("starting %s: %w", cmd.Path, err)
	}
	id, err := Find(cmd.Process.Pid)
	if err != nil {
		// It has ended already: an identity that nothing has. Why is in its log.
		id = ID{PID: cmd.Process.Pid}
	}
	go func() { _ = cmd.Wait() }()
	return id, nil
}
