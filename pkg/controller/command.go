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

package controller

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

// NewCommand returns the command that runs the controller until the context ends.
func NewCommand(ctx context.Context) *cobra.Command {
	options := NewOptions()
	command := &cobra.Command{
		Use:   "mesh-controller",
		Short: "Exports, imports and merges the global Services of a cluster",
		Long: "Offers this cluster's global Services to the other clusters of the mesh, imports what they offer, and keeps one " +
			"GlobalService for each Service that any of them exports. It reads this cluster's kube-apiserver and the mesh APIs of " +
			"this cluster and its peers, and writes to this cluster's mesh API only; it renews the credentials that the peers have given to it.",
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
			return Run(ctx, *options)
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
	return command
}
