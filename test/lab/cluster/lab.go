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

// Package cluster starts and ends the lab: namespaces, the network between them,
// and the programs of Kubernetes inside.
//
// Nothing of the lab is held by a file outside the state directory: every
// namespace and every mount belongs to processes, and all processes are in one
// cgroup. Whoever kills that cgroup and removes the directory has removed the lab.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"mesh.io/clustermesh/test/lab/cgroup"
	"mesh.io/clustermesh/test/lab/container"
	"mesh.io/clustermesh/test/lab/plan"
	"mesh.io/clustermesh/test/lab/proc"
)

// Options are what a person chooses.
type Options struct {
	Clusters int `json:"clusters"`
	Nodes    int `json:"nodes"`
	// StateDir holds everything that the lab writes. Its last element also names the lab's cgroup.
	StateDir string `json:"stateDir"`
	BinDir   string `json:"binDir"`
	// Kubeconfig is a further place for the kubeconfig, which is in StateDir anyway.
	Kubeconfig string `json:"kubeconfig"`
	// Proxies are the modes of kube-proxy on nodes where it is not nftables, by node.
	Proxies map[string]string `json:"proxies,omitempty"`
	// Port is the host's loopback port of cluster1's API server; cluster2 has the next.
	Port int `json:"port"`
}

// Programs that must be in BinDir.
var programs = []string{
	"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns", "lab-shim", "lab-cri", "lab-volumes",
}

// state is what is written down about a lab.
type state struct {
	// Boot is the host's boot: after the next one nothing of this is true any more.
	Boot    string   `json:"boot"`
	Options Options  `json:"options"`
	Plan    plan.Lab `json:"plan"`
	// Holders are the processes whose namespaces are the fabric, the control planes and the nodes.
	Holders   map[string]proc.ID `json:"holders"`
	Processes []process          `json:"processes"`
	// Complete is set when the lab was up once.
	Complete bool `json:"complete"`
}

// process is a program of the lab, with all that is needed to start it again.
type process struct {
	Name string `json:"name"`
	// Cgroup is relative to the lab's.
	Cgroup string `json:"cgroup"`
	// Holder names the namespaces that it runs in; none means the host's.
	Holder string   `json:"holder,omitempty"`
	Args   []string `json:"args"`
	Log    string   `json:"log"`
	// Socket is one that has to answer before anything else is started: kubelet ends when
	// it finds no runtime.
	Socket string  `json:"socket,omitempty"`
	ID     proc.ID `json:"id"`
}

// Lab is one lab of this machine, running or not.
type Lab struct {
	options Options
	out     io.Writer
	began   time.Time
	// cgroup is the lab's cgroup.
	cgroup string

	mu    sync.Mutex
	state state
}

// New prepares a lab. It changes nothing.
func New(options Options, out io.Writer) (*Lab, error) {
	for _, path := range []*string{&options.StateDir, &options.BinDir, &options.Kubeconfig} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return nil, fmt.Errorf("resolving %q: %w", *path, err)
		}
		*path = absolute
	}
	if base := filepath.Base(options.StateDir); base == "/" || base == "." {
		return nil, fmt.Errorf("state directory %q has no name", options.StateDir)
	}
	mount, err := cgroup.Mount()
	if err != nil {
		return nil, err
	}
	return &Lab{
		options: options, out: out, began: time.Now(),
		cgroup: filepath.Join(mount, cgroupName(options.StateDir)),
		state:  state{Holders: map[string]proc.ID{}},
	}, nil
}

// cgroupName is the name of a lab's cgroup. The prefix is there whatever the state
// directory is called: what has this name is killed and removed.
func cgroupName(stateDir string) string {
	const prefix = "mesh-lab"
	base := filepath.Base(stateDir)
	if base == prefix || strings.HasPrefix(base, prefix+"-") {
		return base
	}
	return prefix + "-" + base
}

// say tells the person what is going on.
func (l *Lab) say(format string, args ...any) {
	fmt.Fprintf(l.out, "[%5.1fs] %s\n", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}

// lock keeps two labs of one name from being started or ended at the same time. It
// cannot be left behind: it is an abstract socket, which ends with the process.
func (l *Lab) lock() (io.Closer, error) {
	address := &net.UnixAddr{Net: "unix", Name: "@" + filepath.Base(l.cgroup) + "/lock"}
	listener, err := net.ListenUnix("unix", address)
	if err != nil {
		return nil, errors.New("another lab command is at work here; wait for it, or end it with: lab down")
	}
	return listener, nil
}

func (l *Lab) path(elements ...string) string {
	return filepath.Join(append([]string{l.options.StateDir}, elements...)...)
}

func (l *Lab) nodeDir(node string) string { return l.path("nodes", node) }

func (l *Lab) stateFile() string { return l.path("lab.json") }

func (l *Lab) save() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return container.WriteJSON(l.stateFile(), l.state)
}

// load reads the state of a lab that is there; found is false where none is.
func (l *Lab) load() (found bool, err error) {
	err = container.ReadJSON(l.stateFile(), &l.state)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// each runs a function for every item at once and joins the errors.
func each[T any](items []T, f func(T) error) error {
	failures := make([]error, len(items))
	var group sync.WaitGroup
	for i, item := range items {
		group.Go(func() { failures[i] = f(item) })
	}
	group.Wait()
	return errors.Join(failures...)
}

// poll waits until a function says that it is done. The error tells what it said
// last. When a program of the lab has ended there is no point in waiting longer.
func (l *Lab) poll(ctx context.Context, timeout time.Duration, what string, f func() (done bool, status string)) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		done, status := f()
		if done {
			return nil
		}
		if l.died() != "" {
			return fmt.Errorf("waiting for %s: %s", what, status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %s: %w", what, status, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
