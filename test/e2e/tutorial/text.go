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

package tutorial

import (
	"regexp"
	"strconv"
	"strings"
)

// section is one of the tutorial's numbered sections.
type section struct {
	title  string
	blocks []string // of commands, as a person pastes them into a shell
}

var heading = regexp.MustCompile(`^## (\d+)\. (.*)$`)

// parse reads the sections of the tutorial, by number.
func parse(text string) map[int]section {
	sections := map[int]section{}
	number, block, inside := 0, "", false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch found := heading.FindStringSubmatch(line); {
		case strings.HasPrefix(line, "```"):
			if inside = !inside; inside {
				block = ""
			} else if s, ok := sections[number]; ok {
				s.blocks = append(s.blocks, commands(block))
				sections[number] = s
			}
		case inside:
			block += line + "\n"
		case found != nil:
			number, _ = strconv.Atoi(found[1])
			sections[number] = section{title: found[2]}
		case strings.HasPrefix(line, "## "):
			number = 0
		}
	}
	return sections
}

// commands are what a person types of a block: where it shows a prompt, the lines that have
// one, and those in which they go on.
func commands(block string) string {
	if !strings.HasPrefix(block, "$ ") {
		return block
	}
	var typed strings.Builder
	goesOn := false
	for line := range strings.Lines(block) {
		line, prompt := strings.CutPrefix(line, "$ ")
		if prompt || goesOn {
			typed.WriteString(line)
			goesOn = strings.HasSuffix(line, "\\\n")
		}
	}
	return typed.String()
}

// asWritten does what the section says.
func (w *walk) asWritten() error {
	for i := range w.here.blocks {
		if err := w.block(i); err != nil {
			return err
		}
	}
	return nil
}

// block runs one block of the section, which has to succeed.
func (w *walk) block(i int) error {
	block := strings.TrimRight(w.here.blocks[i], "\n")
	out, err := w.quietly("set -e\n" + block)
	w.show(strings.ReplaceAll(block, "\n", "\n> "), out)
	return err
}
