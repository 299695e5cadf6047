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

package datapath

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// The values of the maps, as bpf/lib/maps.h has them.
type (
	vipKey       = connectVipKey
	serviceEntry = connectServiceEntry
	backendEntry = connectBackendEntry
	trafficEntry = connectTrafficEntry
	metaEntry    = connectMetaEntry
	serviceName  = connectServiceNameEntry
	clusterName  = connectClusterNameEntry
)

// The bit fields of bpf/lib/maps.h.
const (
	descriptorBaseBits   = 28
	descriptorLengthBits = 24

	serviceHandback = 0x1

	slotBackendBits    = 24
	slotServiceBits    = 20
	slotGenerationBits = 20

	maxGeneration = 1<<slotGenerationBits - 1
)

// descriptor says where a service's slots are. It is written by one store.
type descriptor uint64

func newDescriptor(base, length uint32, flags uint16) descriptor {
	return descriptor(uint64(base) | uint64(length)<<descriptorBaseBits |
		uint64(flags)<<(descriptorBaseBits+descriptorLengthBits))
}

func (d descriptor) base() uint32 { return uint32(d & (1<<descriptorBaseBits - 1)) }
func (d descriptor) length() uint32 {
	return uint32(d >> descriptorBaseBits & (1<<descriptorLengthBits - 1))
}
func (d descriptor) flags() uint16 { return uint16(d >> (descriptorBaseBits + descriptorLengthBits)) }

// slot is one share of a service: the backend, and what must match in its entry.
type slot uint64

func newSlot(backend, service, generation uint32) slot {
	return slot(uint64(backend) | uint64(service)<<slotBackendBits |
		uint64(generation)<<(slotBackendBits+slotServiceBits))
}

func (s slot) backend() uint32    { return uint32(s & (1<<slotBackendBits - 1)) }
func (s slot) service() uint32    { return uint32(s >> slotBackendBits & (1<<slotServiceBits - 1)) }
func (s slot) generation() uint32 { return uint32(s >> (slotBackendBits + slotServiceBits)) }

// addrWords returns the 16-byte form of an address, IPv4 as IPv4-mapped.
func addrWords(addr netip.Addr) (words [4]uint32) {
	b := addr.As16()
	for i := range words {
		words[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return words
}

func wordsAddr(words [4]uint32) netip.Addr {
	var b [16]byte
	for i, w := range words {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

// networkPort turns a port into network order, and back.
func networkPort(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

func frontendKey(f desired.Frontend) vipKey {
	return vipKey{Addr: addrWords(f.Addr), Port: networkPort(f.Port), Protocol: uint8(f.Protocol)}
}

func keyFrontend(k vipKey) desired.Frontend {
	return desired.Frontend{Addr: wordsAddr(k.Addr), Port: networkPort(k.Port), Protocol: desired.Protocol(k.Protocol)}
}

func (e *backendEntry) addrPort() netip.AddrPort {
	return netip.AddrPortFrom(wordsAddr(e.Addr), networkPort(e.Port))
}

func newServiceName(p desired.ServicePort) (n serviceName) {
	putString(n.Namespace[:], p.Namespace)
	putString(n.Name[:], p.Name)
	putString(n.Port[:], p.Port)
	return n
}

func servicePort(n *serviceName) desired.ServicePort {
	return desired.ServicePort{
		Namespace: getString(n.Namespace[:]),
		Name:      getString(n.Name[:]),
		Port:      getString(n.Port[:]),
	}
}

// putString cuts what does not fit; the names of Kubernetes all do.
func putString(to []int8, s string) {
	for i := range min(len(to), len(s)) {
		to[i] = int8(s[i])
	}
}

func getString(from []int8) string {
	b := make([]byte, 0, len(from))
	for _, c := range from {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}

// check says why a service cannot be held, before anything is written.
func check(svc *desired.Service) error {
	f := svc.Frontend
	switch {
	case !f.Addr.IsValid() || f.Addr.Is4In6() || f.Addr.Zone() != "" || f.Addr.IsUnspecified():
		return fmt.Errorf("frontend address %s is not a plain unicast address", f.Addr)
	case f.Port == 0:
		return fmt.Errorf("frontend port is 0")
	case f.Protocol != desired.TCP && f.Protocol != desired.UDP:
		return fmt.Errorf("protocol %s is not balanced", f.Protocol)
	}
	total := uint64(0)
	for i := range svc.Backends {
		b := &svc.Backends[i]
		addr := b.Addr.Addr()
		switch {
		case !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" || addr.IsUnspecified():
			return fmt.Errorf("backend address %s is not a plain unicast address", b.Addr)
		case addr.Is4() != f.Addr.Is4():
			return fmt.Errorf("backend %s is not of the frontend's address family", b.Addr)
		case b.Addr.Port() == 0:
			return fmt.Errorf("backend %s has no port", b.Addr)
		case i > 0 && compareBackends(&svc.Backends[i-1], b) >= 0:
			return fmt.Errorf("backend %s of cluster %d is out of order or listed twice", b.Addr, b.ClusterID)
		}
		total += uint64(b.Slots)
	}
	if total >= 1<<descriptorLengthBits {
		return fmt.Errorf("%d slots are more than one service can have", total)
	}
	return nil
}
