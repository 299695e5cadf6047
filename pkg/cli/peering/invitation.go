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

package peering

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"k8s.io/apimachinery/pkg/util/validation"

	"mesh.io/clustermesh/pkg/peer"
)

// Invitation is what the administrator of one cluster hands to that of another.
type Invitation struct {
	// Invited is the name of the cluster that it is for.
	Invited string `json:"for"`
	// Expires is the end of its time.
	Expires time.Time `json:"expires"`
	// Name, ID, UID and Version are those of the cluster that invites.
	Name     string   `json:"name"`
	ID       int32    `json:"id"`
	UID      string   `json:"uid"`
	Version  string   `json:"version,omitempty"`
	PodCIDRs []string `json:"podCIDRs,omitempty"`
	// Endpoints, ServerName and CA are how its mesh API is reached; the authority is
	// pinned: no other one is believed.
	Endpoints  []string `json:"endpoints"`
	ServerName string   `json:"serverName"`
	CA         []byte   `json:"ca"`
	// Token is good for one join.
	Token string `json:"token"`
}

const (
	// linePrefix begins a line, and ends in the version of what follows.
	linePrefix  = "mesh-invite-"
	lineVersion = "1"
	// checksumSize is how many bytes of the sum the line has: it tells damage, not forgery.
	checksumSize = 6
	// maxLine bounds what is read.
	maxLine = 256 << 10
)

// Line writes an invitation as one line of letters, digits, "-", "_" and ".".
func (i Invitation) Line() (string, error) {
	content, err := json.Marshal(i)
	if err != nil {
		return "", fmt.Errorf("writing the invitation: %w", err)
	}
	var packed bytes.Buffer
	// A terminal takes lines of 4095 characters only.
	w, err := flate.NewWriter(&packed, flate.BestCompression)
	if err == nil {
		if _, err = w.Write(content); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		return "", fmt.Errorf("writing the invitation: %w", err)
	}
	body := base64.RawURLEncoding.EncodeToString(packed.Bytes())
	return linePrefix + lineVersion + "." + body + "." + checksum(body), nil
}

func checksum(body string) string {
	sum := sha256.Sum256([]byte(body))
	return base64.RawURLEncoding.EncodeToString(sum[:checksumSize])
}

// ParseLine reads an invitation. It accepts line breaks and blanks that a mail or a
// terminal has put into it. No error quotes it.
func ParseLine(line string) (Invitation, error) {
	var i Invitation
	if len(line) > maxLine {
		return i, errors.New("this is no invitation: it is too long")
	}
	line = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || r == '\'' || r == '"' {
			return -1
		}
		return r
	}, line)
	rest, ok := strings.CutPrefix(line, linePrefix)
	if !ok {
		return i, fmt.Errorf("this is no invitation: one begins with %q. Copy the whole line that \"meshctl invite\" has printed", linePrefix)
	}
	parts := strings.Split(rest, ".")
	if parts[0] != lineVersion && parts[0] != "" && len(parts) > 1 {
		return i, fmt.Errorf("the invitation is of version %.10q, and this meshctl knows version %s: use the meshctl of the same release as that of whoever invites", parts[0], lineVersion)
	}
	damaged := errors.New("the invitation is damaged: a part of it is missing or was changed on the way. Copy the whole line again")
	if len(parts) != 3 || parts[2] != checksum(parts[1]) {
		return i, damaged
	}
	packed, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return i, damaged
	}
	content, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(packed)), 1<<20))
	if err != nil {
		return i, damaged
	}
	if err := json.Unmarshal(content, &i); err != nil {
		return i, damaged
	}
	if i.Name == "" || i.Invited == "" || i.Token == "" || len(i.Endpoints) == 0 || len(certificates(i.CA)) == 0 {
		return i, damaged
	}
	if _, err := ParseEndpoints(i.Endpoints); err != nil || !i.sane() {
		return i, damaged
	}
	return i, nil
}

// sane says whether everything in an invitation is what it is taken for. It comes from
// somebody else, and is printed, and becomes part of objects.
func (i Invitation) sane() bool {
	for _, name := range []string{i.Name, i.Invited} {
		if len(validation.IsDNS1123Label(name)) > 0 || len(name) > 32 {
			return false
		}
	}
	for _, text := range []string{i.UID, i.Version} {
		if len(text) > 253 || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return false
		}
	}
	for _, prefix := range i.PodCIDRs {
		if _, err := netip.ParsePrefix(prefix); err != nil {
			return false
		}
	}
	_, err := peer.ReadToken(i.Token)
	return err == nil && i.ID >= 1 && i.ID <= 65535 && len(i.PodCIDRs) <= 64 && len(validation.IsDNS1123Subdomain(i.ServerName)) == 0
}

// Cluster is the cluster that invites, as its invitation tells.
func (i Invitation) Cluster() Cluster {
	return Cluster{Name: i.Name, ID: i.ID, UID: i.UID, Version: i.Version, PodCIDRs: i.PodCIDRs}
}

// Refuse says why a cluster cannot use an invitation now; it is empty if it can.
func (i Invitation) Refuse(name string, now time.Time) string {
	switch {
	case i.Name == name:
		return fmt.Sprintf("the invitation is from a cluster called %q, as this one is: names are unique in the mesh", name)
	case i.Invited != name:
		return fmt.Sprintf("the invitation is for a cluster called %q, and this one is %q: ask for one with --cluster-name %s", i.Invited, name, name)
	case !now.Before(i.Expires):
		return fmt.Sprintf("the invitation expired %s ago, by this machine's clock: ask for another one", now.Sub(i.Expires).Round(time.Second))
	}
	return ""
}

// TokenID is the ID of a token, by which an invitation names the one that may use it.
func TokenID(token string) (string, error) {
	c, ok := claims(token)
	if !ok || c.ID == "" {
		return "", errors.New("the token has no ID: Kubernetes 1.30 or newer is needed")
	}
	return c.ID, nil
}
