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
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func client(t *testing.T, s *Server) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// dataDir is short: a socket's path has 107 bytes.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "etcd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestDataSurvivesRestart(t *testing.T) {
	dir := dataDir(t)
	for _, step := range []string{"write", "read"} {
		server, err := Start(t.Context(), dir)
		if err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		if step == "write" {
			if _, err := client(t, server).Put(t.Context(), "key", "value"); err != nil {
				t.Fatal(err)
			}
		} else if got, err := client(t, server).Get(t.Context(), "key"); err != nil {
			t.Fatal(err)
		} else if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "value" {
			t.Fatalf("after the restart the key is %v", got.Kvs)
		}
		server.Stop()
	}
}

func TestStartErrors(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(t *testing.T, dir string) string
		want    string
	}{{
		name: "in use",
		prepare: func(t *testing.T, dir string) string {
			server, err := Start(context.Background(), dir)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(server.Stop)
			return dir
		},
		want: "is in use by another process",
	}, {
		name: "cannot be made",
		prepare: func(t *testing.T, dir string) string {
			file := filepath.Join(dir, "file")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(file, "data")
		},
		want: "making data directory: mkdir",
	}, {
		name: "cannot be written",
		prepare: func(t *testing.T, dir string) string {
			// A directory in the lock's place cannot be written even by root.
			if err := os.Mkdir(filepath.Join(dir, "lock"), 0o700); err != nil {
				t.Fatal(err)
			}
			return dir
		},
		want: "writing to data directory",
	}, {
		name: "damaged database",
		prepare: func(t *testing.T, dir string) string {
			server, err := Start(context.Background(), dir)
			if err != nil {
				t.Fatal(err)
			}
			server.Stop()
			overwrite(t, dir, "db")
			return dir
		},
		want: "cannot be read",
	}, {
		name: "damaged log",
		prepare: func(t *testing.T, dir string) string {
			server, err := Start(context.Background(), dir)
			if err != nil {
				t.Fatal(err)
			}
			server.Stop()
			overwrite(t, dir, ".wal")
			return dir
		},
		want: "cannot be read",
	}, {
		name: "path too long for a socket",
		prepare: func(t *testing.T, dir string) string {
			return filepath.Join(dir, strings.Repeat("x", 100))
		},
		want: "too long for a socket",
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := test.prepare(t, dataDir(t))
			server, err := Start(t.Context(), dir)
			if err == nil {
				server.Stop()
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %q, want it to contain %q", err, test.want)
			}
			if !strings.Contains(err.Error(), filepath.Dir(dir)) {
				t.Errorf("error %q does not name the directory", err)
			}
		})
	}
}

// overwrite fills the beginning of each file whose name ends in suffix with noise.
func overwrite(t *testing.T, dir, suffix string) {
	t.Helper()
	found := false
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, suffix) {
			return err
		}
		found = true
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = file.WriteAt([]byte(strings.Repeat("noise", 4000)), 0)
		return err
	})
	if err != nil || !found {
		t.Fatalf("overwriting *%s: found %v, error %v", suffix, found, err)
	}
}

// TestStopsWithoutAWritableWorkingDirectory starts as the pod does, whose root cannot be
// written: everything that the server makes is in the data directory.
func TestStopsWithoutAWritableWorkingDirectory(t *testing.T) {
	dir := dataDir(t)
	t.Chdir("/proc") // nobody can remove or make a file there
	server, err := Start(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "peer.sock")); err != nil || info.Mode().Type() != fs.ModeSocket {
		t.Errorf("the socket for peers is not in the data directory: %v", err)
	}
	stopped := make(chan struct{})
	go func() {
		server.Stop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
}
