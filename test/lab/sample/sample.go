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

// Package sample holds the programs of the lab's sample images.
package sample

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// drain is how long the samples go on accepting after SIGTERM, as a well-behaved
// server does: a client may still hold their address.
const drain = 2 * time.Second

// identity is what every answer names.
type identity struct {
	Pod     string `json:"pod"`
	Cluster string `json:"cluster"`
	Node    string `json:"node,omitempty"`
}

func self() identity {
	hostname, _ := os.Hostname()
	return identity{Pod: hostname, Cluster: os.Getenv("MESH_LAB_CLUSTER"), Node: os.Getenv("MESH_LAB_NODE")}
}

// Userlist serves /users/<id> on port 8181.
func Userlist() error {
	me := self()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /users/{id}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(struct {
			ID   string `json:"id"`
			Name string `json:"name"`
			identity
		}{r.PathValue("id"), "user" + r.PathValue("id"), me})
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	port := portFromArgs("8181")
	server := &http.Server{Addr: ":" + port, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	fmt.Printf("userlist: pod %s of cluster %q listens on port %s\n", me.Pod, me.Cluster, port)

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-stop:
	}
	fmt.Printf("userlist: told to stop, goes on for %s\n", drain)
	time.Sleep(drain)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return fmt.Errorf("stopping: %w", err)
	}
	return nil
}

// Echo answers on port 7 or the one given, TCP and UDP, each line or datagram with
// who answers, whom it sees as the client, and what was said.
func Echo() error {
	port := portFromArgs("7777")
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	packets, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	me := self()
	fmt.Printf("echo: pod %s of cluster %q listens on port %s, TCP and UDP\n", me.Pod, me.Cluster, port)
	go echoTCP(listener, me)
	go echoUDP(packets, me)

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
	time.Sleep(drain)
	return nil
}

func answer(me identity, client net.Addr, said string) []byte {
	b, _ := json.Marshal(struct {
		identity
		Client string `json:"client"`
		Said   string `json:"said"`
	}{me, client.String(), said})
	return append(b, '\n')
}

func echoTCP(listener net.Listener, me identity) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			fmt.Println("echo: accepting:", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go func() {
			defer conn.Close()
			buffer := make([]byte, 64*1024)
			for {
				n, err := conn.Read(buffer)
				if n > 0 {
					if _, err := conn.Write(answer(me, conn.RemoteAddr(), strings.TrimRight(string(buffer[:n]), "\r\n"))); err != nil {
						return
					}
				}
				if err != nil {
					return
				}
			}
		}()
	}
}

func echoUDP(packets net.PacketConn, me identity) {
	buffer := make([]byte, 64*1024)
	for {
		n, client, err := packets.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if _, err := packets.WriteTo(answer(me, client, strings.TrimRight(string(buffer[:n]), "\r\n")), client); err != nil {
			fmt.Println("echo: answering:", err)
		}
	}
}

// Pause does nothing until it is told to stop.
func Pause() error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
	return nil
}

// portFromArgs is the last argument where it is a number, else the default.
func portFromArgs(standard string) string {
	last := os.Args[len(os.Args)-1]
	if len(os.Args) > 2 && strings.Trim(last, "0123456789") == "" && last != "" {
		return last
	}
	return standard
}
