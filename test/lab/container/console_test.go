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

package container

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestFramesComeOutAsTheyWentIn(t *testing.T) {
	var stream bytes.Buffer
	for _, content := range []string{"hello", "", "\x00\xff"} {
		if err := WriteFrame(&stream, FrameError, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"hello", "", "\x00\xff"} {
		kind, content, err := ReadFrame(&stream)
		if err != nil || kind != FrameError || string(content) != want {
			t.Errorf("got kind %d, %q, %v; want %q", kind, content, err, want)
		}
	}
	if _, _, err := ReadFrame(&stream); !errors.Is(err, io.EOF) {
		t.Errorf("got %v at the end", err)
	}
	if _, _, err := ReadFrame(bytes.NewReader([]byte{0, 255, 255, 255, 255})); err == nil {
		t.Error("a frame of 4 GiB was read")
	}
}
