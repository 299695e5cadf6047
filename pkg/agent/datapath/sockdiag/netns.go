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

package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Netns names a network namespace.
type Netns struct {
	// Inum is its number in nsfs, as /proc/PID/ns/net shows it.
	Inum uint32
	// ID is the kernel's own name for it, never used again; 0 before Linux 6.18.
	ID uint64
}

// ErrNoNetns is returned if a namespace cannot be found: no process that is seen is in
// it any more.
var ErrNoNetns = errors.New("no process is seen in the network namespace (it takes CAP_SYS_ADMIN, and before Linux 6.18 CAP_SYS_PTRACE and the node's /proc)")

// ownNetns is the namespace of the calling thread.
const ownNetns = "/proc/thread-self/ns/net"

// Namespaces finds the node's network namespaces. What it has found once it does not
// look for again: make a new one each time.
type Namespaces struct {
	proc  string
	own   uint32
	paths map[uint32]string // by number; nil until they were looked for
}

// NewNamespaces returns one that sees the processes of the procfs at the given path.
func NewNamespaces(proc string) (*Namespaces, error) {
	var stat unix.Stat_t
	if err := unix.Stat(ownNetns, &stat); err != nil {
		return nil, fmt.Errorf("looking at the own network namespace: %w", err)
	}
	return &Namespaces{proc: proc, own: uint32(stat.Ino)}, nil
}

// In calls the function with a way to the sockets of the namespace, on a thread that is
// in it.
func (n *Namespaces) In(netns Netns, f func(*Conn) error) error {
	here := func() error {
		conn, err := dial(netns)
		if err != nil {
			return err
		}
		defer conn.socket.Close()
		return f(conn)
	}
	if netns.Inum == n.own {
		return here()
	}
	file, err := n.open(netns)
	if err != nil {
		return err
	}
	defer file.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(ownNetns)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("opening the own network namespace: %w", err)
			return
		}
		defer home.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("entering a network namespace (it takes CAP_SYS_ADMIN): %w", err)
			return
		}
		err = here()
		// A thread that cannot come back ends with this goroutine.
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// All returns the namespaces that a process is in, its own included.
func (n *Namespaces) All() []Netns {
	n.look()
	all := []Netns{{Inum: n.own}}
	for inum := range n.paths {
		if inum != n.own {
			all = append(all, Netns{Inum: inum})
		}
	}
	return all
}

// open opens the file of a namespace: by its ID where the kernel can, which needs no
// process in it; else by a process.
func (n *Namespaces) open(netns Netns) (*os.File, error) {
	if netns.ID != 0 {
		if file, err := openByID(netns); err == nil {
			return file, nil
		}
	}
	// The process that was seen there may have ended, or gone elsewhere; there may be others.
	for range 2 {
		n.look()
		path, ok := n.paths[netns.Inum]
		if !ok {
			return nil, ErrNoNetns
		}
		file, err := os.Open(path)
		if err == nil {
			var stat unix.Stat_t
			if err := unix.Fstat(int(file.Fd()), &stat); err == nil && uint32(stat.Ino) == netns.Inum {
				return file, nil
			}
			_ = file.Close()
		} else if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("opening a network namespace: %w", err)
		}
		n.paths = nil
	}
	return nil, ErrNoNetns
}

// openByID opens it by its file handle (Linux 6.18).
func openByID(netns Netns) (*os.File, error) {
	const (
		nsfsRoot = -10003 // FD_NSFS_ROOT
		nsfsType = 0xf1   // FILEID_NSFS
	)
	handle := make([]byte, 16) // struct nsfs_file_handle
	binary.NativeEndian.PutUint64(handle, netns.ID)
	binary.NativeEndian.PutUint32(handle[8:], unix.CLONE_NEWNET)
	binary.NativeEndian.PutUint32(handle[12:], netns.Inum)
	fd, err := unix.OpenByHandleAt(nsfsRoot, unix.NewFileHandle(nsfsType, handle), unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netns"), nil
}

// look finds a process of each namespace. Processes that end meanwhile, or that must
// not be looked at, are passed over.
func (n *Namespaces) look() {
	if n.paths != nil {
		return
	}
	n.paths = map[uint32]string{}
	dir, err := os.Open(n.proc)
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if name[0] < '0' || name[0] > '9' {
			continue
		}
		path := filepath.Join(n.proc, name, "ns", "net")
		target, err := os.Readlink(path)
		if err != nil {
			continue
		}
		number := strings.TrimSuffix(strings.TrimPrefix(target, "net:["), "]")
		if inum, err := strconv.ParseUint(number, 10, 32); err == nil {
			n.paths[uint32(inum)] = path
		}
	}
}
