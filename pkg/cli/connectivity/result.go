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

package connectivity

import (
	"fmt"
	"strings"
	"time"

	"mesh.io/clustermesh/pkg/layout"
)

// Report is the outcome of a whole test, as it is printed as JSON.
type Report struct {
	Clusters []ReportCluster `json:"clusters"`
	Results  []Result        `json:"results"`
	Passed   int             `json:"passed"`
	Failed   int             `json:"failed"`
	// NotRun is how many checks were left out as the time was over.
	NotRun  int     `json:"notRun,omitempty"`
	Seconds float64 `json:"seconds"`
	// Leftovers says what could not be removed.
	Leftovers []string `json:"leftovers,omitempty"`
}

// ReportCluster is a cluster that took part.
type ReportCluster struct {
	Name    string `json:"name"`
	Context string `json:"context"`
	Imports bool   `json:"imports"`
	Nodes   int    `json:"nodes"`
	// LeftOut is how many nodes took no part because of the bound.
	LeftOut int `json:"leftOut,omitempty"`
}

// Result is the outcome of one check.
type Result struct {
	Scenario string `json:"scenario"`
	From     Place  `json:"from"`
	Network  string `json:"network,omitempty"`
	To       string `json:"to,omitempty"`
	OK       bool   `json:"ok"`
	// Milliseconds is how long it took until it was so, or was given up.
	Milliseconds int64 `json:"milliseconds"`
	// MedianMicroseconds is how long one try took, of those that were answered.
	MedianMicroseconds int64          `json:"medianMicroseconds,omitempty"`
	Answers            map[string]int `json:"answers,omitempty"`
	Want               []string       `json:"want,omitempty"`
	// Reasons say where the chain is broken.
	Reasons []string `json:"reasons,omitempty"`
}

// Text is the result for people whose terminal has so many columns; 0 is none. It ends
// with a line feed.
func (r *Result) Text(width int) string {
	mark := "ok    "
	if !r.OK {
		mark = "FAILED"
	}
	subject := r.From.String()
	if r.Network != "" {
		subject = r.Network + " " + subject
	}
	if r.To != "" {
		subject += " -> " + r.To
	}
	prefix := fmt.Sprintf("  %s %6d ms  ", mark, r.Milliseconds)
	const indent = "           "
	var details []string
	if r.Answers != nil {
		answers := tally(r.Answers)
		if !r.OK {
			answers += ", wanted " + strings.Join(r.Want, " and ")
		}
		if width == 0 || len(prefix)+len(subject)+2+len(answers) <= width {
			subject += ": " + answers
		} else {
			details = append(details, answers)
		}
	}
	// A subject that is too long goes on below itself, if its names have the room there.
	below := strings.Repeat(" ", len(prefix))
	if len(r.From.Node)+len(prefix) > width || len(r.To)+len(prefix) > width {
		below = indent
	}
	text := layout.Text(width, prefix, below, subject)
	for _, detail := range append(details, r.Reasons...) {
		text += layout.Text(width, indent, indent, detail)
	}
	return text
}

// Summary is the end of what a person reads. It ends with a line feed.
func (r *Report) Summary(width int) string {
	took := time.Duration(r.Seconds * float64(time.Second)).Round(100 * time.Millisecond)
	var text strings.Builder
	switch total := r.Passed + r.Failed; {
	case r.Failed == 0 && r.NotRun == 0:
		fmt.Fprintf(&text, "All %d checks passed in %s.", total, took)
	default:
		fmt.Fprintf(&text, "%d of %d checks failed in %s", r.Failed, total, took)
		if r.NotRun > 0 {
			fmt.Fprintf(&text, ", and %d were not made", r.NotRun)
		}
		text.WriteString(".")
	}
	text.WriteString("\n")
	// One cause makes many checks fail: each is named once.
	type cause struct {
		text string
		n    int
	}
	var causes []*cause
	seen := map[string]*cause{}
	for i := range r.Results {
		for _, reason := range r.Results[i].Reasons {
			if c := seen[reason]; c != nil {
				c.n++
				continue
			}
			c := &cause{reason, 1}
			seen[reason] = c
			causes = append(causes, c)
		}
	}
	const most = 10
	for i, c := range causes {
		if i == most {
			fmt.Fprintf(&text, "  and %d more causes, see above\n", len(causes)-most)
			break
		}
		times := ""
		if c.n > 1 {
			times = fmt.Sprintf(" (%d checks)", c.n)
		}
		text.WriteString(layout.Text(width, "  - ", "    ", c.text+times))
	}
	for _, leftover := range r.Leftovers {
		text.WriteString(layout.Text(width, "", "", leftover))
	}
	return text.String()
}
