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

package trouble

import (
	"fmt"
	"strings"
)

const width = 80

// Text is the findings for people.
func Text(findings []Finding, clusters int) string {
	var text strings.Builder
	for _, f := range findings {
		head := strings.ToUpper(string(f.Gravity))
		text.WriteString(wrap(fmt.Sprintf("%-8s %s: ", head, f.Cluster)+f.What, strings.Repeat(" ", 9)) + "\n")
		for _, evidence := range f.Evidence {
			text.WriteString(wrap("         seen: "+evidence, strings.Repeat(" ", 15)) + "\n")
		}
		text.WriteString(wrap("         do:   "+f.Do, strings.Repeat(" ", 15)) + "\n\n")
	}
	text.WriteString(Summary(findings, clusters) + "\n")
	return text.String()
}

// Summary counts the findings.
func Summary(findings []Finding, clusters int) string {
	n := map[Gravity]int{}
	for _, f := range findings {
		n[f.Gravity]++
	}
	where := "1 cluster"
	if clusters != 1 {
		where = fmt.Sprintf("%d clusters", clusters)
	}
	if len(findings) == 0 {
		return "Nothing is wrong in " + where + ", as far as meshctl can tell."
	}
	var parts []string
	for _, g := range []Gravity{Error, Warning, Note} {
		if n[g] > 0 {
			parts = append(parts, plural(n[g], string(g)))
		}
	}
	return "Found in " + where + ": " + strings.Join(parts, ", ") + "."
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// wrap breaks a text into lines; those after the first are indented. Spaces at its
// beginning stay, and so does a word that is longer than a line.
func wrap(text, indent string) string {
	body := strings.TrimLeft(text, " ")
	line := text[:len(text)-len(body)]
	var lines []string
	begin := true
	for _, word := range strings.Split(body, " ") {
		if !begin && len(line)+1+len(word) > width && strings.TrimSpace(line) != "" {
			lines = append(lines, strings.TrimRight(line, " "))
			line, begin = indent, true
		}
		if !begin {
			line += " "
		}
		line += word
		begin = false
	}
	return strings.Join(append(lines, line), "\n")
}
