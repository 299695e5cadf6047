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

// Package remote reaches into a cluster: it runs programs in pods, and asks what
// listens in them. It decides nothing.
package remote

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"

	"mesh.io/clustermesh/pkg/generated/clientset/versioned"
)

// Cluster is a cluster as a person with a kubeconfig context has it.
type Cluster struct {
	// Context is the kubeconfig context, by which people know the cluster.
	Context string
	// Namespace is the mesh's own.
	Namespace string
	REST      *rest.Config
	Kube      kubernetes.Interface
	Mesh      versioned.Interface
}

// quiet keeps client-go from logging what happens to its streams: when one is left
// because the time is over or a person has stopped the command, it calls that errors.
var quiet = sync.OnceFunc(func() { klog.SetLogger(klog.New(nil)) })

// maxOutput is the most that is read of what a program prints.
const maxOutput = 64 << 20

// Exec runs a program in a container and returns what it printed. The error of a
// program that failed has the end of what it said about that.
func (c *Cluster) Exec(ctx context.Context, namespace, pod, container string, command ...string) ([]byte, error) {
	quiet()
	url := c.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	// Web sockets first, as kubectl does: not every proxy passes SPDY any more.
	spdyExecutor, err := remotecommand.NewSPDYExecutor(c.REST, http.MethodPost, url)
	if err != nil {
		return nil, fmt.Errorf("preparing to run a program in pod %s/%s: %w", namespace, pod, err)
	}
	webSocket, err := remotecommand.NewWebSocketExecutor(c.REST, http.MethodGet, url.String())
	if err != nil {
		return nil, fmt.Errorf("preparing to run a program in pod %s/%s: %w", namespace, pod, err)
	}
	executor, err := remotecommand.NewFallbackExecutor(webSocket, spdyExecutor, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return nil, fmt.Errorf("preparing to run a program in pod %s/%s: %w", namespace, pod, err)
	}
	stdout, stderr := limited{most: maxOutput}, limited{most: 64 << 10}
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if said := strings.TrimSpace(stderr.String()); said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
		return stdout.Bytes(), fmt.Errorf("running %s in pod %s/%s: %w", command[0], namespace, pod, err)
	}
	return stdout.Bytes(), nil
}

// limited keeps the beginning of what is written.
type limited struct {
	bytes.Buffer
	most int
}

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), l.most-l.Len())])
	return len(p), nil
}

// Answer is what an HTTP server in a pod said.
type Answer struct {
	Status int
	Body   []byte
}

// maxAnswer is the most that is read of an answer.
const maxAnswer = 16 << 20

// Get asks a server in a pod over a forwarded port: also one that listens on the pod's
// loopback only, as the agents do. trust is how the server is known, for https; the
// certificate of the kubeconfig's user is shown to it if withCertificate says so. A
// bearer token is never sent to a pod.
func (c *Cluster) Get(ctx context.Context, namespace, pod string, port int, path string, trust *tls.Config, withCertificate bool) (*Answer, error) {
	quiet()
	local, stop, err := c.forward(ctx, namespace, pod, port)
	if err != nil {
		return nil, fmt.Errorf("forwarding to port %d of pod %s/%s: %w", port, namespace, pod, err)
	}
	defer stop()
	scheme := "http"
	if trust != nil {
		scheme = "https"
		if withCertificate {
			own, err := rest.TLSConfigFor(c.REST)
			if err != nil {
				return nil, fmt.Errorf("reading the certificate of context %q: %w", c.Context, err)
			}
			if own != nil {
				trust = trust.Clone()
				trust.Certificates, trust.GetClientCertificate = own.Certificates, own.GetClientCertificate
			}
		}
	}
	transport := &http.Transport{TLSClientConfig: trust, DisableKeepAlives: true}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+local+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(request)
	if err != nil {
		return nil, fmt.Errorf("asking pod %s/%s for %s: %w", namespace, pod, path, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading what pod %s/%s says to %s: %w", namespace, pod, path, err)
	}
	return &Answer{Status: response.StatusCode, Body: body}, nil
}

// forward makes a port of the pod one of this machine, until stop is called.
func (c *Cluster) forward(ctx context.Context, namespace, pod string, port int) (address string, stop func(), err error) {
	url := c.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(c.REST)
	if err != nil {
		return "", nil, err
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	if webSocket, err := portforward.NewSPDYOverWebsocketDialer(url, c.REST); err == nil {
		dialer = portforward.NewFallbackDialer(webSocket, dialer, func(err error) bool {
			return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
		})
	}
	end, ready := make(chan struct{}), make(chan struct{})
	stop = sync.OnceFunc(func() { close(end) })
	said := limited{most: 4 << 10}
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:" + strconv.Itoa(port)}, end, ready, io.Discard, &said)
	if err != nil {
		return "", nil, err
	}
	failed := make(chan error, 1)
	go func() { failed <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-failed:
		stop()
		if err == nil {
			err = errors.New("the connection ended")
		}
		return "", nil, err
	case <-ctx.Done():
		stop()
		return "", nil, ctx.Err()
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		stop()
		return "", nil, err
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(ports[0].Local))), stop, nil
}
