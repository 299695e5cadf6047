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
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/test/lab/plan"
	"mesh.io/clustermesh/test/lab/proc"
)

// space is a network namespace that is being set up.
type space struct {
	name string
	pid  int
	*netlink.Handle
}

func (l *Lab) space(holder string) (space, error) {
	pid := l.holder(holder).PID
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return space{}, fmt.Errorf("opening the network of %s: %w", holder, err)
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		return space{}, fmt.Errorf("opening the network of %s: %w", holder, err)
	}
	return space{name: holder, pid: pid, Handle: handle}, nil
}

// buildNetwork connects everything to the fabric, the router between all clusters.
func (l *Lab) buildNetwork() error {
	router, err := l.space(fabric)
	if err != nil {
		return err
	}
	defer router.Close()
	// Redirects would show the nodes short cuts that the fabric's rules do not see.
	if err := router.sysctls(routing); err != nil {
		return err
	}
	if err := router.up("lo"); err != nil {
		return err
	}
	for _, cluster := range l.state.Plan.Clusters {
		if err := l.connectCluster(router, cluster); err != nil {
			return fmt.Errorf("connecting %s: %w", cluster.Name, err)
		}
	}
	return nil
}

func (l *Lab) connectCluster(router space, cluster plan.Cluster) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = cluster.Name
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := router.LinkAdd(bridge); err != nil {
		return fmt.Errorf("making bridge: %w", err)
	}
	if err := router.address(cluster.Name, netip.PrefixFrom(cluster.Fabric, cluster.NodeCIDR.Bits())); err != nil {
		return err
	}
	// A virtual address that nobody has translated goes nowhere, silently.
	if err := router.end(cluster.ServiceCIDR, unix.RTN_BLACKHOLE); err != nil {
		return err
	}
	if err := l.connectMember(router, cluster, controlName(cluster.Name), cluster.Control, fmt.Sprintf("c%dcp", cluster.Index)); err != nil {
		return err
	}
	for _, node := range cluster.Nodes {
		if err := l.connectMember(router, cluster, node.Name, node.Address, nodePort(cluster, node)); err != nil {
			return err
		}
		if err := router.route(node.PodCIDR, node.Address); err != nil {
			return err
		}
	}
	return nil
}

// connectMember connects a control plane or a node to its cluster's bridge.
func (l *Lab) connectMember(router space, cluster plan.Cluster, holder string, address netip.Addr, device string) error {
	member, err := l.space(holder)
	if err != nil {
		return err
	}
	defer member.Close()
	bridge, err := router.LinkByName(cluster.Name)
	if err != nil {
		return fmt.Errorf("finding bridge: %w", err)
	}
	if err := member.sysctls(routing); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = device
	attrs.MasterIndex = bridge.Attrs().Index
	err = router.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(member.pid)})
	if err != nil {
		return fmt.Errorf("making device %s: %w", device, err)
	}
	if err := router.up(device); err != nil {
		return err
	}
	if err := member.up("lo"); err != nil {
		return err
	}
	if err := member.address("eth0", netip.PrefixFrom(address, cluster.NodeCIDR.Bits())); err != nil {
		return err
	}

	// No default route: what is not the lab's has no way out.
	if err := member.route(plan.NodeNetworks, cluster.Fabric); err != nil {
		return err
	}
	// A connect() to a virtual address needs a route, though kube-proxy or the mesh
	// turns it into another before a packet leaves. The fabric drops the rest.
	if err := member.route(cluster.ServiceCIDR, cluster.Fabric); err != nil {
		return err
	}
	for _, other := range l.state.Plan.Clusters {
		if other.Index != cluster.Index {
			if err := member.route(other.PodCIDR, cluster.Fabric); err != nil {
				return err
			}
		}
	}
	for _, node := range cluster.Nodes {
		if node.Name != holder {
			if err := member.route(node.PodCIDR, node.Address); err != nil {
				return err
			}
			continue
		}
		// Each pod has a route of its own. An address without one is told apart at once
		// instead of going round between node and fabric.
		if err := member.end(node.PodCIDR, unix.RTN_UNREACHABLE); err != nil {
			return err
		}
	}
	return nil
}

// nodePort is the fabric's end of a node's cable.
func nodePort(cluster plan.Cluster, node plan.Node) string {
	return fmt.Sprintf("c%dn%d", cluster.Index, node.Index)
}

func (s space) up(device string) error {
	link, err := s.LinkByName(device)
	if err != nil {
		return fmt.Errorf("finding %s in %s: %w", device, s.name, err)
	}
	if err := s.LinkSetUp(link); err != nil {
		return fmt.Errorf("starting %s in %s: %w", device, s.name, err)
	}
	return nil
}

// address gives a device an IPv4 address in its network, and the IPv6 one beside it.
func (s space) address(device string, address netip.Prefix) error {
	link, err := s.LinkByName(device)
	if err != nil {
		return fmt.Errorf("finding %s in %s: %w", device, s.name, err)
	}
	both := plan.Addresses(address.Addr())
	for i, network := range plan.Networks(address.Masked()) {
		own := &net.IPNet{IP: both[i].AsSlice(), Mask: ipNet(network).Mask}
		// Usable at once: the plan gives no address twice, so nobody needs to be asked.
		if err := s.AddrAdd(link, &netlink.Addr{IPNet: own, Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("addressing %s in %s: %w", device, s.name, err)
		}
	}
	return s.up(device)
}

// route leads to an IPv4 network and the IPv6 one beside it.
func (s space) route(to netip.Prefix, via netip.Addr) error {
	hops := plan.Addresses(via)
	for i, network := range plan.Networks(to) {
		if err := s.RouteAdd(&netlink.Route{Dst: ipNet(network), Gw: hops[i].AsSlice()}); err != nil {
			return fmt.Errorf("routing %s via %s in %s: %w", network, hops[i], s.name, err)
		}
	}
	return nil
}

// end is a route that leads nowhere.
func (s space) end(to netip.Prefix, kind int) error {
	for _, network := range plan.Networks(to) {
		if err := s.RouteAdd(&netlink.Route{Dst: ipNet(network), Type: kind}); err != nil {
			return fmt.Errorf("routing %s in %s: %w", network, s.name, err)
		}
	}
	return nil
}

// routing are the settings of whoever passes packets on, below /proc/sys/net.
var routing = map[string]string{
	"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
	"ipv4/conf/all/send_redirects": "0", "ipv4/conf/default/send_redirects": "0",
	"ipv6/conf/all/forwarding": "1", "ipv6/conf/default/accept_dad": "0",
}

func (s space) sysctls(settings map[string]string) error {
	return proc.Do(s.pid, proc.Network, func() error {
		for name, value := range settings {
			// These files show the namespace of whoever opens them.
			if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644); err != nil {
				return fmt.Errorf("setting %s in %s: %w", name, s.name, err)
			}
		}
		return nil
	})
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}
