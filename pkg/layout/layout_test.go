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

package layout

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestText(t *testing.T) {
	for name, c := range map[string]struct {
		width               int
		first, indent, text string
		want                string
	}{
		"a pipe":               {0, "do: ", "    ", "one two three: meshctl status", "do: one two three: meshctl status\n"},
		"it fits":              {30, "- ", "  ", "one two: meshctl status", "- one two: meshctl status\n"},
		"words":                {16, "- ", "  ", "one two three four", "- one two three\n  four\n"},
		"a long name":          {10, "- ", "  ", "see name-of-more", "- see\n  name-of-\n  more\n"},
		"two names":            {12, "", "", "namespace1/service1", "namespace1/\nservice1\n"},
		"nowhere to break":     {6, "", " ", "abcdefghijkl", "abcdef\n ghijk\n l\n"},
		"no room beside":       {14, "a long head: ", "  ", "abcdefgh ij", "a long head:\n  abcdefgh ij\n"},
		"a command":            {30, "→ ", "  ", "kubectl --context c1 patch meshcluster c2 -p '{\"a\": 1}'", "→ kubectl --context c1 patch \\\n  meshcluster c2 -p '{\"a\": 1}'\n"},
		"a command in a text":  {40, "", "  ", "Look at its log: kubectl -n mesh-system logs mesh-agent-a", "Look at its log:\n  kubectl -n mesh-system logs \\\n  mesh-agent-a\n"},
		"a command beside it":  {40, "", "  ", "Look at it: kubectl get x; it is there for some reason", "Look at it: kubectl get x\n  it is there for some reason\n"},
		"a sentence behind it": {40, "", "  ", "See to the peer, or: meshctl disconnect --peer c2. It stays.", "See to the peer, or:\n  meshctl disconnect --peer c2\n  It stays.\n"},
	} {
		got := Text(c.width, c.first, c.indent, c.text)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		for line := range strings.Lines(got) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); c.width > 0 && n > c.width {
				t.Errorf("%s: %d columns: %s", name, n, line)
			}
		}
	}
}

func TestTable(t *testing.T) {
	headers, rows := []string{"NAME", "STATE", "NODES"}, [][]string{{"cluster1", "healthy", "2/2"}, {"c2", "", "0/1"}}
	for width, want := range map[int]string{
		0:  "NAME       STATE     NODES\ncluster1   healthy   2/2\nc2                   0/1\n",
		24: "NAME      STATE    NODES\ncluster1  healthy  2/2\nc2                 0/1\n",
		22: "NAME     STATE   NODES\ncluster1 healthy 2/2\nc2               0/1\n",
		20: "NAME\n  STATE     NODES\ncluster1\n  healthy   2/2\nc2\n            0/1\n",
		14: "NAME:\n    cluster1\nSTATE: healthy\nNODES: 2/2\n\nNAME:  c2\nNODES: 0/1\n",
	} {
		if diff := cmp.Diff(want, Table(width, headers, rows)); diff != "" {
			t.Errorf("%d columns (-want +got):\n%s", width, diff)
		}
	}
	if diff := cmp.Diff("Store\n    embedded\n    etcd\n", Table(12, nil, [][]string{{"Store", "embedded etcd"}})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
