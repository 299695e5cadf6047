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

package nodeaddr

import (
	"context"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

func TestWatch(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("MESH_REQUIRE_ROOT") != "" {
			t.Fatal("network namespaces need root")
		}
		t.Skip("network namespaces need root")
	}
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	space, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(home); err != nil {
			panic(err) // the thread must not be used by others
		}
		home.Close()
		space.Close()
		runtime.UnlockOSThread()
	}()
	for _, name := range []string{"nodelocaldns", "kube-ipvs0"} {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name[:4]}
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatal(err)
		}
	}
	change := func(do func(netlink.Link, *netlink.Addr) error, device, addr string) {
		t.Helper()
		link, err := netlink.LinkByName(device)
		if err != nil {
			t.Fatal(err)
		}
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := do(link, a); err != nil {
			t.Fatalf("%s on %s: %v", addr, device, err)
		}
	}
	change(netlink.AddrAdd, "nodelocaldns", "10.96.0.10/32")
	change(netlink.AddrAdd, "lo", "127.0.0.9/8")
	change(netlink.AddrAdd, "kube-ipvs0", "10.96.0.11/32")
	first, err := List()
	if err != nil || !maps.Equal(first, map[netip.Addr]string{netip.MustParseAddr("10.96.0.10"): "nodelocaldns"}) {
		t.Fatalf("at first: %v, %v", first, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	seen, ended := make(chan map[netip.Addr]string), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := netns.Set(space); err != nil {
			t.Error(err)
			return
		}
		Watch(ctx, first, func(found map[netip.Addr]string) {
			select {
			case seen <- found:
			case <-ctx.Done():
			}
		})
	}()
	expect := func(what string, want ...string) {
		t.Helper()
		var got map[netip.Addr]string
		for timeout := time.After(20 * time.Second); ; {
			select {
			case got = <-seen:
			case <-timeout:
				t.Fatalf("%s: it has %v, want %v", what, got, want)
			}
			if maps.Equal(got, pairs(want)) {
				return
			}
		}
	}
	// Whether it has begun to listen or not, it finds it.
	change(netlink.AddrAdd, "lo", "192.0.2.1/32")
	expect("one more", "10.96.0.10", "nodelocaldns", "192.0.2.1", "lo")
	change(netlink.AddrAdd, "kube-ipvs0", "10.96.0.12/32")
	change(netlink.AddrAdd, "nodelocaldns", "fe80::1/64")
	change(netlink.AddrAdd, "nodelocaldns", "fd00::a/128")
	expect("those of the proxy and of the link don't count", "10.96.0.10", "nodelocaldns", "192.0.2.1", "lo", "fd00::a", "nodelocaldns")
	change(netlink.AddrDel, "nodelocaldns", "10.96.0.10/32")
	expect("one less", "192.0.2.1", "lo", "fd00::a", "nodelocaldns")
	change(netlink.AddrAdd, "nodelocaldns", "10.96.0.12/32")
	expect("one that the proxy has, too", "192.0.2.1", "lo", "fd00::a", "nodelocaldns", "10.96.0.12", "nodelocaldns")
	link, err := netlink.LinkByName("nodelocaldns")
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	expect("the device has gone", "192.0.2.1", "lo")
	cancel()
	<-ended
}

func pairs(list []string) map[netip.Addr]string {
	m := map[netip.Addr]string{}
	for i := 0; i < len(list); i += 2 {
		m[netip.MustParseAddr(list[i])] = list[i+1]
	}
	return m
}
