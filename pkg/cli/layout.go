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
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// width is how many columns a person sees; 0 where nobody looks, as in a pipe.
func width(w io.Writer) int {
	if file, ok := w.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		if columns, _, err := term.GetSize(int(file.Fd())); err == nil && columns > 10 {
			return columns
		}
		return 80
	}
	return 0
}

// columns lays rows out in columns. Where that is wider than the terminal they are set
// closer together; fits is false if that does not do.
func columns(width int, headers []string, rows [][]string) (text string, fits bool) {
	for pad := 3; pad > 0; pad-- {
		lines := layOut(pad, headers, rows)
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

func layOut(pad int, headers []string, rows [][]string) []string {
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
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+pad))
			}
		}
		lines = append(lines, strings.TrimRight(line.String(), " ")+"\n")
	}
	return lines
}

// hanging writes a text in lines that fit the width: the first after some spaces,
// those that follow 2 further in.
func hanging(w io.Writer, width, indent int, text string) {
	wrappedFrom(w, width, indent+2, strings.Repeat(" ", indent), text)
}

// wrapped writes a text in lines that fit the width, beside what stands first.
func wrapped(w io.Writer, width, indent int, first, text string) {
	wrappedFrom(w, width, indent, first+strings.Repeat(" ", max(0, indent-utf8.RuneCountInString(first))), text)
}

func wrappedFrom(w io.Writer, width, indent int, line, text string) {
	empty := true
	for _, word := range strings.Fields(text) {
		if width > 0 && !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			fmt.Fprintln(w, strings.TrimRight(line, " "))
			line, empty = strings.Repeat(" ", indent), true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	fmt.Fprintln(w, strings.TrimRight(line, " "))
}
