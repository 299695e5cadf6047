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

package crilog

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAnEntryIsOneLineOfTheFormat(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	for text, want := range map[string]string{
		"hello\n": "2026-01-02T03:04:05.000006Z stdout F hello\n",
		"hel":     "2026-01-02T03:04:05.000006Z stdout P hel\n",
		"\n":      "2026-01-02T03:04:05.000006Z stdout F \n",
	} {
		if got := string(Entry(at, "stdout", []byte(text))); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestALongLineIsCutIntoParts(t *testing.T) {
	lines := written(t, strings.Repeat("x", maxLine+10)+"\nshort\nno end")
	var tags []string
	for _, line := range lines {
		tags = append(tags, strings.SplitN(line, " ", 4)[2])
	}
	if got := strings.Join(tags, ""); got != "PFFP" {
		t.Errorf("got lines tagged %s, want PFFP", got)
	}
	if first := strings.SplitN(lines[0], " ", 4)[3]; len(first) != maxLine {
		t.Errorf("the first part has %d bytes, want %d", len(first), maxLine)
	}
}

func TestAfterReopenTheLogContinuesInANewFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	w, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Copy("stdout", strings.NewReader("one\n")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := w.Reopen(); err != nil {
		t.Fatal(err)
	}
	if err := w.Copy("stderr", strings.NewReader("two\n")); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(string(b), " stderr F two\n") || strings.Contains(string(b), "one") {
		t.Errorf("the new file holds %q, %v", b, err)
	}
}

func written(t *testing.T, output string) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	w, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Copy("stdout", strings.NewReader(output)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimRight(string(b), "\n"), "\n")
}
