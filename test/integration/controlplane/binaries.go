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
	"sync"
	"testing"
)

const (
	// binDirVariable names the folder with the programs; without it, it is
	// _output/bin of the checkout.
	binDirVariable = "MESH_BIN_DIR"
	// requireVariable, set to 1, makes a missing program a failure.
	requireVariable = "MESH_REQUIRE_BINARIES"
)

// Root is the folder of the checkout.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the test")
		}
		dir = parent
	}
}

// Binary is the path of a program that has been built before the test. Without it
// the test is skipped.
func Binary(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv(binDirVariable)
	if dir == "" {
		dir = filepath.Join(Root(t), "_output", "bin")
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		if errors.Is(err, os.ErrNotExist) && os.Getenv(requireVariable) != "1" {
			t.Skipf("%s is missing: run make tools, or set %s", path, binDirVariable)
		}
		t.Fatalf("finding %s: %v", name, err)
	}
	return path
}

// Build is the path of one of this module's programs: the one in MESH_BIN_DIR, or
// else one that is built from the checkout as it is now, once for all tests.
func Build(t testing.TB, name string) string {
	t.Helper()
	if dir := os.Getenv(binDirVariable); dir != "" {
		if path := filepath.Join(dir, name); exists(path) {
			return path
		}
	}
	builds.Lock()
	defer builds.Unlock()
	if path := builds.done[name]; path != "" {
		return path
	}
	root := Root(t)
	path := filepath.Join(root, "_output", "test", name)
	// Another test may run the program: it is replaced, not written to.
	fresh := fmt.Sprintf("%s.%d", path, os.Getpid())
	build := exec.Command("go", "build", "-o", fresh, "./cmd/"+name)
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", name, err, output)
	}
	if err := os.Rename(fresh, path); err != nil {
		t.Fatal(err)
	}
	builds.done[name] = path
	return path
}

// builds are the programs that this process has built.
var builds = struct {
	sync.Mutex
	done map[string]string
}{done: map[string]string{}}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
