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

// Package bench measures the system on the lab, each figure beside a peer of the
// same run.
package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// Result is one figure.
type Result struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Target is what the design asks for; empty where it asks for nothing.
	Target string `json:"target,omitempty"`
	// Peer says what it is compared with, measured in the same run.
	Peer string `json:"peer"`
	// Peers are the figures of the peers, of the same unit, where there are such.
	Peers map[string]float64 `json:"peers,omitempty"`
	Note  string             `json:"note"`
}

// Save writes the results as a JSON array.
func Save(path string, results []Result) error {
	data, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	return nil
}

// Print writes the results as a table.
func Print(w io.Writer, results []Result) {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "NAME\tVALUE\tUNIT\tTARGET\tPEERS\tNOTE")
	for _, r := range results {
		peers := make([]string, 0, len(r.Peers)+1)
		for _, name := range slices.Sorted(maps.Keys(r.Peers)) {
			peers = append(peers, fmt.Sprintf("%s %s", name, number(r.Peers[name])))
		}
		if len(peers) == 0 && r.Peer != "" {
			peers = append(peers, r.Peer)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, number(r.Value), r.Unit, r.Target, strings.Join(peers, "; "), r.Note)
	}
	_ = table.Flush()
}

// number writes what a person can tell apart: not the tenths of thousands.
func number(value float64) string {
	if math.Abs(value) >= 1000 {
		return fmt.Sprintf("%.0f", value)
	}
	return fmt.Sprintf("%.2f", value)
}
