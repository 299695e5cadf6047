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

// Command lab-shim is the small program that stands behind every process of the
// lab: it holds namespaces, starts programs inside them, is the parent of
// containers, and is the program of the sample images and of clients in tests. It is apart from the other
// programs because it runs once for each container.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/test/lab/ask"
	"mesh.io/clustermesh/test/lab/container"
	"mesh.io/clustermesh/test/lab/proc"
	"mesh.io/clustermesh/test/lab/sample"
)

// The main function stays on the main thread: namespaces are a thread's, and the
// main thread's are the ones that others see as the process's.
func init() { runtime.LockOSThread() }

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "lab-shim: a part of the lab; people use lab")
		return 2
	}
	code, err := dispatch(args[0], args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab-shim: %s: %v\n", args[0], err)
		if code == 0 {
			code = 1
		}
	}
	return code
}

func dispatch(command string, args []string) (int, error) {
	if needed, ok := map[string]int{"node": 1, "enter": 3, "shim": 1, "init": 1, "exec": 1, "forward": 1}[command]; ok && len(args) < needed {
		return 2, fmt.Errorf("needs %d arguments", needed)
	}
	switch command {
	case "hold":
		return 0, sample.Pause()
	case "node":
		return 0, node(args[0])
	case "enter":
		return 0, enter(args)
	case "shim":
		return 0, container.Shim(args[0], os.NewFile(3, "report"))
	case "init":
		return 127, containerInit(args[0])
	case "exec":
		var config container.ExecConfig
		if err := json.Unmarshal([]byte(args[0]), &config); err != nil {
			return 2, fmt.Errorf("reading arguments: %w", err)
		}
		return container.Exec(config)
	case "forward":
		return 0, forward(args)
	case "pause":
		return 0, pause(args)
	case "userlist":
		return 0, sample.Userlist()
	case "echo":
		return 0, sample.Echo()
	case "ask":
		return 0, ask.Run(os.Stdin, os.Stdout)
	}
	return 2, errors.New("no such command")
}

func node(configFile string) error {
	var config container.NodeConfig
	if err := container.ReadJSON(configFile, &config); err != nil {
		return err
	}
	if err := container.Hold(config); err != nil {
		return err
	}
	return sample.Pause()
}

// enter <pid> net|node <program> [argument…]
func enter(args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return fmt.Errorf("reading process number: %w", err)
	}
	which := proc.Network
	if args[1] == "node" {
		which = proc.Node
	}
	return container.Enter(pid, which, args[2:], os.Environ())
}

func containerInit(dir string) error {
	unix.CloseOnExec(3)
	err := container.Init(dir)
	// The shim waits for this, and passes it on to kubelet.
	fmt.Fprintln(os.NewFile(3, "status"), err)
	// A container's standard error is its log, which is not the place for it.
	os.Exit(127)
	return nil
}

// pause holds a pod's namespaces: pause [host name] [sysctl=value…]
func pause(args []string) error {
	for _, arg := range args {
		name, value, isSysctl := strings.Cut(arg, "=")
		if !isSysctl {
			if err := unix.Sethostname([]byte(name)); err != nil {
				return fmt.Errorf("setting host name: %w", err)
			}
			continue
		}
		path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("setting %s: %w", name, err)
		}
	}
	if len(args) > 0 {
		// The CRI server waits for this line.
		fmt.Println("ready")
	}
	signal.Ignore(syscall.SIGHUP)
	return sample.Pause()
}
