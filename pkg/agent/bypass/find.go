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
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// iptables' tables as they are seen by nftables, and its chains that decide the
// destination. Other nat chains are somebody else's.
var (
	iptablesTable  = "nat"
	iptablesChains = []string{"PREROUTING", "OUTPUT"}
)

// find looks at the nat chains that decide the destination in this network namespace.
func (f *family) find() (finding, error) {
	rules, err := f.legacyRules()
	if err != nil {
		return finding{}, fmt.Errorf("reading the tables of iptables-legacy: %w", err)
	}
	found := finding{rules: rules}
	conn, err := nftables.New()
	if err != nil {
		return finding{}, fmt.Errorf("opening nftables: %w", err)
	}
	for _, of := range []nftables.TableFamily{f.family, nftables.TableFamilyINet} {
		chains, err := conn.ListChainsOfTableFamily(of)
		if err != nil {
			return finding{}, fmt.Errorf("listing chains: %w", err)
		}
		for _, chain := range chains {
			if chain.Type != nftables.ChainTypeNAT || chain.Hooknum == nil ||
				*chain.Hooknum != *nftables.ChainHookPrerouting && *chain.Hooknum != *nftables.ChainHookOutput {
				continue
			}
			switch {
			case of == f.family && chain.Table.Name == TableName:
			case of == f.family && chain.Table.Name == iptablesTable && slices.Contains(iptablesChains, chain.Name):
				rules, err := conn.GetRules(chain.Table, chain)
				if err != nil {
					return finding{}, fmt.Errorf("reading chain %s: %w", chain.Name, err)
				}
				for _, r := range rules {
					found.rules = append(found.rules, f.readRule(r.Exprs))
				}
			default:
				found.others = append(found.others, chain.Table.Name+"/"+chain.Name)
			}
		}
	}
	return found, nil
}

// readRule reads a rule that iptables-nft has made.
func (f *family) readRule(exprs []expr.Any) (r rule) {
	// Where the destination is, or 0, and which of its bits.
	var register uint32
	var mask []byte
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Payload:
			register, mask = 0, nil
			if e.Base == expr.PayloadBaseNetworkHeader && e.Offset == f.offset && e.OperationType == expr.PayloadLoad {
				register = e.DestRegister
			}
		case *expr.Bitwise:
			if register != 0 && e.SourceRegister == register && mask == nil && !slices.ContainsFunc(e.Xor, func(b byte) bool { return b != 0 }) {
				register, mask = e.DestRegister, e.Mask
			} else {
				register = 0
			}
		case *expr.Cmp:
			if register != 0 && e.Register == register && e.Op == expr.CmpOpEq {
				r.to = f.prefix(e.Data, mask)
			}
			register = 0
		case *expr.Match:
			if info, ok := e.Info.(*xt.AddrTypeV1); ok && e.Name == "addrtype" {
				r.local = r.local || onlyLocal(info.Dest, uint32(info.Flags))
			}
		case *expr.Verdict:
			r.target = e.Chain
		case *expr.Target:
			r.target = e.Name
		case *expr.NAT, *expr.Redir, *expr.Masq, *expr.Queue, *expr.Dup:
			r.target = "a rule of nat"
		case *expr.Meta:
			if e.SourceRegister {
				r.target = "a rule that marks"
			}
		case *expr.Ct:
			if e.SourceRegister {
				r.target = "a rule that marks"
			}
		}
	}
	return r
}

// prefix is that of an address of which the first bytes are given, and a mask for them if
// not all their bits count. It is not valid if it is none.
func (f *family) prefix(data, mask []byte) netip.Prefix {
	bits := 8 * len(data)
	if mask != nil {
		var size int
		if bits, size = net.IPMask(mask).Size(); size != 8*len(data) {
			return netip.Prefix{}
		}
	}
	if len(data) > int(f.length) {
		return netip.Prefix{}
	}
	addr, _ := netip.AddrFromSlice(append(slices.Clone(data), make([]byte, int(f.length)-len(data))...))
	return netip.PrefixFrom(addr, bits).Masked()
}

// onlyLocal says whether a match of addresses' types is for local destinations only.
func onlyLocal(destination uint16, flags uint32) bool {
	const local, invertDestination = 1 << unix.RTN_LOCAL, 2
	return destination == local && flags&invertDestination == 0
}

// legacy is how one IP version's tables of iptables-legacy are read. The numbers are part
// of the kernel's interface (linux/netfilter_ipv4/ip_tables.h and its sibling).
type legacy struct {
	domain, level int
	names         string // the file with the names of tables that are there
	entry         int    // the size of an entry without what follows it
	targetAt      int    // where an entry says where its target is
	// Where it has the destination, its mask, and the flags of what is inverted.
	toAt, maskAt, invertedAt int
}

var (
	legacyIPv4 = legacy{
		domain: unix.AF_INET, level: unix.SOL_IP, names: "/proc/thread-self/net/ip_tables_names",
		entry: 112, targetAt: 88, toAt: 4, maskAt: 12, invertedAt: 83,
	}
	legacyIPv6 = legacy{
		domain: unix.AF_INET6, level: unix.SOL_IPV6, names: "/proc/thread-self/net/ip6_tables_names",
		entry: 168, targetAt: 140, toAt: 16, maskAt: 48, invertedAt: 132,
	}
)

const (
	getInfo    = 64
	getEntries = 65

	tableNameSize = 32
	hookCount     = 5
	hookArrived   = 0 // NF_INET_PRE_ROUTING
	hookOutput    = 3 // NF_INET_LOCAL_OUT

	destinationInverted = 0x10

	mostTables = 256 << 20 // bytes
)

// legacyRules returns those of iptables-legacy's chains PREROUTING and OUTPUT of nat.
func (f *family) legacyRules() ([]rule, error) {
	l := f.nat
	// To ask for a table that is not there makes it, and with it the node tracks
	// connections.
	names, err := os.ReadFile(l.names)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if !slices.Contains(strings.Fields(string(names)), iptablesTable) {
		return nil, nil
	}
	fd, err := unix.Socket(l.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for range 5 {
		// struct ipt_getinfo: name, valid hooks, hook entries, underflows, count, size.
		info := make([]byte, tableNameSize+4+2*4*hookCount+4+4)
		copy(info, iptablesTable)
		if err := l.get(fd, getInfo, info); err != nil {
			return nil, fmt.Errorf("asking for the table's size: %w", err)
		}
		size := binary.NativeEndian.Uint32(info[len(info)-4:])
		if size > mostTables {
			return nil, fmt.Errorf("its nat table has %d bytes", size)
		}
		// struct ipt_get_entries: name, size, entries, which begin at a multiple of 8.
		const header = (tableNameSize + 4 + 7) &^ 7
		entries := make([]byte, header+size)
		copy(entries, iptablesTable)
		binary.NativeEndian.PutUint32(entries[tableNameSize:], size)
		err := l.get(fd, getEntries, entries)
		if errors.Is(err, unix.EAGAIN) {
			continue // it has another size by now
		} else if err != nil {
			return nil, fmt.Errorf("reading its entries: %w", err)
		}
		var rules []rule
		for _, hook := range []int{hookArrived, hookOutput} {
			start := binary.NativeEndian.Uint32(info[tableNameSize+4+4*hook:])
			end := binary.NativeEndian.Uint32(info[tableNameSize+4+4*hookCount+4*hook:])
			chain, err := f.legacyChain(entries[header:], start, end)
			if err != nil {
				return nil, err
			}
			rules = append(rules, chain...)
		}
		return rules, nil
	}
	return nil, errors.New("its nat table changes all the time")
}

func (l *legacy) get(fd, option int, buffer []byte) error {
	size := uint32(len(buffer))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(l.level), uintptr(option),
		uintptr(unsafe.Pointer(unsafe.SliceData(buffer))), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

var errEntries = errors.New("its entries are not as they should be")

// legacyChain reads the entries of a base chain from where it starts to its policy.
func (f *family) legacyChain(entries []byte, start, policy uint32) (rules []rule, err error) {
	l := f.nat
	for at := start; at != policy; {
		entry, target, err := l.split(entries, at)
		if err != nil {
			return nil, err
		}
		var r rule
		if mask := entry[l.maskAt:][:f.length]; entry[l.invertedAt]&destinationInverted == 0 && slices.Max(mask) > 0 {
			r.to = f.prefix(entry[l.toAt:][:f.length], mask)
		}
		// Each match and target is: u16 size, name of 29 bytes, u8 revision, its own.
		for i := l.entry; i < target; {
			if i+32 > target {
				return nil, errEntries
			}
			size := int(binary.NativeEndian.Uint16(entry[i:]))
			if size < 32 || i+size > target {
				return nil, errEntries
			}
			if name(entry[i+2:i+31]) == "addrtype" && entry[i+31] == 1 && size >= 40 {
				r.local = r.local || onlyLocal(binary.NativeEndian.Uint16(entry[i+34:]), binary.NativeEndian.Uint32(entry[i+36:]))
			}
			i += size
		}
		if len(entry) < target+32 {
			return nil, errEntries
		}
		if r.target = name(entry[target+2 : target+31]); r.target == "" {
			if len(entry) < target+36 {
				return nil, errEntries
			}
			if to := int32(binary.NativeEndian.Uint32(entry[target+32:])); to >= 0 {
				if r.target, err = l.chainAt(entries, uint32(to)); err != nil {
					return nil, err
				}
			}
		}
		rules = append(rules, r)
		at += uint32(len(entry))
	}
	return rules, nil
}

// split returns the entry at an offset, and where in it the target is.
func (l *legacy) split(entries []byte, at uint32) (entry []byte, target int, err error) {
	rest := entries[min(int(at), len(entries)):]
	if len(rest) < l.entry {
		return nil, 0, errEntries
	}
	target = int(binary.NativeEndian.Uint16(rest[l.targetAt:]))
	next := int(binary.NativeEndian.Uint16(rest[l.targetAt+2:]))
	if target < l.entry || next < target || next > len(rest) {
		return nil, 0, errEntries
	}
	return rest[:next], target, nil
}

// chainAt returns the name of the chain whose first rule is at an offset. An entry just
// before it bears the name: its target's own name is ERROR.
func (l *legacy) chainAt(entries []byte, first uint32) (string, error) {
	size := l.entry + 64 // the target ERROR: its head of 32 bytes, a name of 30, and padding
	if int(first) > len(entries) || int(first) < size {
		return "", errEntries
	}
	entry, target, err := l.split(entries, first-uint32(size))
	if err != nil || len(entry) != size || name(entry[target+2:target+31]) != "ERROR" {
		return "", errEntries
	}
	return name(entry[target+32 : target+62]), nil
}

func name(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}
