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
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"mesh.io/clustermesh/pkg/cli/bundle"
	"mesh.io/clustermesh/pkg/layout"
)

func newBundle(o *options) *cobra.Command {
	var timeout time.Duration
	collect := bundle.Options{LogBytes: 4 << 20, LogLines: 20000, MaxAgents: 20}
	command := &cobra.Command{
		Use:     "bundle",
		GroupID: groupLook,
		Short:   "Collect logs, objects and tables of a cluster into one file, without secrets",
		Long: `bundle writes one file with what is needed to see from afar what is wrong with a
cluster of the mesh: the logs of the mesh's programs, objects, Events, nodes, versions,
the agents' tables, metrics and readiness. manifest.json in it says what is there, and
what could not be had and why.

Of Secrets only names, keys and sizes are in it. What stands in them, and whatever looks
like a token or a private key, is taken out of logs and everything else, too. Addresses
and names of Services, pods and nodes stay in. The file is for its owner only (mode 0600).`,
		Example: `  meshctl bundle --context cluster1
  meshctl bundle --context cluster1 -o cluster1.tar.gz`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			if timeout <= 0 || collect.LogBytes <= 0 || collect.LogLines <= 0 || collect.MaxAgents < 0 {
				return usage("--timeout, --log-bytes and --log-lines must be above 0, and --max-agents not below")
			}
			t, err := o.target()
			if err != nil {
				return err
			}
			if collect.Path == "" {
				collect.Path = "clustermesh-" + time.Now().UTC().Format("20060102-150405") + ".tar.gz"
			}
			ctx, cancel := context.WithTimeout(command.Context(), timeout)
			defer cancel()
			var manifest *bundle.Manifest
			err = newProgress(o.Err).step(fmt.Sprintf("Collecting from %s", t.Context), func(note func(string, ...any)) (err error) {
				manifest, err = bundle.Collect(ctx, t.remote(), collect, note)
				return err
			})
			if errors.Is(err, context.DeadlineExceeded) && command.Context().Err() == nil {
				return codeError{fmt.Errorf("it took longer than %s (--timeout): %w", timeout, err), ExitTimeout}
			}
			if err != nil {
				return err
			}
			return writeBundled(o.Out, layout.Width(o.Out), collect.Path, manifest)
		},
	}
	flags := command.Flags()
	flags.StringVarP(&collect.Path, "output-file", "o", "", "The file to write; by default clustermesh-TIME.tar.gz here.")
	flags.DurationVar(&timeout, "timeout", 5*time.Minute, "How long it may take.")
	flags.Int64Var(&collect.LogBytes, "log-bytes", collect.LogBytes, "The most bytes of one container's log: its end.")
	flags.Int64Var(&collect.LogLines, "log-lines", collect.LogLines, "The most lines of it.")
	flags.IntVar(&collect.MaxAgents, "max-agents", collect.MaxAgents, "How many agents are asked for their tables and metrics.")
	return command
}

// writeBundled says what has become of a bundle.
func writeBundled(w io.Writer, width int, path string, manifest *bundle.Manifest) error {
	text := fmt.Sprintf("%s: %d files", path, len(manifest.Files))
	if n := len(manifest.Missing); n > 0 {
		text += fmt.Sprintf("; %d could not be had, manifest.json in it says why", n)
	}
	_, err := io.WriteString(w, layout.Text(width, "", "  ", text))
	return err
}
