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

package image

import (
	"slices"
	"strings"
	"testing"
)

func TestReferencesAreWrittenOut(t *testing.T) {
	for reference, want := range map[string][3]string{
		"busybox":                         {"docker.io/library/busybox", "latest", ""},
		"busybox:1.36":                    {"docker.io/library/busybox", "1.36", ""},
		"curlimages/curl":                 {"docker.io/curlimages/curl", "latest", ""},
		"docker.io/curlimages/curl:8.1":   {"docker.io/curlimages/curl", "8.1", ""},
		"registry.k8s.io/pause:3.10":      {"registry.k8s.io/pause", "3.10", ""},
		"localhost:5000/x/y":              {"localhost:5000/x/y", "latest", ""},
		"mesh.io/lab/echo:v1@sha256:1234": {"mesh.io/lab/echo", "v1", "sha256:1234"},
	} {
		repository, tag, digest := Split(reference)
		if got := [3]string{repository, tag, digest}; got != want {
			t.Errorf("%s: got %v, want %v", reference, got, want)
		}
	}
}

func TestUnknownImagesAndTagsAreNamedInTheError(t *testing.T) {
	for _, reference := range []string{"nginx:1.2", "ssongman/userlist:v9", "ssongman/userlist", "mesh.io/unknown"} {
		_, _, err := Find(reference)
		if err == nil || !strings.Contains(err.Error(), "is not in the lab's image table") {
			t.Errorf("%s: got error %v", reference, err)
		}
	}
	for _, reference := range []string{
		"ssongman/userlist:v1", "curlimages/curl", "curlimages/curl:8.9.1", "busybox:latest", "mesh.io/lab/echo",
		"mesh.io/mesh-agent:dev", "mesh.io/mesh-controller", "mesh.io/mesh-apiserver:v1", "registry.k8s.io/coredns/coredns:v1.14.0",
	} {
		if _, _, err := Find(reference); err != nil {
			t.Errorf("%s: %v", reference, err)
		}
	}
}

func TestACommandReplacesWhatItReplacesInAnyImage(t *testing.T) {
	image := Image{Entrypoint: []string{"a", "b"}, Cmd: []string{"c"}}
	for _, test := range []struct{ command, args, want []string }{
		{nil, nil, []string{"a", "b", "c"}},
		{nil, []string{"x"}, []string{"a", "b", "x"}},
		{[]string{"x"}, nil, []string{"x"}},
		{[]string{"x"}, []string{"y"}, []string{"x", "y"}},
	} {
		if got := image.Command(test.command, test.args); !slices.Equal(got, test.want) {
			t.Errorf("command %v args %v: got %v, want %v", test.command, test.args, got, test.want)
		}
	}
}
