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
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
	"k8s.io/klog/v2"
)

// Beside the store, in the data directory.
const (
	restoring = ".restoring" // what a restore works on
	whole     = ".restored"  // a store that a restore has finished, and not put in place
	previous  = ".before-"   // a store that a restore has replaced, and when
)

// unseen is how many writes a lost store may have taken beyond the highest revision
// that is known of it: those since the snapshot, if the clock is behind, and those
// that the log has and the database has not.
const unseen = 10_000_000

// RestoreConfig says what Restore restores.
type RestoreConfig struct {
	DataDir string
	// File is the snapshot. Reader is read in its place, if there is one.
	File   string
	Reader io.Reader
	// Identity are the keys that tell a store from every other. The snapshot has to have
	// the first, or it is of something else; the restored store has none of them.
	Identity []string
}

// Restored describes a store that was restored.
type Restored struct {
	// Revision is that of the store. It is higher than any that a store in the data
	// directory had before.
	Revision int64
	// Previous is where the store is kept that was there before; empty if there was none.
	Previous string
}

// Restore puts a snapshot in the place of the store in a data directory that no
// server uses. Whenever it is interrupted, the next start finds the store that was
// there, or the whole one of the snapshot.
func Restore(ctx context.Context, c RestoreConfig) (restored Restored, err error) {
	dataDir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return Restored{}, fmt.Errorf("finding data directory: %w", err)
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return Restored{}, fmt.Errorf("making data directory: %w", err)
	}
	lock, err := lockDirectory(dataDir)
	if err != nil {
		return Restored{}, err
	}
	defer lock.Close()
	config, err := serverConfig(dataDir, zap.NewAtomicLevelAt(zap.ErrorLevel))
	if err != nil {
		return Restored{}, err
	}
	if err := settle(config.Dir); err != nil {
		return Restored{}, err
	}
	work := config.Dir + restoring
	if err := os.Mkdir(work, 0o700); err != nil {
		return Restored{}, fmt.Errorf("making a folder to restore in: %w", err)
	}
	defer func() {
		// The next start tries again; the store is what it is.
		if err := os.RemoveAll(work); err != nil {
			klog.FromContext(ctx).Error(err, "Could not remove what a restore has worked on")
		}
	}()

	file, err := c.checked(ctx, work)
	if err != nil {
		return Restored{}, fmt.Errorf("reading the snapshot: %w", err)
	}
	store := filepath.Join(work, "store")
	if restored.Revision, err = build(ctx, config, file, store, c.Identity); err != nil {
		return Restored{}, err
	}
	if err := ctx.Err(); err != nil {
		return Restored{}, fmt.Errorf("restoring the snapshot: %w", err)
	}
	if restored.Previous, err = replace(config.Dir, store, time.Now()); err != nil {
		return Restored{}, fmt.Errorf("putting the restored store in place: %w", err)
	}
	return restored, nil
}

// checked returns the path of a snapshot that is whole.
func (c RestoreConfig) checked(ctx context.Context, work string) (path string, err error) {
	from, to, path := c.Reader, io.Discard, c.File
	if from == nil {
		file, err := os.Open(c.File)
		if err != nil {
			return "", err
		}
		defer file.Close()
		from = file
	} else {
		path = filepath.Join(work, "snapshot")
		file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return "", err
		}
		defer file.Close()
		to = file
	}
	sum := newSum()
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.MultiWriter(to, sum), from)
		copied <- err
	}()
	select {
	case err = <-copied:
	case <-ctx.Done(): // a read of standard input cannot be ended
		return "", ctx.Err()
	}
	if err != nil {
		return "", err
	}
	return path, sum.check()
}

// build makes a store of a snapshot, and returns its revision. It turns the panics
// with which etcd answers unreadable data into errors.
func build(ctx context.Context, config *embed.Config, file, store string, identity []string) (revision int64, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			revision, err = 0, fmt.Errorf("restoring the snapshot: its data cannot be read: %v", reason)
		}
	}()
	logger, err := newLogger(zap.NewAtomicLevelAt(zap.ErrorLevel))
	if err != nil {
		return 0, fmt.Errorf("making etcd's logger: %w", err)
	}
	manager := snapshot.NewV3(logger)
	status, err := manager.Status(file)
	if err != nil {
		return 0, fmt.Errorf("reading the snapshot: %w", err)
	}
	highest := status.Revision
	if present, err := latestRevision(filepath.Join(config.Dir, "member", "snap", "db")); err == nil {
		highest = max(highest, present)
	} else if !errors.Is(err, fs.ErrNotExist) {
		klog.FromContext(ctx).Info("Could not read the store that is replaced", "err", err)
	}
	err = manager.Restore(snapshot.RestoreConfig{
		SnapshotPath:        file,
		Name:                config.Name,
		OutputDataDir:       store,
		PeerURLs:            []string{config.AdvertisePeerUrls[0].String()},
		InitialCluster:      config.InitialCluster,
		InitialClusterToken: config.InitialClusterToken,
		RevisionBump:        uint64(revisionBeyond(highest, time.Now()) - status.Revision),
		MarkCompacted:       true,
	})
	if err != nil {
		return 0, fmt.Errorf("restoring the snapshot: %w", err)
	}
	if revision, err = forget(ctx, logger, filepath.Join(store, "member", "snap", "db"), identity); err != nil {
		return 0, err
	}
	return revision, syncTree(store)
}

// revisionBeyond is where the revisions go on of a store of which the highest known
// one is given: see firstRevision.
func revisionBeyond(highest int64, now time.Time) int64 {
	return max(now.UnixMilli(), highest+unseen)
}

// forget removes from a database that no server uses what tells its store from every
// other, and returns its revision.
func forget(ctx context.Context, logger *zap.Logger, path string, identity []string) (revision int64, err error) {
	db := backend.NewDefaultBackend(logger, path)
	defer func() { err = errors.Join(err, db.Close()) }()
	keys := mvcc.NewStore(logger, db, &lease.FakeLessor{}, mvcc.StoreConfig{})
	defer func() { err = errors.Join(err, keys.Close()) }()
	found, err := keys.Range(ctx, []byte(identity[0]), nil, mvcc.RangeOptions{})
	if err != nil {
		return 0, fmt.Errorf("reading the restored store: %w", err)
	}
	if len(found.KVs) == 0 {
		return 0, fmt.Errorf("the snapshot is of something else than the mesh's store: it has no %s", identity[0])
	}
	for _, key := range identity {
		keys.DeleteRange([]byte(key), nil)
	}
	keys.Commit()
	return keys.Rev(), nil
}

// latestRevision reads the revision of a database that no server uses.
func latestRevision(path string) (revision int64, err error) {
	// A file that was cut off ends before the pages that it refers to.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if reason := recover(); reason != nil {
			revision, err = 0, fmt.Errorf("reading %q: %v", path, reason)
		}
	}()
	if _, err := os.Stat(path); err != nil {
		return 0, err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return 0, fmt.Errorf("opening %q: %w", path, err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		keys := tx.Bucket(schema.Key.Name())
		if keys == nil {
			return fmt.Errorf("reading %q: it has no keys", path)
		}
		if last, _ := keys.Cursor().Last(); len(last) >= 8 {
			revision = int64(binary.BigEndian.Uint64(last))
		}
		return nil
	})
	return revision, err
}

// replace puts a store in the place of the one in dir, which is kept. Between the two
// renames there is none, and settle knows what is meant.
func replace(dir, store string, now time.Time) (kept string, err error) {
	if err := errors.Join(os.Rename(store, dir+whole), syncDirectory(filepath.Dir(dir))); err != nil {
		return "", err
	}
	if exists(dir) {
		for n, name := 1, dir+previous+now.UTC().Format("20060102T150405Z"); ; n++ {
			if kept = name; n > 1 {
				kept = fmt.Sprintf("%s-%d", name, n)
			}
			if !exists(kept) {
				break
			}
		}
		if err := errors.Join(os.Rename(dir, kept), syncDirectory(filepath.Dir(dir))); err != nil {
			return "", err
		}
	}
	return kept, errors.Join(os.Rename(dir+whole, dir), syncDirectory(filepath.Dir(dir)))
}

// settle finishes or drops what a restore that died has left beside the store in dir.
func settle(dir string) error {
	if exists(dir + whole) {
		if !exists(dir) {
			// It died between the two renames.
			if err := errors.Join(os.Rename(dir+whole, dir), syncDirectory(filepath.Dir(dir))); err != nil {
				return fmt.Errorf("putting a restored store in place: %w", err)
			}
		} else if err := errors.Join(os.RemoveAll(dir+restoring), os.Rename(dir+whole, dir+restoring)); err != nil {
			// Under its own name half of it could be taken for a whole one.
			return fmt.Errorf("dropping a restored store that was not put in place: %w", err)
		}
	}
	if err := os.RemoveAll(dir + restoring); err != nil {
		return fmt.Errorf("removing what an earlier restore left: %w", err)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// syncTree makes the entries of all folders last through a crash of the machine.
func syncTree(root string) error {
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		return syncDirectory(path)
	})
}
