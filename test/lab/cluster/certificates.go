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
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"mesh.io/clustermesh/test/lab/pki"
	"mesh.io/clustermesh/test/lab/plan"
)

// certificates makes everything that proves an identity in a cluster. It returns
// the entry of the person's kubeconfig.
func (l *Lab) certificates(cluster plan.Cluster) (pki.Context, error) {
	dir := l.path(cluster.Name, "pki")
	ca, err := pki.NewAuthority(dir, "ca")
	if err != nil {
		return pki.Context{}, err
	}
	etcdCA, err := pki.NewAuthority(dir, "etcd-ca")
	if err != nil {
		return pki.Context{}, err
	}
	frontCA, err := pki.NewAuthority(dir, "front-proxy-ca")
	if err != nil {
		return pki.Context{}, err
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	issues := []struct {
		from *pki.Authority
		file string
		leaf pki.Leaf
	}{
		{ca, "apiserver", pki.Leaf{
			Name: "kube-apiserver", Addresses: []netip.Addr{cluster.Control, cluster.APIService, loopback},
			DNSNames: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"},
		}},
		{ca, "apiserver-kubelet", pki.Leaf{Name: "kube-apiserver-kubelet-client"}},
		{frontCA, "front-proxy", pki.Leaf{Name: "front-proxy-client"}},
		{etcdCA, "etcd", pki.Leaf{Name: "etcd", Addresses: []netip.Addr{loopback}, DNSNames: []string{"localhost"}}},
		{etcdCA, "apiserver-etcd", pki.Leaf{Name: "kube-apiserver-etcd-client"}},
		{ca, "controller-manager-serving", pki.Leaf{Name: "kube-controller-manager", Addresses: []netip.Addr{loopback}}},
		{ca, "scheduler-serving", pki.Leaf{Name: "kube-scheduler", Addresses: []netip.Addr{loopback}}},
	}
	for _, issue := range issues {
		if err := issue.from.IssueTo(dir, issue.file, issue.leaf); err != nil {
			return pki.Context{}, err
		}
	}
	if err := pki.SigningKey(dir, "service-account"); err != nil {
		return pki.Context{}, err
	}

	inside := "https://" + netip.AddrPortFrom(cluster.Control, 6443).String()
	kubeconfigs := []struct{ path, user, group string }{
		{l.path(cluster.Name, "controller-manager.kubeconfig"), "system:kube-controller-manager", ""},
		{l.path(cluster.Name, "scheduler.kubeconfig"), "system:kube-scheduler", ""},
		{l.path(cluster.Name, "volumes.kubeconfig"), "lab:volumes", ""},
	}
	for _, node := range cluster.Nodes {
		if err := l.nodeCertificates(ca, node); err != nil {
			return pki.Context{}, err
		}
		kubeconfigs = append(kubeconfigs,
			struct{ path, user, group string }{filepath.Join(l.nodeDir(node.Name), "kubelet.kubeconfig"), "system:node:" + node.Name, "system:nodes"},
			struct{ path, user, group string }{filepath.Join(l.nodeDir(node.Name), "kube-proxy.kubeconfig"), "system:kube-proxy", ""},
		)
	}
	for _, k := range kubeconfigs {
		leaf := pki.Leaf{Name: k.user}
		if k.group != "" {
			leaf.Groups = []string{k.group}
		}
		pair, err := ca.Issue(leaf)
		if err != nil {
			return pki.Context{}, err
		}
		content := pki.Kubeconfig(pki.Context{Name: cluster.Name, Server: inside, CA: ca.PEM, User: pair})
		if err := os.WriteFile(k.path, content, 0o600); err != nil {
			return pki.Context{}, fmt.Errorf("writing kubeconfig: %w", err)
		}
	}
	admin, err := ca.Issue(pki.Leaf{Name: "lab-admin", Groups: []string{"system:masters"}})
	if err != nil {
		return pki.Context{}, err
	}
	if err := admin.Write(dir, "admin"); err != nil {
		return pki.Context{}, err
	}
	return pki.Context{Name: cluster.Name, Server: "https://" + l.hostAddress(cluster), CA: ca.PEM, User: admin}, nil
}

func (l *Lab) nodeCertificates(ca *pki.Authority, node plan.Node) error {
	dir := l.nodeDir(node.Name)
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), ca.PEM, 0o644); err != nil {
		return fmt.Errorf("writing certificate: %w", err)
	}
	return ca.IssueTo(dir, "kubelet", pki.Leaf{
		Name: "system:node:" + node.Name, Groups: []string{"system:nodes"},
		Addresses: plan.Addresses(node.Address), DNSNames: []string{node.Name},
	})
}

// hostAddress is where the host reaches a cluster's API server.
func (l *Lab) hostAddress(cluster plan.Cluster) string {
	return fmt.Sprintf("127.0.0.1:%d", l.state.Options.Port+cluster.Index-1)
}
