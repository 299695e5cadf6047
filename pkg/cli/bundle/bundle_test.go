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

package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const token = "eyJhbGciOiJSUzI1NiJ9.eyJpYXQiOjE3MDAwMDAwMDB9.c2lnbmF0dXJlLW9mLWl0"

const key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg\n-----END PRIVATE KEY-----\n"

const kubeconfig = `{"apiVersion":"v1","kind":"Config","current-context":"a",
"clusters":[{"name":"a","cluster":{"server":"https://10.0.0.1:32443"}}],
"users":[{"name":"u","user":{"token":"an-opaque-token-of-a-peer"}}],"contexts":[{"name":"a","context":{"cluster":"a","user":"u"}}]}`

func TestNothingOfASecretStays(t *testing.T) {
	secret := &corev1.Secret{Data: map[string][]byte{"tls.key": []byte(key), "kubeconfig": []byte(kubeconfig), "word": []byte("correct horse battery")}}
	r := &Redactor{}
	r.Learn(secret)
	for name, text := range map[string]string{
		"a value":           "the word is correct horse battery, is it",
		"a value in base64": `"word": "` + base64.StdEncoding.EncodeToString([]byte("correct horse battery")) + `"`,
		"a token within":    "dialing with an-opaque-token-of-a-peer",
		"a key":             "read " + key,
		"a key in JSON":     `{"key":"` + strings.ReplaceAll(key, "\n", `\n`) + `"}`,
		"a kubeconfig":      kubeconfig,
	} {
		got := string(r.Redact([]byte(text)))
		for _, bad := range []string{"horse", "Y29ycmVjdC", "opaque", "MIGHAg"} {
			if strings.Contains(got, bad) {
				t.Errorf("%s: %s", name, got)
			}
		}
	}
}

func TestWhatLooksLikeASecretIsTakenOut(t *testing.T) {
	r := &Redactor{} // knows none
	for _, text := range []string{
		token, "Authorization: Bearer " + token, "authorization: bearer 0123456789abcdef0123", key, strings.ReplaceAll(key, "\n", `\n`),
		base64.StdEncoding.EncodeToString([]byte(key)), base64.StdEncoding.EncodeToString([]byte(strings.ReplaceAll(key, "PRIVATE", "RSA PRIVATE"))),
		base64.StdEncoding.EncodeToString([]byte(strings.ReplaceAll(key, "PRIVATE", "EC PRIVATE"))), "    token: 0123456789abcdef0123",
	} {
		got := string(r.Redact([]byte("before " + text + " after")))
		if !strings.Contains(got, redacted) || len(got) > len("before  after")+len("authorization: bearer ")+len(redacted) {
			t.Errorf("%q becomes %q", text, got)
		}
	}
	for _, text := range []string{
		"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUI=", "no bearer of news", "10.1.0.4:8181", `"tokenExpires": "soon"`,
	} {
		if got := string(r.Redact([]byte(text))); got != text {
			t.Errorf("%q, which is no secret, becomes %q", text, got)
		}
	}
}

func TestASecretIsOutlined(t *testing.T) {
	secret := &corev1.Secret{Data: map[string][]byte{"kubeconfig": []byte(kubeconfig), "word": []byte("horse")}}
	got := outlineOf(secret)
	if got.Sizes["word"] != 5 || len(got.Kubeconfigs["kubeconfig"]) != 1 || got.Kubeconfigs["kubeconfig"][0] != "a => https://10.0.0.1:32443" {
		t.Errorf("the outline is %+v", got)
	}
}

func TestTheEndOfALogIsKept(t *testing.T) {
	text := strings.Repeat("an old line\n", 1000) + "the last line\n"
	content, cut, err := tail(strings.NewReader(text), 30)
	if err != nil || !cut || string(content) != "an old line\nthe last line\n" {
		t.Errorf("it is %q, cut %t, %v", content, cut, err)
	}
	if content, cut, err := tail(strings.NewReader("short"), 30); string(content) != "short" || cut || err != nil {
		t.Errorf("a short one is %q, cut %t, %v", content, cut, err)
	}
}

func TestArchive(t *testing.T) {
	r := &Redactor{}
	r.add([]byte("a secret value"))
	var buffer bytes.Buffer
	a := newArchive(&buffer, "root", r, time.Unix(0, 0))
	a.add("logs/x.log", []byte("it is a secret value"), true)
	a.missing("more", errors.New("a secret value is in the way"))
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	zipped, err := gzip.NewReader(&buffer)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for reader := tar.NewReader(zipped); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, _ := io.ReadAll(reader)
		files[header.Name] = string(content)
		if strings.Contains(string(content), "a secret value") || header.Mode != 0o600 {
			t.Errorf("%s has mode %o: %s", header.Name, header.Mode, content)
		}
	}
	if files["root/logs/x.log"] != "it is "+redacted || !strings.Contains(files["root/manifest.json"], `"cut": true`) {
		t.Errorf("the archive has %v", files)
	}
}

func TestTheFileIsItsOwners(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.tar.gz")
	file, err := create(path)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info, err)
	}
	if _, err := create(path); err == nil {
		t.Error("a file that is there is written over")
	}
}
