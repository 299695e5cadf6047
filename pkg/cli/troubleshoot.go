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
	"context"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"mesh.io/clustermesh/pkg/cli/trouble"
	"mesh.io/clustermesh/pkg/layout"
)

// diagnosis is what troubleshoot prints as a document.
type diagnosis struct {
	Clusters []string          `json:"clusters"`
	Findings []trouble.Finding `json:"findings"`
}

func newTroubleshoot(o *options) *cobra.Command {
	var (
		as      output
		timeout time.Duration
	)
	command := &cobra.Command{
		Use:     "troubleshoot",
		GroupID: groupLook,
		Short:   "Look for what is wrong in one or more clusters, and say what to do",
		Long: `troubleshoot reads a lot from one or more clusters and runs a list of checks over it.
It prints what it finds, the gravest first, each with what shows it and what to do. It
changes nothing. With several clusters of a mesh (--contexts) it compares them, too:
authorities, endpoints, clocks, names and IDs. Exit code 3 says that it found an error.`,
		Example: `  meshctl troubleshoot --context cluster1
  meshctl troubleshoot --contexts cluster1,cluster2
  meshctl troubleshoot --contexts cluster1,cluster2 -o json`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			targets, err := o.targets()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(command.Context(), timeout)
			defer cancel()
			all := make([]*trouble.Facts, len(targets))
			var group sync.WaitGroup
			for i, t := range targets {
				group.Go(func() { all[i] = trouble.Collect(ctx, t.remote()) })
			}
			group.Wait()
			if command.Context().Err() != nil {
				return command.Context().Err()
			}
			result := diagnosis{Findings: trouble.Examine(all)}
			errors := 0
			for _, t := range targets {
				result.Clusters = append(result.Clusters, t.Context)
			}
			for _, f := range result.Findings {
				if f.Gravity == trouble.Error {
					errors++
				}
			}
			err = as.print(o.Out, result, func(w io.Writer) error {
				_, err := io.WriteString(w, trouble.Text(layout.Width(w), result.Findings, len(targets)))
				return err
			})
			if err == nil && errors > 0 {
				return unmet("%s found", counted(errors, "errors"))
			}
			return err
		},
	}
	command.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "How long reading may take.")
	o.addContexts(command)
	addOutput(command, &as)
	return command
}
