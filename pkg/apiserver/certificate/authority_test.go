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

package certificate

import (
	"bytes"
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

var now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func mustMake(t *testing.T, at time.Time, previous []byte) *authority {
	t.Helper()
	a, err := newAuthority(at, previous)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAuthorityLives(t *testing.T) {
	const day = 24 * time.Hour
	old := mustMake(t, now, nil)
	a := mustMake(t, now, old.certPEM)
	for _, test := range []struct {
		name string
		at   time.Time
		due  bool
		drop bool
	}{
		{"new", now, false, false},
		{"after a day, when all serve its certificates", now.Add(25 * time.Hour), false, true},
		{"with more than a third left", now.Add(authorityLife*2/3 - day), false, true},
		{"with less than a third left", now.Add(authorityLife*2/3 + day), true, true},
	} {
		if got := a.due(test.at); got != test.due {
			t.Errorf("%s: due is %v", test.name, got)
		}
		if got := a.previousExpired(test.at); got != test.drop {
			t.Errorf("%s: the previous one is to be dropped: %v", test.name, got)
		}
	}
	if old.previousExpired(now.Add(30 * day)) {
		t.Error("without a previous one there is none to drop")
	}
	if want := append(bytes.Clone(a.certPEM), old.certPEM...); !bytes.Equal(a.bundle(), want) {
		t.Errorf("the bundle is %s", a.bundle())
	}
}

func TestIssue(t *testing.T) {
	a := mustMake(t, now, nil)
	l, err := a.issue(now, []string{"mesh-apiserver.mesh-system.svc", "localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	for _, name := range []string{"mesh-apiserver.mesh-system.svc", "localhost", "127.0.0.1"} {
		if _, err := l.cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: now}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := l.cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: "example.com", CurrentTime: now}); err == nil {
		t.Error("the certificate is valid for a name that it was not made for")
	}
	if !l.signedBy(a) || l.signedBy(mustMake(t, now, nil)) {
		t.Error("the certificate does not know its authority")
	}
	if l.due(now.Add(leafLife/2)) || !l.due(now.Add(leafLife*3/4)) {
		t.Error("the certificate is not renewed when a third of its life is left")
	}
	late, err := a.issue(a.cert.NotAfter.Add(-time.Hour), []string{"localhost"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if late.cert.NotAfter.After(a.cert.NotAfter) {
		t.Error("the certificate outlives its authority")
	}
}

func TestParseAuthority(t *testing.T) {
	old, a, other := mustMake(t, now, nil), (*authority)(nil), mustMake(t, now, nil)
	a = mustMake(t, now, old.certPEM)
	served, err := a.issue(now, []string{"localhost"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		change func(map[string][]byte)
		at     time.Time
		want   string
	}{
		{"what was kept", func(map[string][]byte) {}, now, ""},
		{"no certificate", func(d map[string][]byte) { delete(d, corev1.TLSCertKey) }, now, `entry "tls.crt"`},
		{"no key", func(d map[string][]byte) { d[corev1.TLSPrivateKeyKey] = []byte("x") }, now, `entry "tls.key"`},
		{"another's key", func(d map[string][]byte) { d[corev1.TLSPrivateKeyKey] = other.keyPEM }, now, "do not match"},
		{"not an authority", func(d map[string][]byte) {
			d[corev1.TLSCertKey], d[corev1.TLSPrivateKeyKey] = served.certPEM, served.keyPEM
		}, now, "not the certificate of an authority"},
		{"expired", func(map[string][]byte) {}, now.Add(2 * authorityLife), "expired on"},
		{"a previous one that is none", func(d map[string][]byte) { d[keyPrevious] = []byte("x") }, now, `entry "previous.crt"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			data := a.data()
			test.change(data)
			got, err := parseAuthority(data, test.at)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("error is %v, want it to contain %q", err, test.want)
				}
				return
			}
			if err != nil || !bytes.Equal(got.bundle(), a.bundle()) {
				t.Errorf("error %v, authority %v", err, got)
			}
		})
	}
}
