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
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
)

// firstRevision is where the revisions of a store that is made now begin: higher than
// any store that was made before has reached, as none takes a thousand writes in
// every second of its life.
//
// Revisions are the API's resource versions. If they began at 1 again after a store
// was lost, a client that still watches from a higher one would be served in silence,
// and would hear nothing until the new store had caught up; or, worse, would miss what
// it holds below that. So it is told that its version is too old, and lists anew.
// `etcdutl snapshot restore --bump-revision --mark-compacted` does the same for a
// store that is restored.
func firstRevision() int64 { return time.Now().UnixMilli() }

// makeStore makes an empty store in config.Dir, unless there is one. It is made in a
// folder beside it, which is then renamed: a crash leaves a whole one or none.
func makeStore(ctx context.Context, config *embed.Config) error {
	dir := config.Dir
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("removing what an earlier start left: %w", err)
	}
	config.Dir = fresh
	defer func() { config.Dir = dir }()
	server, err := startEmbedded(config)
	if err != nil {
		return err
	}
	select {
	case <-server.Server.ReadyNotify():
	case err = <-server.Err():
	case <-ctx.Done():
		err = ctx.Err()
	}
	server.Close()
	if err != nil {
		return fmt.Errorf("making a store: %w", err)
	}
	raiseRevision(filepath.Join(fresh, "member", "snap", "db"), firstRevision())
	if err := os.Rename(fresh, dir); err != nil {
		return fmt.Errorf("making a store: %w", err)
	}
	return nil
}

// raiseRevision makes a revision the latest of a database that no server has open, and
// all before it compacted.
func raiseRevision(path string, revision int64) {
	db := backend.NewDefaultBackend(zap.NewNop(), path)
	tx := db.BatchTx()
	tx.LockOutsideApply()
	key := mvcc.BucketKeyToBytes(mvcc.BucketKey{Revision: mvcc.Revision{Main: revision}}, mvcc.NewRevBytes())
	tx.UnsafePut(schema.Key, key, []byte{})
	mvcc.UnsafeSetScheduledCompact(tx, revision)
	tx.Unlock()
	db.ForceCommit()
	_ = db.Close()
}
