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

package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

func TestArchive(t *testing.T) {
	folder, out, again := t.TempDir(), t.TempDir(), t.TempDir()
	for _, arch := range architectures {
		command := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-trimpath",
			"-ldflags", "-s -w -X mesh.io/clustermesh/pkg/version.version=v9.8.7", "-o", filepath.Join(folder, "linux-"+arch)+"/", "./testdata/meshctl")
		command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
		if output, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
	}
	b := build{version: "v9.8.7", revision: "abc", time: time.Unix(1700000000, 0).UTC()}
	for _, dir := range []string{out, again} {
		if err := b.pack("meshctl", folder, dir); err != nil {
			t.Fatal(err)
		}
	}
	first, err := os.ReadFile(filepath.Join(out, "meshctl.tar"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(filepath.Join(again, "meshctl.tar"))
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("two builds differ (%v)", err)
	}

	index, manifest := open(t, first)
	platforms := map[string]v1.Image{}
	for _, descriptor := range manifest.Manifests {
		image, err := index.Image(descriptor.Digest)
		if err != nil {
			t.Fatal(err)
		}
		platforms[descriptor.Platform.String()] = image
	}
	for _, platform := range []string{"linux/amd64", "linux/arm64"} {
		image := platforms[platform]
		if image == nil {
			t.Fatalf("no image for %s", platform)
		}
		config, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if config.OS+"/"+config.Architecture != platform || config.Config.User != "65532:65532" || config.Config.Entrypoint[0] != "/usr/bin/meshctl" ||
			config.Config.Labels["org.opencontainers.image.version"] != "v9.8.7" || config.Config.Labels["org.opencontainers.image.revision"] != "abc" {
			t.Errorf("%s: %+v", platform, config)
		}
	}
	// The image's own program runs, where there is nothing but it.
	program := filepath.Join(t.TempDir(), "meshctl")
	stream := tar.NewReader(mutate.Extract(platforms["linux/"+runtime.GOARCH]))
	for {
		header, err := stream.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Name == "usr/bin/meshctl" {
			content, err := io.ReadAll(stream)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(program, content, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if output, err := exec.CommandContext(t.Context(), program, "--version").CombinedOutput(); err != nil || !strings.Contains(string(output), "v9.8.7") {
		t.Errorf("it says %q (%v)", output, err)
	}

	var bill struct {
		SPDXVersion string `json:"spdxVersion"`
		Packages    []struct{ Name, VersionInfo, Comment string }
	}
	content, err := os.ReadFile(filepath.Join(out, "meshctl.amd64.spdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, &bill); err != nil {
		t.Fatal(err)
	}
	module := false
	for _, p := range bill.Packages {
		module = module || p.Name == "github.com/spf13/pflag" && strings.HasPrefix(p.VersionInfo, "v1.") && strings.Contains(p.Comment, "h1:")
	}
	if bill.SPDXVersion != "SPDX-2.3" || !module {
		t.Errorf("%s, pflag listed: %v", bill.SPDXVersion, module)
	}
}

// TestOtherArchitecture puts the programs of two platforms into each other's folders.
func TestOtherArchitecture(t *testing.T) {
	folder := t.TempDir()
	for _, arch := range architectures {
		dir := filepath.Join(folder, "linux-"+arch)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		own, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "meshctl"), own, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b := build{version: "v1", revision: "a", time: time.Unix(0, 0)}
	if err := b.pack("meshctl", folder, t.TempDir()); err == nil || !strings.Contains(err.Error(), "is built for") {
		t.Errorf("error is %v", err)
	}
}

// open returns the index of platforms in an archive.
func open(t *testing.T, archive []byte) (v1.ImageIndex, *v1.IndexManifest) {
	t.Helper()
	dir := t.TempDir()
	stream := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := stream.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(stream)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, header.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	top, err := root.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	index, err := root.ImageIndex(top.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	return index, manifest
}
