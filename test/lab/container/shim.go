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
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/test/lab/cgroup"
	"mesh.io/clustermesh/test/lab/proc"
)

// ReopenLog asks a shim to continue the log in a new file.
const ReopenLog = syscall.SIGUSR1

// Shim runs one container from its start to its end. It must be called on the main
// thread. What it writes to report, before it closes it, is why the container could
// not be started; nothing means that it was.
func Shim(dir string, report io.WriteCloser) error {
	var config Config
	if err := ReadJSON(ConfigFile(dir), &config); err != nil {
		return err
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, ReopenLog)

	code, err := run(dir, config, report, signals)
	// Whatever the container has left behind outside its process namespace goes too.
	killErr := cgroup.Kill(config.Cgroup, 10*time.Second)
	exit := Exit{Code: code, At: time.Now()}
	if err != nil {
		exit.Error = err.Error()
	}
	return errors.Join(killErr, WriteJSON(ExitFile(dir), exit))
}

func run(dir string, config Config, report io.WriteCloser, signals <-chan os.Signal) (int, error) {
	refuse := func(code int, err error) (int, error) {
		fmt.Fprintln(report, err)
		report.Close()
		return code, err
	}
	console, err := newConsole(dir, config)
	if err != nil {
		return refuse(128, err)
	}
	defer console.close()
	cmd, status, err := start(dir, config, console)
	if err != nil {
		return refuse(128, err)
	}
	problem, _ := io.ReadAll(status)
	status.Close()
	if len(problem) > 0 {
		_ = cmd.Wait()
		return refuse(127, errors.New(strings.TrimSpace(string(problem))))
	}
	main, mainErr := proc.Find(cmd.Process.Pid)
	self, err := proc.Find(os.Getpid())
	if err != nil {
		return refuse(128, err)
	}
	if mainErr != nil {
		// It has ended already, which is not a failure to start it.
		main = proc.ID{PID: cmd.Process.Pid}
	}
	if err := WriteJSON(RunningFile(dir), Running{Shim: self, Main: main, At: time.Now()}); err != nil {
		return refuse(128, err)
	}
	report.Close()

	go func() {
		for s := range signals {
			if s == ReopenLog && console.log != nil {
				if err := console.log.Reopen(); err != nil {
					fmt.Fprintln(os.Stderr, "lab-shim:", err)
				}
			}
		}
	}()
	code := exitCode(cmd.Wait())
	// Nothing else may hold the output open.
	_ = cgroup.Kill(config.Cgroup, 10*time.Second)
	return code, nil
}

// terminalSocket is where a container's first process sends its terminal to.
const terminalSocket = 4

// start starts the container's first process. From the returned file comes the
// reason when it cannot become the program, or nothing.
func start(dir string, config Config, console *console) (*exec.Cmd, *os.File, error) {
	group, err := os.Open(config.Cgroup)
	if err != nil {
		return nil, nil, fmt.Errorf("starting container: %w", err)
	}
	defer group.Close()
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("starting container: %w", err)
	}
	defer statusW.Close()

	join := proc.Namespaces(0)
	if !config.HostNetwork {
		join |= unix.CLONE_NEWNET | unix.CLONE_NEWUTS
	}
	if !config.HostIPC {
		join |= unix.CLONE_NEWIPC
	}
	if join != 0 {
		if err := proc.Enter(config.Sandbox, join); err != nil {
			return nil, nil, fmt.Errorf("joining the pod: %w", err)
		}
	}
	flags := uintptr(unix.CLONE_NEWNS)
	switch {
	case config.HostPID:
	case config.JoinPID != 0:
		if err := proc.Enter(config.JoinPID, unix.CLONE_NEWPID); err != nil {
			return nil, nil, fmt.Errorf("joining the pod's processes: %w", err)
		}
	default:
		flags |= unix.CLONE_NEWPID
	}

	cmd := exec.Command("/proc/self/exe", "init", dir)
	cmd.ExtraFiles = []*os.File{statusW}
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  flags,
		Setsid:      true,
		UseCgroupFD: true,
		CgroupFD:    int(group.Fd()),
	}
	if config.TTY {
		return startOnTerminal(cmd, statusR, console)
	}
	stdout, err := console.pipe(FrameOutput, "stdout")
	if err != nil {
		return nil, nil, err
	}
	// The container has its own; while these are open the log does not end.
	defer stdout.Close()
	stderr, err := console.pipe(FrameError, "stderr")
	if err != nil {
		return nil, nil, err
	}
	defer stderr.Close()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if config.Stdin {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, nil, fmt.Errorf("starting container: %w", err)
		}
		defer r.Close()
		cmd.Stdin, console.input = r, w
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("starting container: %w", err)
	}
	return cmd, statusR, nil
}

// startOnTerminal starts the container's first process, which makes a terminal of its
// own root and sends the other end here.
func startOnTerminal(cmd *exec.Cmd, status *os.File, console *console) (*exec.Cmd, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("starting container: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "terminal"), os.NewFile(uintptr(pair[1]), "terminal")
	defer ours.Close()
	cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return nil, nil, fmt.Errorf("starting container: %w", err)
	}
	terminal, err := receiveTerminal(ours)
	if err != nil {
		// It has ended before it sent one; the status tells why.
		return cmd, status, nil
	}
	console.mu.Lock()
	console.terminal, console.input = terminal, terminal
	console.mu.Unlock()
	console.copy(FrameOutput, "stdout", terminal)
	return cmd, status, nil
}

// exitCode is the number that a shell would report.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 128
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return exit.ExitCode()
}
