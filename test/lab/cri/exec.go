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
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"mesh.io/clustermesh/test/lab/container"
	"mesh.io/clustermesh/test/lab/image"
	"mesh.io/clustermesh/test/lab/proc"
)

// command prepares a further program in a running container.
func (s *Server) command(ctx context.Context, id string, args []string, tty bool) (*exec.Cmd, io.Closer, error) {
	b, err := s.box(id)
	if err != nil {
		return nil, nil, err
	}
	c := s.condition(b)
	if c.state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, nil, status.Errorf(codes.FailedPrecondition, "container %q is in state %s", id, c.state)
	}
	var spec container.Config
	if err := container.ReadJSON(container.ConfigFile(s.containerDir(id)), &spec); err != nil {
		return nil, nil, err
	}
	if tty {
		spec.Env = setEnv(spec.Env, "TERM", "xterm")
	}
	config, err := json.Marshal(container.ExecConfig{
		Main: c.running.Main.PID, Args: args, Env: spec.Env, Cwd: spec.Cwd, TTY: tty, Credentials: spec.Credentials,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("preparing command: %w", err)
	}
	group, err := os.Open(b.Cgroup)
	if err != nil {
		return nil, nil, fmt.Errorf("preparing command: %w", err)
	}
	cmd := exec.CommandContext(ctx, image.BinDir+"/lab-shim", "exec", string(config))
	// Inside the container's cgroup: it ends with the container, and what is
	// attached to the cgroup applies to it.
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	// It passes this on, as a kill of the program; killed itself it could not.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	// A program that it leaves behind may keep the pipes open.
	cmd.WaitDelay = 500 * time.Millisecond
	return cmd, group, nil
}

// ExecSync runs a command and returns its output: what exec probes and hooks use.
func (s *Server) ExecSync(ctx context.Context, request *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if timeout := request.GetTimeout(); timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(timeout)*time.Second)
		defer cancel()
	}
	cmd, group, err := s.command(ctx, request.GetContainerId(), request.GetCmd(), false)
	if err != nil {
		return nil, err
	}
	defer group.Close()
	stdout, stderr := &bounded{}, &bounded{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil, status.Errorf(codes.DeadlineExceeded, "command %q did not end in time", request.GetCmd())
	}
	code, err := result(cmd, err)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), ExitCode: int32(code)}, nil
}

// bounded is a buffer that stops to grow at what a gRPC answer can carry.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len() < 4<<20 {
		b.Buffer.Write(p)
	}
	return len(p), nil
}

// result separates a command that ended, with whatever code, from one that could not run.
func result(cmd *exec.Cmd, err error) (int, error) {
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return cmd.ProcessState.ExitCode(), nil
	case errors.As(err, &exit):
		if code := exit.ExitCode(); code >= 0 {
			return code, nil
		}
		return 137, nil
	}
	return 0, fmt.Errorf("running command: %w", err)
}

// Exec prepares a stream.
func (s *Server) Exec(_ context.Context, request *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if _, err := s.box(request.GetContainerId()); err != nil {
		return nil, err
	}
	return s.streaming.GetExec(request)
}

// Attach prepares a stream.
func (s *Server) Attach(_ context.Context, request *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return s.streaming.GetAttach(request)
}

// PortForward prepares a stream.
func (s *Server) PortForward(_ context.Context, request *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return s.streaming.GetPortForward(request)
}

// streamer serves the streams.
type streamer struct{ *Server }

// Exec runs a command with its input and output on a stream.
func (s streamer) Exec(ctx context.Context, id string, args []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	cmd, group, err := s.command(ctx, id, args, tty)
	if err != nil {
		return err
	}
	defer group.Close()
	if tty {
		err = s.runTerminal(cmd, id, in, out, resize)
	} else {
		err = runPipes(cmd, in, out, errOut)
	}
	code, err := result(cmd, err)
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: code}
	}
	return nil
}

// Attach carries a stream to a container's standard files, as long as both last.
func (s streamer) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	if _, err := s.box(id); err != nil {
		return err
	}
	conn, err := container.Attach(s.containerDir(id))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var mu sync.Mutex
	send := func(kind byte, content []byte) error {
		mu.Lock()
		defer mu.Unlock()
		return container.WriteFrame(conn, kind, content)
	}
	go func() {
		for size := range resize {
			content := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, size.Width), size.Height)
			if send(container.FrameSize, content) != nil {
				return
			}
		}
	}()
	if in != nil {
		go func() {
			buffer := make([]byte, 32*1024)
			for {
				n, err := in.Read(buffer)
				if n > 0 && send(container.FrameInput, buffer[:n]) != nil {
					return
				}
				if err != nil {
					_ = send(container.FrameEnd, nil)
					return
				}
			}
		}()
	}
	for {
		kind, content, err := container.ReadFrame(conn)
		if err != nil {
			// The container has ended, or the client has.
			return nil
		}
		to := out
		if kind == container.FrameError {
			to = errOut
		}
		if to == nil {
			continue
		}
		if _, err := to.Write(content); err != nil {
			return fmt.Errorf("attaching: %w", err)
		}
	}
}

// PortForward carries a stream to a port of the pod.
func (s streamer) PortForward(_ context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	s.mu.Lock()
	pod := s.sandboxes[id]
	s.mu.Unlock()
	if pod == nil || !pod.Holder.Alive() {
		return fmt.Errorf("sandbox %q is not running", id)
	}
	conn, err := proc.Dial(pod.Holder.PID, "tcp", "127.0.0.1:"+strconv.Itoa(int(port)), 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(stream, conn)
	}()
	_, _ = io.Copy(conn, stream)
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	<-done
	return nil
}

func runPipes(cmd *exec.Cmd, in io.Reader, out, errOut io.WriteCloser) error {
	if out != nil {
		cmd.Stdout = out
	}
	if errOut != nil {
		cmd.Stderr = errOut
	}
	if in == nil {
		return cmd.Run()
	}
	// Not cmd.Stdin: waiting would then last until the client closes its side.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("making pipe: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(stdin, in)
		stdin.Close()
	}()
	return cmd.Wait()
}

// runTerminal runs the command on a terminal of its own.
func (s streamer) runTerminal(cmd *exec.Cmd, id string, in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) error {
	b, err := s.box(id)
	if err != nil {
		return err
	}
	var master, slave *os.File
	// One of the container's own terminals, so that the program finds it by its name.
	err = proc.Do(s.condition(b).running.Main.PID, unix.CLONE_NEWNS, func() error {
		master, slave, err = container.OpenTerminal()
		return err
	})
	if err != nil {
		return err
	}
	defer master.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	err = cmd.Start()
	slave.Close()
	if err != nil {
		return err
	}
	go func() {
		for size := range resize {
			_ = container.SetSize(master, size.Width, size.Height)
		}
	}()
	if in != nil {
		go func() { _, _ = io.Copy(master, in) }()
	}
	var copied sync.WaitGroup
	if out != nil {
		// Ends with an error, when the last program on the terminal does.
		copied.Go(func() { _, _ = io.Copy(out, master) })
	}
	err = cmd.Wait()
	copied.Wait()
	return err
}
