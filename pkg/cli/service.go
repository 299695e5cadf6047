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
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"
)

func newService(o *options) *cobra.Command {
	command := &cobra.Command{
		Use:     "service",
		Aliases: []string{"services", "svc"},
		GroupID: groupService,
		Short:   "Show the global services, and change how they are used",
		Example: `  meshctl service list -A
  meshctl service get song/userlist-svc --contexts cluster1,cluster2`,
		Args: cobra.NoArgs,
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
