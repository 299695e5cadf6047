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
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"mesh.io/clustermesh/pkg/agent/desired"
)

const serverName = "mesh-apiserver.mesh-system.svc"

// meshServer is a server with a CA of its own, that tells its name.
func meshServer(t *testing.T, name string) (address netip.AddrPort, ca []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{serverName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", name, r.Proto)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return netip.MustParseAddrPort(server.Listener.Addr().String()), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// closed is an address that nobody listens on.
func closed(t *testing.T) netip.AddrPort {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return netip.MustParseAddrPort(listener.Addr().String())
}

func TestReachFollowsAddressAndCA(t *testing.T) {
	one, ca1 := meshServer(t, "one")
	two, ca2 := meshServer(t, "two")
	var addresses atomic.Pointer[[]netip.AddrPort]
	set := func(list ...netip.AddrPort) { addresses.Store(&list) }
	set()
	reach, err := NewReach(serverName, func() []netip.AddrPort { return *addresses.Load() }, &rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: reach.Transport(), Timeout: 20 * time.Second}
	get := func() (string, error) {
		// The name in the URL is never looked up.
		answer, err := client.Get("https://" + serverName + "/")
		if err != nil {
			return "", err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		return string(body), err
	}
	expect := func(when, want string) {
		t.Helper()
		// A request may meet a connection that is just being closed; whoever watches
		// asks again.
		deadline := time.Now().Add(10 * time.Second)
		got, err := get()
		for err != nil && time.Now().Before(deadline) {
			got, err = get()
		}
		if err != nil || got != want {
			t.Errorf("%s: got %q (%v), want %q", when, got, err, want)
		}
	}

	if err := reach.SetCA([]byte("no certificate")); err == nil {
		t.Error("a bundle without a certificate is accepted")
	}
	// What is not known yet is waited for.
	time.AfterFunc(50*time.Millisecond, func() {
		if err := reach.SetCA(ca1); err != nil {
			t.Error(err)
		}
		set(one)
	})
	expect("at the start", "one HTTP/2.0")
	reach.Moved()

	set(closed(t), one)
	client.CloseIdleConnections()
	reach.tracker.CloseAll()
	expect("with the cluster IP dead an endpoint is used", "one HTTP/2.0")

	// The server moves, and its CA is rotated: both are trusted for a while.
	if err := reach.SetCA(append(append([]byte{}, ca1...), ca2...)); err != nil {
		t.Fatal(err)
	}
	set(one)
	reach.Moved()
	expect("before the move", "one HTTP/2.0")
	set(two)
	reach.Moved()
	expect("after the move", "two HTTP/2.0")
	if err := reach.SetCA(ca1); err != nil {
		t.Fatal(err)
	}
	if got, err := get(); err == nil {
		t.Errorf("a server with a CA that is not trusted any more answered %q", got)
	}
}

func TestMeshService(t *testing.T) {
	s := NewState(Config{Cluster: "cluster1", Namespace: "mesh-system"})
	name := desired.Name{Namespace: "mesh-system", Name: "mesh-apiserver"}
	if got := s.MeshService(name); got != nil {
		t.Errorf("before there is one: %v", got)
	}
	s.SetService(name, &desired.LocalService{
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.5")},
		Ports:      []desired.LocalPort{{Name: "metrics", Port: 9000}, {Name: "https", Port: 443}},
	})
	s.SetSlice(nil, &desired.Slice{
		Service: name, Object: "x", Ports: []desired.SlicePort{{Name: "https", Protocol: desired.TCP, Port: 8443}},
		Endpoints: []desired.Endpoint{{Addr: netip.MustParseAddr("10.1.0.1"), State: desired.NotReady}, {Addr: netip.MustParseAddr("10.1.0.2")}},
	})
	want := "[10.96.0.5:443 10.1.0.2:8443]"
	if got := fmt.Sprint(s.MeshService(name)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
