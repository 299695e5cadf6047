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

	"mesh.io/clustermesh/pkg/layout"
)

// Text is the findings for people whose terminal has so many columns; 0 is none.
func Text(width int, findings []Finding, clusters int) string {
	var text strings.Builder
	const margin, deeper = "         ", "               "
	for _, f := range findings {
		head := strings.ToUpper(string(f.Gravity))
		text.WriteString(layout.Text(width, fmt.Sprintf("%-8s ", head), margin, f.Cluster+": "+f.What))
		for _, evidence := range f.Evidence {
			text.WriteString(layout.Text(width, margin+"seen: ", deeper, evidence))
		}
		text.WriteString(layout.Text(width, margin+"do:   ", deeper, f.Do) + "\n")
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
