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

package container

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/test/lab/crilog"
)

// Kinds of frames between a shim and whoever is attached to its container. A frame
// is a byte with the kind, four with the length, and the content.
const (
	FrameInput byte = iota
	FrameOutput
	FrameError
	// FrameSize has columns and rows, two bytes each.
	FrameSize
	// FrameEnd says that there is no more input.
	FrameEnd
)

// maxFrame is more than anyone sends at once.
const maxFrame = 64 * 1024

// WriteFrame writes one frame.
func WriteFrame(w io.Writer, kind byte, content []byte) error {
	frame := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(content)))
	if _, err := w.Write(append(frame, content...)); err != nil {
		return fmt.Errorf("writing frame: %w", err)
	}
	return nil
}

// ReadFrame reads one frame. At the end of the stream it returns io.EOF.
func ReadFrame(r io.Reader) (kind byte, content []byte, err error) {
	var header [5]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(header[1:])
	if length > maxFrame {
		return 0, nil, fmt.Errorf("reading frame: %d bytes are too many", length)
	}
	content = make([]byte, length)
	if _, err := io.ReadFull(r, content); err != nil {
		return 0, nil, fmt.Errorf("reading frame: %w", err)
	}
	return header[0], content, nil
}

// Attach connects to the console of a container.
func Attach(dir string) (net.Conn, error) {
	folder, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("attaching: %w", err)
	}
	defer folder.Close()
	// By this way because the path of a socket may have 107 bytes only.
	conn, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), consoleSocket))
	if err != nil {
		return nil, fmt.Errorf("attaching: %w", err)
	}
	return conn, nil
}

const consoleSocket = "console.sock"

// console is what a container's standard files are connected to: its log, and all who are attached.
type console struct {
	log *crilog.Writer
	// once: the input ends with the first who is attached.
	once   bool
	copied sync.WaitGroup

	mu       sync.Mutex
	attached map[net.Conn]bool
	// input is the container's standard input, or its terminal, or nil.
	input *os.File
	// terminal is the same file where there is one.
	terminal *os.File
}

func newConsole(dir string, config Config) (*console, error) {
	c := &console{once: config.StdinOnce, attached: map[net.Conn]bool{}}
	if config.LogPath != "" {
		log, err := crilog.Open(config.LogPath)
		if err != nil {
			return nil, err
		}
		c.log = log
	}
	// The working directory is this process's alone; see Attach for why.
	if err := os.Chdir(dir); err != nil {
		return nil, fmt.Errorf("making console: %w", err)
	}
	listener, err := net.Listen("unix", consoleSocket)
	if err != nil {
		return nil, fmt.Errorf("making console: %w", err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go c.serve(conn)
		}
	}()
	return c, nil
}

// pipe returns a file that the container writes one of its streams to.
func (c *console) pipe(kind byte, name string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making pipe: %w", err)
	}
	c.copy(kind, name, r)
	return w, nil
}

// copy carries a stream to the log and to those who are attached, until it ends.
func (c *console) copy(kind byte, name string, from *os.File) {
	c.copied.Go(func() {
		defer from.Close()
		reader := io.TeeReader(untilHangup{from}, broadcast{c, kind})
		var err error
		if c.log != nil {
			err = c.log.Copy(name, reader)
		} else {
			_, err = io.Copy(io.Discard, reader)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "lab-shim:", err)
		}
	})
}

// untilHangup reads a terminal, whose end is an error.
type untilHangup struct{ *os.File }

func (u untilHangup) Read(p []byte) (int, error) {
	n, err := u.File.Read(p)
	if errors.Is(err, unix.EIO) {
		err = io.EOF
	}
	return n, err
}

// broadcast writes to all who are attached, and drops those who do not keep up: the
// container must not wait for them.
type broadcast struct {
	*console
	kind byte
}

func (b broadcast) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for conn := range b.attached {
		_ = conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
		if err := WriteFrame(conn, b.kind, p); err != nil {
			delete(b.attached, conn)
			conn.Close()
		}
	}
	return len(p), nil
}

// serve takes input from somebody who is attached.
func (c *console) serve(conn net.Conn) {
	c.mu.Lock()
	c.attached[conn] = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.attached, conn)
		c.mu.Unlock()
		conn.Close()
	}()
	for {
		kind, content, err := ReadFrame(conn)
		if err != nil {
			return
		}
		c.mu.Lock()
		input, terminal := c.input, c.terminal
		c.mu.Unlock()
		switch {
		case kind == FrameInput && input != nil:
			if _, err := input.Write(content); err != nil {
				return
			}
		case kind == FrameSize && terminal != nil && len(content) == 4:
			_ = SetSize(terminal, binary.BigEndian.Uint16(content), binary.BigEndian.Uint16(content[2:]))
		case kind == FrameEnd && c.once:
			c.endInput()
		}
	}
}

// endInput lets the container's program read an end of file.
func (c *console) endInput() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.terminal != nil:
		// On a terminal that is a character.
		_, _ = c.terminal.Write([]byte{4})
	case c.input != nil:
		c.input.Close()
		c.input = nil
	}
}

// close waits for the rest of the output and sends everybody away.
func (c *console) close() {
	c.copied.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.attached {
		conn.Close()
	}
	clear(c.attached)
}

// OpenTerminal opens a new terminal of the calling thread's mount namespace.
func OpenTerminal() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making terminal: %w", err)
	}
	var number int
	err = control(master, func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		var err error
		number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	})
	if err == nil {
		slave, err = os.OpenFile(filepath.Join("/dev/pts", fmt.Sprint(number)), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("making terminal: %w", err)
	}
	return master, slave, nil
}

// SetSize tells a terminal how large its window is.
func SetSize(terminal *os.File, columns, rows uint16) error {
	return control(terminal, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
}

// control runs an ioctl without taking the file away from the runtime's poller.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := raw.Control(func(fd uintptr) { result = f(int(fd)) }); err != nil {
		return err
	}
	return result
}

// takeTerminal makes a new terminal the standard files of the calling process, and
// sends the other end over a socket.
func takeTerminal(socket int, owner Credentials) error {
	master, slave, err := OpenTerminal()
	if err != nil {
		return err
	}
	if err := slave.Chown(int(owner.UID), -1); err != nil {
		return fmt.Errorf("making terminal: %w", err)
	}
	if err := unix.Sendmsg(socket, []byte{0}, unix.UnixRights(int(master.Fd())), nil, 0); err != nil {
		return fmt.Errorf("sending terminal: %w", err)
	}
	for standard := range 3 {
		if err := unix.Dup3(int(slave.Fd()), standard, 0); err != nil {
			return fmt.Errorf("using terminal: %w", err)
		}
	}
	if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("using terminal: %w", err)
	}
	return nil
}

// receiveTerminal is the other side of takeTerminal.
func receiveTerminal(socket *os.File) (*os.File, error) {
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(socket.Fd()), make([]byte, 1), rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receiving terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(errors.New("receiving terminal: there is none"), err)
	}
	files, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(files) != 1 {
		return nil, errors.Join(errors.New("receiving terminal: there is none"), err)
	}
	// Otherwise reading it would hold a thread.
	if err := unix.SetNonblock(files[0], true); err != nil {
		return nil, fmt.Errorf("receiving terminal: %w", err)
	}
	return os.NewFile(uintptr(files[0]), "terminal"), nil
}
