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
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"mesh.io/clustermesh/test/lab/cgroup"
	"mesh.io/clustermesh/test/lab/container"
	"mesh.io/clustermesh/test/lab/pki"
	"mesh.io/clustermesh/test/lab/plan"
)

// Up starts the lab and returns when it can be used. Of a lab that is up already it
// starts what has died; what is left of one that never came up it removes first.
func (l *Lab) Up(ctx context.Context) error {
	lock, err := l.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	found, err := l.load()
	if err != nil {
		return err
	}
	if found && l.whole() {
		return l.complete(ctx)
	}
	if found || cgroup.Populated(l.cgroup) {
		l.say("Removing what is left of an earlier lab")
		if err := l.remove(); err != nil {
			return err
		}
	}
	if err := l.check(); err != nil {
		return err
	}
	if err := l.prepare(); err != nil {
		return err
	}
	if err := l.start(ctx); err != nil {
		return fmt.Errorf("%w%s", err, l.died())
	}
	return nil
}

// whole tells whether the namespaces of a lab that was up are all still held.
func (l *Lab) whole() bool {
	if !l.state.Complete || l.state.Boot != bootID() {
		return false
	}
	for _, id := range l.state.Holders {
		if !id.Alive() {
			return false
		}
	}
	return true
}

// complete starts what has died of a running lab.
func (l *Lab) complete(ctx context.Context) error {
	asked, have := l.options, l.state.Options
	if asked.Clusters != have.Clusters || asked.Nodes != have.Nodes || asked.BinDir != have.BinDir || asked.Port != have.Port || !maps.Equal(asked.Proxies, have.Proxies) {
		return fmt.Errorf("a lab of %d clusters of %d nodes is running with other settings; end it first with: lab down", have.Clusters, have.Nodes)
	}
	if err := l.enterCgroup(); err != nil {
		return err
	}
	for _, p := range append([]process{}, l.state.Processes...) {
		if p.ID.Alive() {
			continue
		}
		l.say("Starting %s again", p.Name)
		if err := l.run(p); err != nil {
			return err
		}
	}
	if err := l.wait(ctx); err != nil {
		return fmt.Errorf("%w%s", err, l.died())
	}
	if err := l.publish(); err != nil {
		return err
	}
	l.say("The lab is running: export KUBECONFIG=%s", l.kubeconfig())
	return nil
}

// check finds what would make the start fail, before anything is changed.
func (l *Lab) check() error {
	var problems []error
	if os.Geteuid() != 0 {
		problems = append(problems, errors.New("the lab needs root, for namespaces and cgroups"))
	}
	for _, name := range programs {
		if _, err := os.Stat(l.program(name)); err != nil {
			problems = append(problems, fmt.Errorf("program %s is missing: %w", name, err))
		}
	}
	lab, err := plan.New(l.options.Clusters, l.options.Nodes)
	if err != nil {
		problems = append(problems, err)
	}
	for name, mode := range l.options.Proxies {
		if _, ok := lab.Node(name); !ok {
			problems = append(problems, fmt.Errorf("there is no node %q for kube-proxy to have the mode %s on", name, mode))
		}
		if mode != "iptables" && mode != "nftables" {
			problems = append(problems, fmt.Errorf("kube-proxy has no mode %q here: it is nftables or iptables", mode))
		}
	}
	l.state = state{Boot: bootID(), Options: l.options, Plan: lab, Holders: l.state.Holders}
	for _, cluster := range lab.Clusters {
		listener, err := net.Listen("tcp", l.hostAddress(cluster))
		if err != nil {
			problems = append(problems, fmt.Errorf("the port of %s is taken; choose others with --port: %w", cluster.Name, err))
			continue
		}
		listener.Close()
	}
	entries, err := os.ReadDir(l.options.StateDir)
	if err == nil && len(entries) > 0 {
		problems = append(problems, fmt.Errorf("state directory %s holds something that is not a lab", l.options.StateDir))
	}
	return errors.Join(problems...)
}

// prepare makes directories and the lab's cgroup, and moves this process into it:
// should it be killed half way, or be in the way, "lab down" finds it there.
func (l *Lab) prepare() error {
	if err := os.MkdirAll(l.path("log"), 0o755); err != nil {
		return fmt.Errorf("making state directory: %w", err)
	}
	// First of all, so that the directory is known as a lab's.
	if err := l.save(); err != nil {
		return err
	}
	for _, cluster := range l.state.Plan.Clusters {
		for _, dir := range []string{"pki", "log", "etcd"} {
			if err := os.MkdirAll(l.path(cluster.Name, dir), 0o700); err != nil {
				return fmt.Errorf("making state directory: %w", err)
			}
		}
		for _, node := range cluster.Nodes {
			for _, dir := range []string{"log", "kubelet", "cri", "pods", "var-lib"} {
				if err := os.MkdirAll(filepath.Join(l.nodeDir(node.Name), dir), 0o755); err != nil {
					return fmt.Errorf("making state directory: %w", err)
				}
			}
		}
	}
	return l.enterCgroup()
}

func (l *Lab) enterCgroup() error {
	dir := filepath.Join(l.cgroup, "up")
	if err := cgroup.Make(dir); err != nil {
		return err
	}
	return cgroup.Enter(dir)
}

func (l *Lab) start(ctx context.Context) error {
	clusters := l.state.Plan.Clusters
	l.say("Making namespaces, network and certificates for %d clusters of %d nodes", l.options.Clusters, l.options.Nodes)
	if err := l.namespaces(); err != nil {
		return err
	}
	if err := l.buildNetwork(); err != nil {
		return err
	}
	contexts := make([]pki.Context, len(clusters))
	err := each(clusters, func(cluster plan.Cluster) (err error) {
		contexts[cluster.Index-1], err = l.certificates(cluster)
		return err
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.kubeconfig(), pki.Kubeconfig(contexts...), 0o600); err != nil {
		return fmt.Errorf("writing kubeconfig: %w", err)
	}

	l.say("Starting etcd and kube-apiserver")
	if err := l.run(l.forwarder()); err != nil {
		return err
	}
	for _, cluster := range clusters {
		for _, p := range l.storage(cluster) {
			if err := l.run(p); err != nil {
				return err
			}
		}
	}
	err = each(clusters, func(cluster plan.Cluster) error { return l.startCluster(ctx, cluster) })
	if err != nil {
		return err
	}
	if err := l.wait(ctx); err != nil {
		return err
	}
	l.state.Complete = true
	if err := l.save(); err != nil {
		return err
	}
	if err := l.publish(); err != nil {
		return err
	}
	l.say("The lab is up: export KUBECONFIG=%s", l.kubeconfig())
	return nil
}

// namespaces starts the holders.
func (l *Lab) namespaces() error {
	if err := l.hold(fabric); err != nil {
		return err
	}
	err := each(l.state.Plan.Clusters, func(cluster plan.Cluster) error {
		if err := l.hold(controlName(cluster.Name)); err != nil {
			return err
		}
		for _, node := range cluster.Nodes {
			err := l.holdNode(container.NodeConfig{
				Name: node.Name, StateDir: l.nodeDir(node.Name), LabDir: l.options.StateDir,
				BinDir: l.options.BinDir, Hosts: hosts(cluster),
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, l.save())
}

// startCluster waits for the API server of a cluster and starts the rest.
func (l *Lab) startCluster(ctx context.Context, cluster plan.Cluster) error {
	server, err := l.api(cluster)
	if err != nil {
		return err
	}
	err = l.poll(ctx, 2*time.Minute, "the API server of "+cluster.Name, func() (bool, string) {
		if err := server.ready(ctx); err != nil {
			return false, err.Error()
		}
		return true, ""
	})
	if err != nil {
		return err
	}
	l.say("%s: API server is ready; starting controllers and nodes", cluster.Name)
	// Roles and the namespace kube-system appear a moment after the server is ready.
	err = l.poll(ctx, time.Minute, "the first objects of "+cluster.Name, func() (bool, string) {
		if err := server.apply(ctx, cluster); err != nil {
			return false, err.Error()
		}
		return true, ""
	})
	if err != nil {
		return err
	}
	controllers, err := l.controllers(cluster)
	if err != nil {
		return err
	}
	for _, p := range controllers {
		if err := l.run(p); err != nil {
			return err
		}
	}
	for _, node := range cluster.Nodes {
		processes, err := l.nodePrograms(cluster, node)
		if err != nil {
			return err
		}
		for _, p := range processes {
			if err := l.run(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// wait returns when all nodes are ready and each can look up a name by both virtual
// addresses of its DNS, which proves kubelet, runtime, kube-proxy and the network.
func (l *Lab) wait(ctx context.Context) error {
	err := each(l.state.Plan.Clusters, func(cluster plan.Cluster) error {
		server, err := l.api(cluster)
		if err != nil {
			return err
		}
		err = l.poll(ctx, 2*time.Minute, "the nodes of "+cluster.Name, func() (bool, string) {
			names, err := server.notReady(ctx)
			if err != nil {
				return false, err.Error()
			}
			return len(names) == 0, "not ready: " + strings.Join(names, ", ")
		})
		if err != nil {
			return err
		}
		l.say("%s: nodes are ready; waiting for DNS", cluster.Name)
		var answering atomic.Int32
		err = each(cluster.Nodes, func(node plan.Node) error {
			return l.poll(ctx, 2*time.Minute, "DNS on "+node.Name, func() (bool, string) {
				for _, server := range plan.Addresses(cluster.DNS) {
					err := lookUp(l.holder(node.Name).PID, netip.AddrPortFrom(server, 53), "kubernetes.default.svc.cluster.local", cluster.APIService)
					if err != nil {
						return false, err.Error()
					}
				}
				answering.Add(1)
				return true, ""
			})
		})
		if err != nil {
			return err
		}
		l.say("%s: DNS answers on %d nodes", cluster.Name, answering.Load())
		return nil
	})
	return err
}

func (l *Lab) kubeconfig() string { return l.path("kubeconfig") }

// publish copies the kubeconfig to the place that the person has asked for.
func (l *Lab) publish() error {
	if l.options.Kubeconfig == "" {
		return nil
	}
	content, err := os.ReadFile(l.kubeconfig())
	if err != nil {
		return fmt.Errorf("publishing kubeconfig: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(l.options.Kubeconfig), 0o755); err != nil {
		return fmt.Errorf("publishing kubeconfig: %w", err)
	}
	if err := os.WriteFile(l.options.Kubeconfig, content, 0o600); err != nil {
		return fmt.Errorf("publishing kubeconfig: %w", err)
	}
	return nil
}
