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

package member

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"mesh.io/clustermesh/test/integration/controlplane"
)

// Meshctl is how the program is run.
type Meshctl struct {
	Kubeconfig string
	Input      string
	// After, if not empty, is what it has to have printed before it is sent the Signal.
	Signal syscall.Signal
	After  string
}

// Result is how it ended.
type Result struct {
	Args      []string
	Code      int
	Out, Errs string
}

func (r Result) String() string {
	return fmt.Sprintf("meshctl %s: exit code %d\n%s\n%s", strings.Join(r.Args, " "), r.Code, r.Out, r.Errs)
}

// Run runs it to its end.
func (m Meshctl) Run(t testing.TB, args ...string) Result {
	t.Helper()
	command := exec.CommandContext(t.Context(), controlplane.Build(t, "meshctl"), args...)
	var out bytes.Buffer
	errs := &trigger{text: m.After, fire: func() { _ = command.Process.Signal(m.Signal) }}
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(m.Input), &out, errs
	command.Env = append(os.Environ(), "KUBECONFIG="+m.Kubeconfig)
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return Result{args, command.ProcessState.ExitCode(), out.String(), errs.content.String()}
}

// Want checks how it ended and what it said, wherever that was broken into lines.
func (r Result) Want(t testing.TB, code int, texts ...string) Result {
	t.Helper()
	if r.Code != code {
		t.Fatalf("want exit code %d, got %s", code, r)
	}
	said := r.Out + r.Errs
	plain := strings.Join(strings.Fields(said), " ")
	for _, text := range texts {
		if !strings.Contains(said, text) && !strings.Contains(plain, text) {
			t.Fatalf("want %q, got %s", text, r)
		}
	}
	return r
}

// trigger does something once a text was written.
type trigger struct {
	content bytes.Buffer
	text    string
	fire    func()
}

func (w *trigger) Write(p []byte) (int, error) {
	n, err := w.content.Write(p)
	if w.text != "" && strings.Contains(w.content.String(), w.text) {
		w.text = ""
		w.fire()
	}
	return n, err
}
