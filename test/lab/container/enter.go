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
	"os/exec"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/test/lab/proc"
)

// Enter makes the calling process a program inside namespaces of another process.
// It must be called on the main thread and returns only with an error.
func Enter(pid int, which proc.Namespaces, args, env []string) error {
	if err := proc.Enter(pid, which); err != nil {
		return err
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("entering: %w", err)
	}
	if err := unix.Exec(path, args, env); err != nil {
		return fmt.Errorf("starting %s: %w", path, err)
	}
	return nil
}
