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

// Package bypass leads new connections to backends past the nat chains of iptables.
//
// The programs in the cgroups change a Service's address to a backend's before there is
// a packet. Beside kube-proxy in iptables mode the packet then matches none of its rules,
// and for that walks through all of them: the more Services, the longer. The kernel asks
// nat chains in the order of their priority, for the first packet of a connection, until
// one has decided the destination. So a chain just before those of iptables that decides
// for the addresses of backends, and decides that nothing is changed, ends the walk. It
// does what the kernel itself does when no rule has matched.
//
// All else is as it was: chains of the type filter, where policies are, the chains of nat
// that decide the source, the tracking of connections, and each packet to another address.
//
// What is made is a table of nftables for each IP version, where iptables has kube-proxy's
// chains in it and nothing in the way that may want to see such packets. Nothing of
// anybody else's is touched, and no node begins to track connections because of us.
package bypass

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TableName is the name of our tables of nftables, one in the family ip and one in ip6.
const TableName = "clustermesh"

const (
	setName = "backends"
	// batch is how many addresses go into one message: its lists hold 64 KiB.
	batch = 1000
	// checkElements is how many looks go by until the addresses in the kernel are compared
	// one by one. Their loss costs time, and nothing else.
	checkElements = 40
)

// State says what has become of a family.
type State string

// The states of a family.
const (
	// Active is set while connections to backends don't walk through KUBE-SERVICES.
	Active State = "active"
	// Unneeded is set where there is no chain KUBE-SERVICES of iptables.
	Unneeded State = "unneeded"
	// Refused is set where somebody else's chains may want to see such connections.
	Refused State = "refused"
	// Failed is set while the kernel refuses.
	Failed State = "failed"
)

// Status is what has become of one family.
type Status struct {
	Family string // IPv4 or IPv6
	State  State
	// Reason says why it is not active; empty where there is nothing to say.
	Reason string
	// Addresses is how many addresses of backends are led past.
	Addresses int
}

// Bypass keeps the tables of the network namespace that it is used in. It is for one
// goroutine.
type Bypass struct {
	families []*family
}

// family is one table.
type family struct {
	name   string
	family nftables.TableFamily
	offset uint32 // of the destination address in the header
	length uint32
	nat    *legacy

	have   []netip.Addr // sorted; what the kernel has, while made is set
	made   bool
	left   []netip.Prefix // what others decide about, as of the last look
	looked int
	last   Status
}

// New returns a Bypass that has not looked at the kernel yet.
func New() *Bypass {
	return &Bypass{families: newFamilies()}
}

func newFamilies() []*family {
	return []*family{
		{name: "IPv4", family: nftables.TableFamilyIPv4, offset: 16, length: 4, nat: &legacyIPv4},
		{name: "IPv6", family: nftables.TableFamilyIPv6, offset: 24, length: 16, nat: &legacyIPv6},
	}
}

// Keep makes the kernel lead new connections to these addresses, and to no others, past
// the nat chains of iptables, where that can be done. look says to look at other programs'
// chains and at our own again; without it only the addresses are brought up to date.
func (b *Bypass) Keep(addresses []netip.Addr, look bool) []Status {
	var statuses []Status
	for _, f := range b.families {
		var own []netip.Addr
		for _, addr := range addresses {
			if addr.Is4() == (f.family == nftables.TableFamilyIPv4) {
				own = append(own, addr)
			}
		}
		slices.SortFunc(own, netip.Addr.Compare)
		own = slices.Compact(own)
		// Where there is no table, only a look can change that.
		if look || f.made {
			f.last = f.keep(own, look)
		}
		statuses = append(statuses, f.last)
	}
	return statuses
}

func (f *family) keep(addresses []netip.Addr, look bool) Status {
	status := Status{Family: f.name}
	if look {
		found, err := f.find()
		if err != nil {
			status.State, status.Reason = Failed, fmt.Sprintf("looking for other nat chains: %v", err)
			return status
		}
		if status.State, status.Reason, f.left = judge(found); status.State != Active {
			if err := f.remove(); err != nil {
				status.State, status.Reason = Failed, err.Error()
			}
			return status
		}
		if f.made {
			f.looked++
			f.made = f.whole(f.looked%checkElements == 0)
		}
	}
	addresses = slices.DeleteFunc(addresses, func(addr netip.Addr) bool {
		return slices.ContainsFunc(f.left, func(p netip.Prefix) bool { return p.Contains(addr) })
	})
	status.State, status.Addresses = Active, len(addresses)
	err := f.write(addresses)
	if err != nil && f.made {
		// Someone has changed it since we looked.
		f.made = false
		err = f.write(addresses)
	}
	if err != nil {
		f.made = false
		status = Status{Family: f.name, State: Failed, Reason: err.Error()}
	}
	return status
}

func (f *family) table() *nftables.Table {
	return &nftables.Table{Name: TableName, Family: f.family}
}

func (f *family) set() *nftables.Set {
	key := nftables.TypeIPAddr
	if f.family == nftables.TableFamilyIPv6 {
		key = nftables.TypeIP6Addr
	}
	return &nftables.Set{Table: f.table(), Name: setName, KeyType: key}
}

// chains are ours: one for packets that arrive, one for those of the host itself, just
// before iptables'.
func (f *family) chains() []*nftables.Chain {
	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		policy := nftables.ChainPolicyAccept
		return &nftables.Chain{
			Table: f.table(), Name: name, Type: nftables.ChainTypeNAT, Hooknum: hook,
			Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest - 1), Policy: &policy,
		}
	}
	return []*nftables.Chain{chain("prerouting", nftables.ChainHookPrerouting), chain("output", nftables.ChainHookOutput)}
}

// rule is the only one of each chain: "ip daddr @backends fib daddr type != local dnat to
// ip daddr". An address of the host's is left out as it may have ports of nodes and pods.
func (f *family) rule() []expr.Any {
	destination := &expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.offset, Len: f.length}
	again := *destination
	return []expr.Any{
		destination,
		&expr.Lookup{SourceRegister: 1, SetName: setName},
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
		&again,
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.family), RegAddrMin: 1, RegAddrMax: 1},
	}
}

// write makes the kernel have our table with these addresses, which are sorted.
func (f *family) write(addresses []netip.Addr) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	if !f.made {
		// To add what is there is no error, and to remove it then leaves nothing of what
		// an earlier agent or someone else made of it.
		conn.AddTable(f.table())
		conn.DelTable(f.table())
		conn.AddTable(f.table())
		if err := conn.AddSet(f.set(), nil); err != nil {
			return fmt.Errorf("making the set of addresses: %w", err)
		}
		for _, chain := range f.chains() {
			conn.AddChain(chain)
			conn.AddRule(&nftables.Rule{Table: f.table(), Chain: chain, Exprs: f.rule()})
		}
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("making table %s %s: %w", f.name, TableName, err)
		}
		f.made, f.have = true, nil
	}
	change := func(how func(*nftables.Set, []nftables.SetElement) error, addresses []netip.Addr) error {
		for part := range slices.Chunk(addresses, batch) {
			if err := how(f.set(), elements(part)); err != nil {
				return err
			}
			if err := conn.Flush(); err != nil {
				return err
			}
		}
		return nil
	}
	added, gone := difference(f.have, addresses)
	if err := change(conn.SetDeleteElements, gone); err != nil {
		return fmt.Errorf("removing addresses of backends: %w", err)
	}
	if err := change(conn.SetAddElements, added); err != nil {
		return fmt.Errorf("adding addresses of backends: %w", err)
	}
	f.have = addresses
	return nil
}

func elements(addresses []netip.Addr) []nftables.SetElement {
	list := make([]nftables.SetElement, len(addresses))
	for i, addr := range addresses {
		list[i].Key = addr.AsSlice()
	}
	return list
}

// difference compares two sorted lists.
func difference(old, new []netip.Addr) (added, gone []netip.Addr) {
	for len(old) > 0 || len(new) > 0 {
		switch {
		case len(new) == 0 || len(old) > 0 && old[0].Less(new[0]):
			gone, old = append(gone, old[0]), old[1:]
		case len(old) == 0 || new[0].Less(old[0]):
			added, new = append(added, new[0]), new[1:]
		default:
			old, new = old[1:], new[1:]
		}
	}
	return added, gone
}

// whole says whether our table is as we made it.
func (f *family) whole(everyAddress bool) bool {
	conn, err := nftables.New()
	if err != nil {
		return false
	}
	for _, want := range f.chains() {
		have, err := conn.ListChain(f.table(), want.Name)
		if err != nil || have.Type != want.Type || have.Hooknum == nil || *have.Hooknum != *want.Hooknum ||
			have.Priority == nil || *have.Priority != *want.Priority {
			return false
		}
		rules, err := conn.GetRules(f.table(), want)
		if err != nil || len(rules) != 1 || !f.same(rules[0].Exprs) {
			return false
		}
	}
	if !everyAddress {
		return true
	}
	list, err := conn.GetSetElements(f.set())
	if err != nil || len(list) != len(f.have) {
		return false
	}
	slices.SortFunc(list, func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
	return slices.EqualFunc(list, f.have, func(e nftables.SetElement, addr netip.Addr) bool {
		return bytes.Equal(e.Key, addr.AsSlice())
	})
}

// same says whether a rule of the kernel's is ours.
func (f *family) same(have []expr.Any) bool {
	want := f.rule()
	if len(have) != len(want) {
		return false
	}
	for i := range want {
		a, errA := expr.Marshal(byte(f.family), want[i])
		b, errB := expr.Marshal(byte(f.family), have[i])
		if errA != nil || errB != nil || reflect.TypeOf(want[i]) != reflect.TypeOf(have[i]) || !bytes.Equal(a, b) {
			return false
		}
	}
	return true
}

// remove removes our table, if it is there.
func (f *family) remove() error {
	f.made, f.have = false, nil
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	conn.DelTable(f.table())
	if err := conn.Flush(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing table %s %s: %w", f.name, TableName, err)
	}
	return nil
}

// Remove removes all that Keep may have made. A kernel without nftables has nothing of it.
func Remove() error {
	var errs []error
	for _, f := range newFamilies() {
		if err := f.remove(); err != nil && !errors.Is(err, unix.EPROTONOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) &&
			!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EAFNOSUPPORT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
