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
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"mesh.io/clustermesh/test/lab/proc"
)

// ExecConfig describes a further program in a running container.
type ExecConfig struct {
	// Main is a process of the container.
	Main        int         `json:"main"`
	Args        []string    `json:"args"`
	Env         []string    `json:"env"`
	Cwd         string      `json:"cwd,omitempty"`
	TTY         bool        `json:"tty,omitempty"`
	Credentials Credentials `json:"credentials"`
}

// Exec runs a program in a running container with this process's standard files,
// and returns its exit code. It must be called on the main thread.
func Exec(config ExecConfig) (int, error) {
	if err := proc.Enter(config.Main, proc.Container); err != nil {
		return 126, err
	}
	path, err := lookPath(config.Args, config.Env)
	if err != nil {
		return 127, err
	}
	if err := config.Credentials.limit(); err != nil {
		return 126, err
	}
	cmd := &exec.Cmd{
		Path: path, Args: config.Args, Env: config.Env, Dir: config.Cwd,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Setsid:  true,
			Setctty: config.TTY,
		},
	}
	if config.Credentials.UID != 0 || config.Credentials.GID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{
			Uid: config.Credentials.UID, Gid: config.Credentials.GID, Groups: config.Credentials.Groups,
		}
	}
	if err := cmd.Start(); err != nil {
		return 126, fmt.Errorf("starting %q: %w", path, err)
	}
	// Whoever asked for the program has gone.
	gone := make(chan os.Signal, 1)
	signal.Notify(gone, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-gone
		_ = cmd.Process.Kill()
	}()
	return exitCode(cmd.Wait()), nil
}
