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
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSaveFile(t *testing.T) {
	s := start(t, dataDir(t))
	defer s.stop()
	s.put("key", strings.Repeat("value", 20000))
	dir := t.TempDir()
	path := filepath.Join(dir, "backup.db")
	must(t, os.WriteFile(path, []byte("of yesterday"), 0o644))

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := SaveFile(ended, s.Client, path); err == nil {
		t.Error("a transfer that was ended counts as whole")
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "of yesterday" {
		t.Errorf("a transfer that was ended leaves %q (%v)", content, err)
	}

	saved, err := SaveFile(t.Context(), s.Client, path)
	must(t, err)
	content, err := os.ReadFile(path)
	must(t, err)
	if sum := sha256.Sum256(content); saved.SHA256 != hex.EncodeToString(sum[:]) || saved.Size != int64(len(content)) {
		t.Errorf("saved is %+v, the file has %d bytes with %x", saved, len(content), sum)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file is %v (%v)", info, err)
	}
	if entries, err := fs.Glob(os.DirFS(dir), "*"); err != nil || len(entries) != 1 {
		t.Errorf("there are %v (%v)", entries, err)
	}
	if _, err := SaveFile(t.Context(), s.Client, filepath.Join(dir, "none", "backup.db")); err == nil {
		t.Error("a folder that is not there is written to")
	}
}

func TestSum(t *testing.T) {
	content := bytes.Repeat([]byte("x"), 4*hashBlock)
	hash := sha256.Sum256(content)
	whole := append(content, hash[:]...)
	// In whatever pieces it comes.
	for _, piece := range []int{1, 31, 32, 33, 1000, len(whole)} {
		sum := newSum()
		for rest := whole; len(rest) > 0; rest = rest[min(piece, len(rest)):] {
			_, _ = sum.Write(rest[:min(piece, len(rest))])
		}
		if err := sum.check(); err != nil {
			t.Errorf("in pieces of %d: %v", piece, err)
		}
	}
}

func TestEndpoint(t *testing.T) {
	dir := dataDir(t)
	if _, err := Endpoint(dir); err == nil || !strings.Contains(err.Error(), "no server runs") {
		t.Errorf("the error is %v", err)
	}
	s := start(t, dir)
	defer s.stop()
	if got, err := Endpoint(dir); err != nil || got != s.Server.Endpoints()[0] {
		t.Errorf("the endpoint is %q (%v), want %q", got, err, s.Server.Endpoints())
	}
}
