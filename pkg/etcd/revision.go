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
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/backend"
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
func firstRevision() uint64 { return uint64(time.Now().UnixMilli()) }

// makeStore makes an empty store in config.Dir, unless there is one. It is what etcd
// calls restoring a snapshot with a bumped revision, of a snapshot that holds nothing.
// It is made in a folder beside it, which is then renamed: a crash leaves a whole one
// or none. A store that a restore has not quite put in place is one.
func makeStore(config *embed.Config) error {
	if err := settle(config.Dir); err != nil {
		return err
	}
	if _, err := os.Stat(config.Dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fresh, empty := config.Dir+".new", config.Dir+".empty"
	for _, left := range []string{fresh, empty} {
		if err := os.RemoveAll(left); err != nil {
			return fmt.Errorf("removing what an earlier start left: %w", err)
		}
	}
	if err := makeDatabase(empty); err != nil {
		return fmt.Errorf("making a database: %w", err)
	}
	err := snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath:        empty,
		SkipHashCheck:       true, // it was not saved by a server, so it has none
		Name:                config.Name,
		OutputDataDir:       fresh,
		PeerURLs:            []string{config.AdvertisePeerUrls[0].String()},
		InitialCluster:      config.InitialCluster,
		InitialClusterToken: config.InitialClusterToken,
		RevisionBump:        firstRevision(),
		MarkCompacted:       true,
	})
	if err != nil {
		return fmt.Errorf("making a store: %w", err)
	}
	return errors.Join(os.Rename(fresh, config.Dir), syncDirectory(filepath.Dir(config.Dir)), os.Remove(empty))
}

// makeDatabase makes a database with nothing in it.
func makeDatabase(path string) error {
	db := backend.NewDefaultBackend(zap.NewNop(), path)
	tx := db.BatchTx()
	tx.LockOutsideApply()
	tx.UnsafeCreateBucket(schema.Key)
	tx.UnsafeCreateBucket(schema.Meta)
	tx.Unlock()
	db.ForceCommit()
	return db.Close()
}

// syncDirectory makes a rename in the directory last through a crash of the machine.
func syncDirectory(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
