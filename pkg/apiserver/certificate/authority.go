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

// Package certificate gives the server its serving certificate, from an authority
// of its own that it keeps in a Secret, and tells clients which authority to trust.
package certificate

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

const (
	// authorityLife is how long an authority is valid; it is replaced when a third is left.
	authorityLife = 10 * 365 * 24 * time.Hour
	// leafLife is how long a serving certificate is valid; it is replaced when a third is left.
	leafLife = 90 * 24 * time.Hour
	// previousKept is how long clients are told to trust the previous authority. By
	// then every replica serves a certificate of the present one.
	previousKept = 24 * time.Hour
	// clockSkew is by how much a client's clock may be behind.
	clockSkew = 5 * time.Minute

	// keyPrevious is the entry of the Secret with the authority before this one.
	keyPrevious = "previous.crt"
)

// authority signs serving certificates. It does not change.
type authority struct {
	cert     *x509.Certificate
	certPEM  []byte
	key      crypto.Signer
	keyPEM   []byte
	previous []byte
}

// newAuthority makes an authority that replaces the previous one, if there is one.
func newAuthority(now time.Time, previous []byte) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key of the authority: %w", err)
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// The serial number tells authorities apart in a bundle.
		Subject:               pkix.Name{CommonName: "mesh-apiserver-ca", SerialNumber: fmt.Sprintf("%x", serial)},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making the certificate of the authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate of the authority: %w", err)
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the key of the authority: %w", err)
	}
	certPEM, err := certutil.EncodeCertificates(cert)
	if err != nil {
		return nil, fmt.Errorf("encoding the certificate of the authority: %w", err)
	}
	return &authority{cert: cert, certPEM: certPEM, key: key, keyPEM: keyPEM, previous: previous}, nil
}

// parseAuthority reads an authority from the entries of a Secret.
func parseAuthority(data map[string][]byte, now time.Time) (*authority, error) {
	certs, err := certutil.ParseCertsPEM(data[corev1.TLSCertKey])
	if err != nil {
		return nil, fmt.Errorf("entry %q: %w", corev1.TLSCertKey, err)
	}
	cert := certs[0]
	parsed, err := keyutil.ParsePrivateKeyPEM(data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, fmt.Errorf("entry %q: %w", corev1.TLSPrivateKeyKey, err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("entry %q: a key of type %T cannot sign", corev1.TLSPrivateKeyKey, parsed)
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !public.Equal(cert.PublicKey):
		return nil, fmt.Errorf("entries %q and %q: key and certificate do not match", corev1.TLSPrivateKeyKey, corev1.TLSCertKey)
	case !cert.IsCA:
		return nil, fmt.Errorf("entry %q: it is not the certificate of an authority", corev1.TLSCertKey)
	case now.After(cert.NotAfter):
		return nil, fmt.Errorf("entry %q: expired on %s", corev1.TLSCertKey, cert.NotAfter.Format(time.DateOnly))
	}
	certPEM, err := certutil.EncodeCertificates(cert)
	if err != nil {
		return nil, fmt.Errorf("entry %q: %w", corev1.TLSCertKey, err)
	}
	previous := data[keyPrevious]
	if len(previous) > 0 {
		if _, err := certutil.ParseCertsPEM(previous); err != nil {
			return nil, fmt.Errorf("entry %q: %w", keyPrevious, err)
		}
	}
	return &authority{cert: cert, certPEM: certPEM, key: key, keyPEM: data[corev1.TLSPrivateKeyKey], previous: previous}, nil
}

// data are the entries of the Secret that the authority is kept in.
func (a *authority) data() map[string][]byte {
	entries := map[string][]byte{corev1.TLSCertKey: a.certPEM, corev1.TLSPrivateKeyKey: a.keyPEM}
	if len(a.previous) > 0 {
		entries[keyPrevious] = a.previous
	}
	return entries
}

// due says that the authority has to be replaced.
func (a *authority) due(now time.Time) bool { return due(a.cert, now) }

// previousExpired says that the previous authority need not be trusted any more.
func (a *authority) previousExpired(now time.Time) bool {
	return len(a.previous) > 0 && now.After(a.cert.NotBefore.Add(previousKept))
}

// bundle is what clients have to trust.
func (a *authority) bundle() []byte { return append(bytes.Clone(a.certPEM), a.previous...) }

// leaf is a serving certificate. It does not change.
type leaf struct {
	cert    *x509.Certificate
	certPEM []byte
	keyPEM  []byte
	issuer  *authority
}

// due says that the certificate has to be replaced.
func (l *leaf) due(now time.Time) bool { return due(l.cert, now) }

// signedBy says whether the certificate is from the authority.
func (l *leaf) signedBy(a *authority) bool { return bytes.Equal(l.issuer.cert.Raw, a.cert.Raw) }

// issue makes a serving certificate for the names and addresses.
func (a *authority) issue(now time.Time, names []string, addresses []net.IP) (*leaf, error) {
	if len(names) == 0 {
		return nil, errors.New("a serving certificate needs a name")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the serving key: %w", err)
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(leafLife)
	if notAfter.After(a.cert.NotAfter) {
		notAfter = a.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: names[0]},
		NotBefore:    now.Add(-clockSkew),
		NotAfter:     notAfter,
		DNSNames:     names,
		IPAddresses:  addresses,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("making the serving certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading the serving certificate: %w", err)
	}
	certPEM, err := certutil.EncodeCertificates(cert)
	if err != nil {
		return nil, fmt.Errorf("encoding the serving certificate: %w", err)
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the serving key: %w", err)
	}
	return &leaf{cert: cert, certPEM: certPEM, keyPEM: keyPEM, issuer: a}, nil
}

// due says that no more than a third of the certificate's life is left.
func due(cert *x509.Certificate, now time.Time) bool {
	third := cert.NotAfter.Sub(cert.NotBefore) / 3
	return now.After(cert.NotAfter.Add(-third))
}

func serialNumber() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	return serial, nil
}
