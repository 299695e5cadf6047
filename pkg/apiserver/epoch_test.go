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

package apiserver

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
	"k8s.io/apiserver/pkg/storage/storagebackend"

	"mesh.io/clustermesh/pkg/etcd"
)

// store is a running store of a test.
type store struct {
	t      *testing.T
	dir    string
	server *etcd.Server
	config storagebackend.TransportConfig
	client *clientv3.Client
}

// shortDir is a folder for a store: a socket's path has 107 bytes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "store")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func openStore(t *testing.T, dir string) *store {
	t.Helper()
	server, err := etcd.Start(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &store{t: t, dir: dir, server: server, config: storagebackend.TransportConfig{ServerList: server.Endpoints()}}
	if s.client, err = newStoreClient(s.config); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *store) stop() {
	_ = s.client.Close()
	s.server.Stop()
}

func (s *store) epoch() string {
	s.t.Helper()
	epoch, err := storeEpoch(s.t.Context(), s.config)
	if err != nil || epoch == "" {
		s.t.Fatalf("the epoch is %q (%v)", epoch, err)
	}
	return epoch
}

func (s *store) put(key, value string) {
	s.t.Helper()
	if _, err := s.client.Put(s.t.Context(), key, value); err != nil {
		s.t.Fatal(err)
	}
}

func (s *store) save() []byte {
	s.t.Helper()
	var to bytes.Buffer
	if _, err := etcd.Save(s.t.Context(), s.client, &to); err != nil {
		s.t.Fatal(err)
	}
	return to.Bytes()
}

// restoreElsewhere restores a snapshot as etcd's own tool does it.
func restoreElsewhere(t *testing.T, content []byte, token string) (dir string) {
	t.Helper()
	dir = shortDir(t)
	file := filepath.Join(t.TempDir(), "backup.db")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	const peer = "unix:///etcd/peer.sock"
	err := snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: file, OutputDataDir: filepath.Join(dir, "etcd"),
		Name: "mesh-apiserver", PeerURLs: []string{peer}, InitialCluster: "mesh-apiserver=" + peer, InitialClusterToken: token,
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestStoreEpoch(t *testing.T) {
	dir := shortDir(t)
	first := openStore(t, dir)
	epochs := make([]string, 8)
	var replicas sync.WaitGroup
	for i := range epochs {
		replicas.Go(func() { epochs[i], _ = storeEpoch(t.Context(), first.config) })
	}
	replicas.Wait()
	for i, epoch := range epochs {
		if epoch == "" || epoch != epochs[0] {
			t.Errorf("replica %d says %q, another %q", i, epoch, epochs[0])
		}
	}
	content := first.save()
	first.stop()

	for _, step := range []struct {
		name string
		open func() *store
		same bool
	}{
		{"after a restart", func() *store { return openStore(t, dir) }, true},
		{"restored", func() *store {
			restored := shortDir(t)
			if _, err := etcd.Restore(t.Context(), etcd.RestoreConfig{DataDir: restored, Reader: bytes.NewReader(content), Identity: identityKeys}); err != nil {
				t.Fatal(err)
			}
			return openStore(t, restored)
		}, false},
		{"restored by etcd's tool, as another cluster", func() *store { return openStore(t, restoreElsewhere(t, content, "another")) }, false},
		{"restored by etcd's tool, and said to be", func() *store {
			s := openStore(t, restoreElsewhere(t, content, "another"))
			first := s.epoch()
			if found, err := forgetEpoch(t.Context(), s.client); !found || err != nil {
				t.Errorf("forgot: %v (%v)", found, err)
			}
			if s.epoch() == first {
				t.Error("nothing was forgotten")
			}
			return s
		}, false},
	} {
		t.Run(step.name, func(t *testing.T) {
			s := step.open()
			defer s.stop()
			epoch := s.epoch()
			if (epoch == epochs[0]) != step.same {
				t.Errorf("the epoch is %q, was %q", epoch, epochs[0])
			}
			if again := s.epoch(); again != epoch {
				t.Errorf("the epoch is %q, and then %q", epoch, again)
			}
		})
	}
}

// TestStoreEpochOfTheReleaseBefore has the epoch alone.
func TestStoreEpochOfTheReleaseBefore(t *testing.T) {
	s := openStore(t, shortDir(t))
	s.put(epochKey, "OLD")
	for range 2 {
		if got := s.epoch(); got != "OLD" {
			t.Errorf("the epoch is %q", got)
		}
	}
	// The release before goes on reading it, and from now on a restore is noticed.
	if got, err := s.client.Get(t.Context(), epochKey); err != nil || string(got.Kvs[0].Value) != "OLD" {
		t.Errorf("stored is %v (%v)", got, err)
	}
	content := s.save()
	s.stop()
	restored := openStore(t, restoreElsewhere(t, content, "another"))
	defer restored.stop()
	begin := time.Now()
	if got := restored.epoch(); got == "OLD" {
		t.Errorf("restored, the epoch is %q", got)
	}
	if took := time.Since(begin); took > storeTry {
		t.Errorf("it took %s", took)
	}
}
