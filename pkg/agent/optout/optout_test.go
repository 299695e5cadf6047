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

package optout

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"k8s.io/utils/ptr"
)

func TestDecide(t *testing.T) {
	pod := func(name string, value *string) Pod {
		return Pod{Namespace: "song", Name: name, UID: name, CgroupUID: name, Value: value}
	}
	tests := map[string]struct {
		pods       []Pod
		namespaces map[string]string
		out        []string
		bad        []string
	}{
		"no annotation": {pods: []Pod{pod("a", nil)}},
		"a pod that wants it": {
			pods: []Pod{pod("b", nil), pod("a", ptr.To("false"))}, out: []string{"a"},
		},
		"in any case": {pods: []Pod{pod("a", ptr.To("False"))}, out: []string{"a"}},
		"a namespace": {
			pods: []Pod{pod("b", nil), pod("a", nil)}, namespaces: map[string]string{"song": "false"}, out: []string{"a", "b"},
		},
		"another namespace": {pods: []Pod{pod("a", nil)}, namespaces: map[string]string{"other": "false"}},
		"a pod that does not want what its namespace wants": {
			pods: []Pod{pod("a", ptr.To("true")), pod("b", nil)}, namespaces: map[string]string{"song": "false"}, out: []string{"b"},
		},
		"a pod that wants what its namespace does not": {
			pods: []Pod{pod("a", ptr.To("false")), pod("b", nil)}, namespaces: map[string]string{"song": "true"}, out: []string{"a"},
		},
		"a pod's value that means nothing": {
			pods: []Pod{pod("a", ptr.To("off")), pod("b", ptr.To(""))}, bad: []string{"Pod song/a off", "Pod song/b "},
		},
		"a pod's value that means nothing, in a namespace that wants it": {
			pods: []Pod{pod("a", ptr.To("no"))}, namespaces: map[string]string{"song": "FALSE"},
			out: []string{"a"}, bad: []string{"Pod song/a no"},
		},
		"a namespace's value that means nothing, told once": {
			pods: []Pod{pod("a", nil), pod("b", ptr.To("false"))}, namespaces: map[string]string{"song": "0", "unused": "?"},
			out: []string{"b"}, bad: []string{"Namespace /song 0"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			out, bad := Decide(test.pods, test.namespaces)
			var gotOut, gotBad []string
			for _, pod := range out {
				gotOut = append(gotOut, pod.Name)
			}
			for _, b := range bad {
				gotBad = append(gotBad, fmt.Sprintf("%s %s/%s %s", b.Kind, b.Namespace, b.Name, b.Problem.Value))
			}
			if !slices.Equal(gotOut, test.out) || !slices.Equal(gotBad, test.bad) {
				t.Errorf("left alone: %q, want %q; bad: %q, want %q", gotOut, test.out, gotBad, test.bad)
			}
		})
	}
}

const (
	uid    = "07405cd9-306e-490b-a737-8cd84154f37a"
	uid_   = "07405cd9_306e_490b_a737_8cd84154f37a"
	static = "9d0c1f2a5c5e4c1e8b7d6f0a1b2c3d4e"
)

func TestPodUID(t *testing.T) {
	for name, want := range map[string]string{
		"pod" + uid:                                         uid,
		"pod" + static:                                      static,
		"kubepods-pod" + uid_ + ".slice":                    uid,
		"kubepods-burstable-pod" + uid_ + ".slice":          uid,
		"kubepods-besteffort-pod" + static + ".slice":       static,
		"kubelet-kubepods-besteffort-pod" + uid_ + ".slice": uid,
		"kubepods":                      "",
		"kubepods.slice":                "",
		"kubepods-burstable.slice":      "",
		"burstable":                     "",
		"pod":                           "",
		"podman.slice":                  "",
		"pods":                          "",
		"cri-containerd-0123abcd.scope": "",
		"crio-0123abcd.scope":           "",
		"libpod-0123abcd.scope":         "",
		"systemd-tripod.service":        "",
		"cgroup.procs":                  "",
	} {
		if got := PodUID(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestFinder(t *testing.T) {
	const other = "11111111-2222-3333-4444-555555555555"
	for name, path := range map[string]string{
		"systemd, guaranteed":         "kubepods.slice/kubepods-pod" + uid_ + ".slice",
		"systemd, burstable":          "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uid_ + ".slice",
		"cgroupfs, guaranteed":        "kubepods/pod" + uid,
		"cgroupfs, best effort":       "kubepods/besteffort/pod" + uid,
		"a kubelet with its own root": "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod" + uid_ + ".slice",
		"no kubepods":                 "custom/pods/pod" + uid,
	} {
		t.Run(name, func(t *testing.T) {
			f := Finder{Root: t.TempDir()}
			mkdir := func(path string) {
				t.Helper()
				if err := os.MkdirAll(filepath.Join(f.Root, path), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			mkdir("system.slice/sshd.service")
			mkdir(filepath.Dir(path))
			if name == "no kubepods" {
				mkdir("custom/pods/pod" + other)
			}
			if got := f.Find([]string{uid}); len(got) > 0 {
				t.Fatalf("before it is made: %v", got)
			}
			// It is found at once, without another walk through the tree.
			mkdir(path + "/cri-containerd-0123abcd.scope")
			want := map[string]string{uid: filepath.Join(f.Root, path)}
			if got := f.Find([]string{uid}); !maps.Equal(got, want) {
				t.Errorf("found %v, want %v", got, want)
			}
			if got := f.Find([]string{uid, static}); !maps.Equal(got, want) {
				t.Errorf("with another that has none: %v, want %v", got, want)
			}
			if err := os.RemoveAll(filepath.Join(f.Root, path)); err != nil {
				t.Fatal(err)
			}
			if got := f.Find([]string{uid}); len(got) > 0 {
				t.Errorf("once it has gone: %v", got)
			}
			// The kubelet makes its cgroups anew; the tree is looked through again.
			if err := os.RemoveAll(filepath.Join(f.Root, filepath.Dir(path))); err != nil {
				t.Fatal(err)
			}
			mkdir(path)
			f.walked = f.walked.Add(-rewalk)
			if got := f.Find([]string{uid}); !maps.Equal(got, want) {
				t.Errorf("made anew: %v, want %v", got, want)
			}
		})
	}
}
