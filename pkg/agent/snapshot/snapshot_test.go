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

package snapshot

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

func example() Content {
	name := desired.Name{Namespace: "song", Name: "userlist"}
	return Content{
		Written: time.Date(2026, 11, 23, 14, 0, 0, 0, time.UTC),
		Cluster: "cluster1",
		Remote: desired.Remote{
			Epoch: "e1", Revision: 7,
			Members: []desired.Member{{Name: "cluster2", ID: 2, Spec: v1alpha1.MeshClusterSpec{ID: 2, Weight: ptr.To[int32](0)}}},
			Specs:   map[desired.Name]v1alpha1.GlobalServiceSpec{name: {Affinity: v1alpha1.AffinityLocal}},
			Slices: []*desired.Slice{{
				Cluster: "cluster2", Service: name, Object: "cluster2.userlist-x",
				Ports: []desired.SlicePort{{Name: "http", Protocol: desired.TCP, Port: 8181}},
				Endpoints: []desired.Endpoint{
					{Addr: netip.MustParseAddr("10.2.0.1")},
					{Addr: netip.MustParseAddr("10.2.0.2"), State: desired.Terminating, Leaving: true},
					{Addr: netip.MustParseAddr("fd00::1"), State: desired.NotReady},
				},
			}},
		},
	}
}

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestWhatIsWrittenIsRead(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "new")
	if _, err := Read(folder); !errors.Is(err, ErrNone) {
		t.Fatalf("reading nothing: %v, want %v", err, ErrNone)
	}
	for range 2 { // the second time over the first
		if _, err := Write(folder, example()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(folder)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(example(), got, compareAddrs); diff != "" {
		t.Errorf("content (-want +got):\n%s", diff)
	}
}

func TestWhatIsNotWholeIsRefused(t *testing.T) {
	folder := t.TempDir()
	if _, err := Write(folder, example()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, FileName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"empty":              "",
		"only zeros":         strings.Repeat("\x00", len(whole)),
		"cut in the header":  string(whole[:10]),
		"cut in the middle":  string(whole[:len(whole)/2]),
		"cut at the end":     string(whole[:len(whole)-1]),
		"longer":             string(whole) + "x",
		"one letter changed": strings.Replace(string(whole), "cluster2", "cluster3", 1),
		"of another version": strings.Replace(string(whole), " v1 ", " v2 ", 1),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Read(folder); !errors.Is(err, ErrBad) {
				t.Errorf("got %v, want %v", err, ErrBad)
			}
		})
	}
}

func TestLeftoversOfAKilledWriterAreRemoved(t *testing.T) {
	folder := t.TempDir()
	leftover := filepath.Join(folder, FileName+".123.tmp")
	if err := os.WriteFile(leftover, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(folder); !errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
	if _, err := os.Stat(leftover); !os.IsNotExist(err) {
		t.Errorf("%q is still there", leftover)
	}
}

func TestALargeFileIsWrittenLessOften(t *testing.T) {
	const least = time.Second
	for _, test := range []struct {
		size     int
		took     time.Duration
		from, to time.Duration
	}{
		{1000, time.Millisecond, least, least},
		{100 << 10, 10 * time.Millisecond, least, least},
		{1000, 200 * time.Millisecond, 4 * time.Second, 4 * time.Second}, // a slow disk
		{1 << 20, 50 * time.Millisecond, 5 * time.Second, 10 * time.Second},
		{4<<20 + 1, 50 * time.Millisecond, 30 * time.Second, 31 * time.Second},
		{1 << 30, time.Second, time.Minute, time.Minute},
	} {
		if got := Pause(least, test.size, test.took); got < test.from || got > test.to {
			t.Errorf("%d bytes in %s: %s, want %s to %s", test.size, test.took, got, test.from, test.to)
		}
	}
}
