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

package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// batch is how many sockets a maker sends at once: the kernel takes at most 253.
const batch = 128

// The file descriptors that the programs of the comparison are started with.
const (
	makerFD = 3 // of a maker: where it sends sockets to
	meshFD  = 3 // of the client: from the maker in the pod's cgroup
	plainFD = 4 // from the other one
)

// MakeSockets sends sockets to whoever asks, until he is gone: TCP ones for a 't', UDP ones
// for a 'u'.
func MakeSockets() error {
	for {
		var kind [1]byte
		n, err := unix.Read(makerFD, kind[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return os.NewSyscallError("read", err)
		}
		fds := make([]int, 0, batch)
		for range batch {
			fd, err := newSocket(kind[0])
			if err != nil {
				return err
			}
			fds = append(fds, fd)
		}
		err = unix.Sendmsg(makerFD, []byte{'s'}, unix.UnixRights(fds...), nil, 0)
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		if err != nil {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

func newSocket(kind byte) (int, error) {
	if kind == 't' {
		return openSocket()
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	return fd, os.NewSyscallError("socket", err)
}

// supply is the sockets of one maker and one kind.
type supply struct {
	from int
	kind byte
	fds  []int
}

// fill sees to it that there is a socket. It is not called while a clock runs.
func (s *supply) fill() error {
	if len(s.fds) > 0 {
		return nil
	}
	if _, err := unix.Write(s.from, []byte{s.kind}); err != nil {
		return os.NewSyscallError("write", err)
	}
	oob := make([]byte, unix.CmsgSpace(4*batch))
	for {
		_, n, _, _, err := unix.Recvmsg(s.from, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvmsg", err)
		}
		messages, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(messages) != 1 {
			return errors.Join(errors.New("no sockets came"), err)
		}
		s.fds, err = unix.ParseUnixRights(&messages[0])
		return err
	}
}

func (s *supply) take() (int, error) {
	if err := s.fill(); err != nil {
		return 0, err
	}
	fd := s.fds[len(s.fds)-1]
	s.fds = s.fds[:len(s.fds)-1]
	return fd, nil
}

// sockets are the supplies of the ways.
type sockets map[string]map[byte]*supply

func newSockets() sockets {
	mesh := map[byte]*supply{'t': {from: meshFD, kind: 't'}, 'u': {from: meshFD, kind: 'u'}}
	plain := map[byte]*supply{'t': {from: plainFD, kind: 't'}, 'u': {from: plainFD, kind: 'u'}}
	return sockets{Straight: plain, ThroughKubeProxy: plain, StraightAlongside: mesh, ThroughMesh: mesh}
}

// Client does what it is asked on in, an order a line, until in ends.
func Client(in io.Reader, out io.Writer) error {
	// One thread on one CPU, the first; the servers are on the last.
	runtime.LockOSThread()
	if err := Pin(0, 0); err != nil {
		return err
	}
	debug.SetGCPercent(-1) // it is cleaned up between the measurements
	sockets := newSockets()
	decoder, encoder := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o order
		if err := decoder.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var r reply
		var err error
		if o.Kind == "" {
			r.Missing = probe(o.To)
		} else {
			runtime.GC()
			r.Outcome, err = sockets.measure(o)
		}
		if err != nil {
			r.Error = err.Error()
		}
		if err := encoder.Encode(r); err != nil {
			return err
		}
	}
}

// Pin binds a thread (0: this one) to one CPU, and lets nothing that is of no urgency
// interrupt it. Where there is one CPU only, or that is not allowed, it measures with more
// noise.
func Pin(thread, cpu int) error {
	if runtime.NumCPU() < 2 {
		return nil
	}
	_ = unix.SchedSetAttr(thread, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	var set unix.CPUSet
	set.Set(cpu)
	return os.NewSyscallError("sched_setaffinity", unix.SchedSetaffinity(thread, &set))
}

// probe counts the addresses where nobody answers.
func probe(to []netip.AddrPort) (missing int) {
	for _, address := range to {
		conn, err := net.DialTimeout("tcp", address.String(), time.Second)
		if err != nil {
			// Where one is missing, most may be; each costs its second.
			if missing++; missing == 10 {
				return missing
			}
			continue
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
	return missing
}

// measure goes each way once in each turn, in an order by chance: what was done just before
// warms the caches for what comes next.
func (s sockets) measure(o order) (Outcome, error) {
	times, diffs := map[string][]float64{}, map[string][]float64{}
	for _, way := range ways {
		times[way], diffs[way] = make([]float64, 0, o.Turns), make([]float64, 0, o.Turns)
	}
	do, end, err := s.action(o)
	defer end()
	if err != nil {
		return Outcome{}, err
	}
	const warmup = 20
	for turn := range o.Turns + warmup {
		vip := o.To[rand.IntN(len(o.To))]
		took := map[string]float64{}
		for _, i := range rand.Perm(len(ways)) {
			way, to := ways[i], vip
			if way == Straight || way == StraightAlongside {
				to = o.Pods[rand.IntN(len(o.Pods))]
			}
			us, err := do(way, to)
			if err != nil {
				return Outcome{}, fmt.Errorf("%s to %s: %w", way, to, err)
			}
			took[way] = us
		}
		if turn < warmup {
			continue
		}
		for _, way := range ways {
			times[way] = append(times[way], took[way])
			diffs[way] = append(diffs[way], took[way]-took[Straight])
		}
	}
	outcome := Outcome{Ways: map[string]Figures{}, Diffs: map[string]float64{}}
	for _, way := range ways {
		outcome.Ways[way] = Figures{P50: Percentile(times[way], 50), P99: Percentile(times[way], 99), Rate: 1e6 / trimmedMean(times[way])}
		outcome.Diffs[way] = Percentile(diffs[way], 50)
	}
	return outcome, nil
}

// trimmedMean is the mean without the slowest tenth: there the machine has done other things.
func trimmedMean(values []float64) float64 {
	slices.Sort(values)
	values = values[:max(1, len(values)*9/10)]
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// action is what is measured of one kind: it returns the microseconds that it took. end lets
// go of what it holds.
func (s sockets) action(o order) (do func(way string, to netip.AddrPort) (float64, error), end func(), err error) {
	kept := map[string]int{}
	end = func() {
		for _, fd := range kept {
			_ = unix.Close(fd)
		}
	}
	switch o.Kind {
	case kindConnect, kindCRR:
		for _, way := range ways {
			to := o.To[0]
			if way == Straight || way == StraightAlongside {
				to = o.Pods[0]
			}
			if err := s.check(way, to); err != nil {
				return nil, end, err
			}
		}
		return func(way string, to netip.AddrPort) (float64, error) {
			return s.fresh(way, 't', to, func(fd int, address unix.Sockaddr) error {
				if err := unix.Connect(fd, address); err != nil || o.Kind == kindConnect {
					return os.NewSyscallError("connect", err)
				}
				return ask(fd)
			}, o.Kind == kindCRR)
		}, end, nil
	case kindUDPNew:
		return func(way string, to netip.AddrPort) (float64, error) {
			return s.fresh(way, 'u', to, askAt, true)
		}, end, nil
	}
	// By one socket of each way, a few questions at a time.
	const questions = 4
	for _, way := range ways {
		fd, err := s[way]['u'].take()
		if err != nil {
			return nil, end, err
		}
		kept[way] = fd
		if err := patience(fd); err != nil {
			return nil, end, err
		}
	}
	peers := map[string]unix.Sockaddr{}
	for _, way := range ways {
		to := o.To[0]
		if way == Straight || way == StraightAlongside {
			to = o.Pods[0]
		}
		peers[way] = sockaddr(to)
		if o.Kind == kindUDPConnected {
			if err := unix.Connect(kept[way], peers[way]); err != nil {
				return nil, end, os.NewSyscallError("connect", err)
			}
		}
	}
	return func(way string, _ netip.AddrPort) (float64, error) {
		began := time.Now()
		for range questions {
			var err error
			if o.Kind == kindUDPConnected {
				err = ask(kept[way])
			} else {
				err = askAt(kept[way], peers[way])
			}
			if err != nil {
				return 0, err
			}
		}
		return microseconds(time.Since(began)) / questions, nil
	}, end, nil
}

// fresh times something with a new socket, with its end or without.
func (s sockets) fresh(way string, kind byte, to netip.AddrPort, do func(int, unix.Sockaddr) error, withClose bool) (float64, error) {
	fd, err := s[way][kind].take()
	if err != nil {
		return 0, err
	}
	if kind == 'u' {
		if err := patience(fd); err != nil {
			return 0, errors.Join(err, unix.Close(fd))
		}
	}
	address := sockaddr(to)
	began := time.Now()
	err = do(fd, address)
	took := time.Since(began)
	if closed := unix.Close(fd); err == nil {
		err = closed
	}
	if withClose {
		took = time.Since(began)
	}
	return microseconds(took), err
}

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
}

// patience bounds how long an answer is waited for.
func patience(fd int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3}))
}

// ask asks by a connected socket, and waits for the answer.
func ask(fd int) error {
	if _, err := unix.Write(fd, []byte{'x'}); err != nil {
		return os.NewSyscallError("write", err)
	}
	var answer [4096]byte
	n, err := unix.Read(fd, answer[:])
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(fd, answer[:])
	}
	if err == nil && n == 0 {
		return errors.New("the connection has ended without an answer")
	}
	return os.NewSyscallError("read", err)
}

// askAt asks by a socket that is not connected. The answer must come from where it was asked.
func askAt(fd int, address unix.Sockaddr) error {
	if err := unix.Sendto(fd, []byte{'x'}, 0, address); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	var answer [4096]byte
	_, from, err := unix.Recvfrom(fd, answer[:], 0)
	if err != nil {
		return os.NewSyscallError("recvfrom", err)
	}
	if a, b := from.(*unix.SockaddrInet4), address.(*unix.SockaddrInet4); a.Addr != b.Addr || a.Port != b.Port {
		return fmt.Errorf("asked %v:%d, and %v:%d has answered", b.Addr, b.Port, a.Addr, a.Port)
	}
	return nil
}

// check makes sure that connect() to an address is translated by our programs, or that it is
// not: the kernel's table of sockets shows the peer as packets see it.
func (s sockets) check(way string, to netip.AddrPort) error {
	fd, err := s[way]['t'].take()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		return fmt.Errorf("%s to %s: %w", way, to, err)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	table, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		return err
	}
	port := fmt.Sprintf(":%04X", local.(*unix.SockaddrInet4).Port)
	a := to.Addr().As4()
	untouched := fmt.Sprintf("%02X%02X%02X%02X:%04X", a[3], a[2], a[1], a[0], to.Port())
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || !strings.HasSuffix(fields[1], port) {
			continue
		}
		if (fields[2] != untouched) == (way == ThroughMesh) {
			return nil
		}
		return fmt.Errorf("%s: a connect to %s has the peer %s, so that it is not the way that is to be measured", way, to, fields[2])
	}
	return fmt.Errorf("the socket with port %d is not in the table", local.(*unix.SockaddrInet4).Port)
}
