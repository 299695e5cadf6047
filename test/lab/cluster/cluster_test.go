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

package cluster

import (
	"bytes"
	"strings"
	"testing"

	"mesh.io/clustermesh/test/lab/plan"
	"mesh.io/clustermesh/test/lab/volume"
)

func TestACgroupNameAlwaysHasThePrefix(t *testing.T) {
	for dir, want := range map[string]string{
		"/run/mesh-lab": "mesh-lab", "/tmp/mesh-lab-test": "mesh-lab-test",
		"/tmp/system.slice": "mesh-lab-system.slice", "/x/mesh-laboratory": "mesh-lab-mesh-laboratory",
	} {
		if got := cgroupName(dir); got != want {
			t.Errorf("%s: got %s, want %s", dir, got, want)
		}
	}
}

func TestEveryManifestHasItsPath(t *testing.T) {
	lab, err := plan.New(1, 2)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := render(lab.Clusters[0])
	if err != nil {
		t.Fatal(err)
	}
	// Two nodes, and one object for each path in the file beside them.
	if want := 2 + strings.Count(manifests, "# path ") - 1; len(objects) != want {
		t.Errorf("got %d objects, want %d", len(objects), want)
	}
	for _, object := range objects {
		name := object.path[strings.LastIndexByte(object.path, '/')+1:]
		if strings.Count(object.yaml, "# path ") != 1 || !strings.Contains(object.yaml, "name: "+name) || strings.Contains(object.yaml, "{{") {
			t.Errorf("%s is\n%s", object.path, object.yaml)
		}
	}
}

func TestTheStorageClassNamesTheProvisioner(t *testing.T) {
	if !strings.Contains(manifests, "\nprovisioner: "+volume.Provisioner+"\n") {
		t.Errorf("no StorageClass is of %s", volume.Provisioner)
	}
}

func TestTheQuestionForAName(t *testing.T) {
	got := question("a.bc")
	want := []byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x02bc\x00\x00\x01\x00\x01")
	if !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
