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
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

func newService(o *options) *cobra.Command {
	command := &cobra.Command{
		Use:     "service",
		Aliases: []string{"services", "svc"},
		GroupID: groupService,
		Short:   "Show the global services, and change how they are used",
		Args:    cobra.NoArgs,
	}
	for _, add := range []func(*options) *cobra.Command{
		newServiceList, newServiceGet, newServiceExplain, newServiceDrain, newServiceWeight, newServiceAffinity,
	} {
		command.AddCommand(add(o))
	}
	return command
}

// serviceName is namespace and name of a service.
type serviceName struct{ Namespace, Name string }

func (n serviceName) String() string { return n.Namespace + "/" + n.Name }

// parseService reads NAMESPACE/NAME.
func parseService(arg string) (serviceName, error) {
	namespace, name, ok := strings.Cut(arg, "/")
	if !ok || len(validation.IsDNS1123Label(namespace)) > 0 || len(validation.IsDNS1123Label(name)) > 0 {
		return serviceName{}, usage("%q is not a service: write NAMESPACE/NAME, as in song/userlist-svc", arg)
	}
	return serviceName{namespace, name}, nil
}

// serviceArg wants one service first, and n arguments after it.
func serviceArg(after ...string) cobra.PositionalArgs {
	return func(command *cobra.Command, args []string) error {
		if len(args) != 1+len(after) {
			return usage("write %s (see %s --help)", strings.Join(append([]string{command.CommandPath(), "NAMESPACE/NAME"}, after...), " "), command.CommandPath())
		}
		_, err := parseService(args[0])
		return err
	}
}

// completionTimeout is how long a shell waits for a completion.
const completionTimeout = 3 * time.Second

// completion is what a flag or an argument is completed by.
type completion func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// complete asks the cluster of --context, or the first of --contexts, for completions.
func (o *options) complete(list func(context.Context, *target) ([]string, error)) completion {
	return func(command *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		targets, err := o.targets()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		ctx, cancel := context.WithTimeout(command.Context(), completionTimeout)
		defer cancel()
		found, err := list(ctx, targets[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		slices.Sort(found)
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeServices offers services as the first argument.
func (o *options) completeServices(command *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return o.complete(func(ctx context.Context, t *target) (names []string, err error) {
		list, err := t.Mesh.MeshV1alpha1().GlobalServices("").List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return nil, err
		}
		for i := range list.Items {
			names = append(names, list.Items[i].Namespace+"/"+list.Items[i].Name)
		}
		return names, nil
	})(command, args, begun)
}

// completeClusters offers the names of the clusters in the mesh.
func (o *options) completeClusters() completion {
	return o.complete(func(ctx context.Context, t *target) (names []string, err error) {
		list, err := t.Mesh.MeshV1alpha1().MeshClusters().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return nil, err
		}
		for i := range list.Items {
			names = append(names, list.Items[i].Name)
		}
		return names, nil
	})
}

// completeNodes offers the nodes of the cluster, with a prefix.
func (o *options) completeNodes(prefix func(*target) string) completion {
	return o.complete(func(ctx context.Context, t *target) (names []string, err error) {
		list, err := t.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return nil, err
		}
		for i := range list.Items {
			names = append(names, prefix(t)+list.Items[i].Name)
		}
		return names, nil
	})
}

// completeNamespaces offers the namespaces of the cluster.
func (o *options) completeNamespaces() completion {
	return o.complete(func(ctx context.Context, t *target) (names []string, err error) {
		list, err := t.Kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return nil, err
		}
		for i := range list.Items {
			names = append(names, list.Items[i].Name)
		}
		return names, nil
	})
}
