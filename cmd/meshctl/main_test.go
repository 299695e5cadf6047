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

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// childVariable makes this program one that does not heed the first Ctrl-C.
const childVariable = "MESHCTL_TEST_STUBBORN"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	os.Exit(interruptible(func(ctx context.Context) int {
		fmt.Println("ready")
		<-ctx.Done()
		fmt.Println("undoing")
		time.Sleep(time.Minute)
		return 0
	}))
}

func TestSecondInterruptEndsAtOnce(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			_ = cmd.Process.Kill()
			t.Fatalf("it says %q, not %q", lines.Text(), want)
		}
	}
	expect("ready")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	expect("undoing") // so the first one does not end it
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// That the next one ends it takes effect a moment after the context's end.
	for deadline := time.After(20 * time.Second); ; {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case err := <-ended:
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				t.Fatalf("it ends with %v", err)
			}
			if status := exit.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGINT {
				t.Errorf("it ends with %v", exit)
			}
			return
		case <-deadline:
			_ = cmd.Process.Kill()
			t.Fatal("Ctrl-C does not end it")
		case <-time.After(50 * time.Millisecond):
		}
	}
}
