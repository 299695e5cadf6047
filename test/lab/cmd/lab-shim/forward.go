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

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"mesh.io/clustermesh/test/lab/proc"
)

// forward carries connections from the host's loopback into the lab, for each
// argument <listen address>,<pid>,<target address>: the target is dialled in the
// network namespace of the process.
func forward(args []string) error {
	failed := make(chan error)
	for _, arg := range args {
		parts := strings.Split(arg, ",")
		if len(parts) != 3 {
			return fmt.Errorf("odd argument %q", arg)
		}
		pid, err := strconv.Atoi(parts[1])
		if err != nil {
			return fmt.Errorf("odd argument %q: %w", arg, err)
		}
		listener, err := net.Listen("tcp", parts[0])
		if err != nil {
			return fmt.Errorf("listening: %w", err)
		}
		go func() { failed <- accept(listener, pid, parts[2]) }()
	}
	return <-failed
}

func accept(listener net.Listener, pid int, target string) error {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accepting: %w", err)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "lab-shim: accepting:", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go func() {
			defer conn.Close()
			remote, err := proc.Dial(pid, "tcp", target, 5*time.Second)
			if err != nil {
				fmt.Fprintln(os.Stderr, "lab-shim:", err)
				return
			}
			defer remote.Close()
			go func() {
				_, _ = io.Copy(remote, conn)
				_ = remote.(*net.TCPConn).CloseWrite()
			}()
			_, _ = io.Copy(conn, remote)
		}()
	}
}
