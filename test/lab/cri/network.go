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

package cri

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/test/lab/plan"
)

// connect gives a pod its network: a cable to the node, and an address and a route of
// each family. Pod and node are given by their IPv4 addresses.
//
// The pod knows one neighbour, the node, at an address that nobody has; the node
// knows the pod. These entries are permanent, so that nothing is ever asked on the
// cable. The node reaches the pod from its own address: that is what the pod, and
// a service behind it, should see as the client.
func connect(holder int, device string, pod, node netip.Addr) error {
	ns, err := netns.GetFromPid(holder)
	if err != nil {
		return fmt.Errorf("opening the pod's network: %w", err)
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("opening the pod's network: %w", err)
	}
	defer inside.Close()

	attrs := netlink.NewLinkAttrs()
	attrs.Name = device
	err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(holder)})
	if err != nil {
		return fmt.Errorf("making the pod's device: %w", err)
	}
	outer, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("finding the pod's device: %w", err)
	}
	inner, err := inside.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("finding the pod's device: %w", err)
	}
	loopback, err := inside.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding the pod's loopback: %w", err)
	}

	type step struct {
		what string
		do   func() error
	}
	steps := []step{
		{"starting loopback", func() error { return inside.LinkSetUp(loopback) }},
		{"starting the pod's device", func() error { return inside.LinkSetUp(inner) }},
		{"starting the node's device", func() error { return netlink.LinkSetUp(outer) }},
	}
	pods, nodes := plan.Addresses(pod), plan.Addresses(node)
	for i, gateway := range plan.PodGateways {
		steps = append(steps,
			step{"setting the pod's address", func() error {
				return inside.AddrAdd(inner, &netlink.Addr{IPNet: host(pods[i]), Flags: unix.IFA_F_NODAD})
			}},
			step{"naming the gateway", func() error {
				return inside.NeighSet(neighbour(inner, gateway, outer))
			}},
			step{"adding the pod's route", func() error {
				return inside.RouteAdd(&netlink.Route{LinkIndex: inner.Attrs().Index, Dst: host(gateway), Scope: netlink.SCOPE_LINK})
			}},
			step{"adding the pod's route", func() error {
				return inside.RouteAdd(&netlink.Route{LinkIndex: inner.Attrs().Index, Gw: host(gateway).IP})
			}},
			step{"naming the pod", func() error {
				return netlink.NeighSet(neighbour(outer, pods[i], inner))
			}},
			step{"adding the route to the pod", func() error {
				return netlink.RouteReplace(&netlink.Route{
					LinkIndex: outer.Attrs().Index, Dst: host(pods[i]), Scope: netlink.SCOPE_LINK, Src: host(nodes[i]).IP,
				})
			}},
		)
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// disconnect takes the pod's cable away. It goes with the pod's network, but that may
// outlive the pod: a connection whose other end is gone without an answer, as when pods end
// together, is kept for minutes.
func disconnect(name string) error {
	device, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(device)
	}
	var missing netlink.LinkNotFoundError
	if err == nil || errors.As(err, &missing) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("removing the device of a pod: %w", err)
}

// neighbour is who is at an address on the other end of a device's cable, for good.
func neighbour(device netlink.Link, address netip.Addr, end netlink.Link) *netlink.Neigh {
	family := unix.AF_INET
	if address.Is6() {
		family = unix.AF_INET6
	}
	return &netlink.Neigh{
		LinkIndex: device.Attrs().Index, State: netlink.NUD_PERMANENT, Family: family,
		IP: host(address).IP, HardwareAddr: end.Attrs().HardwareAddr,
	}
}

func host(address netip.Addr) *net.IPNet {
	return &net.IPNet{IP: net.IP(address.AsSlice()), Mask: net.CIDRMask(address.BitLen(), address.BitLen())}
}
