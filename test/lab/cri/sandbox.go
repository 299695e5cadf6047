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

package cri

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"mesh.io/clustermesh/test/lab/cgroup"
	"mesh.io/clustermesh/test/lab/container"
	"mesh.io/clustermesh/test/lab/image"
	"mesh.io/clustermesh/test/lab/plan"
	"mesh.io/clustermesh/test/lab/proc"
)

// cgroupRoot is the root of the node's cgroups, as the node sees it.
const cgroupRoot = "/sys/fs/cgroup"

// sandbox is a pod: the process that holds its namespaces, and its address, which is the
// IPv4 one.
type sandbox struct {
	ID      string                       `json:"id"`
	Config  *runtimeapi.PodSandboxConfig `json:"config"`
	Created int64                        `json:"created"`
	Holder  proc.ID                      `json:"holder"`
	Address netip.Addr                   `json:"address"`
	// Cgroup is the sandbox's own, beside those of its containers in the pod's.
	Cgroup string `json:"cgroup"`
	// Stopped was asked for; a sandbox that died by itself is not ready either.
	Stopped bool `json:"stopped"`
}

func (p *sandbox) namespaces() *runtimeapi.NamespaceOption {
	return p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (p *sandbox) hostNetwork() bool {
	return p.namespaces().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

func (p *sandbox) state() runtimeapi.PodSandboxState {
	if !p.Stopped && p.Holder.Alive() {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// RunPodSandbox makes a pod's namespaces and network.
func (s *Server) RunPodSandbox(_ context.Context, request *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	config := request.GetConfig()
	if config.GetMetadata().GetUid() == "" {
		return nil, status.Error(codes.InvalidArgument, "a sandbox needs metadata with a UID")
	}
	if handler := request.GetRuntimeHandler(); handler != "" {
		return nil, status.Errorf(codes.InvalidArgument, "runtime handler %q is not known", handler)
	}
	pod := &sandbox{ID: newID(), Config: config, Created: now()}
	pod.Cgroup = filepath.Join(cgroupRoot, "kubepods", "pod"+config.GetMetadata().GetUid(), pod.ID)
	if err := s.runSandbox(pod); err != nil {
		return nil, errors.Join(err, s.destroySandbox(pod))
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: pod.ID}, nil
}

func (s *Server) runSandbox(pod *sandbox) error {
	dir := s.sandboxDir(pod.ID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making sandbox: %w", err)
	}
	if logs := pod.Config.GetLogDirectory(); logs != "" {
		if err := os.MkdirAll(logs, 0o755); err != nil {
			return fmt.Errorf("making log directory: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte(resolvConf(pod.Config.GetDnsConfig())), 0o644); err != nil {
		return fmt.Errorf("making sandbox: %w", err)
	}
	if err := cgroup.Make(pod.Cgroup); err != nil {
		return err
	}
	if err := startHolder(pod, dir); err != nil {
		return err
	}
	if !pod.hostNetwork() {
		if err := s.reserve(pod); err != nil {
			return err
		}
		if err := connect(pod.Holder.PID, deviceName(pod.ID), pod.Address, s.config.Address); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sandboxes[pod.ID] = pod
	return s.saveSandbox(pod)
}

// reserve gives the pod an address.
func (s *Server) reserve(pod *sandbox) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := map[netip.Addr]bool{}
	for _, other := range s.sandboxes {
		used[other.Address] = true
	}
	address, err := plan.NextPod(s.config.PodCIDR, s.lastPod, used)
	if err != nil {
		return err
	}
	pod.Address, s.lastPod = address, address
	// Registered before it is complete, so that no other pod gets the address.
	s.sandboxes[pod.ID] = pod
	return nil
}

func (s *Server) saveSandbox(pod *sandbox) error {
	return container.WriteJSON(filepath.Join(s.sandboxDir(pod.ID), "sandbox.json"), pod)
}

// startHolder starts the process that the pod's namespaces belong to.
func startHolder(pod *sandbox, dir string) error {
	flags, args := uintptr(0), []string{}
	if pod.namespaces().GetIpc() != runtimeapi.NamespaceMode_NODE {
		flags |= unix.CLONE_NEWIPC
	}
	if pod.namespaces().GetPid() == runtimeapi.NamespaceMode_POD {
		flags |= unix.CLONE_NEWPID
	}
	if !pod.hostNetwork() {
		flags |= unix.CLONE_NEWNET | unix.CLONE_NEWUTS
		hostname := pod.Config.GetHostname()
		if len(hostname) > 63 {
			hostname = hostname[:63]
		}
		// What container engines allow to every pod: low ports and ping without privileges.
		args = append(args, hostname, "net.ipv4.ip_unprivileged_port_start=0", "net.ipv4.ping_group_range=0 2147483647")
		// The pod's neighbours are known, and it has no router to ask.
		args = append(args, "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.accept_ra=0")
	}
	for name, value := range pod.Config.GetLinux().GetSysctls() {
		args = append(args, name+"="+value)
	}
	cmd := exec.Command(image.BinDir+"/lab-shim", append([]string{"pause"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	log := filepath.Join(dir, "log")
	var err error
	if pod.Holder, err = proc.Start(pod.Cgroup, log, cmd); err != nil {
		return err
	}
	if len(args) == 0 {
		return nil
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		said, err := os.ReadFile(log)
		switch {
		case err != nil:
			return fmt.Errorf("starting sandbox: %w", err)
		case strings.Contains(string(said), "ready\n"):
			return nil
		case !pod.Holder.Alive():
			return fmt.Errorf("starting sandbox: %s", strings.TrimSpace(string(said)))
		case time.Now().After(deadline):
			return errors.New("starting sandbox: its holder does not get ready")
		}
	}
}

// StopPodSandbox ends everything in the pod.
func (s *Server) StopPodSandbox(_ context.Context, request *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	s.mu.Lock()
	pod := s.sandboxes[request.GetPodSandboxId()]
	s.mu.Unlock()
	if pod == nil {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	for _, box := range s.boxes(func(b *box) bool { return b.Sandbox == pod.ID }) {
		if err := s.stop(box, 0); err != nil {
			return nil, err
		}
	}
	if err := cgroup.Kill(pod.Cgroup, 10*time.Second); err != nil {
		return nil, err
	}
	if err := disconnect(deviceName(pod.ID)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	pod.Stopped = true
	pod.Address = netip.Addr{}
	if err := s.saveSandbox(pod); err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox forgets the pod.
func (s *Server) RemovePodSandbox(ctx context.Context, request *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	s.mu.Lock()
	pod := s.sandboxes[request.GetPodSandboxId()]
	s.mu.Unlock()
	if pod == nil {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	for _, box := range s.boxes(func(b *box) bool { return b.Sandbox == pod.ID }) {
		if _, err := s.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: box.ID}); err != nil {
			return nil, err
		}
	}
	if err := s.destroySandbox(pod); err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (s *Server) destroySandbox(pod *sandbox) error {
	if err := cgroup.Kill(pod.Cgroup, 10*time.Second); err != nil {
		return err
	}
	if err := disconnect(deviceName(pod.ID)); err != nil {
		return err
	}
	if err := cgroup.Remove(pod.Cgroup); err != nil {
		return err
	}
	// Another sandbox of the same pod may still be in it.
	_ = unix.Rmdir(filepath.Dir(pod.Cgroup))
	if err := os.RemoveAll(s.sandboxDir(pod.ID)); err != nil {
		return fmt.Errorf("removing sandbox: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sandboxes, pod.ID)
	return nil
}

// PodSandboxStatus describes one pod.
func (s *Server) PodSandboxStatus(_ context.Context, request *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pod := s.sandboxes[request.GetPodSandboxId()]
	if pod == nil {
		return nil, status.Errorf(codes.NotFound, "sandbox %q is not known", request.GetPodSandboxId())
	}
	network := &runtimeapi.PodSandboxNetworkStatus{}
	address := pod.Address
	if pod.hostNetwork() {
		address = s.config.Address
	}
	if address.IsValid() {
		both := plan.Addresses(address)
		network.Ip = both[0].String()
		network.AdditionalIps = []*runtimeapi.PodIP{{Ip: both[1].String()}}
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{
		Id:        pod.ID,
		Metadata:  pod.Config.GetMetadata(),
		State:     pod.state(),
		CreatedAt: pod.Created,
		Network:   network,
		Linux: &runtimeapi.LinuxPodSandboxStatus{
			Namespaces: &runtimeapi.Namespace{Options: pod.namespaces()},
		},
		Labels:      pod.Config.GetLabels(),
		Annotations: pod.Config.GetAnnotations(),
	}}, nil
}

// ListPodSandbox lists pods.
func (s *Server) ListPodSandbox(_ context.Context, request *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	filter := request.GetFilter()
	response := &runtimeapi.ListPodSandboxResponse{}
	for _, pod := range s.sandboxes {
		state := pod.state()
		if filter.GetId() != "" && filter.GetId() != pod.ID ||
			filter.GetState() != nil && filter.GetState().GetState() != state ||
			!matches(pod.Config.GetLabels(), filter.GetLabelSelector()) {
			continue
		}
		response.Items = append(response.Items, &runtimeapi.PodSandbox{
			Id:          pod.ID,
			Metadata:    pod.Config.GetMetadata(),
			State:       state,
			CreatedAt:   pod.Created,
			Labels:      pod.Config.GetLabels(),
			Annotations: pod.Config.GetAnnotations(),
		})
	}
	return response, nil
}

// resolvConf is the name server configuration that kubelet wants for the pod.
func resolvConf(dns *runtimeapi.DNSConfig) string {
	var b strings.Builder
	for _, server := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if searches := dns.GetSearches(); len(searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(searches, " "))
	}
	if options := dns.GetOptions(); len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.String()
}

// deviceName is the node's end of a pod's network cable.
func deviceName(id string) string { return "pod" + id[:10] }
