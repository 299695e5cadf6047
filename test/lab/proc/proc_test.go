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

package proc

import (
	"os"
	"os/exec"
	"testing"
)

func TestStatOfAProgramWithAnOddName(t *testing.T) {
	line := "42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987 1 1"
	state, start, err := parseStat(line)
	if err != nil || state != 'S' || start != 987 {
		t.Errorf("got %c, %d, %v; want S, 987", state, start, err)
	}
	if _, _, err := parseStat("42 nonsense"); err == nil {
		t.Error("nonsense was read")
	}
}

func TestAProcessIsTheSameOnlyWithItsStartTime(t *testing.T) {
	id, err := Find(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !id.Alive() {
		t.Error("this process is not alive")
	}
	if other := (ID{PID: id.PID, Start: id.Start + 1}); other.Alive() {
		t.Error("a process of another time is alive")
	}
	if (ID{}).Alive() {
		t.Error("no process is alive")
	}
}

func TestAZombieIsNotAlive(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Skip("no program to start:", err)
	}
	id, err := Find(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Signal(9); err != nil {
		t.Fatal(err)
	}
	for id.Alive() {
	}
	// Not waited for until here, it was a zombie.
	_ = cmd.Wait()
}
