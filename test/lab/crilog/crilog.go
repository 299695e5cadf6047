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

// Package crilog writes container output in the format that kubelet reads: one
// line each of time, stream, "F" for a full line or "P" for a part of one, text.
package crilog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// maxLine is where a line is cut into parts.
const maxLine = 16 * 1024

// Writer is a log file that several streams share.
type Writer struct {
	path string

	mu   sync.Mutex
	file *os.File
}

// Open opens a log file for appending.
func Open(path string) (*Writer, error) {
	w := &Writer{path: path}
	if err := w.Reopen(); err != nil {
		return nil, err
	}
	return w, nil
}

// Reopen continues in a new file of the same name: kubelet has moved the old one away.
func (w *Writer) Reopen() error {
	file, err := os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("opening container log: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file != nil {
		w.file.Close()
	}
	w.file = file
	return nil
}

// Copy writes a stream to the log until it ends.
func (w *Writer) Copy(stream string, r io.Reader) error {
	reader := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := reader.ReadSlice('\n')
		if len(line) > 0 {
			entry := Entry(time.Now(), stream, line)
			w.mu.Lock()
			_, writeErr := w.file.Write(entry)
			w.mu.Unlock()
			if writeErr != nil {
				return fmt.Errorf("writing container log: %w", writeErr)
			}
		}
		switch {
		case err == nil, errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrClosed):
			return nil
		default:
			return fmt.Errorf("reading container output: %w", err)
		}
	}
}

// Entry formats one piece of output. Without a line end it is a part of a line.
func Entry(at time.Time, stream string, text []byte) []byte {
	tag := byte('P')
	if n := len(text); n > 0 && text[n-1] == '\n' {
		tag, text = 'F', text[:n-1]
	}
	entry := at.AppendFormat(make([]byte, 0, len(text)+64), time.RFC3339Nano)
	entry = append(entry, ' ')
	entry = append(entry, stream...)
	entry = append(entry, ' ', tag, ' ')
	entry = append(entry, text...)
	return append(entry, '\n')
}
