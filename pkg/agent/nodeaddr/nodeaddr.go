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

// Package nodeaddr tells which addresses the node itself has.
//
// A connection to such an address means what listens on the node: a DNS cache that has
// taken the address of the cluster's DNS, or a load balancer that holds its address here.
package nodeaddr

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"k8s.io/klog/v2"
)

// proxies are the devices on which a proxy puts every address of every Service, so that
// packets to them come to IPVS: kube-proxy's and kube-router's. Nothing listens there.
var proxies = map[string]bool{"kube-ipvs0": true, "kube-dummy-if": true}

const (
	// settle is how long to wait for further changes after one: they come in crowds.
	settle = 50 * time.Millisecond
	// again is the time between two looks without having heard of a change.
	again = 30 * time.Second
)

// List returns the addresses of this network namespace, each with its device, without
// those that no Service can have.
func List() (map[netip.Addr]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing the node's devices: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, link := range links {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing the node's addresses: %w", err)
	}
	found := make(map[netip.Addr]string, len(list))
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP)
		if !ok || !matters(addr) || proxies[names[a.LinkIndex]] {
			continue
		}
		// Of several devices always the same one, so that nothing seems to change.
		if name, ok := found[addr.Unmap()]; !ok || names[a.LinkIndex] < name {
			found[addr.Unmap()] = names[a.LinkIndex]
		}
	}
	return found, nil
}

// matters says whether a Service may have the address. Each pod's device has one that it
// cannot.
func matters(addr netip.Addr) bool {
	addr = addr.Unmap()
	return !addr.IsLoopback() && !addr.IsLinkLocalUnicast() && !addr.IsMulticast()
}

// Watch calls changed with what List returns, and again whenever that has changed, until
// ctx ends. known is what the caller has already.
func Watch(ctx context.Context, known map[netip.Addr]string, changed func(map[netip.Addr]string)) {
	logger := klog.FromContext(ctx)
	failing := false
	look := func() {
		found, err := List()
		if err != nil {
			if !failing {
				logger.Error(err, "What the node itself has is not known anew; this will be tried again")
			}
			failing = true
			return
		}
		failing = false
		if !maps.Equal(found, known) {
			known = found
			changed(found)
		}
	}
	for ctx.Err() == nil {
		updates, done := make(chan netlink.AddrUpdate, 64), make(chan struct{})
		err := netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{
			ErrorCallback: func(err error) {
				if ctx.Err() == nil {
					logger.V(2).Info("The node's addresses are listed anew, as news of them were lost", "err", err)
				}
			},
		})
		if err != nil {
			logger.Error(err, "News of the node's addresses come late")
			updates = nil // it never receives: looks go on
		}
		look()
		follow(ctx, updates, look)
		close(done)
		if updates != nil {
			go func() {
				for range updates { // who sends must not wait for ever
				}
			}()
		}
		select {
		case <-ctx.Done():
		case <-time.After(settle): // what fails at once must not be tried all the time
		}
	}
}

// follow looks after each change, and from time to time. It returns when ctx or the
// updates end.
func follow(ctx context.Context, updates <-chan netlink.AddrUpdate, look func()) {
	timer := time.NewTimer(again)
	defer timer.Stop()
	waiting := false
	for {
		select {
		case <-ctx.Done():
			return
		case update, ok := <-updates:
			if !ok {
				return
			}
			if addr, ok := netip.AddrFromSlice(update.LinkAddress.IP); ok && matters(addr) && !waiting {
				waiting = true
				timer.Reset(settle)
			}
		case <-timer.C:
			waiting = false
			look()
			timer.Reset(again)
			if updates == nil {
				return // to be told again
			}
		}
	}
}
