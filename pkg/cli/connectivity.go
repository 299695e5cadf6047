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
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"mesh.io/clustermesh/pkg/cli/connectivity"
	"mesh.io/clustermesh/pkg/cli/probe"
	"mesh.io/clustermesh/pkg/cli/remote"
	"mesh.io/clustermesh/pkg/layout"
)

// remote is the target for the packages below this one.
func (t *target) remote() *remote.Cluster {
	return &remote.Cluster{Context: t.Context, Namespace: t.Namespace, REST: t.REST, Kube: t.Kube, Mesh: t.Mesh}
}

func newConnectivity(o *options) *cobra.Command {
	command := &cobra.Command{
		Use:     "connectivity",
		GroupID: groupLook,
		Short:   "Test that clients reach the backends of all clusters",
		Args:    cobra.NoArgs,
		Example: `  meshctl connectivity test --context cluster1 --multi-cluster cluster2`,
	}
	command.AddCommand(newConnectivityTest(o), newEcho(o), newProbe(o))
	return command
}

func newConnectivityTest(o *options) *cobra.Command {
	var (
		as      output
		other   string
		timeout time.Duration
		test    = connectivity.Options{Namespace: "mesh-test", Image: connectivity.Image, Settle: 20 * time.Second, MaxNodes: 10}
	)
	command := &cobra.Command{
		Use:   "test",
		Short: "Deploy pods in two clusters and test from every node who answers",
		Long: `test deploys a client on every node of two clusters and servers behind global
Services, in a namespace of its own, and asks from every node who answers: pods of the
other cluster by their address, global Services over TCP and UDP, with each affinity,
with shared=false, drained, and with no pod left in one cluster. It prints a line for
each question as it goes. Of what fails it says where the chain is broken: the backends,
their export, their import, the agent of the client's node, or the connection.

Whatever happens, what was deployed is removed, also after Ctrl-C, and what a test that
was killed left is removed first. Exit code 3 says that a check failed.`,
		Example: `  meshctl connectivity test --context cluster1 --multi-cluster cluster2
  meshctl connectivity test --context cluster1 --multi-cluster cluster2 --timeout 5m -o json > report.json
  meshctl connectivity test --context cluster1 --multi-cluster cluster2 --namespace mesh-test-2 --keep`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			if other == "" {
				return usage("say which cluster to test with: --multi-cluster CONTEXT (see %s --help)", command.CommandPath())
			}
			if test.MaxNodes < 1 || test.Settle <= 0 || timeout <= 0 {
				return usage("--max-nodes, --settle and --timeout must be above 0")
			}
			here, err := o.target()
			if err != nil {
				return err
			}
			there, err := o.targetOf(other)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(command.Context(), timeout)
			defer cancel()
			// The lines are the result; where that is a document, they are progress.
			lines := newProgress(o.Out)
			if as != outputTable {
				lines = newProgress(o.Err)
			}
			test.Width = lines.width
			report, err := connectivity.Run(ctx, here.remote(), there.remote(), test, lines.say)
			if report != nil {
				if printErr := as.print(o.Out, report, func(w io.Writer) error {
					_, err := io.WriteString(w, report.Summary(layout.Width(w)))
					return err
				}); err == nil {
					err = printErr
				}
			}
			switch {
			case command.Context().Err() != nil:
				return errors.New("stopped before the end")
			case errors.Is(err, context.DeadlineExceeded):
				return codeError{fmt.Errorf("the test took longer than %s (--timeout)", timeout), ExitTimeout}
			case err != nil:
				return err
			case report.Failed > 0:
				return unmet("%d of %d checks failed", report.Failed, report.Failed+report.Passed)
			}
			return nil
		},
	}
	flags := command.Flags()
	flags.StringVar(&other, "multi-cluster", "", "The kubeconfig context of the cluster to test with. Required.")
	flags.StringVar(&test.Namespace, "namespace", test.Namespace, "The namespace to make for the test in both clusters.")
	flags.StringVar(&test.Image, "image", test.Image, "The image of the test's pods: one with meshctl in it.")
	flags.DurationVar(&timeout, "timeout", 10*time.Minute, "How long the whole test may take.")
	flags.DurationVar(&test.Settle, "settle", test.Settle, "How long an outcome may take before it counts as failed.")
	flags.IntVar(&test.MaxNodes, "max-nodes", test.MaxNodes, "How many nodes of each cluster take part.")
	flags.BoolVar(&test.Keep, "keep", false, "Do not remove what was deployed.")
	addOutput(command, &as)
	return command
}

// newEcho is the server that the test's pods run.
func newEcho(o *options) *cobra.Command {
	listen := fmt.Sprintf(":%d", probe.Port)
	command := &cobra.Command{
		Use:     "echo",
		Short:   "Answer over TCP and UDP with who it is (what the test's pods run)",
		Example: `  meshctl connectivity echo --listen :7777`,
		Hidden:  true,
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			identity := probe.Identity{Cluster: os.Getenv("MESH_CLUSTER"), Node: os.Getenv("MESH_NODE"), Pod: os.Getenv("MESH_POD")}
			server, err := probe.Listen(listen, identity)
			if err != nil {
				return err
			}
			fmt.Fprintf(o.Err, "Answering on %s over TCP and UDP as pod %q of cluster %q\n", server.Address(), identity.Pod, identity.Cluster)
			// Clients may hold the address for a moment after the pod was told to stop.
			err = server.Serve(command.Context(), 2*time.Second)
			if err == nil && command.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
	command.Flags().StringVar(&listen, "listen", listen, "Where to listen, over TCP and UDP.")
	return command
}

// newProbe is the client that is run in the test's pods.
func newProbe(o *options) *cobra.Command {
	question := probe.Question{Network: "tcp", Count: 20, Timeout: 2 * time.Second}
	command := &cobra.Command{
		Use:     "probe",
		Short:   "Ask a server of the test who it is, and count the answers",
		Example: `  meshctl connectivity probe --network udp --address echo.mesh-test.svc:7 --count 20`,
		Hidden:  true,
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			result, err := probe.Ask(command.Context(), question)
			if err != nil {
				return usage("%w", err)
			}
			return json.NewEncoder(o.Out).Encode(result)
		},
	}
	flags := command.Flags()
	flags.StringVar(&question.Network, "network", question.Network, "tcp or udp.")
	flags.StringVar(&question.Address, "address", "", "Host and port to ask.")
	flags.IntVar(&question.Count, "count", question.Count, "How often to ask, each time over a new connection.")
	flags.DurationVar(&question.Timeout, "try-timeout", question.Timeout, "How long one answer may take.")
	return command
}
