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

package peer

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	mesh "mesh.io/clustermesh/pkg/generated/clientset/versioned"
)

func TestCheckAddress(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1:32443": "", "10.0.0.1": "", "172.31.1.11:443": "", "[2001:db8::1]:443": "", "2001:db8::1": "",
		"mesh.example.com:443": "", "elb-1.eu-west-1.elb.amazonaws.com": "", "node7": "", "Mesh.Example.COM.": "", "64:ff9b::c000:201": "",
		"10-0-0-1.nip.io": "", // what it leads to shows when it is used

		"127.0.0.1:6443": "loopback", "127.8.8.8": "loopback", "[::1]:443": "loopback", "::ffff:127.0.0.1": "loopback", "[::ffff:7f00:1]:1": "loopback",
		"64:ff9b::7f00:1": "loopback", "0.0.0.0": "no machine", "0.1.2.3": "no machine", "::": "no machine",
		"169.254.169.254": "link-local", "[fe80::1]:443": "link-local", "fe80::1%eth0": "one link", "64:ff9b::a9fe:a9fe": "link-local",
		"224.0.0.1": "multicast", "ff02::1": "multicast", "255.255.255.255": "multicast",
		"fd00:ec2::254": "metadata", "100.100.100.200:80": "metadata",
		"localhost:443": "another machine", "LOCALHOST": "another machine", "a.localhost": "another machine", "localhost.localdomain": "another machine",
		"metadata.google.internal": "another machine",
		"127.1":                    "unusual form", "2130706433": "unusual form", "0x7f000001": "unusual form", "0x7f.0.0.1": "unusual form", "0177.0.0.1:443": "unusual form",
		"mesh.example.com:0": "no port", "mesh.example.com:65536": "no port", "mesh.example.com:https": "no port", "192.0.2.1:-1": "no port",
		"": "neither", "user@mesh.example.com": "neither", "mesh.example.com/path": "neither", "a b": "neither", "a\x1b[2Jb": "neither", "_x": "neither",
		"-x.example.com": "neither", strings.Repeat("x", 300): "neither",
	} {
		err := CheckAddress(address)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.40q: %v, want %q", address, err, want)
		}
		if err != nil && (len(err.Error()) > 300 || strings.Contains(err.Error(), "\x1b")) {
			t.Errorf("%.40q: the error is not for a terminal: %q", address, err)
		}
	}
}

func base64Of(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

func TestCheckInvited(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	with := func(server string) []byte {
		return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Config","clusters":[{"name":"c","cluster":{"server":%q,"certificate-authority-data":%q}}],
			"users":[{"name":"u","user":{"token":"t"}}],"contexts":[{"name":"x","context":{"cluster":"c","user":"u"}}]}`, server, base64Of(ca))
	}
	for address, want := range map[string]string{
		"https://192.0.2.1:32443": "", "https://mesh.example.com": "", "https://[2001:db8::1]:443/": "",
		"http://192.0.2.1": "https", "https://": "https", "file:///etc/passwd": "https", "https:192.0.2.1": "https",
		"https://root:secret@192.0.2.1": "no user", "https://root@192.0.2.1": "no user",
		"https://192.0.2.1/api": "no more", "https://192.0.2.1?x=y": "no more", "https://192.0.2.1#x": "no more",
		"https://127.0.0.1:6443": "loopback", "https://[::1]": "loopback", "https://localhost": "another machine",
		"https://169.254.169.254/": "link-local", "https://[fe80::1%25eth0]:443": "one link", "https://192.0.2.1:0": "no port", "https://2130706433": "unusual form",
	} {
		err := CheckInvited(with(address), false)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error quotes the password: %v", address, err)
		}
	}
	if err := CheckInvited(with("https://127.0.0.1:6443"), true); err != nil {
		t.Errorf("a local one that is allowed: %v", err)
	}
	if err := CheckInvited(with("https://root@127.0.0.1:6443"), true); err == nil {
		t.Error("what else is wrong is allowed, too")
	}
}

// TestGuard: a name can lead to what its address would not be let in for.
func TestGuard(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	port := netip.MustParseAddrPort(server.Listener.Addr().String()).Port()
	for _, host := range []string{"localhost", "127.0.0.1"} {
		for _, guarded := range []bool{false, true} {
			endpoint := Endpoint{Config: &rest.Config{Host: fmt.Sprintf("https://%s:%d", host, port), TLSClientConfig: rest.TLSClientConfig{CAData: ca, ServerName: "example.com"}}}
			if guarded {
				Guard([]Endpoint{endpoint})
			}
			_, err := mesh.NewForConfigOrDie(endpoint.Config).MeshV1alpha1().MeshClusters().List(t.Context(), metav1.ListOptions{})
			if refused := strings.Contains(fmt.Sprint(err), "is a loopback address"); refused != guarded {
				t.Errorf("%s, guarded %t: %v", host, guarded, err)
			}
		}
	}
}

func TestPeerLeadsNowhereElse(t *testing.T) {
	asked := 0
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer elsewhere.Close()
	server := httptest.NewTLSServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer server.Close()
	kubeconfig := fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Config","clusters":[{"name":"c","cluster":{"server":%q,"certificate-authority-data":%q}}],
		"users":[{"name":"u","user":{"token":"t"}}],"contexts":[{"name":"x","context":{"cluster":"c","user":"u"}}]}`, server.URL,
		base64Of(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))))
	endpoints, err := Endpoints(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	_, err = mesh.NewForConfigOrDie(endpoints[0].Config).MeshV1alpha1().MeshClusters().List(t.Context(), metav1.ListOptions{})
	if asked > 0 || err == nil || !strings.Contains(err.Error(), "not followed") {
		t.Errorf("a redirection is followed %d times: %v", asked, err)
	}
}

func TestBounded(t *testing.T) {
	sent := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for range 64 {
			n, err := w.Write([]byte(strings.Repeat(" ", 1<<20)))
			if sent += n; err != nil {
				return
			}
		}
	}))
	defer server.Close()
	client := mesh.NewForConfigOrDie(Bounded(&rest.Config{Host: server.URL}))
	_, err := client.MeshV1alpha1().MeshClusters().List(t.Context(), metav1.ListOptions{})
	if err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
		t.Errorf("it is answered with %v", err)
	}
	server.Close() // what it has sent is known
	if sent > 32<<20 {
		t.Errorf("%d bytes were sent", sent)
	}
}

func TestLongToken(t *testing.T) {
	claims := base64Of(`{"sub":"` + strings.Repeat("x", maxToken) + `"}`)
	if _, err := ReadToken("e30." + strings.TrimRight(claims, "=") + ".c2ln"); err == nil || len(err.Error()) > 200 {
		t.Errorf("a long token: %.300v", err)
	}
}
