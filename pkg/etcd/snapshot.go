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
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Endpoint is the address of the server that runs on a data directory.
func Endpoint(dataDir string) (string, error) {
	dataDir, err := filepath.Abs(dataDir)
	if err != nil {
		return "", fmt.Errorf("finding data directory: %w", err)
	}
	path := filepath.Join(dataDir, clientSocket)
	switch _, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("no server runs on data directory %q", dataDir)
	case err != nil:
		return "", fmt.Errorf("looking for the server on data directory %q: %w", dataDir, err)
	}
	address, err := socketURL(path)
	if err != nil {
		return "", err
	}
	return address.String(), nil
}

// Saved describes a snapshot.
type Saved struct {
	Size   int64
	SHA256 string // of the whole file, as sha256sum prints it
}

// Save writes a snapshot of the store that the client is connected to. What it has
// written may be used only if it returns no error: a snapshot whose transfer broke
// off is not whole.
func Save(ctx context.Context, client *clientv3.Client, to io.Writer) (Saved, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	response, err := client.SnapshotWithVersion(ctx)
	if err != nil {
		return Saved{}, fmt.Errorf("asking etcd for a snapshot: %w", err)
	}
	defer response.Snapshot.Close()
	whole, sum := sha256.New(), newSum()
	size, err := io.Copy(io.MultiWriter(to, whole, sum), response.Snapshot)
	if err != nil {
		return Saved{}, fmt.Errorf("copying the snapshot: %w", err)
	}
	if err := sum.check(); err != nil {
		return Saved{}, fmt.Errorf("checking the snapshot: %w", err)
	}
	return Saved{Size: size, SHA256: hex.EncodeToString(whole.Sum(nil))}, nil
}

// SaveFile is Save to a file, which is there only once it is whole and on the disk.
func SaveFile(ctx context.Context, client *clientv3.Client, path string) (saved Saved, err error) {
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.part") // for its owner only
	if err != nil {
		return Saved{}, fmt.Errorf("making a file for the snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			_ = file.Close()
			_ = os.Remove(file.Name())
		}
	}()
	if saved, err = Save(ctx, client, file); err != nil {
		return Saved{}, err
	}
	if err := errors.Join(file.Sync(), file.Close(), os.Rename(file.Name(), path), syncDirectory(filepath.Dir(path))); err != nil {
		return Saved{}, fmt.Errorf("writing %q: %w", path, err)
	}
	return saved, nil
}

// hashBlock divides the size of every database. The hash behind it does not.
const hashBlock = 512

// sum checks what is written to it against the hash with which a snapshot ends.
type sum struct {
	content hash.Hash
	end     []byte // the last bytes, which may be the hash
	size    int64
}

func newSum() *sum { return &sum{content: sha256.New()} }

func (s *sum) Write(p []byte) (int, error) {
	s.size += int64(len(p))
	s.end = append(s.end, p...)
	if more := len(s.end) - sha256.Size; more > 0 {
		s.content.Write(s.end[:more])
		s.end = append(s.end[:0], s.end[more:]...)
	}
	return len(p), nil
}

func (s *sum) check() error {
	switch {
	case s.size == 0:
		return errors.New("it is empty")
	case s.size%hashBlock != sha256.Size:
		return fmt.Errorf("it is no snapshot, or was cut off: its %d bytes do not end in a hash", s.size)
	case !bytes.Equal(s.content.Sum(nil), s.end):
		return errors.New("it is no snapshot, or damaged: its content does not have the hash that it ends in")
	}
	return nil
}
