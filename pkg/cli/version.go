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
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/layout"
	"mesh.io/clustermesh/pkg/version"
)

// versions are those of meshctl and of the programs in one cluster.
type versions struct {
	Client     string `json:"client"`
	Context    string `json:"context,omitempty"`
	Controller string `json:"controller,omitempty"`
	Kubernetes string `json:"kubernetes,omitempty"`
}

func newVersion(o *options) *cobra.Command {
	var (
		as     output
		client bool
	)
	command := &cobra.Command{
		Use:     "version",
		GroupID: groupLook,
		Short:   "Print the versions of meshctl and of the mesh in a cluster",
		Example: `  meshctl version
  meshctl version --context cluster1 -o json
  meshctl version --client`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			v := versions{Client: version.String()}
			var failed error
			if !client {
				failed = readVersions(command, o, &v)
			}
			err := as.print(o.Out, v, func(w io.Writer) error {
				return v.write(w, layout.Width(w))
			})
			return errors.Join(err, failed)
		},
	}
	command.Flags().BoolVar(&client, "client", false, "Do not ask a cluster.")
	addOutput(command, &as)
	return command
}

func (v *versions) write(w io.Writer, width int) error {
	rows := [][]string{{"meshctl", v.Client}}
	if v.Context != "" {
		rows = append(rows, []string{"mesh in " + v.Context, v.Controller}, []string{"Kubernetes in " + v.Context, v.Kubernetes})
	}
	_, err := io.WriteString(w, layout.Table(width, nil, rows))
	return err
}

func readVersions(command *cobra.Command, o *options, v *versions) error {
	t, err := o.target()
	if err != nil {
		return err
	}
	info, err := t.Kube.Discovery().ServerVersion()
	if err != nil {
		return fmt.Errorf("asking the API server of %q for its version: %w", t.Context, err)
	}
	v.Context, v.Kubernetes, v.Controller = t.Context, info.GitVersion, "not installed"
	list, err := t.Mesh.MeshV1alpha1().MeshClusters().List(command.Context(), metav1.ListOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		v.Controller = "unknown"
		return fmt.Errorf("asking the mesh API of %q for the version: %w", t.Context, err)
	}
	v.Controller = "no controller has run"
	for i := range list.Items {
		if c := &list.Items[i]; c.Spec.KubeconfigSecretRef == nil && c.Status.Version != "" {
			v.Controller = c.Status.Version
		}
	}
	return nil
}
