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
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress tells a person what a command is doing. On a terminal the step that is
// under way has a spinner, and is overwritten by its outcome; elsewhere each step is a
// line once it begins and a line once it ends.
type progress struct {
	w        io.Writer
	terminal bool
	now      func() time.Time
}

func newProgress(w io.Writer) *progress {
	file, ok := w.(*os.File)
	return &progress{w: w, terminal: ok && term.IsTerminal(int(file.Fd())), now: time.Now}
}

// say prints a line, over the spinner if there is one.
func (p *progress) say(format string, args ...any) {
	if p.terminal {
		format = "\r\033[K" + format
	}
	fmt.Fprintf(p.w, format+"\n", args...)
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
	fmt.Fprintf(p.w, "\r\033[K%s %s (%s)\n", mark(err), what, took(p.now().Sub(begin)))
	return err
}

// fit cuts a text to one line of the terminal, as only one line can be overwritten.
func (p *progress) fit(text string) string {
	width := 80
	if file, ok := p.w.(*os.File); ok {
		if w, _, err := term.GetSize(int(file.Fd())); err == nil && w > 10 {
			width = w
		}
	}
	if runes := []rune(text); len(runes) > width-4 {
		return string(runes[:width-5]) + "…"
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
