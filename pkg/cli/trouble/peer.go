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

package trouble

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"net/url"
	"slices"
	"strings"
	"time"

	"mesh.io/clustermesh/pkg/peer"
)

// peerOf reads what can be told of a peer's kubeconfig. The token itself is not kept.
func peerOf(secret string, kubeconfig []byte) Peer {
	p := Peer{Secret: secret}
	endpoints, err := peer.Endpoints(kubeconfig)
	if err != nil {
		p.Problem = err.Error()
		return p
	}
	for _, endpoint := range endpoints {
		if server, err := url.Parse(endpoint.Config.Host); err == nil {
			p.Hosts = append(p.Hosts, server.Hostname())
			port := server.Port()
			if port == "" {
				port = "443"
			}
			p.Ports = append(p.Ports, port)
		}
		for _, print := range fingerprints(endpoint.Config.CAData) {
			if !slices.Contains(p.CA, print) {
				p.CA = append(p.CA, print)
			}
		}
	}
	p.IssuedAt, p.Expires = lifetime(endpoints[0].Config.BearerToken)
	return p
}

// fingerprints are the SHA-256 of the certificates in a bundle, shortened for people.
func fingerprints(bundle []byte) []string {
	var prints []string
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			continue
		}
		sum := sha256.Sum256(block.Bytes)
		prints = append(prints, hex.EncodeToString(sum[:8]))
	}
	return prints
}

// lifetime reads from when to when a token is valid. It does not check the signature:
// the peer does that.
func lifetime(token string) (issued, expires time.Time) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return
	}
	content, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return
	}
	var claims struct {
		IssuedAt int64 `json:"iat"`
		Expires  int64 `json:"exp"`
	}
	if json.Unmarshal(content, &claims) != nil {
		return
	}
	if claims.IssuedAt > 0 {
		issued = time.Unix(claims.IssuedAt, 0)
	}
	if claims.Expires > 0 {
		expires = time.Unix(claims.Expires, 0)
	}
	return issued, expires
}
