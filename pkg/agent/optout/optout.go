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

// Package optout decides which pods of a node are left alone by the programs, and finds
// their cgroups.
package optout

import (
	"cmp"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mesh.io/clustermesh/pkg/policy"
)

// Pod is a pod of this node.
type Pod struct {
	Namespace, Name, UID string
	// CgroupUID is by which the kubelet names its cgroup.
	CgroupUID string
	// Value is that of the annotation policy.AnnotationSocketLB; nil if it has none.
	Value *string
}

// Bad is an object whose annotation means nothing.
type Bad struct {
	Kind, Namespace, Name, UID string
	Problem                    policy.Problem
}

// Decide says which of the pods are left alone: those whose annotation says "false", and
// those without one, or with one that means nothing, in a Namespace whose annotation
// does. namespaces holds the annotation's value of those that have one. Both results
// are sorted; of the Namespaces only those that have pods here are looked at.
func Decide(pods []Pod, namespaces map[string]string) (out []Pod, bad []Bad) {
	judged := map[string]bool{}
	for _, pod := range pods {
		value, inNamespace := namespaces[pod.Namespace]
		leave, known := left(value)
		if inNamespace && !known && !judged[pod.Namespace] {
			judged[pod.Namespace] = true
			bad = append(bad, Bad{Kind: "Namespace", Name: pod.Namespace, Problem: problem(value)})
		}
		if pod.Value != nil {
			own, known := left(*pod.Value)
			if known {
				leave = own
			} else {
				bad = append(bad, Bad{"Pod", pod.Namespace, pod.Name, pod.UID, problem(*pod.Value)})
			}
		}
		if leave {
			out = append(out, pod)
		}
	}
	slices.SortFunc(out, func(a, b Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	slices.SortFunc(bad, func(a, b Bad) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out, bad
}

// left says whether a value asks to be left alone, and whether it means anything.
func left(value string) (leave, known bool) {
	switch strings.ToLower(value) {
	case "false":
		return true, true
	case "true":
		return false, true
	}
	return false, false
}

func problem(value string) policy.Problem {
	return policy.Problem{Annotation: policy.AnnotationSocketLB, Value: value, Want: `"true" or "false"`}
}

// PodUID returns the UID in the name of a pod's cgroup, or "" if it is not one's. The
// kubelet names them pod<UID>, or, where systemd makes them, kubepods-pod<UID>.slice or
// kubepods-<class>-pod<UID>.slice with the UID's dashes as underscores.
func PodUID(name string) string {
	name = strings.TrimSuffix(name, ".slice")
	i := strings.LastIndex(name, "pod")
	if i < 0 || i > 0 && name[i-1] != '-' {
		return ""
	}
	uid := strings.ReplaceAll(name[i+len("pod"):], "_", "-")
	// A UUID, or, for a static pod, a hash.
	if len(uid) < 32 || strings.Trim(uid, "0123456789abcdef-") != "" {
		return ""
	}
	return uid
}

// mostDepth is how deep below the root pods' cgroups are looked for.
const mostDepth = 10

// rewalk is how often the whole tree is looked through at most: the cgroups that pods'
// are made in come and go with the kubelet.
const rewalk = 200 * time.Millisecond

// Finder finds pods' cgroups in a tree. The zero value of all but Root is right.
type Finder struct {
	// Root is the folder of the tree.
	Root string

	found   map[string]string // paths by UID
	parents map[string]bool   // cgroups that pods' cgroups are made in
	walked  time.Time
}

// Find returns the cgroups of those UIDs that have one now.
func (f *Finder) Find(uids []string) map[string]string {
	paths := make(map[string]string, len(uids))
	missing := map[string]bool{}
	for _, uid := range uids {
		path, ok := f.found[uid]
		if ok {
			if _, err := os.Lstat(path); err == nil {
				paths[uid] = path
				continue
			}
		}
		missing[uid] = true
	}
	look := func(parent string, name string) {
		if uid := PodUID(name); missing[uid] {
			paths[uid] = filepath.Join(parent, name)
			delete(missing, uid)
		}
	}
	for parent := range f.parents {
		if len(missing) == 0 {
			break
		}
		entries, err := os.ReadDir(parent)
		if err != nil {
			delete(f.parents, parent)
			continue
		}
		for _, entry := range entries {
			if entry.IsDir() {
				look(parent, entry.Name())
			}
		}
	}
	if len(missing) > 0 && time.Since(f.walked) >= rewalk {
		f.walked, f.parents = time.Now(), map[string]bool{}
		f.walk(look)
	}
	f.found = paths
	return paths
}

// walk calls look for each pod's cgroup, and notes what they are made in.
func (f *Finder) walk(look func(parent, name string)) {
	_ = filepath.WalkDir(f.Root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return fs.SkipDir // it has gone
		case !entry.IsDir() || path == f.Root:
			return nil
		}
		parent, name := filepath.Split(path)
		parent = filepath.Clean(parent)
		if PodUID(name) != "" {
			f.parents[parent] = true
			look(parent, name)
			return fs.SkipDir
		}
		// Where the first pod of a class will be made.
		if strings.Contains(name, "kubepods") || name == "burstable" || name == "besteffort" {
			f.parents[path] = true
		}
		if rel, err := filepath.Rel(f.Root, path); err != nil || strings.Count(rel, string(filepath.Separator)) >= mostDepth {
			return fs.SkipDir
		}
		return nil
	})
}
