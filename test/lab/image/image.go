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

// Package image is the lab's registry: an image is a name in a table, and what it
// holds is a program of the lab, of the build, or of the host.
package image

import (
	"fmt"
	"strings"
)

// BinDir is where nodes and containers find the programs of the build.
const BinDir = "/opt/lab/bin"

// Image is what a name stands for.
type Image struct {
	// Entrypoint and Cmd are used as those of any image: a pod's command replaces
	// the first (and drops the second), its args the second.
	Entrypoint []string
	Cmd        []string
	// Tags are those that exist; none means any.
	Tags []string
	// Identity asks for the environment variables MESH_LAB_CLUSTER and MESH_LAB_NODE.
	Identity bool
}

// Pause is the image of sandboxes, as kubelet names it.
const Pause = "registry.k8s.io/pause"

var table = map[string]Image{
	"docker.io/ssongman/userlist": {
		Entrypoint: []string{BinDir + "/lab-shim", "userlist"}, Tags: []string{"v1"}, Identity: true,
	},
	"mesh.io/lab/echo":                {Entrypoint: []string{BinDir + "/lab-shim", "echo"}, Identity: true},
	"docker.io/curlimages/curl":       {Entrypoint: []string{"curl"}, Cmd: []string{"--help"}},
	"docker.io/library/busybox":       {Cmd: []string{"sh"}},
	"docker.io/networkstatic/iperf3":  {Entrypoint: []string{"iperf3"}},
	Pause:                             {Entrypoint: []string{BinDir + "/lab-shim", "pause"}},
	"registry.k8s.io/coredns/coredns": {Entrypoint: []string{BinDir + "/coredns"}},
	"mesh.io/mesh-apiserver":          {Entrypoint: []string{BinDir + "/mesh-apiserver"}},
	"mesh.io/mesh-controller":         {Entrypoint: []string{BinDir + "/mesh-controller"}},
	"mesh.io/mesh-agent":              {Entrypoint: []string{BinDir + "/mesh-agent"}},
	"mesh.io/meshctl":                 {Entrypoint: []string{BinDir + "/meshctl"}},
	"registry.k8s.io/kubectl":         {Entrypoint: []string{BinDir + "/kubectl"}},
}

// Find returns the image of a reference, and the reference in full.
func Find(reference string) (Image, string, error) {
	repository, tag, digest := Split(reference)
	full := repository + ":" + tag
	if digest != "" {
		full = repository + "@" + digest
	}
	image, ok := table[repository]
	if !ok {
		return Image{}, "", fmt.Errorf("%s is not in the lab's image table", full)
	}
	if len(image.Tags) == 0 {
		return image, full, nil
	}
	for _, known := range image.Tags {
		if tag == known {
			return image, full, nil
		}
	}
	return Image{}, "", fmt.Errorf("%s is not in the lab's image table, which has only tag %s of it",
		full, strings.Join(image.Tags, ", "))
}

// All lists the images in full, one tag each.
func All() []string {
	var names []string
	for repository, image := range table {
		tag := "latest"
		if len(image.Tags) > 0 {
			tag = image.Tags[0]
		}
		names = append(names, repository+":"+tag)
	}
	return names
}

// Split takes a reference apart and writes out what people leave away: the
// registry, "library", and the tag.
func Split(reference string) (repository, tag, digest string) {
	repository, digest, _ = strings.Cut(reference, "@")
	tag = "latest"
	if colon := strings.LastIndexByte(repository, ':'); colon > strings.LastIndexByte(repository, '/') {
		repository, tag = repository[:colon], repository[colon+1:]
	}
	first, _, nested := strings.Cut(repository, "/")
	switch {
	case !nested:
		repository = "docker.io/library/" + repository
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		repository = "docker.io/" + repository
	}
	return repository, tag, digest
}

// Command is the full command line of a container.
func (i Image) Command(command, args []string) []string {
	entrypoint, cmd := i.Entrypoint, i.Cmd
	if len(command) > 0 {
		entrypoint, cmd = command, nil
	}
	if len(args) > 0 {
		cmd = args
	}
	return append(append([]string{}, entrypoint...), cmd...)
}
