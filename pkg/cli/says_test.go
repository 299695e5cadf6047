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

package cli

import (
	"io"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"mesh.io/clustermesh/pkg/cli/bundle"
	"mesh.io/clustermesh/pkg/cli/peering"
	"mesh.io/clustermesh/pkg/cli/preflight"
	"mesh.io/clustermesh/pkg/cli/release"
	"mesh.io/clustermesh/pkg/cli/removal"
	"mesh.io/clustermesh/pkg/layout/golden"
)

// said compares what is said on the way of a command.
func said(t *testing.T, name string, say func(p *progress)) {
	t.Helper()
	golden.Print(t, name, func(w io.Writer, width int) error {
		say(&progress{w: w, width: width, terminal: width > 0})
		return nil
	})
}

// cloud is a context as clouds call theirs.
const cloud = "arn:aws:eks:eu-central-1:123456789012:cluster/production-of-the-shop-in-frankfurt"

func TestInstallSays(t *testing.T) {
	said(t, "install-findings", func(p *progress) {
		sayFindings(p, []preflight.Finding{
			{Check: "identity", Message: "cluster1, with the ID 1"},
			{Check: "nodes' kernels", Level: preflight.Problem, Message: "node " + longest(63, 'n') + " has Linux 4.19.0, and the agent needs 5.10", Do: "Upgrade it, or keep the agent from it with --set agent.nodeSelector."},
			{Check: "taken names and IDs", Level: preflight.Note, Message: "cluster2 cannot be asked: connection refused", Do: "See that neither the name nor the ID is taken there: kubectl --context cluster2 get meshclusters"},
			{Check: "permissions", Level: preflight.Problem, Message: "you may not create clusterroles.rbac.authorization.k8s.io, create clusterrolebindings.rbac.authorization.k8s.io, create daemonsets.apps in namespace mesh-system"},
		})
	})
	said(t, "install-plan", func(p *progress) {
		announceInstall(p, "cluster1", "mesh-system", release.StepInstall, nil, "v0.3.0", "meshctl uninstall --context cluster1")
		announceInstall(p, cloud, longest(63, 'n'), release.StepRecover, nil, "v0.3.0", "meshctl uninstall --context "+cloud)
		announceInstall(p, "cluster1", "mesh-system", release.StepUpgrade, []string{"daemonset mesh-agent", "service mesh-apiserver-peer"}, "v0.3.0", "meshctl uninstall --context cluster1")
	})
	said(t, "upgrade-plan", func(p *progress) {
		announceUpgrade(p, "cluster1", "v0.2.0", "v0.3.0", rollback("cluster1", "mesh-system"), release.Changes(
			map[string]any{"controller": map[string]any{"replicas": 2.0}, "persistence": map[string]any{"size": "4Gi"}},
			map[string]any{"controller": map[string]any{"replicas": 3.0}, "image": map[string]any{"registry": "registry.internal.example.com/platform/networking/clustermesh"}},
		))
		announceUpgrade(p, "cluster1", "v0.3.0", "v0.3.0", rollback("cluster1", "mesh-system"), []string{"- change controller.replicas from 2 to 3"})
		announceUpgrade(p, cloud, "v0.3.0", "v0.3.0", rollback(cloud, longest(63, 'n')), nil)
	})
}

func TestUninstallSays(t *testing.T) {
	objects := []removal.Object{}
	for resource, n := range map[string]int{"clusterrolebindings": 6, "clusterroles": 7, "configmaps": 3, "daemonsets": 1, "deployments": 1, "leases": 2, "networkpolicies": 2, "secrets": 4, "services": 2, "statefulsets": 1} {
		for range n {
			objects = append(objects, removal.Object{Resource: schema.GroupVersionResource{Resource: resource}})
		}
	}
	of := func(p *progress, context string, f found) *remover {
		f.objects = objects
		return &remover{target: &target{Context: context, Namespace: "mesh-system"}, p: p, found: &f}
	}
	claims := []string{"data-mesh-apiserver-0"}
	said(t, "uninstall-plan", func(p *progress) {
		(&uninstallOptions{}).announce(of(p, "cluster1", found{ours: true, registered: true, claims: claims}))
		(&uninstallOptions{purge: true}).announce(of(p, cloud, found{ours: true, registered: true, claims: claims}))
		(&uninstallOptions{skipNodes: true}).announce(of(p, "cluster1", found{ours: true, registered: true, foreign: []string{"configmap " + longest(63, 'f'), "deployment grafana"}}))
		(&uninstallOptions{}).announce(of(p, "cluster1", found{folder: "/var/lib/mesh-apiserver", registered: true, namespace: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "mesh-system"}}}))
	})
}

func TestConnectSays(t *testing.T) {
	of := func(one, two string) []*link {
		var links []*link
		for _, names := range [][2]string{{one, two}, {two, one}} {
			links = append(links, &link{Link: peering.Link{Importer: peering.Cluster{Name: names[0]}, Exporter: peering.Cluster{Name: names[1]}}})
		}
		return links
	}
	golden.Print(t, "connect", func(w io.Writer, width int) error {
		for _, links := range [][]*link{of("cluster1", "cluster2"), of(longest(32, 'c'), longest(32, 'd'))[:1]} {
			for _, done := range []bool{false, true} {
				if err := writeConnected(w, width, links, done, true); err != nil {
					return err
				}
			}
		}
		return writeConnected(w, width, of("cluster1", "cluster2"), false, false)
	})
}

func TestVersionSays(t *testing.T) {
	golden.Print(t, "version", func(w io.Writer, width int) error {
		return (&versions{Client: "v0.3.0", Context: "cluster1", Controller: "v0.3.0", Kubernetes: "v1.37.2"}).write(w, width)
	})
	golden.Print(t, "version-client", func(w io.Writer, width int) error { return (&versions{Client: "v0.3.0"}).write(w, width) })
	golden.Print(t, "version-long", func(w io.Writer, width int) error {
		return (&versions{Client: "v0.3.0-12-g1234567-dirty", Context: cloud, Controller: "no controller has run", Kubernetes: "v1.37.2-eks-1234567"}).write(w, width)
	})
}

func TestBundleSays(t *testing.T) {
	golden.Print(t, "bundle", func(w io.Writer, width int) error {
		if err := writeBundled(w, width, "cluster1.tar.gz", &bundle.Manifest{Files: make([]bundle.File, 61)}); err != nil {
			return err
		}
		return writeBundled(w, width, "/home/somebody/clusters/cluster1/clustermesh-20261125-120000.tar.gz", &bundle.Manifest{Files: make([]bundle.File, 61), Missing: make([]bundle.Missing, 2)})
	})
}
