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

// Package bundle collects what is needed to see from afar what is wrong with a cluster
// of the mesh, without a secret in it.
//
// Secrets are kept out by what is written, not by looking for them: of a Secret only
// names, keys and sizes are read on; no other object has one. What programs say (logs)
// is out of our hands, so every secret value that can be read is also replaced wherever
// it stands, and so is whatever looks like a token or a private key.
package bundle

import (
	"bytes"
	"encoding/base64"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// redacted stands where a secret was.
const redacted = "[REDACTED]"

// minSecret is the shortest value that is looked for: shorter ones stand everywhere.
const minSecret = 8

var patterns = []*regexp.Regexp{
	// A JSON web token, as service accounts have.
	regexp.MustCompile(`eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}`),
	// A private key in PEM, also within a JSON string, where line ends are written out.
	regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)-----END [A-Z ]*PRIVATE KEY-----`),
	// The same in base64: LS0tLS1CRUdJTi… is "-----BEGIN ", and what follows says whose key.
	regexp.MustCompile(`LS0tLS1CRUdJTi[A-Za-z0-9+/]{0,32}(?:UFJJVkFURSBLRVk|BSSVZBVEUgS0VZ|QUklWQVRFIEtFW)[A-Za-z0-9+/=]*`),
	regexp.MustCompile(`(?i)(?:authorization: *)?bearer +[A-Za-z0-9._~+/-]{16,}=*`),
	// What is given as a flag, or stands in a kubeconfig.
	regexp.MustCompile(`(?i)((?:token|password|client-key-data|secret-key) *[:=] *"?)[A-Za-z0-9._~+/=-]{16,}`),
}

// Redactor takes secrets out of what is written. The zero value knows the looks of
// secrets; Learn tells it single ones.
type Redactor struct {
	values [][]byte
	sorted bool
}

// Learn makes it know what a Secret holds: as it is, in base64, and the credentials
// within a kubeconfig.
func (r *Redactor) Learn(secret *corev1.Secret) {
	for key, value := range secret.Data {
		// An authority's certificate is published; only a key to it is a secret.
		if strings.HasSuffix(key, ".crt") || key == "namespace" {
			continue
		}
		r.add(value)
		config, err := clientcmd.Load(value)
		if err != nil {
			continue
		}
		for _, user := range config.AuthInfos {
			r.add([]byte(user.Token))
			r.add([]byte(user.Password))
			r.add(user.ClientKeyData)
		}
	}
}

func (r *Redactor) add(value []byte) {
	value = bytes.TrimSpace(value)
	if len(value) < minSecret {
		return
	}
	r.sorted = false
	forms := [][]byte{
		value, []byte(base64.StdEncoding.EncodeToString(value)),
		// As a JSON string has it.
		bytes.ReplaceAll(value, []byte("\n"), []byte(`\n`)),
	}
	for _, form := range forms {
		if !slices.ContainsFunc(r.values, func(known []byte) bool { return bytes.Equal(known, form) }) {
			r.values = append(r.values, form)
		}
	}
}

// Redact returns the text without secrets.
func (r *Redactor) Redact(text []byte) []byte {
	if !r.sorted {
		// The longest first: one may be a part of another.
		slices.SortFunc(r.values, func(a, b []byte) int { return len(b) - len(a) })
		r.sorted = true
	}
	for _, value := range r.values {
		text = bytes.ReplaceAll(text, value, []byte(redacted))
	}
	for _, pattern := range patterns {
		replacement := []byte(redacted)
		if pattern.NumSubexp() > 0 {
			replacement = []byte("${1}" + redacted)
		}
		text = pattern.ReplaceAll(text, replacement)
	}
	return text
}

// outline is what is written of a Secret.
type outline struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Type      string            `json:"type"`
	Created   string            `json:"created"`
	Labels    map[string]string `json:"labels,omitempty"`
	// Sizes are the entries' sizes in bytes.
	Sizes map[string]int `json:"sizes"`
	// Kubeconfigs are the endpoints in entries that are kubeconfigs: no user.
	Kubeconfigs map[string][]string `json:"kubeconfigs,omitempty"`
}

func outlineOf(s *corev1.Secret) outline {
	o := outline{
		Namespace: s.Namespace, Name: s.Name, Type: string(s.Type), Created: s.CreationTimestamp.UTC().String(), Labels: s.Labels,
		Sizes: map[string]int{}, Kubeconfigs: map[string][]string{},
	}
	for key, value := range s.Data {
		o.Sizes[key] = len(value)
		config, err := clientcmd.Load(value)
		if err != nil {
			continue
		}
		for name, context := range config.Contexts {
			if cluster := config.Clusters[context.Cluster]; cluster != nil {
				o.Kubeconfigs[key] = append(o.Kubeconfigs[key], name+" => "+cluster.Server)
			}
		}
		slices.Sort(o.Kubeconfigs[key])
	}
	return o
}
