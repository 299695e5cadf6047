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

// Package e2e tests the whole system on the lab.
package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"mesh.io/clustermesh/test/e2e/tutorial"
)

// TestTutorial walks the tutorial, and what it leaves out, on the bare clusters of a lab of
// its own.
func TestTutorial(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(root, "_output", "bin")
	if os.Getuid() != 0 || os.Getenv("MESH_LAB_TESTS") != "1" {
		t.Skip("the lab needs root, and MESH_LAB_TESTS=1")
	}
	lab := func(command string, args ...string) error {
		cmd := exec.CommandContext(t.Context(), command, args...)
		cmd.Dir = root
		cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
		return cmd.Run()
	}
	down := func() error { return lab(filepath.Join(bin, "lab"), "down") }
	if err := down(); err != nil {
		t.Fatalf("removing what is left of an earlier lab: %v", err)
	}
	t.Cleanup(func() {
		out, err := exec.Command(filepath.Join(bin, "lab"), "down").CombinedOutput()
		if err != nil {
			t.Errorf("removing the lab: %v\n%s", err, out)
		}
	})
	if err := lab(filepath.Join(bin, "lab"), "up", "--clusters", "2", "--nodes", "2"); err != nil {
		t.Fatalf("starting the lab: %v", err)
	}
	config := tutorial.Config{
		Root: root, BinDir: bin, Kubeconfig: filepath.Join(root, "_output", "lab", "kubeconfig"), Out: t.Output(), Faults: true,
	}
	if err := tutorial.Run(t.Context(), config); err != nil {
		t.Fatal(err)
	}
}
