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
	"maps"
	"slices"
	"strings"

	"mesh.io/clustermesh/pkg/cli/probe"
)

// Verdict is what the answers to a check say.
type Verdict struct {
	// Missing are the clusters that should have answered, Unexpected those that should not.
	Missing, Unexpected []string
	// Errors are the tries that failed, with how often.
	Errors []string
}

// OK says whether all is as it should be.
func (v Verdict) OK() bool {
	return len(v.Missing) == 0 && len(v.Unexpected) == 0 && len(v.Errors) == 0
}

// Judge compares the answers with what the check wants.
func Judge(c *Check, r *probe.Result) Verdict {
	var v Verdict
	for _, cluster := range c.Want {
		if r.Answers[cluster] == 0 {
			v.Missing = append(v.Missing, cluster)
		}
	}
	for _, cluster := range slices.Sorted(maps.Keys(r.Answers)) {
		if !slices.Contains(c.Want, cluster) {
			v.Unexpected = append(v.Unexpected, cluster)
		}
	}
	// An address that two pods of one cluster have is a fault, too.
	if c.toNode != "" && len(v.Missing) == 0 {
		for _, node := range slices.Sorted(maps.Keys(r.Nodes)) {
			if want := c.Want[0] + "/" + c.toNode; node != want && len(v.Unexpected) == 0 {
				v.Unexpected = append(v.Unexpected, node)
			}
		}
	}
	for _, text := range slices.Sorted(maps.Keys(r.Errors)) {
		if n := r.Errors[text]; n > 1 {
			text = fmt.Sprintf("%s (%d times)", text, n)
		}
		v.Errors = append(v.Errors, text)
	}
	return v
}

// tally is the answers for people: "cluster1 10, cluster2 10".
func tally(answers map[string]int) string {
	var parts []string
	for _, cluster := range slices.Sorted(maps.Keys(answers)) {
		parts = append(parts, fmt.Sprintf("%s %d", cluster, answers[cluster]))
	}
	if len(parts) == 0 {
		return "no answer"
	}
	return strings.Join(parts, ", ")
}
