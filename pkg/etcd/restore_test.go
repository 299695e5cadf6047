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

package etcd

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var identity = []string{"identity", "identity-too"}

// store is a running store of a test.
type store struct {
	*Server
	*clientv3.Client
	t *testing.T
}

func start(t *testing.T, dir string) *store {
	t.Helper()
	server, err := Start(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return &store{server, client(t, server), t}
}

func (s *store) stop() {
	_ = s.Close()
	s.Stop()
}

func (s *store) put(key, value string) (revision int64) {
	s.t.Helper()
	answer, err := s.Put(s.t.Context(), key, value)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer.Header.Revision
}

func (s *store) get(key string) (value string, revision int64) {
	s.t.Helper()
	answer, err := s.Get(s.t.Context(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	if len(answer.Kvs) == 0 {
		return "", answer.Header.Revision
	}
	return string(answer.Kvs[0].Value), answer.Header.Revision
}

func (s *store) save() []byte {
	s.t.Helper()
	var to bytes.Buffer
	if _, err := Save(s.t.Context(), s.Client, &to); err != nil {
		s.t.Fatal(err)
	}
	return to.Bytes()
}

// beside lists what is in a data directory beside the store and its sockets.
func beside(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if name := entry.Name(); !slices.Contains([]string{"etcd", "lock"}, name) && !strings.HasSuffix(name, ".sock") {
			names = append(names, name)
		}
	}
	return names
}

// saved makes a store in the data directory that has moved on from the snapshot that
// is returned, and is stopped. last is its revision.
func saved(t *testing.T, dir string) (snapshot []byte, last int64) {
	t.Helper()
	s := start(t, dir)
	defer s.stop()
	for _, key := range identity {
		s.put(key, "of the first store")
	}
	s.put("kept", "early")
	s.put("deleted", "early")
	snapshot = s.save()
	if _, err := s.Delete(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	s.put("kept", "late")
	return snapshot, s.put("added", "late")
}

func restore(t *testing.T, dir string, snapshot []byte) Restored {
	t.Helper()
	restored, err := Restore(t.Context(), RestoreConfig{DataDir: dir, Reader: bytes.NewReader(snapshot), Identity: identity})
	if err != nil {
		t.Fatal(err)
	}
	return restored
}

func TestRestore(t *testing.T) {
	dir := dataDir(t)
	snapshot, last := saved(t, dir)
	// A second time does the same.
	for range 2 {
		restored := restore(t, dir, snapshot)
		if filepath.Dir(restored.Previous) != dir {
			t.Errorf("the previous store is in %q", restored.Previous)
		}
		s := start(t, dir)
		for key, want := range map[string]string{"kept": "early", "deleted": "early", "added": "", identity[0]: "", identity[1]: ""} {
			if got, _ := s.get(key); got != want {
				t.Errorf("%s is %q, want %q", key, got, want)
			}
		}
		if _, revision := s.get("kept"); revision <= last || revision != restored.Revision {
			t.Errorf("the revision is %d, and said to be %d; the lost store was at %d", revision, restored.Revision, last)
		}
		select {
		case response := <-s.Watch(t.Context(), "kept", clientv3.WithRev(last)):
			if !errors.Is(response.Err(), rpctypes.ErrCompacted) {
				t.Errorf("a watch from before got %v (%v), want %v", response.Err(), response.Events, rpctypes.ErrCompacted)
			}
		case <-time.After(10 * time.Second):
			t.Error("a watch from before heard nothing")
		}
		last = s.put("kept", "after the restore")
		s.stop()
	}
	if got := beside(t, dir); len(got) != 2 || !strings.HasPrefix(got[0], "etcd.before-") || !strings.HasPrefix(got[1], "etcd.before-") {
		t.Errorf("beside the store there are %v", got)
	}

	// The first of the two that were replaced is the one that was lost.
	if err := errors.Join(os.RemoveAll(filepath.Join(dir, "etcd")), os.Rename(filepath.Join(dir, beside(t, dir)[0]), filepath.Join(dir, "etcd"))); err != nil {
		t.Fatal(err)
	}
	s := start(t, dir)
	defer s.stop()
	if got, _ := s.get("added"); got != "late" {
		t.Errorf("in the store that was replaced, added is %q", got)
	}
}

func TestRestoreInPlaceOf(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"nothing": func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		},
		"a damaged store": func(t *testing.T, dir string) { overwrite(t, dir, "db") },
		"a store that was cut off": func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "etcd", "member", "snap", "db"), 8192); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := dataDir(t)
			snapshot, last := saved(t, dir)
			damage(t, dir)
			file := filepath.Join(t.TempDir(), "backup.db")
			if err := os.WriteFile(file, snapshot, 0o400); err != nil {
				t.Fatal(err)
			}
			restored, err := Restore(t.Context(), RestoreConfig{DataDir: dir, File: file, Identity: identity})
			if err != nil {
				t.Fatal(err)
			}
			if (restored.Previous != "") != (name != "nothing") || restored.Revision <= last {
				t.Errorf("restored: %+v; the lost store was at %d", restored, last)
			}
			s := start(t, dir)
			defer s.stop()
			if got, _ := s.get("kept"); got != "early" {
				t.Errorf("kept is %q", got)
			}
		})
	}
}

func TestRestoreRefuses(t *testing.T) {
	source := dataDir(t)
	snapshot, _ := saved(t, source)
	raw, err := os.ReadFile(filepath.Join(source, "etcd", "member", "snap", "db"))
	if err != nil {
		t.Fatal(err)
	}
	other := start(t, dataDir(t))
	other.put("kept", "of something else")
	foreign := other.save()
	other.stop()
	damaged := bytes.Clone(snapshot)
	damaged[len(damaged)/2] ^= 1

	dir := dataDir(t)
	saved(t, dir)
	for name, test := range map[string]struct {
		content []byte
		want    string
	}{
		"nothing":               {nil, "it is empty"},
		"a text":                {[]byte("apiVersion: v1\n"), "no snapshot"},
		"one that was cut off":  {snapshot[:len(snapshot)-1000], "cut off"},
		"one without its end":   {snapshot[:len(snapshot)-4096], "damaged"},
		"one that was damaged":  {damaged, "damaged"},
		"a copied database":     {raw, "no snapshot"},
		"one of something else": {foreign, "of something else"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Restore(t.Context(), RestoreConfig{DataDir: dir, Reader: bytes.NewReader(test.content), Identity: identity})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error is %v, want it to contain %q", err, test.want)
			}
		})
	}
	t.Run("a file that is not there", func(t *testing.T) {
		if _, err := Restore(t.Context(), RestoreConfig{DataDir: dir, File: filepath.Join(dir, "none"), Identity: identity}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the error is %v", err)
		}
	})
	t.Run("what never ends", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		reader, _, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(ctx, RestoreConfig{DataDir: dir, Reader: reader, Identity: identity}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the error is %v", err)
		}
	})
	if got := beside(t, dir); len(got) > 0 {
		t.Errorf("it leaves %v", got)
	}
	s := start(t, dir)
	defer s.stop()
	if got, _ := s.get("added"); got != "late" {
		t.Errorf("added is %q", got)
	}
	t.Run("a directory in use", func(t *testing.T) {
		_, err := Restore(t.Context(), RestoreConfig{DataDir: dir, Reader: bytes.NewReader(snapshot), Identity: identity})
		if err == nil || !strings.Contains(err.Error(), "is in use by another process") {
			t.Errorf("the error is %v", err)
		}
	})
}

// TestStartAfterARestoreThatDied has what a restore leaves at each of its steps.
func TestStartAfterARestoreThatDied(t *testing.T) {
	for name, test := range map[string]struct {
		die  func(t *testing.T, etcd, whole string)
		want string
	}{
		"while it worked": {func(t *testing.T, etcd, whole string) {
			must(t, os.MkdirAll(etcd+".restoring", 0o700), os.Rename(whole, etcd+".restoring/store"))
		}, "late"},
		"before it replaced the store": {func(t *testing.T, etcd, whole string) {
			must(t, os.Rename(whole, etcd+".restored"))
		}, "late"},
		"between taking the store away and putting another there": {func(t *testing.T, etcd, whole string) {
			must(t, os.Rename(whole, etcd+".restored"), os.Rename(etcd, etcd+".before-x"))
		}, "early"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, other := dataDir(t), dataDir(t)
			snapshot, _ := saved(t, dir)
			restore(t, other, snapshot)
			test.die(t, filepath.Join(dir, "etcd"), filepath.Join(other, "etcd"))
			s := start(t, dir)
			got, _ := s.get("kept")
			s.stop()
			if got != test.want {
				t.Errorf("kept is %q, want %q", got, test.want)
			}
			for _, name := range beside(t, dir) {
				if name != "etcd.before-x" {
					t.Errorf("it leaves %s", name)
				}
			}
			// A store that is taken away now is not replaced by one from then.
			must(t, os.RemoveAll(filepath.Join(dir, "etcd")))
			s = start(t, dir)
			defer s.stop()
			if got, _ := s.get("kept"); got != "" {
				t.Errorf("in a new store kept is %q", got)
			}
		})
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// TestKilledRestore kills a restore at many points of its way.
func TestKilledRestore(t *testing.T) {
	const directory, file = "MESH_TEST_RESTORE_DIR", "MESH_TEST_RESTORE_FILE"
	if dir := os.Getenv(directory); dir != "" { // the process that is killed
		if _, err := Restore(t.Context(), RestoreConfig{DataDir: dir, File: os.Getenv(file), Identity: identity}); err != nil {
			t.Fatal(err)
		}
		return
	}
	source := dataDir(t)
	snapshot, _ := saved(t, source)
	path := filepath.Join(t.TempDir(), "backup.db")
	must(t, os.WriteFile(path, snapshot, 0o600))
	seen := map[string]int{}
	run := func(kill time.Duration) time.Duration {
		dir := dataDir(t)
		must(t, os.CopyFS(filepath.Join(dir, "etcd"), os.DirFS(filepath.Join(source, "etcd"))))
		command := exec.Command(os.Args[0], "-test.run=^TestKilledRestore$")
		command.Env = append(os.Environ(), directory+"="+dir, file+"="+path)
		begin := time.Now()
		must(t, command.Start())
		if kill > 0 {
			time.AfterFunc(kill, func() { _ = command.Process.Kill() })
		}
		err := command.Wait()
		took := time.Since(begin)
		if kill == 0 {
			must(t, err)
		}
		s := start(t, dir)
		defer s.stop()
		kept, _ := s.get("kept")
		mark, _ := s.get(identity[0])
		switch got := kept + "," + mark; got {
		case "late,of the first store", "early,":
			seen[kept]++
		default:
			t.Errorf("killed after %s, it leaves a store with %q", kill, got)
		}
		return took
	}
	whole := run(0)
	const steps = 12
	for i := range steps {
		run(whole * time.Duration(i+1) / steps)
	}
	t.Logf("a restore takes %s; stores that were found: %v", whole, seen)
}

func TestRevisionBeyond(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	for name, test := range map[string]struct{ highest, want int64 }{
		"a store that began with the clock":      {1_799_000_000_000, 1_800_000_000_000},
		"one that began at 1":                    {5000, 1_800_000_000_000},
		"one that was made a moment ago":         {1_800_000_000_000 - 5, 1_800_000_000_000 - 5 + unseen},
		"one that is ahead of a clock gone back": {1_900_000_000_000, 1_900_000_000_000 + unseen},
	} {
		if got := revisionBeyond(test.highest, now); got != test.want {
			t.Errorf("%s goes on at %d, want %d", name, got, test.want)
		}
	}
}
