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

// Package probe is the two ends of a connectivity test: a server that says who it is,
// and a client that counts who answered. Both run in pods, from meshctl's own image.
package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// Port is where the server listens unless it is said otherwise, over TCP and UDP. It
// needs no privilege.
const Port = 7777

// maxMessage is the most that is said or answered at once: it fits into one datagram.
const maxMessage = 1200

// Identity is who answers.
type Identity struct {
	Cluster string `json:"cluster"`
	Node    string `json:"node,omitempty"`
	Pod     string `json:"pod"`
}

// answer is what the server says.
type answer struct {
	Identity
	Client string `json:"client"`
	Said   string `json:"said"`
}

func (i Identity) answer(client net.Addr, said []byte) []byte {
	text := strings.TrimRight(string(said), "\r\n")
	// An identity and an address take less than half of it.
	if len(text) > maxMessage/2 {
		text = text[:maxMessage/2]
	}
	content, _ := json.Marshal(answer{i, client.String(), text})
	return append(content, '\n')
}

// Server answers over TCP and UDP with who it is, what it sees as the client and what
// was said.
type Server struct {
	Identity Identity
	listener net.Listener
	packets  net.PacketConn
}

// Listen opens the server's two ports, which have the same number.
func Listen(address string, identity Identity) (*Server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening over TCP: %w", err)
	}
	packets, err := net.ListenPacket("udp", listener.Addr().String())
	if err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("listening over UDP: %w", err)
	}
	return &Server{identity, listener, packets}, nil
}

// Address is where the server listens.
func (s *Server) Address() string { return s.listener.Addr().String() }

// maxConnections bounds what one server holds open.
const maxConnections = 256

// Serve answers until the context ends, and then for the time of drain: a client may
// still hold the address.
func (s *Server) Serve(ctx context.Context, drain time.Duration) error {
	stopped := make(chan struct{})
	defer close(stopped)
	go func() {
		select {
		case <-ctx.Done():
			time.Sleep(drain)
		case <-stopped:
		}
		_ = s.listener.Close()
		_ = s.packets.Close()
	}()
	failed := make(chan error, 2)
	go func() { failed <- s.serveTCP() }()
	go func() { failed <- s.serveUDP() }()
	err := <-failed
	_ = s.listener.Close()
	_ = s.packets.Close()
	if second := <-failed; err == nil {
		err = second
	}
	return err
}

func (s *Server) serveTCP() error {
	slots := make(chan struct{}, maxConnections)
	for {
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting: %w", err)
		}
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			defer conn.Close()
			buffer := make([]byte, maxMessage)
			for {
				_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
				n, err := conn.Read(buffer)
				if err != nil {
					return
				}
				if _, err := conn.Write(s.Identity.answer(conn.RemoteAddr(), buffer[:n])); err != nil {
					return
				}
			}
		}()
	}
}

func (s *Server) serveUDP() error {
	buffer := make([]byte, maxMessage)
	for {
		n, client, err := s.packets.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			continue // of an earlier datagram's client that is gone
		}
		_, _ = s.packets.WriteTo(s.Identity.answer(client, buffer[:n]), client)
	}
}

// Question is what the client does.
type Question struct {
	Network string // tcp or udp
	Address string // host and port
	Count   int    // connections or sockets, one after the other in Parallel lines
	Timeout time.Duration
}

const (
	// MaxCount bounds a question.
	MaxCount = 200
	parallel = 4
	// enoughErrors ends the tries early: more of them say nothing new.
	enoughErrors = 6
)

// Result is what came of it. It is printed as JSON.
type Result struct {
	// Answers counts the answers by cluster.
	Answers map[string]int `json:"answers"`
	// Nodes counts them by "cluster/node".
	Nodes map[string]int `json:"nodes,omitempty"`
	// Errors counts the tries that failed, by error.
	Errors map[string]int `json:"errors,omitempty"`
	// MedianMicroseconds is how long a try with an answer took.
	MedianMicroseconds int64 `json:"medianMicroseconds,omitempty"`
}

// Ask asks as often as the question says, each time over a new connection.
func Ask(ctx context.Context, q Question) (*Result, error) {
	switch {
	case q.Network != "tcp" && q.Network != "udp":
		return nil, fmt.Errorf("the network %q is neither tcp nor udp", q.Network)
	case q.Count < 1 || q.Count > MaxCount:
		return nil, fmt.Errorf("the count %d is not from 1 to %d", q.Count, MaxCount)
	case q.Timeout <= 0:
		return nil, errors.New("the timeout must be above 0")
	}
	host, port, err := net.SplitHostPort(q.Address)
	if err != nil {
		return nil, fmt.Errorf("reading the address: %w", err)
	}
	result := &Result{Answers: map[string]int{}, Nodes: map[string]int{}, Errors: map[string]int{}}
	// The name is looked up once: what is tested is the Service.
	lookup, cancel := context.WithTimeout(ctx, max(q.Timeout, 5*time.Second))
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(lookup, host)
	if err != nil {
		result.Errors[shorten(err, "")] = 1
		return result, nil
	}
	address := net.JoinHostPort(addresses[0], port)

	var (
		mu     sync.Mutex
		group  sync.WaitGroup
		took   []time.Duration
		failed int
		next   int
	)
	take := func() bool {
		mu.Lock()
		defer mu.Unlock()
		if next >= q.Count || failed >= enoughErrors || ctx.Err() != nil {
			return false
		}
		next++
		return true
	}
	for range min(parallel, q.Count) {
		group.Go(func() {
			for take() {
				began := time.Now()
				from, err := once(ctx, q.Network, address, q.Timeout)
				mu.Lock()
				if err != nil {
					failed++
					result.Errors[shorten(err, q.Network)]++
				} else {
					took = append(took, time.Since(began))
					result.Answers[from.Cluster]++
					result.Nodes[from.Cluster+"/"+from.Node]++
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if len(took) > 0 {
		slices.Sort(took)
		result.MedianMicroseconds = took[len(took)/2].Microseconds()
	}
	return result, nil
}

// shorten makes one error of those that differ in the client's port only.
func shorten(err error, network string) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Addr != nil {
		return fmt.Sprintf("%s %s %s: %v", op.Op, network, op.Addr, op.Err)
	}
	return err.Error()
}

// once asks once. The socket is connected, for UDP too: that is what the mesh balances.
func once(ctx context.Context, network, address string, timeout time.Duration) (*Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	const said = "are you there?"
	if _, err := conn.Write([]byte(said + "\n")); err != nil {
		return nil, err
	}
	buffer := make([]byte, 4*maxMessage)
	n := 0
	for {
		m, err := conn.Read(buffer[n:])
		n += m
		if n > 0 && buffer[n-1] == '\n' {
			break
		}
		if err != nil {
			return nil, err
		}
		if n == len(buffer) {
			return nil, errors.New("the answer is too long to be one of the test's own server")
		}
	}
	var a answer
	if err := json.Unmarshal(buffer[:n], &a); err != nil {
		return nil, fmt.Errorf("the answer is not one of the test's own server: %w", err)
	}
	if a.Said != said || a.Cluster == "" {
		return nil, errors.New("the answer is not one of the test's own server: it does not repeat what was said")
	}
	return &a.Identity, nil
}
