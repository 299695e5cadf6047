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

// init is the first and only program of the machine that hack/test-kernel.sh boots: it
// mounts what tests want, loads modules, runs the programs that /commands lists, says how
// they ended, and switches the machine off.
package main

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// verdict begins the line that the script looks for.
const verdict = "mesh-kernel-test: "

func main() {
	// There is no other program in the machine, and tests want one that does nothing.
	if filepath.Base(os.Args[0]) == "sleep" {
		time.Sleep(time.Hour)
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "this is for a virtual machine: it mounts, and switches the machine off")
		os.Exit(2)
	}
	err := run()
	if err != nil {
		fmt.Printf("%sfailed: %v\n", verdict, err)
	} else {
		fmt.Printf("%spassed\n", verdict)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range []struct{ source, target, kind string }{
		{"proc", "/proc", "proc"},
		{"sys", "/sys", "sysfs"},
		{"dev", "/dev", "devtmpfs"},
		{"tmp", "/tmp", "tmpfs"},
		{"run", "/run", "tmpfs"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2"},
		{"bpf", "/sys/fs/bpf", "bpf"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m.target, err)
		}
	}
	// As many as on a node, not as few as the kernel begins with.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}); err != nil {
		return err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	fmt.Printf("kernel %s\n", unix.ByteSliceToString(name.Release[:]))
	if err := loadModules("/modules"); err != nil {
		return err
	}
	commands, err := os.ReadFile("/commands")
	if err != nil {
		return err
	}
	var errs []error
	for lines := bufio.NewScanner(bytes.NewReader(commands)); lines.Scan(); {
		// The folder, the program and its arguments, separated by tabs.
		fields := strings.Split(lines.Text(), "\t")
		cmd := exec.Command(fields[1], fields[2:]...)
		cmd.Dir = fields[0]
		cmd.Env = append(os.Environ(), "HOME=/tmp", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", filepath.Base(fields[1]), err))
		}
	}
	return errors.Join(errs...)
}

// loadModules loads all modules of a folder, each after those that it needs.
func loadModules(dir string) error {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			files[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return err
	}
	var load func(name string) error
	load = func(name string) error {
		path := files[name]
		if path == "" {
			return nil // loaded, or built in
		}
		delete(files, name)
		needs, err := moduleNeeds(path)
		if err != nil {
			return err
		}
		for _, need := range needs {
			if err := load(need); err != nil {
				return err
			}
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("loading module %s: %w", name, err)
		}
		return nil
	}
	for len(files) > 0 {
		for name := range files {
			if err := load(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// moduleNeeds returns the names of the modules that a module says it needs.
func moduleNeeds(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s is not a module", path)
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
