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
	"os"
	"text/tabwriter"
)

// Result is one figure.
type Result struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Peer is what it is compared with, measured in the same run.
	Peer string `json:"peer"`
	Note string `json:"note"`
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
	fmt.Fprintln(table, "NAME\tVALUE\tUNIT\tPEER\tNOTE")
	for _, r := range results {
		fmt.Fprintf(table, "%s\t%.2f\t%s\t%s\t%s\n", r.Name, r.Value, r.Unit, r.Peer, r.Note)
	}
	_ = table.Flush()
}
