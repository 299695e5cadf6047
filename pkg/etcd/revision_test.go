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
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestNewStoreBeginsAfterEveryEarlierOne(t *testing.T) {
	dir := dataDir(t)
	first, err := Start(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	put, err := client(t, first).Put(t.Context(), "key", "of the first store")
	if err != nil {
		t.Fatal(err)
	}
	first.Stop()

	// The store is lost. What a start that died left beside it is in no one's way.
	if err := os.RemoveAll(filepath.Join(dir, "etcd")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "etcd.new", "member", "snap"), 0o700); err != nil {
		t.Fatal(err)
	}
	second, err := Start(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { second.Stop() }()
	c := client(t, second)
	got, err := c.Get(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Kvs) != 0 || got.Header.Revision <= put.Header.Revision {
		t.Fatalf("the new store is at revision %d, the first was at %d; key: %v", got.Header.Revision, put.Header.Revision, got.Kvs)
	}

	// A watch from where the first store was is refused, not served in silence.
	select {
	case response := <-c.Watch(t.Context(), "key", clientv3.WithRev(put.Header.Revision+1)):
		if !errors.Is(response.Err(), rpctypes.ErrCompacted) {
			t.Errorf("the old watch got %v (%v), want %v", response.Err(), response.Events, rpctypes.ErrCompacted)
		}
	case <-time.After(10 * time.Second):
		t.Error("the old watch heard nothing")
	}

	// Another start goes on from there.
	at, err := c.Put(t.Context(), "key", "of the second store")
	if err != nil {
		t.Fatal(err)
	}
	second.Stop()
	if second, err = Start(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	got, err = client(t, second).Get(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	if got.Header.Revision != at.Header.Revision || len(got.Kvs) != 1 {
		t.Errorf("after a restart the store is at revision %d with %v, want %d and the key", got.Header.Revision, got.Kvs, at.Header.Revision)
	}
}
