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

package bundle

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// archive is a tar.gz under way. Everything that goes into it is redacted.
type archive struct {
	redactor *Redactor
	root     string
	now      time.Time

	mu       sync.Mutex
	gzip     *gzip.Writer
	tar      *tar.Writer
	manifest Manifest
	err      error
}

// Manifest is the first thing to read: what is in the bundle, and what is not and why.
type Manifest struct {
	Made    time.Time `json:"made"`
	Meshctl string    `json:"meshctl"`
	Context string    `json:"context"`
	Files   []File    `json:"files"`
	Missing []Missing `json:"missing"`
}

// File is one file of the bundle.
type File struct {
	Path  string `json:"path"`
	Bytes int    `json:"bytes"`
	// Cut says that there was more.
	Cut bool `json:"cut,omitempty"`
}

// Missing is something that could not be had.
type Missing struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

func newArchive(w io.Writer, root string, redactor *Redactor, now time.Time) *archive {
	zipped := gzip.NewWriter(w)
	return &archive{redactor: redactor, root: root, now: now, gzip: zipped, tar: tar.NewWriter(zipped)}
}

// maxFile is the most that one file takes.
const maxFile = 16 << 20

// add writes one file.
func (a *archive) add(path string, content []byte, cut bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.write(path, content, cut)
	a.manifest.Files = append(a.manifest.Files, File{path, len(content), cut})
}

func (a *archive) write(path string, content []byte, cut bool) {
	content = a.redactor.Redact(content)
	if len(content) > maxFile {
		content = content[:maxFile]
	}
	header := &tar.Header{Name: a.root + "/" + path, Mode: 0o600, Size: int64(len(content)), ModTime: a.now, Typeflag: tar.TypeReg}
	if a.err == nil {
		a.err = a.tar.WriteHeader(header)
	}
	if a.err == nil {
		_, a.err = a.tar.Write(content)
	}
}

// json writes a file of a value.
func (a *archive) json(path string, value any) {
	content, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		a.missing(path, err)
		return
	}
	a.add(path, append(content, '\n'), len(content) > maxFile)
}

// missing notes what could not be had.
func (a *archive) missing(what string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.manifest.Missing = append(a.manifest.Missing, Missing{what, string(a.redactor.Redact([]byte(err.Error())))})
}

// close writes the manifest and ends the archive.
func (a *archive) close() error {
	content, err := json.MarshalIndent(a.manifest, "", "  ")
	if err == nil {
		a.write("manifest.json", append(content, '\n'), false)
	}
	return errors.Join(err, a.err, a.tar.Close(), a.gzip.Close())
}

// create makes the file, for its owner only. One that is there is not overwritten.
func create(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("%s is there already: name another file with --output-file", path)
	}
	if err != nil {
		return nil, fmt.Errorf("making the bundle: %w", err)
	}
	return file, nil
}
