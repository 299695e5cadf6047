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
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/explain"
	"mesh.io/clustermesh/pkg/layout"
	"mesh.io/clustermesh/pkg/policy"
)

func newServiceGet(o *options) *cobra.Command {
	var (
		as   output
		node string
	)
	command := &cobra.Command{
		Use:     "get NAMESPACE/NAME",
		Aliases: []string{"describe"},
		Short:   "Show one global service: its policy, backends, conditions and Events",
		Long: `get shows one global service as the clients of a cluster see it: how it takes part and
where that comes from, what each cluster has of it and how that is weighed, what is
wrong, and the last Events. With --contexts several clusters are asked. With --node it
is the table that the kernel of that node holds of the service, and why a backend is
not used.`,
		Example: `  meshctl service get song/userlist-svc --contexts cluster1,cluster2
  meshctl service get song/userlist-svc --context cluster1 --node cluster1-node1`,
		Args:              serviceArg(),
		ValidArgsFunction: o.completeServices,
		RunE: func(command *cobra.Command, args []string) error {
			name, err := parseService(args[0])
			if err != nil {
				return err
			}
			targets, err := o.targets()
			if err != nil {
				return err
			}
			if node != "" {
				if len(targets) > 1 {
					return usage("--node is of one cluster: give --context in the place of --contexts")
				}
				return getNode(command.Context(), o, targets[0], name, node, as)
			}
			return getService(command.Context(), o, targets, name, as)
		},
	}
	command.Flags().StringVar(&node, "node", "", "Show what the kernel of this node holds of the service.")
	o.addContexts(command)
	addOutput(command, &as)
	return command
}

// The result of get.
type (
	serviceDetail struct {
		Namespace string          `json:"namespace"`
		Name      string          `json:"name"`
		Clusters  []clusterDetail `json:"clusters"`
	}
	// clusterDetail is the service for the clients of one cluster.
	clusterDetail struct {
		Context  string          `json:"context"`
		Cluster  string          `json:"cluster"`
		Problems []string        `json:"problems,omitempty"`
		Service  *serviceSummary `json:"service,omitempty"`
		// Global is whether the Service here takes part; Annotation what says so.
		Global        bool                       `json:"global"`
		Annotation    string                     `json:"annotation,omitempty"`
		Shared        v1alpha1.EffectiveShared   `json:"shared,omitzero"`
		Affinity      v1alpha1.EffectiveAffinity `json:"affinity,omitzero"`
		LocalMinReady *int32                     `json:"localMinReady,omitempty"`
		Backends      []clusterBackends          `json:"backends"`
		Conditions    []metav1.Condition         `json:"conditions,omitempty"`
		Events        []serviceEvent             `json:"events,omitempty"`
	}
	serviceSummary struct {
		Type       string    `json:"type"`
		ClusterIPs []string  `json:"clusterIPs,omitempty"`
		Ports      []string  `json:"ports"`
		Created    time.Time `json:"created"`
	}
	// clusterBackends is what a cluster has of the service.
	clusterBackends struct {
		Cluster        string             `json:"cluster"`
		Local          bool               `json:"local,omitempty"`
		Offers         bool               `json:"offers"`
		Ready          int32              `json:"ready"`
		Total          int32              `json:"total"`
		Weight         int32              `json:"weight"`
		WeightSource   policy.ShareSource `json:"weightSource"`
		Priority       int32              `json:"priority"`
		PrioritySource policy.ShareSource `json:"prioritySource"`
		// State says whether the cluster is in sync.
		State string `json:"state"`
	}
	serviceEvent struct {
		Type     string    `json:"type"`
		Reason   string    `json:"reason"`
		Object   string    `json:"object"`
		LastSeen time.Time `json:"lastSeen"`
		Count    int32     `json:"count"`
		Message  string    `json:"message"`
	}
)

func getService(ctx context.Context, o *options, targets []*target, name serviceName, as output) error {
	detail := serviceDetail{Namespace: name.Namespace, Name: name.Name, Clusters: make([]clusterDetail, len(targets))}
	found := make([]bool, len(targets))
	var group sync.WaitGroup
	for i, t := range targets {
		group.Go(func() {
			c := t.facts(ctx, name.Namespace, name.Name)
			events, err := t.serviceEvents(ctx, name)
			d := newClusterDetail(c, events)
			if err != nil {
				d.Problems = append(d.Problems, err.Error())
			}
			detail.Clusters[i] = d
			found[i] = c.Service != nil || c.Global != nil || len(d.Problems) > 0
		})
	}
	group.Wait()
	if !slices.Contains(found, true) {
		var names []string
		for _, t := range targets {
			names = append(names, t.Context)
		}
		return fmt.Errorf("there is no service %s in %s: neither a Service nor a GlobalService", name, strings.Join(names, ", "))
	}
	errs := []error{as.print(o.Out, detail, func(w io.Writer) error { return writeServiceDetail(w, layout.Width(w), detail, time.Now()) })}
	for i := range detail.Clusters {
		for _, problem := range detail.Clusters[i].Problems {
			errs = append(errs, errors.New(problem))
		}
	}
	return errors.Join(errs...)
}

// mostEvents bounds the Events that are shown of a service.
const mostEvents = 10

func (t *target) serviceEvents(ctx context.Context, name serviceName) ([]serviceEvent, error) {
	list, err := t.Kube.CoreV1().Events(name.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("involvedObject.name", name.Name).String(),
	})
	if err != nil {
		return nil, fmt.Errorf("reading Events of %s: %w", t.Context, err)
	}
	var events []serviceEvent
	for i := range list.Items {
		e := &list.Items[i]
		if kind := e.InvolvedObject.Kind; kind != "Service" && kind != "GlobalService" {
			continue
		}
		last := e.LastTimestamp.Time
		if last.IsZero() {
			last = e.EventTime.Time
		}
		events = append(events, serviceEvent{
			Type: e.Type, Reason: e.Reason, Object: e.InvolvedObject.Kind, LastSeen: last, Count: max(e.Count, 1), Message: e.Message,
		})
	}
	slices.SortFunc(events, func(a, b serviceEvent) int { return b.LastSeen.Compare(a.LastSeen) })
	return events[:min(len(events), mostEvents)], nil
}

// newClusterDetail is what the facts about a service mean for the clients of a cluster.
func newClusterDetail(c *explain.Cluster, events []serviceEvent) clusterDetail {
	d := clusterDetail{Context: c.Context, Cluster: c.Name, Events: events, Backends: []clusterBackends{}}
	for _, problem := range []string{c.Problem, c.MeshProblem} {
		if problem != "" {
			d.Problems = append(d.Problems, problem)
		}
	}
	how := c.Policy()
	d.Shared = v1alpha1.EffectiveShared{Value: how.Shared.Value, Source: how.Shared.Source}
	d.Affinity = v1alpha1.EffectiveAffinity{Value: how.Affinity.Value, Source: how.Affinity.Source}
	if c.Service != nil {
		d.Service = &serviceSummary{
			Type: string(c.Service.Spec.Type), ClusterIPs: c.Service.Spec.ClusterIPs, Ports: []string{}, Created: c.Service.CreationTimestamp.Time,
		}
		for _, p := range c.Service.Spec.Ports {
			text := fmt.Sprintf("%d/%s", p.Port, cmp.Or(p.Protocol, corev1.ProtocolTCP))
			if p.Name != "" {
				text = p.Name + " " + text
			}
			d.Service.Ports = append(d.Service.Ports, text)
		}
		d.Global = how.Global.Value && policy.Reserved(c.Service.Namespace, c.Service.Name, c.MeshNamespace) == "" && c.Service.Spec.Type != corev1.ServiceTypeExternalName
		d.Annotation = c.Said()
	}
	known := map[string]bool{}
	add := func(s v1alpha1.ClusterStatus, offers bool) {
		known[s.Name] = true
		b := clusterBackends{Cluster: s.Name, Local: s.Local, Offers: offers, Ready: s.Endpoints.Ready, Total: s.Endpoints.Total}
		share, weight, priority := c.Share(s.Name)
		b.Weight, b.WeightSource, b.Priority, b.PrioritySource = share.Weight, weight, share.Priority, priority
		b.State = memberState(c.Member(s.Name), s.Local)
		d.Backends = append(d.Backends, b)
	}
	if c.Global != nil {
		d.LocalMinReady = c.Global.Spec.LocalMinReady
		d.Conditions = c.Global.Status.Conditions
		for _, s := range c.Global.Status.Clusters {
			add(s, s.Shared || s.Local)
		}
	}
	for i := range c.Members {
		if m := &c.Members[i]; !known[m.Name] {
			add(v1alpha1.ClusterStatus{Name: m.Name, Local: m.Spec.KubeconfigSecretRef == nil}, false)
		}
	}
	return d
}

// memberState says in a word whether what is known of a member is current.
func memberState(m *v1alpha1.MeshCluster, local bool) string {
	switch {
	case m == nil:
		return "no MeshCluster"
	case local:
		return "this cluster"
	case m.DeletionTimestamp != nil:
		return "being deleted"
	}
	if conflict := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.MeshClusterIdentityConflict); conflict != nil && conflict.Status == metav1.ConditionTrue {
		return "identity conflict"
	}
	for _, kind := range []string{v1alpha1.MeshClusterConnected, v1alpha1.MeshClusterSynced} {
		condition := meta.FindStatusCondition(m.Status.Conditions, kind)
		if condition == nil {
			return "unknown"
		}
		if kind == v1alpha1.MeshClusterConnected && condition.Status == metav1.ConditionUnknown {
			return "silent"
		}
		if condition.Status != metav1.ConditionTrue {
			return "not " + strings.ToLower(kind)
		}
	}
	return "synced"
}

func writeServiceDetail(w io.Writer, width int, detail serviceDetail, now time.Time) error {
	line := func(indent int, name, text string) {
		layout.Wrapped(w, width, indent+14, strings.Repeat(" ", indent)+name+":", text)
	}
	line(0, "Name", detail.Name)
	line(0, "Namespace", detail.Namespace)
	for i := range detail.Clusters {
		d := &detail.Clusters[i]
		title := "In " + d.Cluster
		if d.Context != d.Cluster {
			title += " (context " + d.Context + ")"
		}
		fmt.Fprintln(w)
		layout.Hanging(w, width, 0, title+":")
		from := func(s v1alpha1.PolicySource) string { return strings.ToLower(string(s)) }
		if d.Service == nil {
			line(2, "Service", "none: clients here need one, with the same name and ports")
		} else {
			line(2, "Service", fmt.Sprintf("%s %s, port %s, %s old", d.Service.Type, strings.Join(d.Service.ClusterIPs, ", "), strings.Join(d.Service.Ports, ", "), explain.Age(now.Sub(d.Service.Created))))
			takes := "no"
			if d.Global {
				takes = "yes"
			}
			line(2, "Takes part", takes+": "+cmp.Or(d.Annotation, "no annotation "+policy.AnnotationGlobal))
		}
		line(2, "Shared", fmt.Sprintf("%t (%s)", d.Shared.Value, from(d.Shared.Source)))
		affinity := fmt.Sprintf("%s (%s)", d.Affinity.Value, from(d.Affinity.Source))
		if d.LocalMinReady != nil {
			affinity += fmt.Sprintf(", localMinReady %d %%", *d.LocalMinReady)
		}
		line(2, "Affinity", affinity)
		if len(d.Backends) > 0 {
			var rows [][]string
			for _, b := range d.Backends {
				ready := noValue
				if b.Offers && (b.Local || d.Global) {
					ready = fmt.Sprintf("%d/%d", b.Ready, b.Total)
				}
				with := func(n int32, source policy.ShareSource) string {
					if source == policy.ShareDefault {
						return strconv.Itoa(int(n))
					}
					return fmt.Sprintf("%d (%s)", n, source)
				}
				rows = append(rows, []string{"    " + b.Cluster, ready, with(b.Weight, b.WeightSource), with(b.Priority, b.PrioritySource), b.State})
			}
			fmt.Fprintf(w, "  Backends:\n%s", layout.Table(width, []string{"    CLUSTER", "READY", "WEIGHT", "PRIORITY", "STATE"}, rows))
		}
		if len(d.Conditions) > 0 {
			fmt.Fprintln(w, "  Conditions:")
			for _, c := range d.Conditions {
				layout.Hanging(w, width, 4, fmt.Sprintf("%s=%s (%s, %s): %s", c.Type, c.Status, c.Reason, explain.Age(now.Sub(c.LastTransitionTime.Time)), c.Message))
			}
		}
		if len(d.Events) > 0 {
			fmt.Fprintln(w, "  Events:")
			for _, e := range d.Events {
				layout.Hanging(w, width, 4, fmt.Sprintf("%s %s, %s ago (%d×) on the %s: %s", e.Type, e.Reason, explain.Age(now.Sub(e.LastSeen)), e.Count, e.Object, e.Message))
			}
		}
		for _, problem := range d.Problems {
			line(2, "Problem", problem)
		}
	}
	return nil
}
