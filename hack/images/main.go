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

// Command images packs static binaries as multi-platform OCI archives without a base
// image: FOLDER/<os>-<arch>/<program> becomes OUT/<program>.tar, an OCI layout, and
// OUT/<program>.<arch>.spdx.json, its software bill of materials. That is beside the
// archive because few tools that copy archives carry referrers along.
//
//	SOURCE_DATE_EPOCH=… images -version v1.2.3 FOLDER OUT
package main

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// programs are those that have an image, with the user that each runs as: the agent
// programs the kernel, and has its capabilities from the pod.
var programs = map[string]string{
	"mesh-apiserver":  "65532:65532",
	"mesh-controller": "65532:65532",
	"meshctl":         "65532:65532",
	"mesh-agent":      "0:0",
}

var architectures = []string{"amd64", "arm64"}

type build struct {
	version, revision string
	time              time.Time
}

func main() {
	var b build
	flag.StringVar(&b.version, "version", "devel", "the version of the programs")
	flag.StringVar(&b.revision, "revision", "", "the commit that they are built from")
	flag.Parse()
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err == nil && flag.NArg() != 2 {
		err = fmt.Errorf("usage: images [-version V] [-revision COMMIT] FOLDER OUT")
	}
	b.time = time.Unix(seconds, 0).UTC()
	for program := range programs {
		if err == nil {
			err = b.pack(program, flag.Arg(0), flag.Arg(1))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

// pack writes a program's archive and its bills of materials.
func (b build) pack(program, folder, out string) error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range architectures {
		file := filepath.Join(folder, "linux-"+arch, program)
		image, err := b.image(program, arch, file)
		if err != nil {
			return fmt.Errorf("packing %s for %s: %w", program, arch, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: arch},
		}})
		bill, err := b.bill(program, file)
		if err != nil {
			return fmt.Errorf("listing what is in %s: %w", file, err)
		}
		if err := os.WriteFile(filepath.Join(out, program+"."+arch+".spdx.json"), bill, 0o644); err != nil {
			return err
		}
	}
	index = mutate.Annotations(index, b.labels(program)).(v1.ImageIndex)
	root := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{
		Add: index, Descriptor: v1.Descriptor{Annotations: map[string]string{"org.opencontainers.image.ref.name": b.version}},
	})
	dir, err := os.MkdirTemp("", "oci")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if _, err := layout.Write(dir, root); err != nil {
		return err
	}
	return b.archive(dir, filepath.Join(out, program+".tar"))
}

// machines are what the ELF header of a program says of the architectures.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

func (b build) labels(program string) map[string]string {
	labels := map[string]string{
		"org.opencontainers.image.title":    program,
		"org.opencontainers.image.version":  b.version,
		"org.opencontainers.image.licenses": "Apache-2.0",
		"org.opencontainers.image.created":  b.time.Format(time.RFC3339),
	}
	if b.revision != "" {
		labels["org.opencontainers.image.revision"] = b.revision
	}
	return labels
}

// image holds the program and nothing else. There are no CA certificates: whom to trust
// comes from the cluster (the service account, mesh-ca, a kubeconfig, a Secret).
func (b build) image(program, arch, file string) (v1.Image, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	binary, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	if binary.Machine != machines[arch] {
		return nil, fmt.Errorf("%s is built for %s", file, binary.Machine)
	}
	for _, part := range binary.Progs {
		if part.Type == elf.PT_INTERP {
			return nil, fmt.Errorf("%s is not static, and there is no linker in the image: build it with CGO_ENABLED=0", file)
		}
	}
	var files bytes.Buffer
	writer := tar.NewWriter(&files)
	// The folder is for programs of the Go library that write a temporary file.
	for _, header := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777, ModTime: b.time, Format: tar.FormatPAX},
		{Typeflag: tar.TypeDir, Name: "usr/", Mode: 0o755, ModTime: b.time, Format: tar.FormatPAX},
		{Typeflag: tar.TypeDir, Name: "usr/bin/", Mode: 0o755, ModTime: b.time, Format: tar.FormatPAX},
		{Typeflag: tar.TypeReg, Name: "usr/bin/" + program, Mode: 0o755, ModTime: b.time, Size: int64(len(content)), Format: tar.FormatPAX},
	} {
		if err := writer.WriteHeader(header); err != nil {
			return nil, err
		}
	}
	if _, err := writer.Write(content); err != nil {
		return nil, err
	}
	if err := writer.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(files.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
	if err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.Append(base, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: b.time}, CreatedBy: "hack/images"}})
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, v1.Time{Time: b.time}
	config.Config = v1.Config{
		User: programs[program], Entrypoint: []string{"/usr/bin/" + program},
		// kubectl exec finds the program by its name.
		Env: []string{"PATH=/usr/bin"}, WorkingDir: "/", Labels: b.labels(program),
	}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return nil, err
	}
	return mutate.Annotations(image, b.labels(program)).(v1.Image), nil
}

// archive writes a folder as a tar whose bytes depend on nothing but its content.
func (b build) archive(dir, out string) (err error) {
	file, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() {
		if closed := file.Close(); err == nil {
			err = closed
		}
	}()
	writer := tar.NewWriter(file)
	err = filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		if err := writer.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: relative, Mode: 0o644, Size: int64(len(content)), ModTime: b.time, Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err = writer.Write(content)
		return err
	})
	if err != nil {
		return err
	}
	return writer.Close()
}

// bill lists, as SPDX 2.3, the modules that the Go tool recorded in a binary.
func (b build) bill(program, file string) ([]byte, error) {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return nil, err
	}
	type object = map[string]any
	pack := func(id, name, version, sum string) object {
		p := object{"SPDXID": id, "name": name, "versionInfo": version, "downloadLocation": "NOASSERTION", "filesAnalyzed": false}
		p["externalRefs"] = []object{{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": "pkg:golang/" + name + "@" + version}}
		if sum != "" {
			p["comment"] = "go.sum: " + sum
		}
		return p
	}
	packages := []object{
		pack("SPDXRef-program", info.Main.Path, b.version, ""),
		pack("SPDXRef-go", "std", info.GoVersion, ""),
	}
	relations := []object{
		{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-program"},
		{"spdxElementId": "SPDXRef-program", "relationshipType": "DEPENDS_ON", "relatedSpdxElement": "SPDXRef-go"},
	}
	for i, module := range info.Deps {
		if module.Replace != nil {
			module = module.Replace
		}
		id := fmt.Sprintf("SPDXRef-module-%d", i)
		packages = append(packages, pack(id, module.Path, module.Version, module.Sum))
		relations = append(relations, object{"spdxElementId": "SPDXRef-program", "relationshipType": "DEPENDS_ON", "relatedSpdxElement": id})
	}
	return json.MarshalIndent(object{
		"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": filepath.Base(file),
		"documentNamespace": fmt.Sprintf("https://mesh.io/spdx/%s-%s-%s", program, b.version, filepath.Base(filepath.Dir(file))),
		"creationInfo":      object{"created": b.time.Format(time.RFC3339), "creators": []string{"Tool: clustermesh-hack-images"}},
		"packages":          packages, "relationships": relations,
	}, "", "  ")
}
