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
	"os"
	"slices"
	"testing"
)

func TestOnlyStorageOfTheHostGoesIntoRoots(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/usr", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/hosts", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// The first three fields and the source play no part.
	mountinfo := "27 1 254:0 / / rw - ext4 /dev/x rw\n" +
		"28 27 0:1 / " + dir + "/usr rw shared:1 - xfs /dev/y rw\n" +
		"29 27 0:2 / " + dir + "/hosts rw - ext4 /dev/z rw\n" +
		"30 27 0:3 / /proc rw - proc proc rw\n" +
		"31 27 0:4 / /sys/fs rw - ext4 /dev/q rw\n" +
		"32 27 0:5 / " + dir + "/lab/x rw - ext4 /dev/q rw\n" +
		"odd line\n"
	got := storageMounts(mountinfo, dir+"/lab")
	// Below /tmp nothing counts, and that is where tests have their directories.
	want := []string{dir + "/usr"}
	if below(dir, "/tmp") {
		want = nil
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
