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
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/test/lab/cgroup"
	"mesh.io/clustermesh/test/lab/crilog"
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
	stdout, stderr, copied, log, err := output(config)
	if err != nil {
		return refuse(128, err)
	}
	cmd, status, err := start(dir, config, stdout, stderr)
	if err != nil {
		return refuse(128, err)
	}
	problem, _ := io.ReadAll(status)
	status.Close()
	if len(problem) > 0 {
		_ = cmd.Wait()
		copied.Wait()
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
			if s == ReopenLog && log != nil {
				if err := log.Reopen(); err != nil {
					fmt.Fprintln(os.Stderr, "lab-shim:", err)
				}
			}
		}
	}()
	code := exitCode(cmd.Wait())
	_ = cgroup.Kill(config.Cgroup, 10*time.Second)
	copied.Wait()
	return code, nil
}

// output opens the log and the two pipes that feed it.
func output(config Config) (stdout, stderr *os.File, copied *sync.WaitGroup, log *crilog.Writer, err error) {
	copied = &sync.WaitGroup{}
	if config.LogPath == "" {
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		return null, null, copied, nil, err
	}
	log, err = crilog.Open(config.LogPath)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	stream := func(name string) (*os.File, error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("making pipe: %w", err)
		}
		copied.Go(func() {
			if err := log.Copy(name, r); err != nil {
				fmt.Fprintln(os.Stderr, "lab-shim:", err)
			}
			r.Close()
		})
		return w, nil
	}
	if stdout, err = stream("stdout"); err != nil {
		return nil, nil, nil, nil, err
	}
	if stderr, err = stream("stderr"); err != nil {
		return nil, nil, nil, nil, err
	}
	return stdout, stderr, copied, log, nil
}

// start starts the container's first process. From the returned file comes the
// reason when it cannot become the program, or nothing.
func start(dir string, config Config, stdout, stderr *os.File) (*exec.Cmd, *os.File, error) {
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
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.ExtraFiles = []*os.File{statusW}
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  flags,
		Setsid:      true,
		UseCgroupFD: true,
		CgroupFD:    int(group.Fd()),
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("starting container: %w", err)
	}
	// The container has its own; while these are open the log does not end.
	stdout.Close()
	stderr.Close()
	return cmd, statusR, nil
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
