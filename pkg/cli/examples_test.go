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

package cli

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

func newTestCommand() *cobra.Command {
	return NewCommand(Streams{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard})
}

// TestEveryCommandHasExamplesThatParse takes the examples that help shows as command
// lines: the command is there, and takes these flags and arguments.
func TestEveryCommandHasExamplesThatParse(t *testing.T) {
	var visit func(c *cobra.Command)
	lines := 0
	visit = func(c *cobra.Command) {
		if c.Runnable() && c.HasParent() && c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for _, line := range commandLines(c.Example) {
			lines++
			if problem := parseLine(line); problem != "" {
				t.Errorf("an example of %s does not work: %q: %s", c.CommandPath(), line, problem)
			}
		}
		for _, child := range c.Commands() {
			visit(child)
		}
	}
	visit(newTestCommand())
	if lines < 5 {
		t.Fatalf("only %d lines were found", lines)
	}
}

// TestExamplesAreReallyParsed makes sure that the test above finds what is wrong.
func TestExamplesAreReallyParsed(t *testing.T) {
	for line, wrong := range map[string]bool{
		"meshctl version --context cluster1 -o json":                    false,
		"kubectl mesh version":                                          false,
		"meshctl version --client | cat":                                false,
		"meshctl version 'an argument'":                                 true,
		"meshctl version --no-such-flag":                                true,
		"meshctl version -o xml":                                        true,
		"meshctl no-such-command":                                       true,
		"meshctl connectivity no-such-command":                          true,
		"meshctl connectivity test --timeout soon":                      true,
		"meshctl troubleshoot --contexts cluster1,cluster2   # compare": false,
	} {
		found := commandLines(line)
		if len(found) != 1 {
			t.Fatalf("%q has %d command lines", line, len(found))
		}
		if problem := parseLine(found[0]); (problem != "") != wrong {
			t.Errorf("%q: %q", line, problem)
		}
	}
}

// commandLines are those of meshctl in a text, joined where they go on in the next one.
func commandLines(text string) []string {
	var lines []string
	for line := range strings.SplitSeq(strings.ReplaceAll(text, "\\\n", " "), "\n") {
		line = strings.TrimPrefix(strings.TrimSpace(line), "$ ")
		for _, program := range []string{"meshctl ", "kubectl mesh "} {
			if strings.HasPrefix(line, program) {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// words splits as a shell does, up to where another command, a file or a comment begins.
func words(line string) []string {
	var (
		found []string
		word  strings.Builder
		in    bool
		quote rune
	)
	end := func() {
		if in {
			found = append(found, word.String())
			word.Reset()
			in = false
		}
	}
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, in = r, true
		case r == ' ' || r == '\t':
			end()
		case strings.ContainsRune("|;&<>", r), r == '#' && !in:
			end()
			return found
		default:
			word.WriteRune(r)
			in = true
		}
	}
	end()
	return found
}

func parseLine(line string) (problem string) {
	args := words(line)
	if args[0] == "kubectl" {
		args = args[1:]
	}
	root := newTestCommand()
	root.InitDefaultCompletionCmd(args[1:]...)
	c, rest, err := root.Find(args[1:])
	if err != nil {
		return err.Error()
	}
	if err := c.ParseFlags(rest); err != nil {
		return err.Error()
	}
	if c.HasSubCommands() && len(c.Flags().Args()) > 0 {
		return "there is no command " + c.Flags().Arg(0)
	}
	if !c.Runnable() {
		return "the command does nothing by itself"
	}
	for _, check := range []func() error{
		func() error { return c.ValidateArgs(c.Flags().Args()) }, c.ValidateRequiredFlags, c.ValidateFlagGroups,
	} {
		if err := check(); err != nil {
			return err.Error()
		}
	}
	return ""
}

// TestTutorial checks the command lines of the tutorial as it does those of help, and
// that the tutorial says the same in both languages.
func TestTutorial(t *testing.T) {
	blocks := map[string][]string{}
	for _, name := range []string{"tutorial.md", "tutorial.ko.md"} {
		content, err := os.ReadFile(filepath.Join("..", "..", "docs", name))
		if err != nil {
			t.Fatal(err)
		}
		for i, part := range strings.Split(string(content), "```") {
			if i%2 == 1 {
				blocks[name] = append(blocks[name], part)
			}
		}
		for _, block := range blocks[name] {
			for _, line := range commandLines(block) {
				if problem := parseLine(line); problem != "" {
					t.Errorf("a command of %s does not work: %q: %s", name, line, problem)
				}
			}
		}
	}
	if diff := cmp.Diff(blocks["tutorial.md"], blocks["tutorial.ko.md"]); diff != "" {
		t.Errorf("the commands differ (-tutorial.md +tutorial.ko.md):\n%s", diff)
	}
}

// TestUnknownCommands are named, in every group, with those that may have been meant.
func TestUnknownCommands(t *testing.T) {
	run := func(line string) (code int, out, errs string) {
		var o, e strings.Builder
		code = Run(t.Context(), append([]string{"meshctl"}, strings.Fields(line)...), Streams{In: strings.NewReader(""), Out: &o, Err: &e})
		return code, o.String(), e.String()
	}
	groups := []string{""}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		for _, child := range c.Commands() {
			if child.HasSubCommands() {
				groups = append(groups, strings.TrimPrefix(child.CommandPath(), "meshctl "))
			}
			visit(child)
		}
	}
	root := newTestCommand()
	root.InitDefaultCompletionCmd()
	visit(root)
	if len(groups) < 4 {
		t.Fatalf("the groups are only %q", groups)
	}
	for _, group := range groups {
		for _, before := range []string{"", "--context=x ", "--kubeconfig y "} {
			code, out, errs := run(before + group + " nonsense")
			if code != ExitUsage || out != "" || !strings.Contains(errs, `has no command "nonsense"`) {
				t.Errorf("%q nonsense ends with %d:\n%s%s", before+group, code, out, errs)
			}
		}
		for _, line := range []string{group, group + " --help"} {
			if code, out, _ := run(line); code != ExitOK || !strings.Contains(out, "Usage:") {
				t.Errorf("%q ends with %d:\n%s", line, code, out)
			}
		}
		if code, _, errs := run(group + " --nonsense"); code != ExitUsage || !strings.Contains(errs, "unknown flag") {
			t.Errorf("%q --nonsense ends with %d:\n%s", group, code, errs)
		}
	}
	for line, want := range map[string]string{"stats": "did you mean status?", "service lst": "did you mean get, list?", "service drian x": "did you mean drain?"} {
		if _, _, errs := run(line); !strings.Contains(errs, want) {
			t.Errorf("%q says %s", line, errs)
		}
	}
	if code, out, _ := run("__complete service dr"); code != ExitOK || !strings.Contains(out, "drain") {
		t.Errorf("completion ends with %d: %s", code, out)
	}
}

// TestWrongCommandLines are refused before any cluster is asked.
func TestWrongCommandLines(t *testing.T) {
	for _, line := range []string{
		"connectivity test", "connectivity test --multi-cluster x --max-nodes 0", "connectivity probe --address nowhere",
		"troubleshoot --context a --contexts a,b", "bundle --timeout 0s",
	} {
		var out, errs strings.Builder
		code := Run(t.Context(), append([]string{"meshctl"}, strings.Fields(line)...), Streams{In: strings.NewReader(""), Out: &out, Err: &errs})
		if code != ExitUsage {
			t.Errorf("%q ends with %d: %s", line, code, errs.String())
		}
	}
}
