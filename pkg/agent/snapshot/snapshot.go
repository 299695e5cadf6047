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

// Package snapshot keeps on disk what an agent knows of the rest of the mesh, so that
// it can start while its mesh API is down.
//
// A file is one header line, with the format's version, the length and the checksum of
// what follows, and a JSON document. It is written beside the old one and renamed
// over it: a reader finds the old file or the new one. What is cut short, changed or
// of another version is refused as a whole.
package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

// FileName is the name of the file in the agent's state folder.
const FileName = "remote.snapshot"

// version is that of the format. It changes when an older agent could no longer read
// the file, or would read it wrongly; fields may be added without.
const version = 1

const header = "mesh-agent-snapshot v%d %d sha256:%s\n"

var (
	// ErrNone is returned by Read if there is no snapshot.
	ErrNone = errors.New("there is no snapshot")
	// ErrBad is returned by Read if the file is not a whole snapshot that this agent
	// understands.
	ErrBad = errors.New("the snapshot cannot be used")
)

// Content is what a snapshot holds.
type Content struct {
	// Written is when it was written.
	Written time.Time
	// Cluster is the name of the agent's own cluster.
	Cluster string
	Remote  desired.Remote
}

// The JSON document. Endpoints are most of it, so their keys are short.
type (
	document struct {
		Written  time.Time        `json:"written"`
		Cluster  string           `json:"cluster"`
		Epoch    string           `json:"epoch,omitempty"`
		Revision uint64           `json:"revision,omitempty"`
		Members  []memberDocument `json:"members,omitempty"`
		Specs    []specDocument   `json:"globalServices,omitempty"`
		Slices   []sliceDocument  `json:"slices,omitempty"`
	}
	memberDocument struct {
		Name string                   `json:"name"`
		ID   uint16                   `json:"id"`
		Spec v1alpha1.MeshClusterSpec `json:"spec"`
	}
	specDocument struct {
		Namespace string                     `json:"namespace"`
		Name      string                     `json:"name"`
		Spec      v1alpha1.GlobalServiceSpec `json:"spec"`
	}
	sliceDocument struct {
		Cluster   string             `json:"cluster"`
		Namespace string             `json:"namespace"`
		Service   string             `json:"service"`
		Object    string             `json:"object"`
		Ports     []portDocument     `json:"ports,omitempty"`
		Endpoints []endpointDocument `json:"endpoints,omitempty"`
	}
	portDocument struct {
		Name     string           `json:"name,omitempty"`
		Protocol desired.Protocol `json:"protocol"`
		Port     uint16           `json:"port"`
	}
	endpointDocument struct {
		Addr    netip.Addr    `json:"a"`
		State   desired.State `json:"s,omitempty"`
		Leaving bool          `json:"l,omitempty"`
	}
)

// Pause is how long to wait after a snapshot of the size was written, which took a
// time, before the next is: least for a small one. The whole file is written for each
// change, and flushed to a disk that others need too: that takes a twentieth of the time
// at most, and 4 MiB in half a minute. For its size alone none waits over a minute.
func Pause(least time.Duration, size int, took time.Duration) time.Duration {
	const half, large = 30 * time.Second, 4 << 20
	bySize := min(time.Duration(float64(half)*float64(size)/large), 2*half)
	return max(least, 20*took, bySize)
}

// Write replaces the snapshot in the folder, and returns its size.
func Write(folder string, content Content) (size int, err error) {
	body, err := json.Marshal(encode(content))
	if err != nil {
		return 0, fmt.Errorf("encoding snapshot: %w", err)
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return 0, fmt.Errorf("making state folder: %w", err)
	}
	path := filepath.Join(folder, FileName)
	file, err := os.CreateTemp(folder, FileName+".*.tmp")
	if err != nil {
		return 0, fmt.Errorf("making snapshot: %w", err)
	}
	sum := sha256.Sum256(body)
	_, err = fmt.Fprintf(file, header, version, len(body), hex.EncodeToString(sum[:]))
	if err == nil {
		_, err = file.Write(body)
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		_ = os.Remove(file.Name())
		return 0, fmt.Errorf("writing snapshot %q: %w", path, err)
	}
	return len(body), nil
}

// Read reads the snapshot in the folder, and removes what a writer left behind that
// was killed.
func Read(folder string) (Content, error) {
	if leftovers, err := filepath.Glob(filepath.Join(folder, FileName+".*.tmp")); err == nil {
		for _, path := range leftovers {
			_ = os.Remove(path)
		}
	}
	path := filepath.Join(folder, FileName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Content{}, ErrNone
	}
	if err != nil {
		return Content{}, fmt.Errorf("reading snapshot: %w", err)
	}
	bad := func(format string, args ...any) (Content, error) {
		return Content{}, fmt.Errorf("%w: %q: %s", ErrBad, path, fmt.Sprintf(format, args...))
	}
	line, body, found := bytes.Cut(data, []byte("\n"))
	var v, length int
	var sum string
	if _, err := fmt.Sscanf(string(line)+"\n", header, &v, &length, &sum); err != nil || !found {
		return bad("it has no header")
	}
	if v != version {
		return bad("it is of version %d, and this agent reads version %d", v, version)
	}
	if length != len(body) {
		return bad("it has %d bytes in the place of %d", len(body), length)
	}
	if got := sha256.Sum256(body); hex.EncodeToString(got[:]) != sum {
		return bad("its checksum does not match")
	}
	var d document
	if err := json.Unmarshal(body, &d); err != nil {
		return bad("%v", err)
	}
	return decode(d), nil
}

func encode(content Content) document {
	remote := content.Remote
	d := document{Written: content.Written, Cluster: content.Cluster, Epoch: remote.Epoch, Revision: remote.Revision}
	for _, m := range remote.Members {
		d.Members = append(d.Members, memberDocument(m))
	}
	for name, spec := range remote.Specs {
		d.Specs = append(d.Specs, specDocument{name.Namespace, name.Name, spec})
	}
	d.Slices = make([]sliceDocument, 0, len(remote.Slices))
	for _, s := range remote.Slices {
		slice := sliceDocument{
			Cluster: s.Cluster, Namespace: s.Service.Namespace, Service: s.Service.Name, Object: s.Object,
			Endpoints: make([]endpointDocument, len(s.Endpoints)),
		}
		for _, p := range s.Ports {
			slice.Ports = append(slice.Ports, portDocument(p))
		}
		for i, e := range s.Endpoints {
			slice.Endpoints[i] = endpointDocument(e)
		}
		d.Slices = append(d.Slices, slice)
	}
	return d
}

func decode(d document) Content {
	content := Content{Written: d.Written, Cluster: d.Cluster}
	remote := &content.Remote
	remote.Epoch, remote.Revision = d.Epoch, d.Revision
	for _, m := range d.Members {
		remote.Members = append(remote.Members, desired.Member(m))
	}
	remote.Specs = make(map[desired.Name]v1alpha1.GlobalServiceSpec, len(d.Specs))
	for _, s := range d.Specs {
		remote.Specs[desired.Name{Namespace: s.Namespace, Name: s.Name}] = s.Spec
	}
	for _, s := range d.Slices {
		slice := &desired.Slice{
			Cluster:   s.Cluster,
			Service:   desired.Name{Namespace: s.Namespace, Name: s.Service},
			Object:    s.Object,
			Endpoints: make([]desired.Endpoint, len(s.Endpoints)),
		}
		for _, p := range s.Ports {
			slice.Ports = append(slice.Ports, desired.SlicePort(p))
		}
		for i, e := range s.Endpoints {
			slice.Endpoints[i] = desired.Endpoint(e)
		}
		remote.Slices = append(remote.Slices, slice)
	}
	return content
}
