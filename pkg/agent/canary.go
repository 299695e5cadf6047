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

package agent

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// connectCanary connects sockets of this process, of both kinds that an IPv4 Service
// is reached by, to the canary's frontend, and fails unless the kernel balances them
// and shows the frontend as their peer. No packet is sent.
func connectCanary() error {
	err := connectCanaryOver(unix.AF_INET)
	// The kernel may have been started without IPv6.
	if err6 := connectCanaryOver(unix.AF_INET6); !errors.Is(err6, unix.EAFNOSUPPORT) {
		err = errors.Join(err, err6)
	}
	return err
}

func connectCanaryOver(family int) error {
	canary := desired.Canary()
	to := netip.AddrPortFrom(canary.Frontend.Addr, canary.Frontend.Port)
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("making a socket: %w", err)
	}
	defer unix.Close(fd)
	over, address := "IPv4", unix.Sockaddr(&unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	if family == unix.AF_INET6 {
		over, address = "an IPv4-mapped address", &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	// Without a route to the frontend this fails if it is not balanced.
	if err := unix.Connect(fd, address); err != nil {
		return fmt.Errorf("a connection of the agent's own over %s was not balanced: connect: %w", over, err)
	}
	// The peer is shown by a hook of ours. The kernel chose the own address for the
	// true one: that of the loopback interface for nothing but a loopback address.
	own, err := socketAddress(unix.Getsockname(fd))
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	if !own.Addr().IsLoopback() {
		return fmt.Errorf("a connection of the agent's own over %s was not balanced: it was made from %s", over, own.Addr())
	}
	peer, err := socketAddress(unix.Getpeername(fd))
	if err != nil {
		return fmt.Errorf("getpeername: %w", err)
	}
	if peer != to {
		return fmt.Errorf("a connection of the agent's own over %s was balanced, but shows %s as its peer and not %s", over, peer, to)
	}
	return nil
}

func socketAddress(address unix.Sockaddr, err error) (netip.AddrPort, error) {
	switch a := address.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), err
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port)), err
	}
	return netip.AddrPort{}, err
}
