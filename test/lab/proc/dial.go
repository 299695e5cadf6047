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

package proc

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Dial connects to an address, which must be a number, in the network namespace of
// a process. The connection works from anywhere: a socket stays in the namespace
// that it was made in.
func Dial(pid int, network, address string, timeout time.Duration) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	var conn net.Conn
	err := Do(pid, unix.CLONE_NEWNET, func() error {
		var err error
		// For a single address the dialler uses no other goroutine before it has the socket.
		conn, err = (&net.Dialer{Timeout: timeout}).Dial(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connecting in the namespace of process %d: %w", pid, err)
	}
	return conn, nil
}
