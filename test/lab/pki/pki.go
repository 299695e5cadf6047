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

// Package pki makes the certificates, keys and kubeconfigs of a cluster.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// lifetime is longer than any lab.
const lifetime = 365 * 24 * time.Hour

// Authority is a certificate authority.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// PEM is the authority's certificate.
	PEM []byte
}

// Leaf describes a certificate to be made.
type Leaf struct {
	Name   string
	Groups []string
	// Addresses and DNSNames make it a serving certificate; every one is a client's too.
	Addresses []netip.Addr
	DNSNames  []string
}

// Pair is a certificate with its key, as PEM.
type Pair struct {
	Cert, Key []byte
}

// NewAuthority makes an authority and writes <name>.crt and <name>.key.
func NewAuthority(dir, name string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making authority %q: %w", name, err)
	}
	template, err := template(name)
	if err != nil {
		return nil, err
	}
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage |= x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("making authority %q: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making authority %q: %w", name, err)
	}
	pair, err := encode(der, key)
	if err != nil {
		return nil, err
	}
	if err := pair.Write(dir, name); err != nil {
		return nil, err
	}
	return &Authority{cert: cert, key: key, PEM: pair.Cert}, nil
}

// Issue makes a certificate.
func (a *Authority) Issue(leaf Leaf) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("issuing certificate for %q: %w", leaf.Name, err)
	}
	template, err := template(leaf.Name)
	if err != nil {
		return Pair{}, err
	}
	template.Subject.Organization = leaf.Groups
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(leaf.Addresses)+len(leaf.DNSNames) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	template.DNSNames = leaf.DNSNames
	for _, address := range leaf.Addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(address.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return Pair{}, fmt.Errorf("issuing certificate for %q: %w", leaf.Name, err)
	}
	return encode(der, key)
}

// IssueTo makes a certificate and writes <file>.crt and <file>.key.
func (a *Authority) IssueTo(dir, file string, leaf Leaf) error {
	pair, err := a.Issue(leaf)
	if err != nil {
		return err
	}
	return pair.Write(dir, file)
}

// Write writes <name>.crt and <name>.key.
func (p Pair) Write(dir, name string) error {
	if err := os.WriteFile(filepath.Join(dir, name+".crt"), p.Cert, 0o644); err != nil {
		return fmt.Errorf("writing certificate: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".key"), p.Key, 0o600); err != nil {
		return fmt.Errorf("writing key: %w", err)
	}
	return nil
}

// SigningKey writes the pair of keys that signs service account tokens: <name>.key and <name>.pub.
func SigningKey(dir, name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making signing key: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("making signing key: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("making signing key: %w", err)
	}
	files := map[string]*pem.Block{
		name + ".key": {Type: "PRIVATE KEY", Bytes: private},
		name + ".pub": {Type: "PUBLIC KEY", Bytes: public},
	}
	for file, block := range files {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			return fmt.Errorf("writing signing key: %w", err)
		}
	}
	return nil
}

// Context is one entry of a kubeconfig.
type Context struct {
	Name   string
	Server string
	CA     []byte
	User   Pair
}

// Kubeconfig writes a kubeconfig with everything inline. The first context is the current one.
func Kubeconfig(contexts ...Context) []byte {
	var clusters, users, names strings.Builder
	b64 := base64.StdEncoding.EncodeToString
	for _, c := range contexts {
		fmt.Fprintf(&clusters, "- name: %s\n  cluster:\n    server: %s\n    certificate-authority-data: %s\n", c.Name, c.Server, b64(c.CA))
		fmt.Fprintf(&users, "- name: %s\n  user:\n    client-certificate-data: %s\n    client-key-data: %s\n", c.Name, b64(c.User.Cert), b64(c.User.Key))
		fmt.Fprintf(&names, "- name: %s\n  context:\n    cluster: %s\n    user: %s\n", c.Name, c.Name, c.Name)
	}
	return []byte("apiVersion: v1\nkind: Config\ncurrent-context: " + contexts[0].Name +
		"\nclusters:\n" + clusters.String() + "users:\n" + users.String() + "contexts:\n" + names.String())
}

func template(name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("making serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		// Clocks that differ a little are not the lab's subject.
		NotBefore: time.Now().Add(-time.Hour),
		NotAfter:  time.Now().Add(lifetime),
		KeyUsage:  x509.KeyUsageDigitalSignature,
	}, nil
}

func encode(der []byte, key *ecdsa.PrivateKey) (Pair, error) {
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, fmt.Errorf("encoding key: %w", err)
	}
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}),
	}, nil
}
