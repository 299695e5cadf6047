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

package cluster

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"mesh.io/clustermesh/test/lab/proc"
)

// lookUp asks a name server, in the network of a process, and compares the answer.
func lookUp(pid int, server netip.AddrPort, name string, want netip.Addr) error {
	conn, err := proc.Dial(pid, "udp", server.String(), time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return fmt.Errorf("asking DNS: %w", err)
	}
	if _, err := conn.Write(question(name)); err != nil {
		return fmt.Errorf("asking DNS: %w", err)
	}
	answer := make([]byte, 512)
	n, err := conn.Read(answer)
	if err != nil {
		return fmt.Errorf("asking DNS: %w", err)
	}
	// The only record of an answer to this question ends with the address.
	if n < 12 || binary.BigEndian.Uint16(answer[6:]) == 0 || !bytes.Contains(answer[12:n], want.AsSlice()) {
		return fmt.Errorf("asking DNS: %s is not %s yet", name, want)
	}
	return nil
}

// question is a query for the IPv4 address of a name.
func question(name string) []byte {
	message := []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(name, ".") {
		message = append(message, byte(len(label)))
		message = append(message, label...)
	}
	return append(message, 0, 0, 1, 0, 1)
}
