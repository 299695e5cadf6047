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

// Package layout lays out what people read: tables and texts that fit their terminal.
//
// A width is a number of columns; 0 is no terminal, as in a pipe, where a row is a line
// and a text is one, too, so that other programs can search in it.
package layout

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// Width is how many columns a person sees; 0 where nobody looks, as in a pipe.
func Width(w io.Writer) int {
	if file, ok := w.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		if columns, _, err := term.GetSize(int(file.Fd())); err == nil && columns > 10 {
			return columns
		}
		return 80
	}
	return 0
}

// Table lays rows out in columns. Where they don't fit, the first cell of each row has a
// line of its own, with the others in columns below. Where that does not do either, each
// row becomes a record, with a line for each of its cells. Without headers there are two
// columns, names and what they stand for.
func Table(width int, headers []string, rows [][]string) string {
	text, fits := Columns(width, headers, rows)
	if fits {
		return text
	}
	var out strings.Builder
	if text, fits = titled(width, headers, rows); fits {
		return text
	}
	room := 0
	if len(headers) == 0 {
		for _, row := range rows {
			if n := utf8.RuneCountInString(row[0]) + 2; n <= width/2 {
				room = max(room, n)
			}
		}
		indent := strings.Repeat(" ", max(room, 4))
		for _, row := range rows {
			first := pad(row[0], room)
			if utf8.RuneCountInString(row[0]) > room-2 {
				out.WriteString(Text(width, "", "  ", row[0]))
				first = indent
			}
			out.WriteString(Text(width, first, indent, strings.Join(row[1:], " ")))
		}
		return out.String()
	}
	for _, header := range headers {
		room = max(room, utf8.RuneCountInString(header)+2)
	}
	for i, row := range rows {
		if i > 0 {
			out.WriteString("\n")
		}
		for n, cell := range row {
			if cell != "" {
				out.WriteString(Text(width, pad(headers[n]+":", room), strings.Repeat(" ", min(room, 4)), cell))
			}
		}
	}
	return out.String()
}

// titled lays rows out in columns below their first cells.
func titled(width int, headers []string, rows [][]string) (text string, fits bool) {
	if len(headers) == 0 {
		return "", false
	}
	margin := headers[0][:len(headers[0])-len(strings.TrimLeft(headers[0], " "))]
	var cells [][]string
	for _, row := range append([][]string{headers}, rows...) {
		below := append([]string{}, row[1:]...)
		if len(below) > 0 {
			below[0] = margin + "  " + below[0]
		}
		cells = append(cells, below)
	}
	text, fits = Columns(width, nil, cells)
	if !fits {
		return "", false
	}
	lines := strings.SplitAfter(text, "\n")
	var out strings.Builder
	out.WriteString(headers[0] + "\n" + lines[0])
	for i, row := range rows {
		out.WriteString(Text(width, margin, margin+"  ", strings.TrimLeft(row[0], " ")))
		if i+1 < len(lines) {
			out.WriteString(lines[i+1])
		}
	}
	return out.String(), true
}

// Columns lays rows out in columns. Where that is wider than the terminal they are set
// closer together; fits is false if that does not do.
func Columns(width int, headers []string, rows [][]string) (text string, fits bool) {
	for gap := 3; gap > 0; gap-- {
		lines := layOut(gap, headers, rows)
		widest := 0
		for _, line := range lines {
			widest = max(widest, utf8.RuneCountInString(line))
		}
		text, fits = strings.Join(lines, ""), width == 0 || widest-1 <= width
		if fits {
			return text, true
		}
	}
	return text, false
}

func layOut(gap int, headers []string, rows [][]string) []string {
	if len(headers) > 0 {
		rows = append([][]string{headers}, rows...)
	}
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	lines := make([]string, 0, len(rows))
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			if i < len(row)-1 {
				cell = pad(cell, widths[i]+gap)
			}
			line.WriteString(cell)
		}
		lines = append(lines, strings.TrimRight(line.String(), " ")+"\n")
	}
	return lines
}

func pad(text string, width int) string {
	return text + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text)))
}

// Hanging writes a text in lines that fit the width: the first after some spaces,
// those that follow 2 further in.
func Hanging(w io.Writer, width, indent int, text string) {
	fmt.Fprint(w, Text(width, strings.Repeat(" ", indent), strings.Repeat(" ", indent+2), text))
}

// Wrapped writes a text in lines that fit the width, beside what stands first.
func Wrapped(w io.Writer, width, indent int, first, text string) {
	fmt.Fprint(w, Text(width, pad(first, indent), strings.Repeat(" ", indent), text))
}

// Text breaks a text into lines that fit the width. The first one begins with first,
// the others with indent. A command in it that does not fit its line has lines of its
// own, in a form that a shell takes.
func Text(width int, first, indent, text string) string {
	if whole := first + text; !strings.Contains(text, "\n") && (width == 0 || utf8.RuneCountInString(whole) <= width) {
		return strings.TrimRight(whole, " ") + "\n"
	}
	p := &paragraph{width: width, line: first, indent: indent, bare: true}
	before, command, after := cutCommand(text)
	if command == "" || width == 0 {
		before, command, after = text, "", ""
	}
	for word := range strings.FieldsSeq(before) {
		p.add(word, false, "")
	}
	if command != "" {
		words := shellWords(command)
		if !p.bare && !p.fits(command) {
			p.end("")
		}
		for i, word := range words {
			more := ""
			if i < len(words)-1 {
				more = ` \`
			}
			p.add(word, true, more)
		}
		if after != "" {
			p.end("")
		}
		for word := range strings.FieldsSeq(after) {
			p.add(word, false, "")
		}
	}
	p.end("")
	return p.out.String()
}

// paragraph is a text that is being broken into lines.
type paragraph struct {
	width        int
	indent, line string
	bare         bool   // nothing stands behind the indentation yet
	broken       string // what ends a line where a command is broken
	out          strings.Builder
}

func (p *paragraph) fits(text string) bool {
	return p.width == 0 || utf8.RuneCountInString(p.line)+1+utf8.RuneCountInString(text) <= p.width
}

// end ends the line.
func (p *paragraph) end(mark string) {
	p.out.WriteString(strings.TrimRight(p.line, " ") + mark + "\n")
	p.line, p.bare = p.indent, true
}

// add adds a word. A word of a command stays whole, and has a mark that ends the line if
// the next one does not fit.
func (p *paragraph) add(word string, command bool, mark string) {
	length, fresh := utf8.RuneCountInString(word), p.width-utf8.RuneCountInString(p.indent)
	switch {
	case p.width == 0 || command && p.bare:
	case !p.bare && !p.fits(word+mark):
		// A name that fits no line begins on this one, if it can be cut well.
		if room := p.room() - 1; !command && length > fresh && room > 0 {
			if piece, rest := split(word, room); strings.HasSuffix(piece, "/") {
				p.line, word = p.line+" "+piece, rest
			}
		}
		p.end(p.broken)
	case p.bare && length > p.room() && p.room() < fresh && strings.TrimSpace(p.line) != "" && (length <= fresh || p.room() < p.width/3):
		p.end("") // there is no room beside what stands first
	}
	p.broken = mark
	if !p.bare {
		p.line += " "
	}
	for room := p.room(); p.width > 0 && !command && utf8.RuneCountInString(word) > room && room > 0; room = p.room() {
		var piece string
		piece, word = split(word, room)
		p.line += piece
		p.end("")
	}
	p.line += word
	p.bare = false
}

// room is how much fits the line yet.
func (p *paragraph) room() int { return p.width - utf8.RuneCountInString(p.line) }

// split cuts a long word at its last separator that leaves a piece of at most room
// characters, so that a name stays whole where it can; else wherever it has to.
func split(word string, room int) (piece, rest string) {
	runes := []rune(word)
	for _, separators := range []string{"/,=", "-.:_"} {
		for i := room; i > room/4; i-- {
			if strings.ContainsRune(separators, runes[i-1]) {
				return string(runes[:i]), string(runes[i:])
			}
		}
	}
	return string(runes[:room]), string(runes[room:])
}

// cutCommand finds the first command for a shell in a text: all of it, or what stands
// behind a colon, to the end of the sentence.
func cutCommand(text string) (before, command, after string) {
	for _, program := range []string{"meshctl ", "kubectl ", "helm "} {
		switch at := strings.Index(text, ": "+program); {
		case strings.HasPrefix(text, program):
			command = text
		case at >= 0:
			before, command = text[:at+1], text[at+2:]
		default:
			continue
		}
		quote := rune(0)
		for i, r := range command {
			switch {
			case quote == 0 && (r == '\'' || r == '"'):
				quote = r
			case r == quote:
				quote = 0
			case quote == 0 && strings.ContainsRune(".;,", r) && strings.HasPrefix(command[i+1:], " "):
				return before, command[:i], strings.TrimSpace(command[i+1:])
			}
		}
		if quote == 0 {
			return before, command, ""
		}
	}
	return text, "", ""
}

// shellWords are the words of a command, with their quotes.
func shellWords(command string) []string {
	var words []string
	var word strings.Builder
	quote := rune(0)
	for _, r := range command + " " {
		switch {
		case quote == 0 && r == ' ':
			if word.Len() > 0 {
				words = append(words, word.String())
				word.Reset()
			}
			continue
		case quote == 0 && (r == '\'' || r == '"'):
			quote = r
		case r == quote:
			quote = 0
		}
		word.WriteRune(r)
	}
	if word.Len() > 0 {
		words = append(words, strings.TrimSuffix(word.String(), " "))
	}
	return words
}
