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

package bypass

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// network is a node with a pod, and a pod of another cluster that it reaches by its
// address. The test's thread is in the node.
type network struct {
	t                 testing.TB
	variant           string // of iptables: legacy or nft
	v6                bool
	node, pod, far    netns.NsHandle
	nodeAddr, podAddr netip.Addr
	farAddr, vip      netip.Addr
}

const port, hostPort = 8080, 9090

func needRoot(t testing.TB, programs ...string) {
	t.Helper()
	skip := t.Skipf
	if os.Getenv("MESH_REQUIRE_ROOT") != "" {
		skip = t.Fatalf
	}
	if os.Geteuid() != 0 {
		skip("network namespaces need root")
	}
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			skip("the rules of kube-proxy are made with %s", program)
		}
	}
}

// enter makes network namespaces, and leaves the thread in the first.
func enter(t testing.TB, n int) []netns.NsHandle {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	var list []netns.NsHandle
	t.Cleanup(func() {
		if err := netns.Set(home); err != nil {
			panic(err) // the thread must not be used by others
		}
		for _, handle := range append(list, home) {
			handle.Close()
		}
		runtime.UnlockOSThread()
	})
	for range n {
		handle, err := netns.New()
		if err != nil {
			t.Fatalf("making a network namespace: %v", err)
		}
		list = append(list, handle)
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := netns.Set(list[0]); err != nil {
		t.Fatal(err)
	}
	return list
}

// in runs f in a namespace, on another thread.
func in(t testing.TB, where netns.NsHandle, f func() error) error {
	t.Helper()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := netns.Set(where); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

func newNetwork(t testing.TB, variant string, v6 bool) *network {
	needRoot(t, "iptables-"+variant)
	spaces := enter(t, 3)
	n := &network{t: t, variant: variant, v6: v6, node: spaces[0], pod: spaces[1], far: spaces[2]}
	addr := func(v4, six string) netip.Addr {
		if v6 {
			return netip.MustParseAddr(six)
		}
		return netip.MustParseAddr(v4)
	}
	n.podAddr, n.farAddr, n.vip = addr("10.7.0.2", "fd07::2"), addr("10.8.0.2", "fd08::2"), addr("10.9.0.1", "fd09::1")
	n.nodeAddr = addr("10.7.0.1", "fd07::1")
	for _, cable := range []struct {
		name    string
		space   netns.NsHandle
		gateway netip.Addr
		addr    netip.Addr
	}{
		{"to-pod", n.pod, n.nodeAddr, n.podAddr},
		{"to-far", n.far, addr("10.8.0.1", "fd08::1"), n.farAddr},
	} {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: cable.name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(cable.space)}
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatalf("making a cable: %v", err)
		}
		n.up(cable.name, cable.gateway)
		if err := in(t, cable.space, func() error {
			n.up("eth0", cable.addr)
			return netlink.RouteAdd(&netlink.Route{Gw: cable.gateway.AsSlice()})
		}); err != nil {
			t.Fatalf("a route: %v", err)
		}
	}
	// An address without a route is not asked about.
	if err := netlink.RouteAdd(&netlink.Route{Gw: n.farAddr.AsSlice()}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	var listener net.Listener
	if err := in(t, n.far, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(n.farAddr, port).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, netip.MustParseAddrPort(conn.RemoteAddr().String()).Addr())
			conn.Close()
		}
	}()
	n.rules()
	return n
}

func (n *network) up(name string, addr netip.Addr) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		n.t.Fatal(err)
	}
	bits := 24
	if n.v6 {
		bits = 64
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}, Flags: 0x02 /* IFA_F_NODAD */}
	if !n.v6 {
		a.Flags = 0
	}
	if err := netlink.AddrAdd(link, a); err != nil {
		n.t.Fatalf("an address: %v", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		n.t.Fatal(err)
	}
}

// iptables runs it in the node; a line with spaces in quotes is not supported.
func (n *network) iptables(line string) string {
	n.t.Helper()
	name := "iptables-" + n.variant
	if n.v6 {
		name = "ip6tables-" + n.variant
	}
	command := exec.Command(name, append([]string{"-w"}, strings.Fields(line)...)...)
	var problem strings.Builder
	command.Stderr = &problem // it may warn of the other variant
	output, err := command.Output()
	if err != nil {
		n.t.Fatalf("%s %s: %v: %s", name, line, err, problem.String())
	}
	return string(output)
}

// rules are as kube-proxy, a CNI's portmap and one with network policies make them.
func (n *network) rules() {
	far := netip.AddrPortFrom(n.farAddr, port)
	for _, line := range []string{
		"-t nat -N KUBE-SERVICES",
		"-t nat -N KUBE-SVC-A",
		"-t nat -N CNI-HOSTPORT-DNAT",
		"-t nat -A PREROUTING -m comment --comment portals -j KUBE-SERVICES",
		"-t nat -A OUTPUT -m comment --comment portals -j KUBE-SERVICES",
		"-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
		"-t nat -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
		"-t nat -A KUBE-SERVICES", // it counts
		fmt.Sprintf("-t nat -A KUBE-SERVICES -d %s -p tcp -m tcp --dport 80 -j KUBE-SVC-A", n.vip),
		fmt.Sprintf("-t nat -A KUBE-SVC-A -p tcp -m tcp -j DNAT --to-destination %s", far),
		fmt.Sprintf("-t nat -A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport %d -j DNAT --to-destination %s", hostPort, far),
		fmt.Sprintf("-t nat -A POSTROUTING -s %s -j MASQUERADE", n.podAddr),
		"-A FORWARD",
		"-A OUTPUT",
	} {
		n.iptables(line)
	}
}

// counts returns the packets that the first rules of KUBE-SERVICES, FORWARD and OUTPUT
// have seen.
func (n *network) counts() (services, filter int) {
	n.t.Helper()
	first := func(line string) int {
		fields := strings.Fields(strings.Split(n.iptables(line), "\n")[2])
		count, err := strconv.Atoi(fields[0])
		if err != nil {
			n.t.Fatalf("%s: %v", line, fields)
		}
		return count
	}
	return first("-t nat -nvxL KUBE-SERVICES"), first("-nvxL FORWARD") + first("-nvxL OUTPUT")
}

// connect connects from a namespace and returns the client's address as the server saw it.
func (n *network) connect(from netns.NsHandle, to netip.AddrPort) netip.Addr {
	n.t.Helper()
	var seen netip.Addr
	if err := in(n.t, from, func() error {
		conn, err := net.DialTimeout("tcp", to.String(), 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		buffer := make([]byte, 64)
		length, err := conn.Read(buffer)
		if err != nil {
			return err
		}
		seen, err = netip.ParseAddr(string(buffer[:length]))
		return err
	}); err != nil {
		n.t.Fatalf("connecting to %s: %v", to, err)
	}
	return seen
}

// walks connects once from the pod and once from the node, and says how many of the two
// went through KUBE-SERVICES. Both must go through the filters.
func (n *network) walks() int {
	n.t.Helper()
	services, filter := n.counts()
	to := netip.AddrPortFrom(n.farAddr, port)
	masked := n.connect(n.pod, to)
	if masked == n.podAddr {
		n.t.Errorf("the pod's address was not masked: the chain POSTROUTING was not asked")
	}
	n.connect(n.node, to)
	servicesAfter, filterAfter := n.counts()
	if filterAfter-filter < 2 {
		n.t.Errorf("the filters saw %d packets of two connections", filterAfter-filter)
	}
	return servicesAfter - services
}

// of returns the status of the network's family.
func (n *network) of(statuses []Status) Status {
	if n.v6 {
		return statuses[1]
	}
	return statuses[0]
}

func TestConnectionsDoNotWalkThroughServices(t *testing.T) {
	for _, variant := range []string{"legacy", "nft"} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/v6=%v", variant, v6), func(t *testing.T) {
				n := newNetwork(t, variant, v6)
				if walks := n.walks(); walks != 2 {
					t.Fatalf("without us %d of 2 connections walk through %s", walks, servicesChain)
				}
				b := New()
				// The node's own address is left out by the rule, wherever it comes from.
				statuses := b.Keep([]netip.Addr{n.farAddr, n.nodeAddr}, true)
				if got := n.of(statuses); got.State != Active || got.Addresses != 2 {
					t.Fatalf("status: %+v", got)
				}
				for _, other := range statuses {
					if other.Family != n.of(statuses).Family && other.State != Unneeded {
						t.Errorf("the other family, which has no rules: %+v", other)
					}
				}
				if walks := n.walks(); walks != 0 {
					t.Errorf("%d of 2 connections walk through %s", walks, servicesChain)
				}

				t.Log("what kube-proxy and others serve goes on")
				services, _ := n.counts()
				n.connect(n.pod, netip.AddrPortFrom(n.vip, 80))
				n.connect(n.node, netip.AddrPortFrom(n.vip, 80))
				if after, _ := n.counts(); after-services != 2 {
					t.Errorf("%d of 2 connections to a cluster IP walk through %s", after-services, servicesChain)
				}
				n.connect(n.pod, netip.AddrPortFrom(n.nodeAddr, hostPort))

				t.Log("the table is repaired")
				conn, _ := nftables.New()
				f := b.families[map[bool]int{false: 0, true: 1}[v6]]
				if !f.whole(true) {
					t.Fatal("our own table is taken for a changed one")
				}
				conn.FlushChain(f.chains()[0])
				if err := conn.Flush(); err != nil {
					t.Fatal(err)
				}
				if walks := n.walks(); walks != 1 {
					t.Errorf("without a rule %d connections walk", walks)
				}
				b.Keep([]netip.Addr{n.farAddr}, true)
				if walks := n.walks(); walks != 0 {
					t.Errorf("after the repair %d connections walk", walks)
				}
				conn.DelTable(f.table())
				if err := conn.Flush(); err != nil {
					t.Fatal(err)
				}
				b.Keep([]netip.Addr{n.farAddr, n.podAddr}, false)
				if walks := n.walks(); walks != 0 {
					t.Errorf("after a change of what someone had removed %d connections walk", walks)
				}

				t.Log("addresses follow")
				b.Keep([]netip.Addr{n.podAddr}, false)
				if walks := n.walks(); walks != 2 {
					t.Errorf("an address that is no backend's any more: %d of 2 connections walk", walks)
				}
				b.Keep([]netip.Addr{n.farAddr}, false)

				t.Log("who may want to see the packets is not kept from it")
				n.iptables("-t nat -N AWS-CONNMARK-CHAIN-0")
				n.iptables("-t nat -A PREROUTING -m comment --comment outbound -j AWS-CONNMARK-CHAIN-0")
				if got := n.of(b.Keep([]netip.Addr{n.farAddr}, true)); got.State != Refused || !strings.Contains(got.Reason, "AWS-CONNMARK-CHAIN-0") {
					t.Errorf("status: %+v", got)
				}
				if walks := n.walks(); walks != 2 {
					t.Errorf("%d of 2 connections walk", walks)
				}
				n.iptables("-t nat -D PREROUTING -m comment --comment outbound -j AWS-CONNMARK-CHAIN-0")
				n.iptables("-t nat -A OUTPUT -p udp -j CONNMARK --set-mark 1")
				if got := n.of(b.Keep([]netip.Addr{n.farAddr}, true)); got.State != Refused || !strings.Contains(got.Reason, "CONNMARK") {
					t.Errorf("status: %+v", got)
				}
				n.iptables("-t nat -D OUTPUT -p udp -j CONNMARK --set-mark 1")
				if got := n.of(b.Keep([]netip.Addr{n.farAddr}, true)); got.State != Active {
					t.Errorf("status: %+v", got)
				}
				someone := &nftables.Table{Name: "someone", Family: nftables.TableFamilyINet}
				conn.AddTable(someone)
				conn.AddChain(&nftables.Chain{Name: "theirs", Table: someone, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
				if err := conn.Flush(); err != nil {
					t.Fatal(err)
				}
				if got := n.of(b.Keep([]netip.Addr{n.farAddr}, true)); got.State != Refused || !strings.Contains(got.Reason, "someone/theirs") {
					t.Errorf("status: %+v", got)
				}
				conn.DelTable(someone)
				if err := conn.Flush(); err != nil {
					t.Fatal(err)
				}
				b.Keep([]netip.Addr{n.farAddr}, true)

				t.Log("somebody's destinations are left to him")
				n.iptables("-t nat -N SOMEBODYS")
				n.iptables(fmt.Sprintf("-t nat -I OUTPUT -d %s -j SOMEBODYS", n.farAddr))
				if got := n.of(b.Keep([]netip.Addr{n.podAddr, n.farAddr}, true)); got.State != Active || got.Addresses != 1 {
					t.Errorf("status: %+v", got)
				}
				if walks := n.walks(); walks != 2 {
					t.Errorf("%d of 2 connections walk", walks)
				}
				n.iptables(fmt.Sprintf("-t nat -D OUTPUT -d %s -j SOMEBODYS", n.farAddr))
				b.Keep([]netip.Addr{n.farAddr}, true)

				t.Log("kube-proxy takes another mode")
				n.iptables("-t nat -D PREROUTING -m comment --comment portals -j KUBE-SERVICES")
				if got := n.of(b.Keep([]netip.Addr{n.farAddr}, true)); got.State != Active {
					t.Errorf("with the chain for the host's own connections left: %+v", got)
				}
				n.iptables("-t nat -D OUTPUT -m comment --comment portals -j KUBE-SERVICES")
				if got := n.of(b.Keep([]netip.Addr{n.farAddr}, true)); got.State != Unneeded {
					t.Errorf("status: %+v", got)
				}
				if tables := ourTables(t); tables != 0 {
					t.Errorf("%d tables are left", tables)
				}
				n.iptables("-t nat -A OUTPUT -m comment --comment portals -j KUBE-SERVICES")
				b.Keep([]netip.Addr{n.farAddr}, true)
				if tables := ourTables(t); tables != 1 {
					t.Errorf("%d tables", tables)
				}
				for range 2 {
					if err := Remove(); err != nil {
						t.Errorf("removing: %v", err)
					}
				}
				if tables := ourTables(t); tables != 0 {
					t.Errorf("%d tables are left", tables)
				}
			})
		}
	}
}

func ourTables(t *testing.T) (n int) {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if table.Name == TableName {
			n++
		}
	}
	return n
}

// A table of iptables-legacy that is only asked for is made, and the node tracks
// connections from then on.
func TestNothingIsMadeWhereThereIsNoKubeProxy(t *testing.T) {
	needRoot(t)
	enter(t, 1)
	for _, status := range New().Keep([]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, true) {
		if status.State != Unneeded {
			t.Errorf("%+v", status)
		}
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	if tables, err := conn.ListTables(); err != nil || len(tables) > 0 {
		t.Errorf("tables: %v, %v", tables, err)
	}
	for _, file := range []string{legacyIPv4.names, legacyIPv6.names} {
		if names, err := os.ReadFile(file); err == nil && len(names) > 0 {
			t.Errorf("%s: %s", file, names)
		}
	}
}

func TestManyAddresses(t *testing.T) {
	n := newNetwork(t, "nft", false)
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	var all, some []netip.Addr
	for i := range 20_000 {
		all = append(all, addr(i))
		if i%3 == 0 {
			some = append(some, addr(i))
		}
	}
	b := New()
	for _, step := range []struct {
		want []netip.Addr
		look bool
	}{{all, true}, {some, false}, {all, true}, {nil, false}, {some, true}} {
		given := slices.Clone(step.want)
		slices.Reverse(given)
		given = append(given, given[:len(given)/10]...)
		if got := n.of(b.Keep(given, step.look)); got.State != Active || got.Addresses != len(step.want) {
			t.Fatalf("status: %+v", got)
		}
		conn, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		list, err := conn.GetSetElements(b.families[0].set())
		if err != nil {
			t.Fatal(err)
		}
		var have []netip.Addr
		for _, e := range list {
			a, _ := netip.AddrFromSlice(e.Key)
			have = append(have, a)
		}
		slices.SortFunc(have, netip.Addr.Compare)
		if !slices.Equal(have, step.want) {
			t.Fatalf("the kernel has %d addresses, not the %d", len(have), len(step.want))
		}
		if !b.families[0].whole(true) {
			t.Error("it is taken for a changed one")
		}
	}
}

func TestDifference(t *testing.T) {
	list := func(text string) (addresses []netip.Addr) {
		for _, last := range text {
			addresses = append(addresses, netip.AddrFrom4([4]byte{10, 0, 0, byte(last)}))
		}
		return addresses
	}
	for _, test := range []struct{ old, new, added, gone string }{
		{"", "", "", ""},
		{"", "abc", "abc", ""},
		{"abc", "", "", "abc"},
		{"abc", "abc", "", ""},
		{"abd", "bce", "ce", "ad"},
	} {
		added, gone := difference(list(test.old), list(test.new))
		if !slices.Equal(added, list(test.added)) || !slices.Equal(gone, list(test.gone)) {
			t.Errorf("%q to %q: %v, %v", test.old, test.new, added, gone)
		}
	}
}

func TestJudge(t *testing.T) {
	for name, test := range map[string]struct {
		found  finding
		state  State
		reason string
		left   string
	}{
		"nothing there":              {finding{}, Unneeded, "", ""},
		"kube-proxy in another mode": {finding{rules: []rule{{target: "DOCKER", local: true}}, others: []string{"kube-proxy/nat-prerouting"}}, Unneeded, "", ""},
		"kube-proxy alone":           {finding{rules: []rule{{target: servicesChain}}}, Active, "", ""},
		"with ports of this host":    {finding{rules: []rule{{target: "CNI-HOSTPORT-DNAT", local: true}, {target: servicesChain}}}, Active, "", ""},
		"with a rule that only counts, and Calico": {
			finding{rules: []rule{{target: "cali-PREROUTING"}, {}, {target: servicesChain}}}, Active, "", "",
		},
		"with ports of any host": {
			finding{rules: []rule{{target: "CNI-HOSTPORT-DNAT"}, {target: servicesChain}}},
			Refused, "other programs' nat chains may be for connections to backends: CNI-HOSTPORT-DNAT", "",
		},
		"several, each named once": {
			finding{rules: []rule{{target: "B"}, {target: servicesChain}, {target: "A"}, {target: "B"}}, others: []string{"firewalld/nat_PREROUTING"}},
			Refused, "other programs' nat chains may be for connections to backends: A, B, firewalld/nat_PREROUTING", "",
		},
		"with rules for certain destinations": {
			finding{rules: []rule{{target: "DOCKER_OUTPUT", to: netip.MustParsePrefix("127.0.0.11/32")}, {target: servicesChain}, {target: "DNAT", to: netip.MustParsePrefix("169.254.0.0/16")}}},
			Active, "", "[127.0.0.11/32 169.254.0.0/16]",
		},
	} {
		state, reason, left := judge(test.found)
		if state != test.state || reason != test.reason || fmt.Sprint(left) != cmp.Or(test.left, "[]") {
			t.Errorf("%s: %s, %q, %v", name, state, reason, left)
		}
	}
}

// What others have is read as iptables itself prints it.
func TestReadRules(t *testing.T) {
	for _, variant := range []string{"legacy", "nft"} {
		for _, v6 := range []bool{false, true} {
			n := newNetwork(t, variant, v6)
			whole, some, odd := "192.0.2.9/32", "192.0.2.0/24", "192.0.2.128/27"
			if v6 {
				whole, some, odd = "2001:db8::9/128", "2001:db8::/32", "2001:db8::80/123"
			}
			for _, line := range []string{
				"-A OUTPUT -m addrtype ! --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
				"-A OUTPUT -p tcp -j RETURN",
				"-A OUTPUT -d " + whole + " -p udp -j CNI-HOSTPORT-DNAT",
				"-A OUTPUT -p udp -d " + some + " -j CNI-HOSTPORT-DNAT",
				"-A OUTPUT -s " + some + " -d " + odd + " -j CNI-HOSTPORT-DNAT",
				"-A OUTPUT -s " + some + " ! -d " + odd + " -j CNI-HOSTPORT-DNAT",
				"-I PREROUTING -p tcp -j REDIRECT --to-ports 1",
			} {
				n.iptables("-t nat " + line)
			}
			found, err := newFamilies()[map[bool]int{false: 0, true: 1}[v6]].find()
			if err != nil {
				t.Fatal(err)
			}
			to := netip.MustParsePrefix
			want := []rule{
				{target: "REDIRECT"}, {target: servicesChain}, {target: "CNI-HOSTPORT-DNAT", local: true},
				{target: servicesChain}, {target: "CNI-HOSTPORT-DNAT", local: true}, {target: "CNI-HOSTPORT-DNAT"}, {},
				{target: "CNI-HOSTPORT-DNAT", to: to(whole)}, {target: "CNI-HOSTPORT-DNAT", to: to(some)}, {target: "CNI-HOSTPORT-DNAT", to: to(odd)},
				{target: "CNI-HOSTPORT-DNAT"},
			}
			if variant == "nft" {
				want[0].target = found.rules[0].target // it depends on iptables' version
				if want[0].target == "" {
					t.Errorf("REDIRECT is not noticed")
				}
			}
			if !slices.Equal(found.rules, want) || len(found.others) > 0 {
				t.Errorf("%s v6=%v: %+v\nwant %+v", variant, v6, found, want)
			}
		}
	}
}
