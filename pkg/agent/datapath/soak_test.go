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
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// How long TestSoak goes on: at least so many changes of services beside at least so
// many connects. `make soak` sets more.
const (
	envSoakUpdates  = "MESH_SOAK_UPDATES"
	envSoakConnects = "MESH_SOAK_CONNECTS"
	envSoakSeed     = "MESH_SOAK_SEED"
)

// soakOrder is what a process of TestSoak is told to do.
type soakOrder struct {
	Config         Config
	Board          string
	Services, Pool int
	Seed           uint64
	// Updates is how many changes a writer makes before it ends.
	Updates int
}

const (
	envSoakWriter = "MESH_TEST_SOAK_WRITER"
	envSoakDialer = "MESH_TEST_SOAK_DIALER"
)

// soakSizes leave so little room that whatever was given up is used again soon.
func soakSizes(services, pool int) Sizes {
	return Sizes{Frontends: uint32(services + services/2), Backends: uint32(services*pool + 400), Slots: uint32(6 * services * pool)}
}

// soakFrontend returns a service's address: a fourth are of TCP, of either family.
func soakFrontend(service int) desired.Frontend {
	f := boardFrontend(service)
	if service%8 == 2 || service%8 == 7 {
		f.Protocol = desired.TCP
	}
	return f
}

// soakAffinity says which services have session affinity: a third, of either family and
// protocol.
func soakAffinity(service int) bool { return service%3 == 0 }

func soakService(service int, members map[int]uint32) desired.Service {
	svc := boardService(service, members)
	svc.Frontend = soakFrontend(service)
	if soakAffinity(service) {
		svc.AffinitySeconds = 3600
	}
	return svc
}

// soakServers answers on every port of a backend, and for what is left alone.
func soakServers(t *testing.T, pool int) {
	ports := []int{80}
	for m := range pool {
		ports = append(ports, int(boardBackend(0, m).Port()))
	}
	for _, port := range ports {
		udpServer(t, port)
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		must(t, err)
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					// Its own address, which is the one that was connected to.
					_, _ = fmt.Fprintln(conn, conn.LocalAddr())
					_, _ = io.Copy(io.Discard, conn)
					_ = conn.Close()
				}()
			}
		}()
	}
}

// askOverTCP connects, and returns who answers.
func askOverTCP(family int, to netip.AddrPort) (by netip.AddrPort, err error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return by, err
	}
	defer unix.Close(fd)
	err = errors.Join(
		// Closed at once: there are not so many ports.
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}),
		unix.Connect(fd, sockaddr(family, to)))
	if err != nil {
		return by, err
	}
	if shown, err := peerOf(fd); err != nil || shown != to {
		return by, errors.Join(err, fmt.Errorf("getpeername says %s", shown))
	}
	var line []byte
	for !bytes.HasSuffix(line, []byte("\n")) {
		var part [64]byte
		n, err := unix.Read(fd, part[:])
		switch {
		case errors.Is(err, unix.EINTR): // by the Go runtime
		case err != nil:
			return by, err
		case n == 0:
			return by, io.ErrUnexpectedEOF
		default:
			line = append(line, part[:n]...)
		}
	}
	by, err = netip.ParseAddrPort(string(bytes.TrimSpace(line)))
	return netip.AddrPortFrom(by.Addr().Unmap(), by.Port()), err
}

// askOver returns a dialer that sends a datagram with the socket of the family, and
// returns who answers. The answer must show where it was sent to.
func askOver(socket func(family int) (int, error)) dialer {
	return func(family int, to netip.AddrPort) (netip.AddrPort, error) {
		fd, err := socket(family)
		if err != nil {
			return netip.AddrPort{}, err
		}
		by, shown, err := ask(fd, family, to)
		if err == nil && shown != to {
			err = fmt.Errorf("the answer of %s shows %s", by, shown)
		}
		return by, err
	}
}

// varied returns sizes that are somewhat larger.
func varied(random *rand.Rand, s Sizes) Sizes {
	return Sizes{s.Frontends + random.Uint32N(10), s.Backends + random.Uint32N(100), s.Slots + random.Uint32N(200)}
}

// Processes connect all the time while others, one after the other, change the table:
// backends come and go, shares change, tiers take over, services lose all backends or
// their frontend and come back, so that numbers and ranges are used again; programs are
// replaced in their links, and maps by others of other sizes; writers close the maps and
// open them again, end, and are killed at any moment. Not one connect may fail or get what
// it must not, over IPv4, IPv6 or an IPv4-mapped address; no datagram of a socket that is not connected
// either, with few peers or with many, and its answer shows the Service; no client of a
// Service with session affinity may lose its backend.
func TestSoak(t *testing.T) {
	number := func(env string, otherwise int64) int64 {
		if os.Getenv(env) == "" {
			return otherwise
		}
		n, err := strconv.ParseInt(os.Getenv(env), 10, 64)
		must(t, err)
		return n
	}
	updates, connects := number(envSoakUpdates, 40_000), number(envSoakConnects, 150_000)
	seed := uint64(number(envSoakSeed, time.Now().UnixNano()))
	// It is bounded: by several times what two cores that others use too need.
	deadline := time.Now().Add(3*time.Minute + time.Duration(updates)*4*time.Millisecond)

	n := newNode(t)
	n.Sizes = soakSizes(24, 12)
	order := soakOrder{Config: n.Config, Board: filepath.Join(t.TempDir(), "board"), Services: 24, Pool: 12, Seed: seed}
	b := newBoard(t, order.Board, order.Services, order.Pool)
	n.open(t).Close() // so that dialers find the maps

	type process struct {
		*exec.Cmd
		output *bytes.Buffer
	}
	start := func(test, env string, order soakOrder) process {
		text, err := json.Marshal(order)
		must(t, err)
		p := process{exec.Command("/proc/self/exe", "-test.run=^"+test+"$", "-test.timeout=0"), &bytes.Buffer{}}
		p.Env = append(os.Environ(), envInside+"=1", env+"="+string(text))
		p.Stdout, p.Stderr = p.output, p.output
		p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if env == envSoakDialer {
			p.SysProcAttr.Unshareflags = syscall.CLONE_NEWNET // each is a client of its own
		}
		must(t, p.Start())
		return p
	}
	var dialers []process
	stop := func() {
		b.common(cellStop).Store(1)
		for _, p := range dialers {
			if err := p.Wait(); err != nil {
				t.Errorf("dialer: %v\n%s", err, p.output)
			}
		}
		dialers = nil
	}
	defer stop()
	for i := range 2 {
		order.Seed = seed + uint64(i)<<32
		dialers = append(dialers, start("TestSoakDialer", envSoakDialer, order))
	}

	random := rand.New(rand.NewPCG(seed, 1))
	began := time.Now()
	kills := 0
	bad := func() bool { return b.common(cellWrong).Load()+b.common(cellFailed).Load() > 0 }
	for !bad() && (b.common(cellUpdates).Load() < updates || b.common(cellConnects).Load() < connects) {
		if time.Now().After(deadline) {
			t.Errorf("%d updates and %d connects are not done in time", updates, connects)
			break
		}
		order.Seed = random.Uint64()
		order.Updates = 500 + random.IntN(4000)
		order.Config.Sizes = n.Sizes
		if random.IntN(2) == 0 {
			order.Config.Sizes = varied(random, n.Sizes)
		}
		writer := start("TestSoakWriter", envSoakWriter, order)
		ended := make(chan error, 1)
		go func() { ended <- writer.Wait() }()
		var err error
		killed := random.IntN(2) == 0
		life := 10 * time.Minute // many times what it needs
		if killed {
			life = time.Duration(random.IntN(400_000)) * time.Microsecond
		}
		select {
		case err = <-ended:
			killed = false
		case <-time.After(life):
			if killed {
				kills++
				_ = writer.Process.Kill()
			} else {
				_ = writer.Process.Signal(syscall.SIGQUIT) // it says where it hangs
			}
			err = <-ended
		}
		if err != nil && !killed {
			t.Errorf("writer: %v\n%s", err, writer.output)
			break
		}
	}
	took := time.Since(began)
	stop()

	count := func(cell int) int64 { return b.common(cell).Load() }
	t.Logf("seed %d, %s: %d updates (%d takeovers, of which %d after a kill; %d reopened, of which %d with other sizes; %d links swapped), "+
		"%d connects (%d of TCP, %d datagrams; %d rightly left alone; %d had to stay), %d wrong, %d failed",
		seed, took.Round(time.Second), count(cellUpdates), count(cellTakeover), kills, count(cellReopens), count(cellMigrations), count(cellSwaps),
		count(cellConnects), count(cellTCP), count(cellAsked), count(cellAlone), count(cellStayed), count(cellWrong), count(cellFailed))
	for _, cell := range []int{cellTCP, cellAsked, cellStayed, cellMigrations} {
		if count(cell) == 0 {
			t.Errorf("something was not tried: counter %d", cell)
		}
	}
	if count(cellWrong) != 0 || count(cellFailed) != 0 {
		t.Errorf("%d connects were wrong, %d failed", count(cellWrong), count(cellFailed))
	}
	d := n.open(t)
	counters, err := d.Counters()
	must(t, err)
	t.Logf("counters: %v", counters)
	if counters["gave_up"] != 0 || counters["no_reverse"] != 0 {
		t.Errorf("lookups gave up, or had no memory: %v", counters)
	}
	mustApply(t, d)
	audit(t, n, d)
}

// TestSoakDialer is a process of TestSoak. By itself it does nothing.
func TestSoakDialer(t *testing.T) {
	order := soakOrder{}
	if os.Getenv(envSoakDialer) == "" {
		return
	}
	must(t, json.Unmarshal([]byte(os.Getenv(envSoakDialer)), &order))
	b := newBoard(t, order.Board, order.Services, order.Pool)
	n := &node{Config: order.Config}
	must(t, makeLocal())
	soakServers(t, order.Pool)
	dial := n.dialAndAskTheSocket(t)
	random := rand.New(rand.NewPCG(order.Seed, 2))

	open := func(family int) (int, error) {
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return fd, errors.Join(err, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}))
	}
	// A socket for each family that has sent to many.
	type socket struct{ fd, sent int }
	busy := map[int]*socket{}
	askBusy := askOver(func(family int) (_ int, err error) {
		s := busy[family]
		if s == nil || s.sent > 500 {
			if s != nil {
				_ = unix.Close(s.fd)
			}
			s = &socket{}
			s.fd, err = open(family)
			busy[family] = s
		}
		s.sent++
		return s.fd, err
	})
	// A socket that has sent to nobody but one service. Either family is asked with its own.
	askAlone := func(service int) error {
		fds := map[int]int{}
		defer func() {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}()
		family := unix.AF_INET6
		if boardFrontend(service).Addr.Is4() && random.IntN(2) == 0 {
			family = unix.AF_INET
		}
		one := askOver(func(family int) (fd int, err error) {
			if fd, ok := fds[family]; ok {
				return fd, nil
			}
			fd, err = open(family)
			fds[family] = fd
			return fd, err
		})
		return b.connectTwice(random, service, func(_ int, to netip.AddrPort) (netip.AddrPort, error) { return one(family, to) })
	}
	for wrong := 0; wrong < 10 && b.common(cellStop).Load() == 0; {
		service := random.IntN(order.Services)
		connect := b.connect
		if soakAffinity(service) && random.IntN(4) == 0 {
			connect = b.connectTwice
		}
		var err error
		switch kind := random.IntN(20); {
		case soakFrontend(service).Protocol == desired.TCP:
			if kind > 4 {
				continue
			}
			err = connect(random, service, askOverTCP)
			b.common(cellTCP).Add(1)
		case kind < 2:
			// Each of its sockets may have a backend of before, which it stays with.
			err = b.connect(random, service, askBusy)
			b.common(cellAsked).Add(1)
		case kind < 3:
			err = askAlone(service)
			b.common(cellAsked).Add(2)
		default:
			err = connect(random, service, dial)
		}
		if err != nil {
			wrong++
			t.Error(err)
		}
	}
}

// TestSoakWriter is a process of TestSoak. By itself it does nothing.
func TestSoakWriter(t *testing.T) {
	order := soakOrder{}
	if os.Getenv(envSoakWriter) == "" {
		return
	}
	must(t, json.Unmarshal([]byte(os.Getenv(envSoakWriter)), &order))
	b := newBoard(t, order.Board, order.Services, order.Pool)
	random := rand.New(rand.NewPCG(order.Seed, 3))
	// The windows between two writes are nanoseconds wide: some are held open.
	windows := rand.New(rand.NewPCG(order.Seed, 4))
	fault = func(next string) {
		switch {
		case next == "grace": // called from elsewhere, and waits by itself
		case windows.IntN(400) == 0:
			_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		case windows.IntN(8) == 0:
			for end := time.Now().Add(time.Duration(windows.IntN(20)) * time.Microsecond); time.Now().Before(end); {
			}
		}
	}
	d, err := Open(order.Config)
	must(t, err)
	defer func() { _ = d.Close() }()
	must(t, d.Heartbeat())
	b.common(cellTakeover).Add(1)

	now := world{}
	for s := range order.Services {
		if held := d.services[soakFrontend(s)]; held != nil {
			now[s] = boardMembers(&held.now, s, order.Pool)
		}
	}
	whole := func() (table desired.Table) {
		table = tableOf()
		for s, members := range now {
			svc := soakService(s, members)
			table.Services[svc.Frontend] = svc
		}
		return table
	}
	check := func(report Report, err error) Report {
		t.Helper()
		if err != nil || len(report.Failed) > 0 || report.Names != nil {
			t.Fatalf("seed %d: %v, %v, %v", order.Seed, err, report.Failed, report.Names)
		}
		return report
	}
	// Takes up what it finds, or everything changes at once.
	if random.IntN(2) == 0 {
		for s := range order.Services {
			change(now, random, s, order.Pool)
		}
	}
	for s := range order.Services {
		b.announce(s, now[s])
	}
	check(d.Apply(context.Background(), whole()))
	for s := range order.Services {
		b.finish(s)
	}

	for done := 0; done < order.Updates && b.common(cellStop).Load() == 0; {
		touched := map[int]bool{}
		for range 1 + random.IntN(3) {
			touched[random.IntN(order.Services)] = true
		}
		var changed []desired.Service
		var removed []desired.Frontend
		for s := range touched {
			change(now, random, s, order.Pool)
			if members, ok := now[s]; ok {
				changed = append(changed, soakService(s, members))
			} else {
				removed = append(removed, soakFrontend(s))
			}
			b.announce(s, now[s])
		}
		if random.IntN(50) == 0 {
			check(d.Apply(context.Background(), whole()))
		} else {
			check(d.ApplyServices(context.Background(), changed, removed, nil))
		}
		for s := range touched {
			b.finish(s)
			done++
		}
		switch random.IntN(400) {
		case 0, 1, 2:
			must(t, d.Attach(order.Config.Cgroups))
			b.common(cellSwaps).Add(int64(len(hooks)))
		case 3:
			sizes := d.Sizes()
			must(t, d.Close())
			if random.IntN(2) == 0 {
				order.Config.Sizes = varied(random, soakSizes(order.Services, order.Pool))
			}
			d, err = Open(order.Config)
			must(t, err)
			if d.Sizes() != sizes {
				b.common(cellMigrations).Add(1)
			}
			must(t, d.Heartbeat())
			if report := check(d.Apply(context.Background(), whole())); report.Unchanged != len(now) {
				t.Fatalf("seed %d: nothing changed but the process, and yet %+v", order.Seed, report)
			}
			b.common(cellReopens).Add(1)
		}
	}
	if diff := cmp.Diff(whole().Services, content(t, read(t, &node{Config: order.Config})), compareAddrs, compareAddrPorts); diff != "" {
		t.Errorf("seed %d: maps (-want +got):\n%s", order.Seed, diff)
	}
	if err := d.Close(); err != nil && !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// change changes a service in the world by chance.
func change(w world, random *rand.Rand, service, pool int) {
	members := maps.Clone(w[service])
	if members == nil {
		members = map[int]uint32{}
	}
	stays := true
	set := func(n int, slots func() uint32) {
		members = map[int]uint32{}
		for _, m := range random.Perm(pool)[:n] {
			members[m] = slots()
		}
	}
	one := func() uint32 { return 1 }
	some := func() uint32 { return random.Uint32N(5) }
	pick := func() int { return random.IntN(pool) }
	switch kind := random.IntN(20); {
	case kind < 4: // one replaces another
		members[pick()] = 1
		delete(members, pick())
	case kind < 6: // grow
		for range 1 + random.IntN(3) {
			members[pick()] = 1
		}
	case kind < 9: // shrink
		for range 1 + random.IntN(3) {
			delete(members, pick())
		}
	case kind < 11: // shares change
		for _, m := range slices.Sorted(maps.Keys(members)) {
			members[m] = some()
		}
	case kind < 12: // one is drained
		for _, m := range slices.Sorted(maps.Keys(members)) {
			members[m] = 0
			break
		}
	case kind < 14: // one for all
		set(1, one)
	case kind < 16: // others
		set(1+random.IntN(pool), one)
	case kind < 17:
		set(1+random.IntN(pool), some)
	case kind < 18: // nobody is left
		set(0, one)
	default: // the frontend goes
		stays = false
	}
	if stays {
		w[service] = members
	} else {
		delete(w, service)
	}
}
