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
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"mesh.io/clustermesh/pkg/layout"
)

// progress tells a person what a command is doing. On a terminal the step that is
// under way has a spinner, and is overwritten by its outcome; elsewhere each step is a
// line once it begins and a line once it ends.
type progress struct {
	w        io.Writer
	terminal bool
	// spinning is true while the spinner of a step is on the terminal.
	spinning bool
	width    int // of the terminal
	now      func() time.Time
}

func newProgress(w io.Writer) *progress {
	width := layout.Width(w)
	return &progress{w: w, terminal: width > 0, width: width, now: time.Now}
}

// say prints lines, over the spinner if there is one. What does not fit goes on below itself.
func (p *progress) say(format string, args ...any) {
	for line := range strings.SplitSeq(fmt.Sprintf(format, args...), "\n") {
		if p.spinning {
			fmt.Fprint(p.w, "\r\033[K")
		}
		text := strings.TrimLeft(line, " ")
		head := line[:len(line)-len(text)]
		for _, mark := range []string{"- ", "✘ ", "! ", "→ "} {
			if rest, ok := strings.CutPrefix(text, mark); ok {
				head, text = head+mark, rest
			}
		}
		indent := strings.Repeat(" ", utf8.RuneCountInString(head))
		if strings.TrimSpace(head) == "" {
			indent += "  "
		}
		fmt.Fprint(p.w, layout.Text(p.width, head, indent, text))
	}
}

// frames are those of the spinner, and marks the outcomes.
var frames = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}

// step runs one step. what says what is being done: "Installing the mesh API server".
func (p *progress) step(what string, run func(note func(format string, args ...any)) error) error {
	begin := p.now()
	if !p.terminal {
		p.say("... %s", what)
		last := ""
		err := run(func(format string, args ...any) {
			if note := fmt.Sprintf(format, args...); note != last {
				last = note
				p.say("    %s", note)
			}
		})
		p.say("%s %s (%s)", mark(err), what, took(p.now().Sub(begin)))
		return err
	}
	var mu sync.Mutex
	detail := ""
	p.spinning = true
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for i := 0; ; i++ {
			mu.Lock()
			text := what
			if detail != "" {
				text += ": " + detail
			}
			mu.Unlock()
			fmt.Fprintf(p.w, "\r\033[K%s %s", frames[i%len(frames)], p.fit(text))
			select {
			case <-stop:
				return
			case <-ticker.C:
			}
		}
	}()
	err := run(func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		detail = fmt.Sprintf(format, args...)
	})
	close(stop)
	<-stopped
	p.spinning = false
	fmt.Fprintf(p.w, "\r\033[K%s %s (%s)\n", mark(err), what, took(p.now().Sub(begin)))
	return err
}

// fit cuts a text to one line of the terminal, as only one line can be overwritten.
func (p *progress) fit(text string) string {
	if runes := []rune(text); len(runes) > p.width-4 {
		return string(runes[:p.width-5]) + "…"
	}
	return text
}

func mark(err error) string {
	if err != nil {
		return "✘"
	}
	return "✔"
}

func took(d time.Duration) string { return d.Round(100 * time.Millisecond).String() }
