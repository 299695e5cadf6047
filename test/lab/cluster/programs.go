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
	"path/filepath"
	"strings"

	"mesh.io/clustermesh/test/lab/container"
	"mesh.io/clustermesh/test/lab/cri"
	"mesh.io/clustermesh/test/lab/image"
	"mesh.io/clustermesh/test/lab/plan"
)

// storage is etcd and the API server of a cluster.
func (l *Lab) storage(cluster plan.Cluster) []process {
	pki := func(file string) string { return l.path(cluster.Name, "pki", file) }
	return []process{
		l.control(cluster, "etcd",
			"--name=etcd",
			"--data-dir="+l.path(cluster.Name, "etcd"),
			"--listen-client-urls=https://127.0.0.1:2379", "--advertise-client-urls=https://127.0.0.1:2379",
			"--listen-peer-urls=https://127.0.0.1:2380", "--initial-advertise-peer-urls=https://127.0.0.1:2380",
			"--initial-cluster=etcd=https://127.0.0.1:2380",
			"--client-cert-auth", "--trusted-ca-file="+pki("etcd-ca.crt"), "--cert-file="+pki("etcd.crt"), "--key-file="+pki("etcd.key"),
			"--peer-client-cert-auth", "--peer-trusted-ca-file="+pki("etcd-ca.crt"), "--peer-cert-file="+pki("etcd.crt"), "--peer-key-file="+pki("etcd.key"),
			"--log-level=warn",
		),
		l.control(cluster, "kube-apiserver",
			"--advertise-address="+cluster.Control.String(), "--secure-port=6443",
			"--etcd-servers=https://127.0.0.1:2379", "--etcd-cafile="+pki("etcd-ca.crt"),
			"--etcd-certfile="+pki("apiserver-etcd.crt"), "--etcd-keyfile="+pki("apiserver-etcd.key"),
			"--tls-cert-file="+pki("apiserver.crt"), "--tls-private-key-file="+pki("apiserver.key"),
			"--client-ca-file="+pki("ca.crt"),
			"--kubelet-certificate-authority="+pki("ca.crt"),
			"--kubelet-client-certificate="+pki("apiserver-kubelet.crt"), "--kubelet-client-key="+pki("apiserver-kubelet.key"),
			"--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file="+pki("service-account.pub"), "--service-account-signing-key-file="+pki("service-account.key"),
			"--service-cluster-ip-range="+plan.Join(cluster.ServiceRanges()),
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
			// The control plane has a route to the pods but no kube-proxy: services are
			// reached by their endpoints.
			"--enable-aggregator-routing",
			"--requestheader-client-ca-file="+pki("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file="+pki("front-proxy.crt"), "--proxy-client-key-file="+pki("front-proxy.key"),
			"--profiling=false",
		),
	}
}

// controllers are the other programs of a control plane.
func (l *Lab) controllers(cluster plan.Cluster) ([]process, error) {
	folders := map[string]string{}
	for _, node := range cluster.Nodes {
		folders[node.Name] = filepath.Join(l.nodeDir(node.Name), "var-lib", filepath.Base(container.VolumesDir))
	}
	volumes := object{"kubeconfig": l.path(cluster.Name, "volumes.kubeconfig"), "folders": folders}
	if err := container.WriteJSON(l.path(cluster.Name, "volumes.json"), volumes); err != nil {
		return nil, err
	}
	pki := func(file string) string { return l.path(cluster.Name, "pki", file) }
	manager, scheduler := l.path(cluster.Name, "controller-manager.kubeconfig"), l.path(cluster.Name, "scheduler.kubeconfig")
	return []process{
		l.control(cluster, "kube-controller-manager",
			"--kubeconfig="+manager, "--authentication-kubeconfig="+manager, "--authorization-kubeconfig="+manager,
			"--bind-address=127.0.0.1", "--tls-cert-file="+pki("controller-manager-serving.crt"), "--tls-private-key-file="+pki("controller-manager-serving.key"),
			"--client-ca-file="+pki("ca.crt"), "--requestheader-client-ca-file="+pki("front-proxy-ca.crt"),
			"--use-service-account-credentials", "--service-account-private-key-file="+pki("service-account.key"),
			"--root-ca-file="+pki("ca.crt"), "--cluster-signing-cert-file="+pki("ca.crt"), "--cluster-signing-key-file="+pki("ca.key"),
			"--service-cluster-ip-range="+plan.Join(cluster.ServiceRanges()),
			// The plan, not a controller, says which pods a node has.
			"--allocate-node-cidrs=false",
			"--leader-elect=false", "--profiling=false",
			"--kube-api-qps=200", "--kube-api-burst=400",
		),
		l.control(cluster, "kube-scheduler",
			"--kubeconfig="+scheduler, "--authentication-kubeconfig="+scheduler, "--authorization-kubeconfig="+scheduler,
			"--bind-address=127.0.0.1", "--tls-cert-file="+pki("scheduler-serving.crt"), "--tls-private-key-file="+pki("scheduler-serving.key"),
			"--client-ca-file="+pki("ca.crt"), "--requestheader-client-ca-file="+pki("front-proxy-ca.crt"),
			"--leader-elect=false", "--profiling=false",
		),
		l.control(cluster, "lab-volumes", l.path(cluster.Name, "volumes.json")),
	}, nil
}

func (l *Lab) control(cluster plan.Cluster, name string, args ...string) process {
	return process{
		Name:   cluster.Name + "/" + name,
		Cgroup: controlName(cluster.Name), Holder: controlName(cluster.Name),
		Args: append([]string{l.program(name)}, args...),
		Log:  l.path(cluster.Name, "log", name+".log"),
	}
}

// nodePrograms are what runs on every node. Paths are as the node sees them.
func (l *Lab) nodePrograms(cluster plan.Cluster, node plan.Node) ([]process, error) {
	dir := l.nodeDir(node.Name)
	socket := "/run/lab-cri.sock"
	files := map[string]any{
		"cri.json": cri.Config{
			Cluster: cluster.Name, Node: node.Name, Address: node.Address, PodCIDR: node.PodCIDR,
			Socket: socket, StateDir: filepath.Join(dir, "cri"),
		},
		"kubelet.json":    kubeletConfig(cluster, dir, socket),
		"kube-proxy.json": l.proxyConfig(cluster, node, dir),
	}
	for name, content := range files {
		if err := container.WriteJSON(filepath.Join(dir, name), content); err != nil {
			return nil, err
		}
	}
	program := func(name string, args ...string) process {
		return process{
			Name:   node.Name + "/" + name,
			Cgroup: filepath.Join(node.Name, "system"), Holder: node.Name,
			Args: append([]string{image.BinDir + "/" + name}, args...),
			Log:  filepath.Join(dir, "log", name+".log"),
		}
	}
	runtime := program("lab-cri", filepath.Join(dir, "cri.json"))
	runtime.Socket = socket
	return []process{
		runtime,
		program("kubelet",
			"--config="+filepath.Join(dir, "kubelet.json"), "--kubeconfig="+filepath.Join(dir, "kubelet.kubeconfig"),
			"--root-dir="+container.KubeletDir, "--hostname-override="+node.Name, "--node-ip="+plan.Join(plan.Addresses(node.Address)),
			"--node-labels=topology.kubernetes.io/region="+cluster.Name+",topology.kubernetes.io/zone="+node.Name,
		),
		program("kube-proxy", "--config="+filepath.Join(dir, "kube-proxy.json")),
	}, nil
}

type object = map[string]any

// kubeletConfig has three kinds of settings: those that the lab's cgroups ask for,
// which have no controllers and no QoS levels; those that keep kubelet from
// guarding the host's disk; and certificates.
func kubeletConfig(cluster plan.Cluster, dir, socket string) object {
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix://" + socket,
		"cgroupDriver":             "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": []string{},
		"failCgroupV1": false, "failSwapOn": false,
		"localStorageCapacityIsolation": false,
		"evictionHard": object{
			"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
			"imagefs.available": "0%", "imagefs.inodesFree": "0%",
		},
		"imageGCHighThresholdPercent": 100,
		"serializeImagePulls":         false,
		"clusterDNS":                  []string{cluster.DNS.String()}, "clusterDomain": "cluster.local",
		"resolvConf":         "/etc/resolv.conf",
		"podLogsDir":         filepath.Join(dir, "pods"),
		"volumePluginDir":    container.KubeletDir + "/volumeplugins",
		"tlsCertFile":        filepath.Join(dir, "kubelet.crt"),
		"tlsPrivateKeyFile":  filepath.Join(dir, "kubelet.key"),
		"rotateCertificates": false,
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true},
			"x509": object{"clientCAFile": filepath.Join(dir, "ca.crt")},
		},
		"authorization": object{"mode": "Webhook"},
		"kubeAPIQPS":    100, "kubeAPIBurst": 200,
		"registryPullQPS": 0, "eventRecordQPS": 0,
	}
}

func (l *Lab) proxyConfig(cluster plan.Cluster, node plan.Node, dir string) object {
	mode := "nftables"
	if other, ok := l.options.Proxies[node.Name]; ok {
		mode = other
	}
	return object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"mode":             mode,
		"clientConnection": object{"kubeconfig": filepath.Join(dir, "kube-proxy.kubeconfig")},
		"hostnameOverride": node.Name,
		// Pods keep their address on the way to other pods, whatever the service.
		"clusterCIDR": plan.Join(plan.Networks(cluster.PodCIDR)), "detectLocalMode": "ClusterCIDR",
		"healthzBindAddress": netip.AddrPortFrom(node.Address, 10256).String(),
		"metricsBindAddress": "127.0.0.1:10249",
		// The table of connections belongs to the host.
		"conntrack": object{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	}
}

// forwarder carries the host's connections to the API servers.
func (l *Lab) forwarder() process {
	args := []string{l.program("lab-shim"), "forward"}
	for _, cluster := range l.state.Plan.Clusters {
		args = append(args, fmt.Sprintf("%s,%d,%s", l.hostAddress(cluster), l.holder(controlName(cluster.Name)).PID,
			netip.AddrPortFrom(cluster.Control, 6443)))
	}
	return process{Name: "forwarder", Cgroup: "host", Args: args, Log: l.path("log", "forwarder.log")}
}

// hosts is /etc/hosts of a cluster's nodes.
func hosts(cluster plan.Cluster) string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	for _, node := range cluster.Nodes {
		for _, address := range plan.Addresses(node.Address) {
			fmt.Fprintf(&b, "%s %s\n", address, node.Name)
		}
	}
	return b.String()
}
