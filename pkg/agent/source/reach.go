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

package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/connrotation"
)

// dialTimeout is how long one address of the mesh API may take to answer. A dead
// endpoint must not keep the next one waiting.
const dialTimeout = 3 * time.Second

// awaitTimeout is how long a connection waits for the CA and the address.
const awaitTimeout = 10 * time.Second

// Reach connects to this cluster's mesh API. A program on the host's network has no
// cluster DNS to rely on, so it resolves the Service by what kube-apiserver says of
// it: first its cluster IP, which kube-proxy serves (the mesh's own Services are
// never global, so this agent does not program it), then its ready endpoints. It
// follows the address and the CA as they change.
type Reach struct {
	serverName string
	addresses  func() []netip.AddrPort
	client     *tls.Config // holds the client's certificate, if it has one
	tracker    *connrotation.ConnectionTracker

	known chan struct{} // closed once there is a CA

	mu    sync.Mutex
	roots *x509.CertPool
	last  netip.AddrPort
}

// NewReach returns a way to the mesh API. addresses returns where it is, the best
// first; nil where the URL that is asked for says so itself. auth supplies the
// client's certificate, if there is any.
func NewReach(serverName string, addresses func() []netip.AddrPort, auth *rest.Config) (*Reach, error) {
	client, err := rest.TLSConfigFor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{
		CertFile: auth.CertFile, CertData: auth.CertData, KeyFile: auth.KeyFile, KeyData: auth.KeyData,
	}})
	if err != nil {
		return nil, fmt.Errorf("reading the client certificate: %w", err)
	}
	if client == nil {
		client = &tls.Config{}
	}
	return &Reach{
		serverName: serverName,
		addresses:  addresses,
		client:     client,
		tracker:    connrotation.NewConnectionTracker(),
		known:      make(chan struct{}),
	}, nil
}

// SetCA takes a bundle of CA certificates in the place of the last one. A bundle
// without any certificate is refused.
func (r *Reach) SetCA(bundle []byte) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return errors.New("the CA bundle of the mesh API holds no certificate")
	}
	r.mu.Lock()
	changed := r.roots != nil && !r.roots.Equal(roots)
	if r.roots == nil {
		close(r.known)
	}
	r.roots = roots
	r.mu.Unlock()
	if changed {
		// A CA that is no longer trusted must not live on in an open connection.
		r.tracker.CloseAll()
	}
	return nil
}

// Moved is called when the Service of the mesh API may have another address.
func (r *Reach) Moved() {
	if r.addresses == nil {
		return
	}
	var first netip.AddrPort
	if addresses := r.addresses(); len(addresses) > 0 {
		first = addresses[0]
	}
	r.mu.Lock()
	changed := first.IsValid() && r.last.IsValid() && r.last != first
	if first.IsValid() {
		r.last = first
	}
	r.mu.Unlock()
	if changed {
		r.tracker.CloseAll()
	}
}

// Transport returns a transport that connects as described.
func (r *Reach) Transport() http.RoundTripper {
	return utilnet.SetTransportDefaults(&http.Transport{
		DialTLSContext:    r.dial,
		ForceAttemptHTTP2: true,
		IdleConnTimeout:   90 * time.Second,
		// Proxies are for what is outside; SetTransportDefaults would ask the environment.
		Proxy: func(*http.Request) (*url.URL, error) { return nil, nil },
	})
}

func (r *Reach) dial(ctx context.Context, network, address string) (net.Conn, error) {
	targets, roots, err := r.await(ctx, address)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, target := range targets {
		conn, err := r.connect(ctx, network, target, roots)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// await returns what a connection takes. At the start kube-apiserver is about to tell
// it: an error would only make the caller wait for longer.
func (r *Reach) await(ctx context.Context, address string) (targets []string, roots *x509.CertPool, err error) {
	ctx, cancel := context.WithTimeout(ctx, awaitTimeout)
	defer cancel()
	select {
	case <-r.known:
	case <-ctx.Done():
		return nil, nil, errors.New("the CA of the mesh API is not known yet")
	}
	r.mu.Lock()
	roots = r.roots
	r.mu.Unlock()
	if r.addresses == nil {
		return []string{address}, roots, nil
	}
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		for _, a := range r.addresses() {
			targets = append(targets, a.String())
		}
		if len(targets) > 0 {
			return slices.Compact(targets), roots, nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, nil, errors.New("the Service of the mesh API has no address yet")
		}
	}
}

func (r *Reach) connect(ctx context.Context, network, address string, roots *x509.CertPool) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dialer := net.Dialer{KeepAlive: 30 * time.Second}
	raw, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("connecting to the mesh API: %w", err)
	}
	config := r.client.Clone()
	config.RootCAs = roots
	config.ServerName = r.serverName
	config.MinVersion = tls.VersionTLS12
	config.NextProtos = []string{"h2", "http/1.1"}
	conn := tls.Client(r.tracker.Track(raw), config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("greeting the mesh API at %s: %w", address, err)
	}
	return conn, nil
}

// Config returns the configuration of a client of the mesh API. server is its URL;
// auth is who the client is.
func (r *Reach) Config(server string, auth *rest.Config) *rest.Config {
	return &rest.Config{
		Host:            server,
		Transport:       r.Transport(),
		BearerToken:     auth.BearerToken,
		BearerTokenFile: auth.BearerTokenFile,
		UserAgent:       auth.UserAgent,
		// A handful of watches; what limits them is their own backoff.
		QPS: -1,
		ContentConfig: rest.ContentConfig{
			ContentType:        "application/vnd.kubernetes.protobuf",
			AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
		},
	}
}
