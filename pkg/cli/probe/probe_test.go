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

package probe

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

func serve(t *testing.T, address string, identity Identity) *Server {
	t.Helper()
	server, err := Listen(address, identity)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, 0) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	return server
}

func TestEveryTryIsAnswered(t *testing.T) {
	server := serve(t, "127.0.0.1:0", Identity{Cluster: "cluster2", Node: "node1", Pod: "echo-1"})
	for _, network := range []string{"tcp", "udp"} {
		result, err := Ask(t.Context(), Question{Network: network, Address: server.Address(), Count: 25, Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if result.Answers["cluster2"] != 25 || result.Nodes["cluster2/node1"] != 25 || len(result.Errors) != 0 || result.MedianMicroseconds == 0 {
			t.Errorf("over %s 25 tries give %+v", network, result)
		}
	}
}

func TestNobodyListens(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := closed.Addr().String()
	closed.Close()
	result, err := Ask(t.Context(), Question{Network: "tcp", Address: address, Count: 100, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Answers) != 0 || len(result.Errors) != 1 {
		t.Fatalf("what nobody answers gives %+v", result)
	}
	for text, n := range result.Errors {
		if !strings.Contains(text, "connection refused") || !strings.Contains(text, address) || n < enoughErrors || n > enoughErrors+parallel {
			t.Errorf("the error is %q, %d times", text, n)
		}
	}
}

func TestSilence(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	result, err := Ask(t.Context(), Question{Network: "udp", Address: silent.LocalAddr().String(), Count: 1, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if result.Errors["read udp "+silent.LocalAddr().String()+": i/o timeout"] != 1 {
		t.Errorf("silence gives %+v", result)
	}
}

func TestSomebodyElse(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("220 mail.example.org\n"))
			conn.Close()
		}
	}()
	result, err := Ask(t.Context(), Question{Network: "tcp", Address: listener.Addr().String(), Count: 1, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Answers) != 0 || len(result.Errors) == 0 {
		t.Errorf("another server gives %+v", result)
	}
}

func TestQuestionsThatAreRefused(t *testing.T) {
	for name, q := range map[string]Question{
		"a network that there is not": {Network: "sctp", Address: "127.0.0.1:1", Count: 1, Timeout: 1},
		"no count":                    {Network: "tcp", Address: "127.0.0.1:1", Timeout: 1},
		"a count without bound":       {Network: "tcp", Address: "127.0.0.1:1", Count: MaxCount + 1, Timeout: 1},
		"no port":                     {Network: "tcp", Address: "127.0.0.1", Count: 1, Timeout: 1},
		"no timeout":                  {Network: "tcp", Address: "127.0.0.1:1", Count: 1},
	} {
		if _, err := Ask(t.Context(), q); err == nil {
			t.Errorf("%s is not refused", name)
		}
	}
}

func TestServesWhileItDrains(t *testing.T) {
	server, err := Listen("127.0.0.1:0", Identity{Cluster: "a", Pod: "p"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, 500*time.Millisecond) }()
	cancel()
	if result, err := Ask(t.Context(), Question{Network: "tcp", Address: server.Address(), Count: 1, Timeout: time.Second}); err != nil || result.Answers["a"] != 1 {
		t.Errorf("a server that was told to stop answers %+v, %v", result, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
