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

package apiserver

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// mesh runs mesh-apiserver with arguments.
func mesh(t *testing.T, input []byte, args ...string) (output []byte, messages string, err error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	command := NewCommand(t.Context())
	command.SilenceErrors = true
	command.SetArgs(args)
	command.SetIn(bytes.NewReader(input))
	command.SetOut(&stdout)
	command.SetErr(&stderr)
	err = command.Execute()
	return stdout.Bytes(), stderr.String(), err
}

func TestSnapshotCommands(t *testing.T) {
	s := openStore(t, shortDir(t))
	epoch := s.epoch()
	s.put("/registry/mesh.io/globalservices/song/userlist", "early")
	piped, messages, err := mesh(t, nil, "snapshot", "save", "-", "--data-dir="+s.dir)
	if err != nil || !strings.Contains(messages, "Saved a snapshot of ") {
		t.Fatalf("saving: %v, %q", err, messages)
	}
	file := filepath.Join(t.TempDir(), "backup.db")
	if output, _, err := mesh(t, nil, "snapshot", "save", file, "--etcd-servers=unix:///none.sock,"+s.server.Endpoints()[0]); err != nil || len(output) > 0 {
		t.Fatalf("saving to a file: %v, %q", err, output)
	}
	if _, _, err := mesh(t, piped, "snapshot", "restore", "-", "--data-dir="+s.dir); err == nil || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("restoring a store in use: %v", err)
	}
	s.put("/registry/mesh.io/globalservices/song/userlist", "late")
	s.stop()

	for _, from := range []string{"-", file} {
		output, messages, err := mesh(t, piped, "snapshot", "restore", from, "--data-dir="+s.dir)
		if err != nil || len(output) > 0 || !strings.Contains(messages, "is kept in \""+s.dir) {
			t.Fatalf("restoring from %s: %v, %q, %q", from, err, output, messages)
		}
		restored := openStore(t, s.dir)
		got, err := restored.client.Get(t.Context(), "/registry/mesh.io/globalservices/song/userlist")
		if err != nil || string(got.Kvs[0].Value) != "early" {
			t.Errorf("stored is %v (%v)", got, err)
		}
		if again := restored.epoch(); again == epoch {
			t.Errorf("the epoch is still %q", again)
		} else {
			epoch = again
		}
		if _, _, err := mesh(t, nil, "snapshot", "restored", "--etcd-servers="+restored.server.Endpoints()[0]); err != nil {
			t.Error(err)
		}
		if again := restored.epoch(); again == epoch {
			t.Errorf("said to be restored, the epoch is still %q", again)
		}
		restored.stop()
	}
}

func TestSnapshotCommandErrors(t *testing.T) {
	empty := openStore(t, shortDir(t))
	defer empty.stop()
	endpoint := empty.server.Endpoints()[0]
	nowhere := filepath.Join(t.TempDir(), "backup.db")
	for name, test := range map[string]struct{ args, want string }{
		"save, to nowhere":                  {"save", "accepts 1 arg"},
		"save, of two stores":               {"save - --data-dir=/d --etcd-servers=http://a", "exclude each other"},
		"save, with half a pair":            {"save - --etcd-servers=http://a --etcd-certfile=c", "need each other"},
		"save, with no such file":           {"save - --etcd-servers=https://a --etcd-cafile=/none", "reading the certificates for etcd"},
		"save, where no server runs":        {"save - --data-dir=/none", `no server runs on data directory "/none"`},
		"save, of another's etcd":           {"save " + nowhere + " --data-dir=" + empty.dir, "no mesh-apiserver has used it"},
		"restore, to nowhere":               {"restore -", "--data-dir is needed"},
		"restore, of no file":               {"restore /none --data-dir=" + shortDir(t), "no such file"},
		"restore, to an external etcd":      {"restore - --etcd-servers=http://a", "unknown flag"},
		"restored, an embedded etcd":        {"restored", "restored by \"snapshot restore\""},
		"restored, another's etcd":          {"restored --etcd-servers=" + endpoint, "holds nothing of the mesh"},
		"restored, with more than it takes": {"restored backup.db --etcd-servers=" + endpoint, "unknown command"},
		"something else":                    {"undo", "unknown command"},
	} {
		t.Run(name, func(t *testing.T) {
			output, _, err := mesh(t, nil, append([]string{"snapshot"}, strings.Fields(test.args)...)...)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error is %v, want it to contain %q", err, test.want)
			}
			if len(output) > 0 {
				t.Errorf("printed %q", output)
			}
		})
	}
	if _, err := os.Stat(nowhere); err == nil {
		t.Error("a snapshot was written")
	}
}

func TestSnapshotHelp(t *testing.T) {
	for args, want := range map[string][]string{
		"--help":                  {"mesh-apiserver snapshot --help", "--secure-port"},
		"snapshot --help":         {"save", "restore", "restored"},
		"snapshot save --help":    {"--data-dir", "--etcd-servers", "kubectl -n mesh-system exec"},
		"snapshot restore --help": {"--data-dir", "kept"},
	} {
		output, _, err := mesh(t, nil, strings.Fields(args)...)
		if err != nil {
			t.Errorf("%s: %v", args, err)
		}
		for _, want := range want {
			if !strings.Contains(string(output), want) {
				t.Errorf("%s prints no %q:\n%s", args, want, output)
			}
		}
		if args != "--help" && strings.Contains(string(output), "--secure-port") {
			t.Errorf("%s prints the server's flags", args)
		}
	}
}
