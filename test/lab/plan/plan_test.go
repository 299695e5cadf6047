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

package plan

import (
	"net/netip"
	"testing"
)

func TestNothingInThePlanOverlaps(t *testing.T) {
	lab, err := New(MaxClusters, 3)
	if err != nil {
		t.Fatal(err)
	}
	var networks []netip.Prefix
	for _, cluster := range lab.Clusters {
		networks = append(networks, cluster.ServiceRanges()...)
		networks = append(networks, append(Networks(cluster.PodCIDR), Networks(cluster.NodeCIDR)...)...)
		if !NodeNetworks.Overlaps(cluster.NodeCIDR) {
			t.Errorf("%s: nodes in %s have no route from elsewhere", cluster.Name, cluster.NodeCIDR)
		}
		for _, address := range []netip.Addr{cluster.APIService, cluster.DNS} {
			if !cluster.ServiceCIDR.Contains(address) {
				t.Errorf("%s: %s is outside of %s", cluster.Name, address, cluster.ServiceCIDR)
			}
		}
		taken := map[netip.Addr]bool{cluster.Fabric: true, cluster.Control: true}
		for _, node := range cluster.Nodes {
			if taken[node.Address] || !cluster.NodeCIDR.Contains(node.Address) {
				t.Errorf("%s has address %s", node.Name, node.Address)
			}
			taken[node.Address] = true
			if !cluster.PodCIDR.Overlaps(node.PodCIDR) || taken[node.PodCIDR.Addr()] {
				t.Errorf("%s has pods in %s", node.Name, node.PodCIDR)
			}
			taken[node.PodCIDR.Addr()] = true
		}
	}
	for i := range networks {
		for j := range i {
			if networks[i].Overlaps(networks[j]) {
				t.Errorf("%s and %s overlap", networks[i], networks[j])
			}
		}
	}
}

func TestThePlanRefusesWhatHasNoAddresses(t *testing.T) {
	for _, size := range [][2]int{{0, 1}, {1, 0}, {MaxClusters + 1, 1}, {1, MaxNodes + 1}} {
		if _, err := New(size[0], size[1]); err == nil {
			t.Errorf("%d clusters of %d nodes were planned", size[0], size[1])
		}
	}
	lab, err := New(1, MaxNodes)
	if err != nil {
		t.Fatal(err)
	}
	if last := lab.Clusters[0].Nodes[MaxNodes-1]; !lab.Clusters[0].NodeCIDR.Contains(last.Address) {
		t.Errorf("the last node has address %s", last.Address)
	}
}

func TestPodAddressesAreReusedLate(t *testing.T) {
	cidr := netip.MustParsePrefix("10.1.2.0/29")
	var last netip.Addr
	used := map[netip.Addr]bool{}
	var got []string
	for range 5 {
		next, err := NextPod(cidr, last, used)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, next.String())
		used[next], last = true, next
	}
	want := []string{"10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	if _, err := NextPod(cidr, last, used); err == nil {
		t.Error("an address was found in a full network")
	}
	delete(used, netip.MustParseAddr("10.1.2.3"))
	delete(used, netip.MustParseAddr("10.1.2.6"))
	next, err := NextPod(cidr, netip.MustParseAddr("10.1.2.4"), used)
	if err != nil || next.String() != "10.1.2.6" {
		t.Errorf("got %s, %v; the free address after the last one is 10.1.2.6", next, err)
	}
}

func TestIPv6ReadsAsIPv4(t *testing.T) {
	lab, err := New(12, 3)
	if err != nil {
		t.Fatal(err)
	}
	cluster := lab.Clusters[11]
	node := cluster.Nodes[2]
	for got, want := range map[string]string{
		Join(Networks(cluster.PodCIDR)):     "10.12.0.0/16,fd00:10:12::/48",
		Join(Networks(node.PodCIDR)):        "10.12.3.0/24,fd00:10:12:3::/64",
		Join(Addresses(node.Address)):       "172.31.12.13,fd00:172:31:12::13",
		Join(Networks(NodeNetworks)):        "172.31.0.0/16,fd00:172:31::/48",
		Join(Networks(cluster.NodeCIDR)):    "172.31.12.0/24,fd00:172:31:12::/64",
		Join(cluster.ServiceRanges()):       "10.112.0.0/16,fd00:10:112::/112",
		Join(Networks(cluster.ServiceCIDR)): "10.112.0.0/16,fd00:10:112::/48",
		Join(Addresses(cluster.DNS)):        "10.112.0.10,fd00:10:112::10",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// Every address that a pod may have gets one of its own, in the node's network.
func TestPodsOfANodeDifferInIPv6Too(t *testing.T) {
	node := netip.MustParsePrefix("10.1.200.0/24")
	seen := map[netip.Addr]bool{}
	for four := node.Addr(); node.Contains(four); four = four.Next() {
		six := Six(four)
		if seen[six] || !Networks(node)[1].Contains(six) {
			t.Errorf("%s has %s beside it", four, six)
		}
		seen[six] = true
	}
}
