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

// Package plan decides names and addresses of everything in the lab. It performs
// no I/O. The plan depends on the numbers of clusters and nodes alone, so that a
// person can know an address without looking it up.
//
// Everything has an address of each family. IPv4 leads: the IPv6 address has the same
// numbers to read (see Six), so that the plan and the lab's files name IPv4 only.
package plan

import (
	"fmt"
	"net/netip"
	"strings"
)

// The limits come from the address plan: cluster c has 10.c.0.0/16 for pods and
// 10.(100+c).0.0/16 for services; node n has the /24 of that number.
const (
	MaxClusters = 64
	MaxNodes    = 200
)

// Lab is the whole lab.
type Lab struct {
	Clusters []Cluster `json:"clusters"`
}

// Cluster is one Kubernetes cluster.
type Cluster struct {
	// Index counts from 1.
	Index int    `json:"index"`
	Name  string `json:"name"`

	PodCIDR     netip.Prefix `json:"podCIDR"`
	ServiceCIDR netip.Prefix `json:"serviceCIDR"`
	// NodeCIDR is the network of the control plane, the nodes and the fabric's address.
	NodeCIDR netip.Prefix `json:"nodeCIDR"`

	Fabric  netip.Addr `json:"fabric"`
	Control netip.Addr `json:"control"`
	// APIService and DNS are the virtual addresses of default/kubernetes and kube-system/kube-dns.
	APIService netip.Addr `json:"apiService"`
	DNS        netip.Addr `json:"dns"`

	Nodes []Node `json:"nodes"`
}

// Node is one node of a cluster.
type Node struct {
	Index   int          `json:"index"`
	Name    string       `json:"name"`
	Cluster string       `json:"cluster"`
	Address netip.Addr   `json:"address"`
	PodCIDR netip.Prefix `json:"podCIDR"`
}

// PodGateways are the next hops in every pod, one of each family: addresses that only
// the pod's static neighbour entries know.
var PodGateways = []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")}

// NodeNetworks covers the node networks of all clusters.
var NodeNetworks = netip.MustParsePrefix("172.31.0.0/16")

// Six is the IPv6 address beside an IPv4 one of the plan, a local one that reads the
// same: fd00:10:1:2::7 beside 10.1.2.7.
func Six(four netip.Addr) netip.Addr {
	b := four.As4()
	return netip.MustParseAddr(fmt.Sprintf("fd00:%d:%d:%d::%d", b[0], b[1], b[2], b[3]))
}

// Addresses are an IPv4 address of the plan and the IPv6 one beside it.
func Addresses(four netip.Addr) []netip.Addr { return []netip.Addr{four, Six(four)} }

// Networks are an IPv4 network of the plan and the IPv6 one beside it, in which are
// the addresses beside those of the first: fd00:10:1::/48 beside 10.1.0.0/16, and
// fd00:10:1:2::/64 beside 10.1.2.0/24.
func Networks(four netip.Prefix) []netip.Prefix {
	return []netip.Prefix{four, netip.PrefixFrom(Six(four.Addr()), 16+2*four.Bits())}
}

// ServiceRanges are what the API server takes virtual addresses from, in its order of
// preference. It wants a range of IPv6 of no more than 20 bits.
func (c Cluster) ServiceRanges() []netip.Prefix {
	return []netip.Prefix{c.ServiceCIDR, netip.PrefixFrom(Six(c.ServiceCIDR.Addr()), 112)}
}

// Join writes addresses or networks as Kubernetes' flags take both families.
func Join[T fmt.Stringer](both []T) string {
	names := make([]string, len(both))
	for i, one := range both {
		names[i] = one.String()
	}
	return strings.Join(names, ",")
}

// New plans a lab.
func New(clusters, nodes int) (Lab, error) {
	if clusters < 1 || clusters > MaxClusters {
		return Lab{}, fmt.Errorf("planning the lab: %d clusters; 1 to %d are possible", clusters, MaxClusters)
	}
	if nodes < 1 || nodes > MaxNodes {
		return Lab{}, fmt.Errorf("planning the lab: %d nodes for each cluster; 1 to %d are possible", nodes, MaxNodes)
	}
	var lab Lab
	for c := 1; c <= clusters; c++ {
		cluster := Cluster{
			Index:       c,
			Name:        fmt.Sprintf("cluster%d", c),
			PodCIDR:     prefix(16, 10, c, 0, 0),
			ServiceCIDR: prefix(16, 10, 100+c, 0, 0),
			NodeCIDR:    prefix(24, 172, 31, c, 0),
			Fabric:      addr(172, 31, c, 1),
			Control:     addr(172, 31, c, 2),
			APIService:  addr(10, 100+c, 0, 1),
			DNS:         addr(10, 100+c, 0, 10),
		}
		for n := 1; n <= nodes; n++ {
			cluster.Nodes = append(cluster.Nodes, Node{
				Index:   n,
				Name:    fmt.Sprintf("%s-node%d", cluster.Name, n),
				Cluster: cluster.Name,
				Address: addr(172, 31, c, 10+n),
				PodCIDR: prefix(24, 10, c, n, 0),
			})
		}
		lab.Clusters = append(lab.Clusters, cluster)
	}
	return lab, nil
}

// Node finds a node by its name.
func (l Lab) Node(name string) (Node, bool) {
	for _, cluster := range l.Clusters {
		for _, node := range cluster.Nodes {
			if node.Name == name {
				return node, true
			}
		}
	}
	return Node{}, false
}

// NextPod returns a free IPv4 pod address of a node's network after the one given last,
// so that an address is reused as late as possible.
func NextPod(cidr netip.Prefix, last netip.Addr, used map[netip.Addr]bool) (netip.Addr, error) {
	first := cidr.Addr().Next().Next()
	next := first
	if last.IsValid() && cidr.Contains(last) {
		next = last.Next()
	}
	for range 1 << (32 - cidr.Bits()) {
		// The last address is the network's broadcast address.
		if !cidr.Contains(next) || !cidr.Contains(next.Next()) {
			next = first
		}
		if !used[next] {
			return next, nil
		}
		next = next.Next()
	}
	return netip.Addr{}, fmt.Errorf("choosing a pod address: all of %s are taken", cidr)
}

func addr(a, b, c, d int) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(a), byte(b), byte(c), byte(d)})
}

func prefix(bits, a, b, c, d int) netip.Prefix {
	return netip.PrefixFrom(addr(a, b, c, d), bits)
}
