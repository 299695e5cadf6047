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

// Package ask is a client for tests, run in a pod: it uses the very system calls that a
// kind of program uses, and tells what these have shown of the other side. Libraries
// choose sockets by themselves, and hide addresses.
package ask

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Socket is the family of a socket, and how it writes an IPv4 address.
type Socket string

// Sockets.
const (
	// Four is AF_INET.
	Four Socket = "four"
	// Six is AF_INET6. An IPv4 address is written as IPv4-mapped, as dual-mode sockets do
	// it: those of Java and .NET, and musl's resolver once one of its servers has IPv6.
	Six Socket = "six"
)

// Way is how a socket is used.
type Way string

// Ways.
const (
	// TCP is connect, write and read.
	TCP Way = "tcp"
	// Connected is UDP with connect, send and recvfrom.
	Connected Way = "connected"
	// Unconnected is UDP with sendto and recvfrom, on one socket for all addresses.
	Unconnected Way = "unconnected"
	// Resolver looks up a name with Go's resolver, over UDP, and ResolverTCP over TCP.
	// The question's text is the name; the socket does not count.
	Resolver    Way = "resolver"
	ResolverTCP Way = "resolver-tcp"
)

// wait is how long nothing may come before the client gives up.
const wait = 2 * time.Second

// Question is what a client does.
type Question struct {
	Socket Socket
	Way    Way
	// To has one address, but for Unconnected.
	To []netip.AddrPort
	// Texts are sent to each address, and as many answers are waited for. TCP takes one.
	Texts [][]byte
}

// Answer is what a client has seen.
type Answer struct {
	// Peer is what getpeername says of a connected socket. IPv4-mapped stays so.
	Peer netip.AddrPort
	// Heard is what came, in the order in which it came.
	Heard []Heard
	// Error is why it is not all, if it is not.
	Error string
}

// Heard is one message.
type Heard struct {
	// From is what recvfrom says; not set for TCP.
	From netip.AddrPort
	Text []byte
}

// Run reads a list of questions, asks all at once, and writes the list of their answers.
func Run(in io.Reader, out io.Writer) error {
	var questions []Question
	if err := json.NewDecoder(in).Decode(&questions); err != nil {
		return fmt.Errorf("reading questions: %w", err)
	}
	answers := make([]Answer, len(questions))
	done := make(chan bool)
	for i := range questions {
		go func() {
			answers[i] = one(questions[i])
			done <- true
		}()
	}
	for range questions {
		<-done
	}
	if err := json.NewEncoder(out).Encode(answers); err != nil {
		return fmt.Errorf("writing answers: %w", err)
	}
	return nil
}

func one(q Question) Answer {
	var a Answer
	var err error
	switch {
	case len(q.To) == 0 || len(q.Texts) == 0:
		err = errors.New("asking: to nobody, or nothing")
	case q.Way == Resolver:
		a.Heard, err = resolve(q, "udp")
	case q.Way == ResolverTCP:
		a.Heard, err = resolve(q, "tcp")
	default:
		err = a.talk(q)
	}
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

func (a *Answer) talk(q Question) error {
	family, kind := unix.AF_INET, unix.SOCK_DGRAM
	if q.Socket == Six {
		family = unix.AF_INET6
	}
	if q.Way == TCP {
		kind = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	if q.Socket == Six {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return fmt.Errorf("setsockopt: %w", err)
		}
	}
	limit := unix.NsecToTimeval(wait.Nanoseconds())
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &limit); err != nil {
			return fmt.Errorf("setsockopt: %w", err)
		}
	}
	if q.Way != Unconnected {
		if err := unix.Connect(fd, written(q.Socket, q.To[0])); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		peer, err := unix.Getpeername(fd)
		if err != nil {
			return fmt.Errorf("getpeername: %w", err)
		}
		a.Peer = read(peer)
	}
	for _, text := range q.Texts {
		for _, to := range q.To {
			var address unix.Sockaddr
			if q.Way == Unconnected {
				address = written(q.Socket, to)
			}
			if err := unix.Sendto(fd, text, 0, address); err != nil {
				return fmt.Errorf("sendto: %w", err)
			}
		}
	}
	buffer := make([]byte, 64<<10)
	for range len(q.Texts) * len(q.To) {
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			return fmt.Errorf("recvfrom: %w", err)
		}
		a.Heard = append(a.Heard, Heard{read(from), append([]byte{}, buffer[:n]...)})
	}
	return nil
}

// written is an address as a socket writes it.
func written(socket Socket, to netip.AddrPort) unix.Sockaddr {
	if socket == Six {
		return &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
	}
	return &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
}

// read is an address as a socket shows it.
func read(from unix.Sockaddr) netip.AddrPort {
	switch a := from.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// resolve looks up the addresses of a name, with a resolver whose server is given.
func resolve(q Question, network string) ([]Heard, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*wait)
	defer cancel()
	resolver := net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: wait}).DialContext(ctx, network, q.To[0].String())
	}}
	addresses, err := resolver.LookupNetIP(ctx, "ip", string(q.Texts[0]))
	if err != nil {
		return nil, fmt.Errorf("looking up: %w", err)
	}
	var heard []Heard
	for _, address := range addresses {
		heard = append(heard, Heard{Text: []byte(address.String())})
	}
	return heard, nil
}
