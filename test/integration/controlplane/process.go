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

package controlplane

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// stopTimeout is how long a process has to end after SIGTERM.
const stopTimeout = 30 * time.Second

// Process is a program that a test runs. It dies with the test's process, however
// that ends.
type Process struct {
	// Name is the program's, for messages.
	Name string
	// LogFile holds what it prints.
	LogFile string

	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// spawner starts all processes from one thread that never ends: the kernel ends a
// child when the thread that started it does.
var spawner = sync.OnceValue(func() chan<- func() {
	jobs := make(chan func())
	go func() {
		runtime.LockOSThread()
		for job := range jobs {
			job()
		}
	}()
	return jobs
})

// Run starts a program. It is ended, by its process ID, when the test ends, and the
// end of its log is shown if the test failed.
func Run(t testing.TB, dir, program string, args ...string) *Process {
	t.Helper()
	name := filepath.Base(program)
	log, err := os.CreateTemp(dir, name+"-*.log")
	if err != nil {
		t.Fatalf("making a log file: %v", err)
	}
	defer log.Close()
	p := &Process{Name: name, LogFile: log.Name(), cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	spawner() <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the log of %s:\n%s", name, tail(p.Log(), 40))
		}
		_ = p.Stop()
	})
	return p
}

// Log is what the process has printed.
func (p *Process) Log() string {
	content, err := os.ReadFile(p.LogFile)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// PID is the process's ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.done }

// ExitCode waits for the process to end, and says how it did: -1 by a signal.
func (p *Process) ExitCode() int {
	<-p.done
	return p.cmd.ProcessState.ExitCode()
}

// Signal sends a signal to the process, if it still runs.
func (p *Process) Signal(signal syscall.Signal) error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended", p.Name)
	default:
		return p.cmd.Process.Signal(signal)
	}
}

// Pause stops the process where it is, and Resume lets it go on.
func (p *Process) Pause() error { return p.Signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (p *Process) Resume() error { return p.Signal(syscall.SIGCONT) }

// Kill ends the process at once.
func (p *Process) Kill() {
	_ = p.Signal(syscall.SIGKILL)
	<-p.done
}

// Stop ends the process gracefully and returns how it ended. A process that is
// paused goes on first; one that does not end in time is killed.
func (p *Process) Stop() error {
	_ = p.Resume()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return nil // ended before
	}
	select {
	case <-p.done:
		return p.err
	case <-time.After(stopTimeout):
		p.Kill()
		return errors.New("it did not end in time and was killed")
	}
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
