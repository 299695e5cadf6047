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
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

// output is how a result is printed.
type output string

const (
	outputTable output = "table"
	outputJSON  output = "json"
	outputYAML  output = "yaml"
)

var outputs = []string{string(outputTable), string(outputJSON), string(outputYAML)}

// String, Set and Type make it a flag.
func (o *output) String() string { return string(*o) }

// Type names the values in help.
func (*output) Type() string { return strings.Join(outputs, "|") }

// Set takes one of the outputs.
func (o *output) Set(value string) error {
	for _, known := range outputs {
		if value == known {
			*o = output(value)
			return nil
		}
	}
	return fmt.Errorf("it is one of %s", strings.Join(outputs, ", "))
}

// addOutput adds -o to a command.
func addOutput(command *cobra.Command, o *output) {
	*o = outputTable
	command.Flags().VarP(o, "output", "o", "How the result is printed.")
	_ = command.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp))
}

var _ pflag.Value = (*output)(nil)

// print writes a result as a document, or by the function as a table.
func (o output) print(w io.Writer, result any, table func(io.Writer) error) error {
	switch o {
	case outputJSON:
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(result)
	case outputYAML:
		content, err := yaml.Marshal(result)
		if err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	}
	return table(w)
}
