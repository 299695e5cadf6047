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

// Package sockdiag finds and destroys UDP sockets in any network namespace of the
// node, by the kernel's sock_diag. A socket is destroyed exactly: by its addresses and
// its cookie, which no other socket ever has.
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrGone is returned by Destroy if the kernel has no such socket, or finds another one
// at its addresses first.
var ErrGone = errors.New("there is no such socket")

// Socket is a connected UDP socket.
type Socket struct {
	Netns Netns
	// Family is AF_INET or AF_INET6; the addresses of an AF_INET6 socket may be IPv4,
	// which it has mapped.
	Family      uint8
	Local, Peer netip.AddrPort
	// Interface is the index of the one that the socket is bound to, or 0.
	Interface uint32
	Cookie    uint64
}

// Conn asks the kernel about the sockets of one network namespace.
type Conn struct {
	netns  Netns
	socket *nl.NetlinkSocket
	// What package nl wants to have a request sent by this socket.
	sockets map[int]*nl.SocketHandle
}

// dial opens a socket in this thread's network namespace.
func dial(netns Netns) (*Conn, error) {
	s, err := nl.Subscribe(unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, fmt.Errorf("opening sock_diag: %w", err)
	}
	if err := s.SetReceiveTimeout(&unix.Timeval{Sec: 10}); err != nil {
		s.Close()
		return nil, err
	}
	return &Conn{netns, s, map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: s}}}, nil
}

func (c *Conn) request(command, flags int, r *request) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(command, flags)
	req.Sockets = c.sockets
	req.AddData(r)
	return req
}

// Destroy makes the kernel abort the socket: a call that waits in it returns
// ECONNABORTED, and it is not connected any more. It takes CAP_NET_ADMIN, and a kernel
// with CONFIG_INET_DIAG_DESTROY.
func (c *Conn) Destroy(s *Socket) error {
	r := request{family: s.Family, local: s.Local, peer: s.Peer, ifindex: s.Interface, cookie: s.Cookie}
	_, err := c.request(nl.SOCK_DESTROY, unix.NLM_F_ACK, &r).Execute(unix.NETLINK_INET_DIAG, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return ErrGone
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("destroying a socket (it takes a kernel with CONFIG_INET_DIAG_DESTROY): %w", err)
	case err != nil:
		return fmt.Errorf("destroying a socket: %w", err)
	}
	return nil
}

// Connected returns the connected UDP sockets of the namespace. One that comes or goes
// meanwhile may be missed.
func (c *Conn) Connected() ([]Socket, error) {
	var sockets []Socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var bad error
		req := c.request(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, &request{family: family, states: 1 << established})
		err := req.ExecuteIter(unix.NETLINK_INET_DIAG, 0, func(message []byte) bool {
			s, err := parse(message)
			if err != nil {
				bad = err
				return false
			}
			s.Netns = c.netns
			sockets = append(sockets, s)
			return true
		})
		if errors.Is(err, nl.ErrDumpInterrupted) {
			err = nil
		}
		if err := errors.Join(err, bad); err != nil {
			return nil, fmt.Errorf("listing UDP sockets: %w", err)
		}
	}
	return sockets, nil
}

// From linux/inet_diag.h, linux/sock_diag.h and net/tcp_states.h.
const (
	established = 1

	idLength      = 48                // struct inet_diag_sockid
	requestLength = 8 + idLength      // struct inet_diag_req_v2
	messageLength = 4 + idLength + 20 // struct inet_diag_msg
)

// request is a struct inet_diag_req_v2.
type request struct {
	family      uint8
	states      uint32
	local, peer netip.AddrPort
	ifindex     uint32
	cookie      uint64
}

// Len and Serialize are what package nl calls.
func (r *request) Len() int { return requestLength }

func (r *request) Serialize() []byte {
	b := make([]byte, requestLength)
	b[0], b[1] = r.family, unix.IPPROTO_UDP
	binary.NativeEndian.PutUint32(b[4:], r.states)
	id := b[8:]
	binary.BigEndian.PutUint16(id[0:], r.local.Port())
	binary.BigEndian.PutUint16(id[2:], r.peer.Port())
	putAddr(id[4:20], r.family, r.local.Addr())
	putAddr(id[20:36], r.family, r.peer.Addr())
	binary.NativeEndian.PutUint32(id[36:], r.ifindex)
	binary.NativeEndian.PutUint32(id[40:], uint32(r.cookie))
	binary.NativeEndian.PutUint32(id[44:], uint32(r.cookie>>32))
	return b
}

// putAddr writes an address as a socket of the family has it. The kernel looks an
// AF_INET6 socket with two IPv4-mapped addresses up as an IPv4 one, where it is found.
func putAddr(to []byte, family uint8, addr netip.Addr) {
	switch {
	case !addr.IsValid():
	case family == unix.AF_INET:
		ip := addr.As4()
		copy(to, ip[:])
	default:
		ip := addr.As16()
		copy(to, ip[:])
	}
}

func getAddr(from []byte, family uint8) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(from))
	}
	return netip.AddrFrom16([16]byte(from)).Unmap()
}

// parse reads a struct inet_diag_msg.
func parse(message []byte) (s Socket, err error) {
	if len(message) < messageLength {
		return s, fmt.Errorf("a message of sock_diag has %d bytes, not %d", len(message), messageLength)
	}
	s.Family = message[0]
	id := message[4:]
	s.Local = netip.AddrPortFrom(getAddr(id[4:20], s.Family), binary.BigEndian.Uint16(id[0:]))
	s.Peer = netip.AddrPortFrom(getAddr(id[20:36], s.Family), binary.BigEndian.Uint16(id[2:]))
	s.Interface = binary.NativeEndian.Uint32(id[36:])
	s.Cookie = uint64(binary.NativeEndian.Uint32(id[40:])) | uint64(binary.NativeEndian.Uint32(id[44:]))<<32
	return s, nil
}
