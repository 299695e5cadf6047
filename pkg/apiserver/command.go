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

package apiserver

import (
	"context"
	goflag "flag"

	"github.com/spf13/cobra"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/version"
)

// helpColumns is the width of the help text.
const helpColumns = 120

// NewCommand returns the command that runs the server until the context ends.
func NewCommand(ctx context.Context) *cobra.Command {
	options := NewOptions()
	command := &cobra.Command{
		Use:   "mesh-apiserver",
		Short: "Serve the mesh API of a cluster",
		Long: "Serves the API group mesh.io of one cluster: which Services are global, what this cluster exports and what it imports. " +
			"It stores them in an etcd of its own, embedded (--data-dir) or external (--etcd-servers), and leaves authentication and " +
			"authorization to the cluster's own API server.\n\n" +
			"\"mesh-apiserver snapshot --help\" tells how the store is saved and restored.",
		Version:      version.String(),
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error {
			// Loggers come with contexts, which cli.Run turns off: peer.Quiet hangs on it.
			klog.EnableContextualLogging(true)
			options.Complete()
			if err := options.Validate(); err != nil {
				return err
			}
			return run(ctx, options)
		},
	}
	command.SetVersionTemplate("{{.Version}}\n")
	sets := options.Flags()
	logging := goflag.NewFlagSet("logging", goflag.ContinueOnError)
	klog.InitFlags(logging)
	sets.FlagSet("logging").AddGoFlag(logging.Lookup("v"))
	for _, set := range sets.FlagSets {
		command.Flags().AddFlagSet(set)
	}
	cliflag.SetUsageAndHelpFunc(command, sets, helpColumns)
	command.CompletionOptions.DisableDefaultCmd = true
	command.AddCommand(newSnapshotCommand(ctx))
	return command
}

func run(ctx context.Context, options *Options) error {
	logger := klog.FromContext(ctx)
	logger.Info("Starting mesh-apiserver", "version", version.String())
	config, err := options.Config(ctx)
	if err != nil {
		return err
	}
	// The store is stopped after the server that uses it.
	defer config.Close()
	server, err := config.Complete().New()
	if err != nil {
		return err
	}
	return server.Run(ctx)
}
