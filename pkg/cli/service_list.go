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
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/explain"
	"mesh.io/clustermesh/pkg/layout"
)

func newServiceList(o *options) *cobra.Command {
	var (
		as        output
		namespace string
		all       bool
		node      string
	)
	command := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the global services as one or several clusters see them",
		Long: `list shows the global services as the clients of a cluster see them: clusters and
backends as ready/all, this cluster's own (LOCAL) and the others' (REMOTE). With
--contexts there is a line for each cluster that is asked. With --node it is the table
that the kernel of that node holds, in the columns of cilium service list, and why a
backend is not used.`,
		Example: `  meshctl service list -A
  meshctl service list -n song --contexts cluster1,cluster2
  meshctl service list -A --context cluster1 --node cluster1-node1`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			if all && namespace != "" {
				return usage("-n and -A exclude each other")
			}
			targets, err := o.targets()
			if err != nil {
				return err
			}
			in := namespace
			if in == "" && !all {
				if in, _, err = targets[0].Config.Namespace(); err != nil {
					return fmt.Errorf("reading the namespace of the kubeconfig: %w", err)
				}
			}
			if node != "" {
				if len(targets) > 1 {
					return usage("--node is of one cluster: give --context in the place of --contexts")
				}
				return listNode(command.Context(), o, targets[0], in, node, as)
			}
			return listServices(command.Context(), o, targets, in, as)
		},
	}
	command.Flags().StringVarP(&namespace, "namespace", "n", "", "The namespace to list; by default that of the context.")
	command.Flags().BoolVarP(&all, "all-namespaces", "A", false, "List all namespaces.")
	command.Flags().StringVar(&node, "node", "", "Show the table that the kernel of this node holds.")
	o.addContexts(command)
	addOutput(command, &as)
	return command
}

// The result of list.
type (
	serviceList struct {
		Services []listedService `json:"services"`
		// Problems are the clusters that could not be asked.
		Problems []contextProblem `json:"problems,omitempty"`
	}
	contextProblem struct {
		Context string `json:"context"`
		Problem string `json:"problem"`
	}
	listedService struct {
		Namespace string        `json:"namespace"`
		Name      string        `json:"name"`
		Views     []serviceView `json:"views"`
	}
	// serviceView is a service as one cluster sees it.
	serviceView struct {
		Context string `json:"context"`
		Cluster string `json:"cluster"`
		// Known is false where that cluster has no GlobalService of the name, or its
		// controller has not looked at it.
		Known    bool                       `json:"known"`
		Affinity v1alpha1.EffectiveAffinity `json:"affinity,omitzero"`
		Shared   v1alpha1.EffectiveShared   `json:"shared,omitzero"`
		Clusters []v1alpha1.ClusterStatus   `json:"clusters,omitempty"`
		// Here says whether the Service takes part in that cluster.
		Here       bool               `json:"here"`
		Conditions []metav1.Condition `json:"conditions,omitempty"`
	}
	// seen is what one cluster answers.
	seen struct {
		context, cluster string
		services         []v1alpha1.GlobalService
		err              error
	}
)

func listServices(ctx context.Context, o *options, targets []*target, namespace string, as output) error {
	answers := make([]seen, len(targets))
	var group sync.WaitGroup
	for i, t := range targets {
		group.Go(func() { answers[i] = t.see(ctx, namespace) })
	}
	group.Wait()
	list := mergeViews(answers)
	err := as.print(o.Out, list, func(w io.Writer) error { return writeServiceList(w, layout.Width(w), list, len(targets)) })
	if len(list.Services) == 0 && as == outputTable && len(list.Problems) < len(targets) {
		where := "in any namespace"
		if namespace != "" {
			where = fmt.Sprintf("in namespace %s; -A lists all namespaces", namespace)
		}
		fmt.Fprintf(o.Err, "There is no global service %s.\n", where)
	}
	errs := []error{err}
	for _, a := range answers {
		errs = append(errs, a.err)
	}
	return errors.Join(errs...)
}

// see lists the services of a cluster.
func (t *target) see(ctx context.Context, namespace string) seen {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	s := seen{context: t.Context, cluster: t.Context}
	members, err := t.Mesh.MeshV1alpha1().MeshClusters().List(ctx, metav1.ListOptions{})
	if err == nil {
		if local := explain.Local(members.Items); local != nil {
			s.cluster = local.Name
		}
	} else if !apierrors.IsForbidden(err) {
		s.err = t.meshError("listing global services", err)
		return s
	}
	list, err := t.Mesh.MeshV1alpha1().GlobalServices(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		s.err = t.meshError("listing global services", err)
		return s
	}
	s.services = list.Items
	return s
}

// meshError says what the mesh API's answer means.
func (t *target) meshError(doing string, err error) error {
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("%s: %s has no mesh API: is the mesh installed there (meshctl install)?", doing, t.Context)
	}
	return fmt.Errorf("%s of %s: %w", doing, t.Context, err)
}

// mergeViews puts what the clusters answer together by service.
func mergeViews(answers []seen) serviceList {
	list := serviceList{Services: []listedService{}}
	byName := map[serviceName]map[string]*v1alpha1.GlobalService{}
	for _, a := range answers {
		if a.err != nil {
			list.Problems = append(list.Problems, contextProblem{a.context, a.err.Error()})
		}
		for i := range a.services {
			s := &a.services[i]
			name := serviceName{s.Namespace, s.Name}
			if byName[name] == nil {
				byName[name] = map[string]*v1alpha1.GlobalService{}
			}
			byName[name][a.context] = s
		}
	}
	for name, views := range byName {
		service := listedService{Namespace: name.Namespace, Name: name.Name}
		for _, a := range answers {
			if a.err != nil {
				continue
			}
			service.Views = append(service.Views, newServiceView(a.context, a.cluster, views[a.context]))
		}
		list.Services = append(list.Services, service)
	}
	slices.SortFunc(list.Services, func(a, b listedService) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return list
}

func newServiceView(context, cluster string, s *v1alpha1.GlobalService) serviceView {
	v := serviceView{Context: context, Cluster: cluster}
	if s == nil || s.Status.ObservedGeneration == 0 && len(s.Status.Clusters) == 0 {
		return v
	}
	v.Known, v.Affinity, v.Shared = true, s.Status.Affinity, s.Status.Shared
	v.Clusters, v.Conditions = s.Status.Clusters, s.Status.Conditions
	here := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.GlobalServiceLocalService)
	v.Here = here == nil || here.Status != metav1.ConditionFalse
	return v
}

// noValue stands for what is not there or not known.
const noValue = "-"

// cells are CLUSTERS BACKENDS LOCAL REMOTE AFFINITY SHARED, as `kubectl get gsvc` has them.
func (v *serviceView) cells() []string {
	if !v.Known {
		return []string{noValue, noValue, noValue, noValue, noValue, noValue}
	}
	type tally struct{ ready, total, of int32 }
	text := func(c tally) string {
		if c.of == 0 {
			return noValue
		}
		return fmt.Sprintf("%d/%d", c.ready, c.total)
	}
	var clusters, all, local, remote tally
	unknown := false
	for _, c := range v.Clusters {
		clusters.total++
		clusters.of++
		if !c.Local && !v.Here {
			unknown = true // its endpoints are not imported, so nothing is known of them
			continue
		}
		if c.Endpoints.Ready > 0 {
			clusters.ready++
		}
		side := &remote
		if c.Local {
			side = &local
		}
		for _, to := range []*tally{&all, side} {
			to.ready, to.total, to.of = to.ready+c.Endpoints.Ready, to.total+c.Endpoints.Total, to.of+1
		}
	}
	affinity, shared := string(v.Affinity.Value), fmt.Sprint(v.Shared.Value)
	if unknown {
		return []string{fmt.Sprintf("%s/%d", noValue, clusters.total), noValue, text(local), noValue, affinity, shared}
	}
	return []string{text(clusters), text(all), text(local), text(remote), affinity, shared}
}

var viewHeaders = []string{"CLUSTERS", "BACKENDS", "LOCAL", "REMOTE", "AFFINITY", "SHARED"}

// writeServiceList prints the services: of one cluster a line each, of several a line
// for each cluster. Where that is too wide, the service has a line of its own.
func writeServiceList(w io.Writer, width int, list serviceList, contexts int) error {
	if len(list.Services) == 0 {
		return nil
	}
	headers := []string{"NAMESPACE", "NAME"}
	if contexts > 1 {
		headers = append(headers, "IN")
	}
	var rows [][]string
	for _, s := range list.Services {
		for i := range s.Views {
			row := []string{s.Namespace, s.Name}
			if contexts > 1 {
				row = append(row, s.Views[i].Cluster)
			}
			rows = append(rows, append(row, s.Views[i].cells()...))
		}
	}
	text, fits := layout.Columns(width, append(headers, viewHeaders...), rows)
	if !fits {
		first := "NAMESPACE/NAME"
		if contexts > 1 {
			first += ", IN"
		}
		rows = nil
		for _, s := range list.Services {
			rows = append(rows, []string{s.Namespace + "/" + s.Name})
			for i := range s.Views {
				rows = append(rows, append([]string{"  " + s.Views[i].Cluster}, s.Views[i].cells()...))
			}
		}
		text = grouped(width, append([]string{first}, viewHeaders...), rows)
	}
	_, err := io.WriteString(w, text)
	return err
}

// grouped lays rows out of which those with one cell are titles: they don't make the
// first column wider. Where a row does not fit, its first cell is a title, too.
func grouped(width int, headers []string, rows [][]string) string {
	var cells [][]string
	for _, row := range rows {
		if len(row) > 1 {
			cells = append(cells, row)
		}
	}
	text, fits := layout.Columns(width, headers, cells)
	if !fits {
		for i, row := range cells {
			cells[i] = append([]string{""}, row[1:]...)
		}
		text, _ = layout.Columns(width, headers, cells)
	}
	lines := strings.SplitAfter(text, "\n")
	var out strings.Builder
	out.WriteString(lines[0])
	next := 1
	for _, row := range rows {
		if len(row) == 1 || !fits {
			out.WriteString(layout.Text(width, "", "  ", row[0]))
		}
		if len(row) > 1 {
			out.WriteString(lines[next])
			next++
		}
	}
	return out.String()
}
