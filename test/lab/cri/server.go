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

// Package cri is a container runtime for kubelet, in which a pod is a network
// namespace and a container a process over the host's files.
//
// What must survive a restart is in files: a directory for each sandbox and each
// container under the state directory. What runs is asked from the kernel when
// somebody wants to know; the server keeps no other opinion about it.
package cri

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"k8s.io/cri-streaming/pkg/streaming"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"mesh.io/clustermesh/test/lab/container"
)

// Names that kubelet and people see.
const (
	runtimeName    = "mesh-lab"
	runtimeVersion = "1.0.0"
)

// Config is what the server needs to know about its node.
type Config struct {
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
	// Address is the node's; PodCIDR the network of its pods. Both are IPv4; the plan knows
	// the IPv6 ones beside them.
	Address netip.Addr   `json:"address"`
	PodCIDR netip.Prefix `json:"podCIDR"`
	Socket  string       `json:"socket"`
	// StateDir is the server's own.
	StateDir string `json:"stateDir"`
}

// Server implements the runtime and the image service.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	config    Config
	streaming streaming.Server

	mu         sync.Mutex
	sandboxes  map[string]*sandbox
	containers map[string]*box
	lastPod    netip.Addr
	// images are the names of the image IDs that were given out.
	images map[string]string
}

// New loads what an earlier server has left.
func New(config Config) (*Server, error) {
	s := &Server{config: config, sandboxes: map[string]*sandbox{}, containers: map[string]*box{}, images: map[string]string{}}
	for _, dir := range []string{s.sandboxDir(""), s.containerDir("")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("making state directory: %w", err)
		}
	}
	if err := load(s.sandboxDir(""), "sandbox.json", s.sandboxes); err != nil {
		return nil, err
	}
	if err := load(s.containerDir(""), "container.json", s.containers); err != nil {
		return nil, err
	}
	for _, sandbox := range s.sandboxes {
		if sandbox.Address.IsValid() && s.lastPod.Less(sandbox.Address) {
			s.lastPod = sandbox.Address
		}
	}
	streamConfig := streaming.DefaultConfig
	// Kubelet, on the same node, is the only client.
	streamConfig.Addr = "127.0.0.1:0"
	server, err := streaming.NewServer(streamConfig, streamer{s})
	if err != nil {
		return nil, fmt.Errorf("making streaming server: %w", err)
	}
	s.streaming = server
	return s, nil
}

// load reads one JSON file from each directory. A directory without it is from a
// creation that did not finish, and goes.
func load[T any](root, file string, into map[string]*T) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("loading state: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(root, entry.Name(), file)
		value := new(T)
		err := container.ReadJSON(path, value)
		if errors.Is(err, os.ErrNotExist) {
			if err := os.RemoveAll(filepath.Join(root, entry.Name())); err != nil {
				return fmt.Errorf("loading state: %w", err)
			}
			continue
		}
		if err != nil {
			return err
		}
		into[entry.Name()] = value
	}
	return nil
}

// Run serves until the context ends.
func (s *Server) Run(ctx context.Context) error {
	// A server that was killed leaves its socket behind.
	if err := os.Remove(s.config.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("listening: %w", err)
	}
	listener, err := net.Listen("unix", s.config.Socket)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, s)
	runtimeapi.RegisterImageServiceServer(server, s)

	failed := make(chan error, 2)
	go func() { failed <- s.streaming.Start(true) }()
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
		server.Stop()
		return s.streaming.Stop()
	}
}

func (s *Server) sandboxDir(id string) string {
	return filepath.Join(s.config.StateDir, "sandboxes", id)
}

func (s *Server) containerDir(id string) string {
	return filepath.Join(s.config.StateDir, "containers", id)
}

// Version names the runtime.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version: "0.1.0", RuntimeName: runtimeName, RuntimeVersion: runtimeVersion, RuntimeApiVersion: "v1",
	}, nil
}

// Status is always good: a server that answers can start pods.
func (s *Server) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true},
			{Type: runtimeapi.NetworkReady, Status: true},
		}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{
			Name: "", Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true},
		}},
	}, nil
}

// UpdateRuntimeConfig has nothing to update: the plan says which network is the node's.
func (s *Server) UpdateRuntimeConfig(context.Context, *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// RuntimeConfig tells kubelet how cgroups are named.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{
		Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS},
	}, nil
}

func newID() string {
	b := make([]byte, 16)
	// Never fails, by its documentation.
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

func now() int64 { return time.Now().UnixNano() }

// matches tells whether labels contain all of a selector.
func matches(labels, selector map[string]string) bool {
	for key, value := range selector {
		if labels[key] != value {
			return false
		}
	}
	return true
}
