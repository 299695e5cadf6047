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
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
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
	"mesh.io/clustermesh/test/lab/proc"
)

// defaultPath is the PATH of every container that sets none.
const defaultPath = image.BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// box is a container.
type box struct {
	ID      string                      `json:"id"`
	Sandbox string                      `json:"sandbox"`
	Config  *runtimeapi.ContainerConfig `json:"config"`
	Image   string                      `json:"image"`
	Created int64                       `json:"created"`
	Cgroup  string                      `json:"cgroup"`
	LogPath string                      `json:"logPath"`
}

// condition is what is true of a container at this moment.
type condition struct {
	state   runtimeapi.ContainerState
	running container.Running
	exit    container.Exit
}

// condition reads what the shim has left. A shim that is gone without a word was
// killed, and its container with it.
func (s *Server) condition(b *box) condition {
	dir := s.containerDir(b.ID)
	c := condition{state: runtimeapi.ContainerState_CONTAINER_CREATED}
	if container.ReadJSON(container.RunningFile(dir), &c.running) == nil {
		c.state = runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	alive := c.running.Shim.Alive()
	if container.ReadJSON(container.ExitFile(dir), &c.exit) == nil {
		c.state = runtimeapi.ContainerState_CONTAINER_EXITED
		return c
	}
	if c.state == runtimeapi.ContainerState_CONTAINER_RUNNING && !alive {
		_ = cgroup.Kill(b.Cgroup, 5*time.Second)
		c.state = runtimeapi.ContainerState_CONTAINER_EXITED
		c.exit = container.Exit{Code: 137, At: time.Now(), Error: "the container's shim was killed"}
		_ = container.WriteJSON(container.ExitFile(dir), c.exit)
	}
	return c
}

// boxes lists containers.
func (s *Server) boxes(match func(*box) bool) []*box {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*box
	for _, b := range s.containers {
		if match(b) {
			found = append(found, b)
		}
	}
	return found
}

func (s *Server) box(id string) (*box, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.containers[id]; b != nil {
		return b, nil
	}
	return nil, status.Errorf(codes.NotFound, "container %q is not known", id)
}

// CreateContainer writes down what is to be started.
func (s *Server) CreateContainer(_ context.Context, request *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	s.mu.Lock()
	pod := s.sandboxes[request.GetPodSandboxId()]
	s.mu.Unlock()
	if pod == nil || pod.state() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, status.Errorf(codes.NotFound, "sandbox %q is not running", request.GetPodSandboxId())
	}
	config := request.GetConfig()
	name := config.GetImage().GetImage()
	if full, ok := s.imageByID(name); ok {
		name = full
	} else if config.GetImage().GetUserSpecifiedImage() != "" {
		name = config.GetImage().GetUserSpecifiedImage()
	}
	img, full, err := image.Find(name)
	if err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	b := &box{
		ID: newID(), Sandbox: pod.ID, Config: config, Image: full, Created: now(),
	}
	b.Cgroup = filepath.Join(filepath.Dir(pod.Cgroup), b.ID)
	if config.GetLogPath() != "" && pod.Config.GetLogDirectory() != "" {
		b.LogPath = filepath.Join(pod.Config.GetLogDirectory(), config.GetLogPath())
		if err := os.MkdirAll(filepath.Dir(b.LogPath), 0o755); err != nil {
			return nil, fmt.Errorf("making log directory: %w", err)
		}
	}
	dir := s.containerDir(b.ID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making container: %w", err)
	}
	spec, err := s.spec(pod, b, img)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := container.WriteJSON(container.ConfigFile(dir), spec); err != nil {
		return nil, err
	}
	if err := container.WriteJSON(filepath.Join(dir, "container.json"), b); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[b.ID] = b
	return &runtimeapi.CreateContainerResponse{ContainerId: b.ID}, nil
}

// spec translates kubelet's wishes for the shim.
func (s *Server) spec(pod *sandbox, b *box, img image.Image) (container.Config, error) {
	config := b.Config
	security := config.GetLinux().GetSecurityContext()
	namespaces := security.GetNamespaceOptions()
	hostname := pod.Config.GetHostname()
	if pod.hostNetwork() {
		hostname = s.config.Node
	}
	spec := container.Config{
		ID: b.ID, Sandbox: pod.Holder.PID, Cgroup: b.Cgroup, LogPath: b.LogPath,
		HostNetwork: pod.hostNetwork(),
		HostIPC:     pod.namespaces().GetIpc() == runtimeapi.NamespaceMode_NODE,
		HostPID:     namespaces.GetPid() == runtimeapi.NamespaceMode_NODE,
		Args:        img.Command(config.GetCommand(), config.GetArgs()),
		Env:         []string{"PATH=" + defaultPath, "HOME=/root", "HOSTNAME=" + hostname},
		Cwd:         config.GetWorkingDir(),
		Stop:        int(stopSignal(config.GetStopSignal())),
		Privileged:  security.GetPrivileged(), ReadOnlyRoot: security.GetReadonlyRootfs(),
		Credentials: credentials(security),
		Stdin:       config.GetStdin(), StdinOnce: config.GetStdinOnce(), TTY: config.GetTty(),
	}
	switch namespaces.GetPid() {
	case runtimeapi.NamespaceMode_POD:
		spec.JoinPID = pod.Holder.PID
	case runtimeapi.NamespaceMode_TARGET:
		target, err := s.box(namespaces.GetTargetId())
		if err != nil {
			return spec, err
		}
		spec.JoinPID = s.condition(target).running.Main.PID
	}
	if config.GetTty() {
		spec.Env = append(spec.Env, "TERM=xterm")
	}
	if img.Identity {
		spec.Env = append(spec.Env, "MESH_LAB_CLUSTER="+s.config.Cluster, "MESH_LAB_NODE="+s.config.Node)
	}
	for _, variable := range config.GetEnvs() {
		spec.Env = setEnv(spec.Env, variable.GetKey(), string(variable.GetValue()))
	}
	spec.Mounts = append(spec.Mounts, container.Mount{Source: image.BinDir, Target: image.BinDir, ReadOnly: true})
	if !mounted(config, "/etc/resolv.conf") {
		spec.Mounts = append(spec.Mounts, container.Mount{
			Source: filepath.Join(s.sandboxDir(pod.ID), "resolv.conf"), Target: "/etc/resolv.conf",
		})
	}
	// Outer directories first, or they would cover what is mounted inside.
	mounts := append([]*runtimeapi.Mount{}, config.GetMounts()...)
	sort.SliceStable(mounts, func(i, j int) bool {
		return strings.Count(filepath.Clean(mounts[i].GetContainerPath()), "/") < strings.Count(filepath.Clean(mounts[j].GetContainerPath()), "/")
	})
	for _, m := range mounts {
		// Kubelet makes most; a path of the host that nobody has made yet is a directory.
		if _, err := os.Stat(m.GetHostPath()); errors.Is(err, os.ErrNotExist) {
			if err := os.MkdirAll(m.GetHostPath(), 0o755); err != nil {
				return spec, fmt.Errorf("making %s: %w", m.GetHostPath(), err)
			}
		}
		source, err := filepath.EvalSymlinks(m.GetHostPath())
		if err != nil {
			return spec, fmt.Errorf("mounting %s: %w", m.GetHostPath(), err)
		}
		mount := container.Mount{Source: source, Target: m.GetContainerPath(), ReadOnly: m.GetReadonly()}
		switch m.GetPropagation() {
		case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
			mount.Propagation = container.HostToContainer
		case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			mount.Propagation = container.Bidirectional
		}
		spec.Mounts = append(spec.Mounts, mount)
	}
	return spec, nil
}

func mounted(config *runtimeapi.ContainerConfig, path string) bool {
	for _, m := range config.GetMounts() {
		if m.GetContainerPath() == path {
			return true
		}
	}
	return false
}

// setEnv sets a variable: of two with the same name programs may take either.
func setEnv(env []string, key, value string) []string {
	for i, variable := range env {
		if strings.HasPrefix(variable, key+"=") {
			env[i] = key + "=" + value
			return env
		}
	}
	return append(env, key+"="+value)
}

// stopSignal is the number of the signal that asks a container to end.
func stopSignal(signal runtimeapi.Signal) syscall.Signal {
	if signal == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return syscall.SIGTERM
	}
	if number := unix.SignalNum(strings.TrimPrefix(signal.String(), "SIGNAL_")); number != 0 {
		return number
	}
	return syscall.SIGTERM
}

// StartContainer starts the container's shim and waits until the program runs.
func (s *Server) StartContainer(_ context.Context, request *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	b, err := s.box(request.GetContainerId())
	if err != nil {
		return nil, err
	}
	if state := s.condition(b).state; state != runtimeapi.ContainerState_CONTAINER_CREATED {
		return nil, status.Errorf(codes.FailedPrecondition, "container %q is in state %s", b.ID, state)
	}
	if err := cgroup.Make(b.Cgroup); err != nil {
		return nil, err
	}
	dir := s.containerDir(b.ID)
	reportR, reportW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting container: %w", err)
	}
	defer reportR.Close()
	cmd := exec.Command(image.BinDir+"/lab-shim", "shim", dir)
	cmd.ExtraFiles = []*os.File{reportW}
	// Not in the container's own cgroup: that one is killed as a whole when the program ends.
	_, err = proc.Start(filepath.Join(cgroupRoot, "system"), filepath.Join(dir, "shim.log"), cmd)
	reportW.Close()
	if err != nil {
		return nil, err
	}
	problem, err := io.ReadAll(reportR)
	if err != nil {
		return nil, fmt.Errorf("starting container: %w", err)
	}
	if len(problem) > 0 {
		return nil, status.Errorf(codes.Unknown, "starting container: %s", strings.TrimSpace(string(problem)))
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer asks the program to end, and makes it after the grace period.
func (s *Server) StopContainer(_ context.Context, request *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	b, err := s.box(request.GetContainerId())
	if err != nil {
		// Already removed is as good as stopped.
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err := s.stop(b, time.Duration(request.GetTimeout())*time.Second); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (s *Server) stop(b *box, grace time.Duration) error {
	c := s.condition(b)
	if c.state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil
	}
	if grace > 0 {
		// An error means that it has just ended.
		_ = c.running.Main.Signal(stopSignal(b.Config.GetStopSignal()))
		if s.ended(b, grace) {
			return nil
		}
	}
	if err := cgroup.Kill(b.Cgroup, 10*time.Second); err != nil {
		return err
	}
	if !s.ended(b, 10*time.Second) {
		return fmt.Errorf("stopping container %s: its shim does not report the end", b.ID)
	}
	return nil
}

func (s *Server) ended(b *box, within time.Duration) bool {
	for deadline := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		if s.condition(b).state == runtimeapi.ContainerState_CONTAINER_EXITED {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// RemoveContainer forgets a container, ending it first.
func (s *Server) RemoveContainer(_ context.Context, request *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	b, err := s.box(request.GetContainerId())
	if err != nil {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	if err := s.stop(b, 0); err != nil {
		return nil, err
	}
	if err := cgroup.Remove(b.Cgroup); err != nil {
		return nil, err
	}
	if err := container.Cleanup(b.ID); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(s.containerDir(b.ID)); err != nil {
		return nil, fmt.Errorf("removing container: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, b.ID)
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ListContainers lists containers.
func (s *Server) ListContainers(_ context.Context, request *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	filter := request.GetFilter()
	response := &runtimeapi.ListContainersResponse{}
	for _, b := range s.boxes(func(b *box) bool {
		return (filter.GetId() == "" || filter.GetId() == b.ID) &&
			(filter.GetPodSandboxId() == "" || filter.GetPodSandboxId() == b.Sandbox) &&
			matches(b.Config.GetLabels(), filter.GetLabelSelector())
	}) {
		state := s.condition(b).state
		if filter.GetState() != nil && filter.GetState().GetState() != state {
			continue
		}
		response.Containers = append(response.Containers, &runtimeapi.Container{
			Id:           b.ID,
			PodSandboxId: b.Sandbox,
			Metadata:     b.Config.GetMetadata(),
			Image:        b.Config.GetImage(),
			ImageRef:     imageID(b.Image),
			ImageId:      imageID(b.Image),
			State:        state,
			CreatedAt:    b.Created,
			Labels:       b.Config.GetLabels(),
			Annotations:  b.Config.GetAnnotations(),
		})
	}
	return response, nil
}

// ContainerStatus describes one container.
func (s *Server) ContainerStatus(_ context.Context, request *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	b, err := s.box(request.GetContainerId())
	if err != nil {
		return nil, err
	}
	c := s.condition(b)
	result := &runtimeapi.ContainerStatus{
		Id:          b.ID,
		Metadata:    b.Config.GetMetadata(),
		State:       c.state,
		CreatedAt:   b.Created,
		Image:       &runtimeapi.ImageSpec{Image: b.Image},
		ImageRef:    describe(b.Image).RepoDigests[0],
		ImageId:     imageID(b.Image),
		Labels:      b.Config.GetLabels(),
		Annotations: b.Config.GetAnnotations(),
		Mounts:      b.Config.GetMounts(),
		LogPath:     b.LogPath,
		StopSignal:  b.Config.GetStopSignal(),
	}
	if !c.running.At.IsZero() {
		result.StartedAt = c.running.At.UnixNano()
	}
	if c.state == runtimeapi.ContainerState_CONTAINER_EXITED {
		result.FinishedAt = c.exit.At.UnixNano()
		result.ExitCode = int32(c.exit.Code)
		switch {
		case c.exit.Error != "":
			result.Reason, result.Message = "StartError", c.exit.Error
		case c.exit.Code == 0:
			result.Reason = "Completed"
		default:
			result.Reason = "Error"
		}
	}
	return &runtimeapi.ContainerStatusResponse{Status: result}, nil
}

// UpdateContainerResources accepts anything: the lab limits nobody.
func (s *Server) UpdateContainerResources(context.Context, *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// ReopenContainerLog makes the shim continue in a new file, after kubelet has moved the old one.
func (s *Server) ReopenContainerLog(_ context.Context, request *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	b, err := s.box(request.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := s.condition(b).running.Shim.Signal(container.ReopenLog); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
