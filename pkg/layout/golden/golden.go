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

// Package golden is for tests: it compares what people read with files that people have
// read, in the folder testdata of the test's package. With -update it writes the files.
package golden

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// Print compares what is printed into a pipe with NAME.golden, and for a terminal of 80
// columns with NAME-80.golden, where no line may be wider than that, unless it is one
// word of a command, which would not work in two.
func Print(t *testing.T, name string, print func(w io.Writer, width int) error) {
	t.Helper()
	for _, width := range []int{0, 80} {
		var got bytes.Buffer
		if err := print(&got, width); err != nil {
			t.Fatal(err)
		}
		file := name
		if width > 0 {
			file += "-80"
		}
		compare(t, file, got.String())
		for line := range strings.Lines(got.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); width > 0 && n > width && len(strings.Fields(strings.TrimSuffix(line, " \\\n"))) > 1 {
				t.Errorf("%s: a line has %d columns: %s", file, n, line)
			}
		}
	}
}

func compare(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (-update writes it)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("not as in %s; -update writes it (-want +got):\n%s", path, diff)
	}
}
