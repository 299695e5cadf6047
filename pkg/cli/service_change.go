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
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/agent/dump"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/explain"
	"mesh.io/clustermesh/pkg/layout"
)

// changer is what drain, weight and affinity share.
type changer struct {
	as      output
	cluster string
	noWait  bool
	timeout time.Duration
}

func (c *changer) addFlags(o *options, command *cobra.Command) {
	command.Flags().BoolVar(&c.noWait, "no-wait", false, "Do not wait until the controller and the nodes have taken it up.")
	command.Flags().DurationVar(&c.timeout, "timeout", 30*time.Second, "How long to wait.")
	o.addContexts(command)
	addOutput(command, &c.as)
}

func (c *changer) addCluster(command *cobra.Command, help string) {
	command.Flags().StringVar(&c.cluster, "cluster", "", help)
}

func newServiceDrain(o *options) *cobra.Command {
	var c changer
	var undo bool
	command := &cobra.Command{
		Use:   "drain NAMESPACE/NAME --cluster CLUSTER",
		Short: "Send no new connection of a service to a cluster, or undo that",
		Long: `drain gives a cluster's backends of a service the weight 0 for the clients of the
cluster of --context (of each of --contexts): they get no new connection, and open
connections stay. --undo gives back the weight that they had. It is the same as
changing spec.clusters of the GlobalService, and leaves its other entries alone.`,
		Example: `  meshctl service drain song/userlist-svc --context cluster1 --cluster cluster2
  meshctl service drain song/userlist-svc --context cluster1 --cluster cluster2 --undo`,
		Args:              serviceArg(),
		ValidArgsFunction: o.completeServices,
		RunE: func(command *cobra.Command, args []string) error {
			if c.cluster == "" {
				return usage("--cluster says which cluster's backends")
			}
			what := "Draining " + c.cluster
			edit := func(g *globalEdit) error { return g.drain(c.cluster) }
			if undo {
				what = "Undoing the drain of " + c.cluster
				edit = func(g *globalEdit) error { return g.undrain(c.cluster) }
			}
			return c.run(command.Context(), o, args[0], what, edit)
		},
	}
	c.addCluster(command, "The cluster to drain.")
	command.Flags().BoolVar(&undo, "undo", false, "Give the cluster back the weight that it had before.")
	c.addFlags(o, command)
	return command
}

func newServiceWeight(o *options) *cobra.Command {
	var c changer
	var unset bool
	command := &cobra.Command{
		Use:   "weight NAMESPACE/NAME --cluster CLUSTER WEIGHT",
		Short: "Set the weight of a cluster's backends in a service",
		Long: `weight sets the weight of each backend of a cluster in a service, from 0 to 1000, for
the clients of the cluster of --context (of each of --contexts). Without one it is
that of the MeshCluster, else 100. Equal weights make all backends equal, whichever
their cluster; 0 drains.`,
		Example: `  meshctl service weight song/userlist-svc --context cluster1 --cluster cluster2 25
  meshctl service weight song/userlist-svc --context cluster1 --cluster cluster2 --unset`,
		Args: func(command *cobra.Command, args []string) error {
			if unset {
				return serviceArg()(command, args)
			}
			return serviceArg("WEIGHT")(command, args)
		},
		ValidArgsFunction: o.completeServices,
		RunE: func(command *cobra.Command, args []string) error {
			if c.cluster == "" {
				return usage("--cluster says which cluster's backends")
			}
			var weight *int64
			what := "Unsetting the weight of " + c.cluster
			if !unset {
				n, err := strconv.ParseInt(args[1], 10, 32)
				if err != nil || n < 0 || n > 1000 {
					return usage("weight %q is not a number from 0 to 1000", args[1])
				}
				weight, what = &n, fmt.Sprintf("Giving %s the weight %d", c.cluster, n)
			}
			return c.run(command.Context(), o, args[0], what, func(g *globalEdit) error { return g.weigh(c.cluster, weight) })
		},
	}
	c.addCluster(command, "The cluster whose backends it is.")
	command.Flags().BoolVar(&unset, "unset", false, "Leave the weight to the MeshCluster.")
	c.addFlags(o, command)
	return command
}

// affinities are what affinity takes.
var affinities = []string{string(v1alpha1.AffinityNone), string(v1alpha1.AffinityLocal), string(v1alpha1.AffinityRemote)}

func newServiceAffinity(o *options) *cobra.Command {
	var c changer
	var unset bool
	command := &cobra.Command{
		Use:   "affinity NAMESPACE/NAME None|Local|Remote",
		Short: "Set the side that clients of a service prefer",
		Long: `affinity sets the side that the clients of the cluster of --context (of each of
--contexts) prefer while it has a usable backend: None, Local or Remote. It wins over
the annotation on the Service; --unset lets that decide again.`,
		Example: `  meshctl service affinity song/userlist-svc --context cluster1 Local
  meshctl service affinity song/userlist-svc --context cluster1 --unset`,
		Args: func(command *cobra.Command, args []string) error {
			if unset {
				return serviceArg()(command, args)
			}
			return serviceArg("None|Local|Remote")(command, args)
		},
		ValidArgsFunction: func(command *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return affinities, cobra.ShellCompDirectiveNoFileComp
			}
			return o.completeServices(command, args, begun)
		},
		RunE: func(command *cobra.Command, args []string) error {
			affinity, what := "", "Unsetting the affinity"
			if !unset {
				for _, known := range affinities {
					if strings.EqualFold(known, args[1]) {
						affinity = known
					}
				}
				if affinity == "" {
					return usage("affinity %q is none of %s", args[1], strings.Join(affinities, ", "))
				}
				what = "Setting the affinity " + affinity
			}
			return c.run(command.Context(), o, args[0], what, func(g *globalEdit) error { g.prefer(affinity); return nil })
		},
	}
	command.Flags().BoolVar(&unset, "unset", false, "Let the annotation on the Service decide.")
	c.addFlags(o, command)
	return command
}

// The result of a change, for each cluster whose clients it is for.
type (
	changeResults struct {
		Results []changeResult `json:"results"`
	}
	changeResult struct {
		Context   string `json:"context"`
		Cluster   string `json:"cluster"`
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
		// Changed is false if everything was so already.
		Changed bool      `json:"changed"`
		Before  inEffect  `json:"before"`
		After   *inEffect `json:"after,omitempty"`
		// Nodes says which nodes' kernels show it; absent with --no-wait.
		Nodes *nodesOutcome `json:"nodes,omitempty"`
		Error string        `json:"error,omitempty"`
	}
	// inEffect is how the service is used by the clients of a cluster.
	inEffect struct {
		Affinity       v1alpha1.Affinity     `json:"affinity"`
		AffinitySource v1alpha1.PolicySource `json:"affinitySource"`
		Clusters       []clusterShare        `json:"clusters"`
	}
	clusterShare struct {
		Cluster  string `json:"cluster"`
		Weight   int32  `json:"weight"`
		Priority int32  `json:"priority"`
		// Percent is its share of new connections; -1 where the service has no frontend.
		Percent float64 `json:"percent"`
	}
	nodesOutcome struct {
		Programmed int      `json:"programmed"`
		Total      int      `json:"total"`
		Unchecked  []string `json:"unchecked,omitempty"`
		Waiting    []string `json:"waiting,omitempty"`
	}
)

// run makes the change in each cluster, and prints how it went.
func (c *changer) run(ctx context.Context, o *options, arg, what string, edit func(*globalEdit) error) error {
	name, err := parseService(arg)
	if err != nil {
		return err
	}
	targets, err := o.targets()
	if err != nil {
		return err
	}
	progress := newProgress(o.Err)
	results := changeResults{Results: []changeResult{}}
	var errs []error
	for _, t := range targets {
		result := changeResult{Context: t.Context, Cluster: t.Context, Namespace: name.Namespace, Name: name.Name}
		err := progress.step(fmt.Sprintf("%s in %s for clients of %s", what, name, t.Context), func(note func(string, ...any)) error {
			return c.change(ctx, t, name, edit, &result, note)
		})
		if err != nil {
			result.Error = err.Error()
			errs = append(errs, err)
		}
		results.Results = append(results.Results, result)
	}
	err = c.as.print(o.Out, results, func(w io.Writer) error { return writeChanges(w, layout.Width(w), results) })
	return errors.Join(append(errs, err)...)
}

func (c *changer) change(ctx context.Context, t *target, name serviceName, edit func(*globalEdit) error, result *changeResult, note func(string, ...any)) error {
	before := t.facts(ctx, name.Namespace, name.Name)
	if before.MeshProblem != "" {
		return errors.New(before.MeshProblem)
	}
	result.Cluster, result.Before = before.Name, newInEffect(before)
	if before.Global == nil {
		return fmt.Errorf("%s has no global service %s: annotate its Service, or see meshctl service list -A --context %s", before.Name, name, t.Context)
	}
	if c.cluster != "" && before.Member(c.cluster) == nil {
		return usage("%s knows no cluster %q: it has %s", before.Name, c.cluster, strings.Join(append([]string{before.Name}, before.Peers()...), ", "))
	}
	generation, changed, err := t.patchGlobal(ctx, name, edit)
	if err != nil {
		return err
	}
	result.Changed = changed
	if c.noWait {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	note("waiting for the controller")
	after, err := t.awaitStatus(ctx, name, generation)
	if err != nil {
		return err
	}
	effect := newInEffect(after)
	result.After = &effect
	result.Nodes, err = t.awaitNodes(ctx, name, note)
	return err
}

// timedOut is the error of a wait that ended too late.
func timedOut(format string, args ...any) error {
	return codeError{fmt.Errorf(format, args...), ExitTimeout}
}

const pollEvery = 250 * time.Millisecond

// pause waits, and says whether there is still time.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(pollEvery):
		return true
	}
}

// awaitStatus waits until the controller has seen a generation of the GlobalService.
func (t *target) awaitStatus(ctx context.Context, name serviceName, generation int64) (*explain.Cluster, error) {
	for {
		g, err := t.Mesh.MeshV1alpha1().GlobalServices(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
		switch {
		case err == nil && g.Status.ObservedGeneration >= generation:
			c := t.facts(ctx, name.Namespace, name.Name)
			if c.MeshProblem != "" && ctx.Err() == nil {
				return nil, errors.New(c.MeshProblem)
			}
			if ctx.Err() == nil {
				return c, nil
			}
		case apierrors.IsNotFound(err):
			return nil, fmt.Errorf("GlobalService %s of %s was deleted meanwhile", name, t.Context)
		}
		if !pause(ctx) {
			return nil, timedOut("the change is made, but the mesh-controller of %s has not taken it up in time: does it run (kubectl --context %s -n %s get pods)?", t.Context, t.Context, t.Namespace)
		}
	}
}

// awaitNodes waits until the kernel of each node shows what the API says of a service.
// Nodes that cannot be asked are named, and not waited for.
func (t *target) awaitNodes(ctx context.Context, name serviceName, note func(string, ...any)) (*nodesOutcome, error) {
	pods, err := t.agents(ctx, "")
	if err != nil {
		return &nodesOutcome{Unchecked: []string{err.Error()}}, nil
	}
	outcome := &nodesOutcome{Total: len(pods)}
	var mu sync.Mutex
	var waiting []corev1.Pod
	for _, pod := range pods {
		if pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil {
			waiting = append(waiting, pod)
		} else {
			outcome.Unchecked = append(outcome.Unchecked, fmt.Sprintf("%s: its agent is not running", pod.Spec.NodeName))
		}
	}
	problems := map[string]string{}
	for len(waiting) > 0 {
		note("%d of %d nodes show it", outcome.Programmed, outcome.Total)
		c := t.facts(ctx, name.Namespace, name.Name)
		var still []corev1.Pod
		var group sync.WaitGroup
		slots := make(chan struct{}, 8)
		for _, pod := range waiting {
			group.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				document, err := t.dump(ctx, &pod, name.String())
				mu.Lock()
				defer mu.Unlock()
				switch {
				case apierrors.IsForbidden(err):
					outcome.Unchecked = append(outcome.Unchecked, err.Error())
				case err != nil:
					problems[pod.Spec.NodeName] = err.Error()
					still = append(still, pod)
				case c.Problem != "" || c.MeshProblem != "" || !shows(document, c, name):
					delete(problems, pod.Spec.NodeName)
					still = append(still, pod)
				default:
					outcome.Programmed++
				}
			})
		}
		group.Wait()
		waiting = still
		if len(waiting) > 0 && !pause(ctx) {
			break
		}
	}
	for _, pod := range waiting {
		if problem := problems[pod.Spec.NodeName]; problem != "" {
			outcome.Unchecked = append(outcome.Unchecked, problem)
		} else {
			outcome.Waiting = append(outcome.Waiting, pod.Spec.NodeName)
		}
	}
	if len(outcome.Waiting) > 0 {
		return outcome, timedOut("the change is made, but nodes %s of %s do not show it in time: meshctl service explain %s --from %s/%s says why",
			strings.Join(outcome.Waiting, ", "), t.Context, name, t.Context, outcome.Waiting[0])
	}
	return outcome, nil
}

// shows says whether a node's kernel has of a service what the API's objects make of it.
func shows(document *dump.Document, c *explain.Cluster, name serviceName) bool {
	mesh, in := c.Objects().Input()
	explained, _ := mesh.Explain(desired.Name(name), in)
	for i := range explained {
		for _, v := range explained[i].Verdicts {
			if !v.Listed {
				continue
			}
			if kernel := explain.Find(document, explained[i].Frontend, v); kernel == nil || kernel.Slots != v.Slots {
				return false
			}
		}
	}
	return true
}

// newInEffect is how a service is used by the clients of a cluster.
func newInEffect(c *explain.Cluster) inEffect {
	how := c.Policy()
	e := inEffect{Affinity: how.Affinity.Value, AffinitySource: how.Affinity.Source, Clusters: []clusterShare{}}
	slots, all := map[string]float64{}, 0.0
	if c.Global != nil {
		mesh, in := c.Objects().Input()
		explained, _ := mesh.Explain(desired.Name{Namespace: c.Global.Namespace, Name: c.Global.Name}, in)
		if len(explained) > 0 { // the shares of one port stand for all
			for _, v := range explained[0].Verdicts {
				slots[v.Cluster] += float64(v.Slots)
				all += float64(v.Slots)
			}
		}
	}
	for _, cluster := range append([]string{c.Name}, c.Peers()...) {
		share, _, _ := c.Share(cluster)
		s := clusterShare{Cluster: cluster, Weight: share.Weight, Priority: share.Priority, Percent: -1}
		if all > 0 {
			s.Percent = 100 * slots[cluster] / all
		}
		e.Clusters = append(e.Clusters, s)
	}
	return e
}

func writeChanges(w io.Writer, width int, results changeResults) error {
	printed := false
	for i := range results.Results {
		r := &results.Results[i]
		if r.Error != "" && r.After == nil {
			continue // the error says it
		}
		if printed {
			fmt.Fprintln(w)
		}
		printed = true
		layout.Hanging(w, width, 0, fmt.Sprintf("%s/%s for clients of %s:", r.Namespace, r.Name, r.Cluster))
		after := r.After
		if after == nil {
			outcome := "changed; not waited for"
			if !r.Changed {
				outcome = "it was so already"
			}
			fmt.Fprintf(w, "  %s\n", outcome)
			continue
		}
		if !r.Changed {
			fmt.Fprintln(w, "  it was so already")
		}
		affinity := func(e *inEffect) string {
			return fmt.Sprintf("%s (%s)", e.Affinity, strings.ToLower(string(e.AffinitySource)))
		}
		fmt.Fprintf(w, "  Affinity: %s\n", arrow(affinity(&r.Before), affinity(after)))
		old := map[string]clusterShare{}
		for _, s := range r.Before.Clusters {
			old[s.Cluster] = s
		}
		var rows [][]string
		for _, s := range after.Clusters {
			before := old[s.Cluster]
			rows = append(rows, []string{
				"  " + s.Cluster, arrow(strconv.Itoa(int(before.Weight)), strconv.Itoa(int(s.Weight))),
				arrow(percent(before.Percent), percent(s.Percent)),
			})
		}
		fmt.Fprint(w, layout.Table(width, []string{"  CLUSTER", "WEIGHT", "NEW CONNECTIONS"}, rows))
		if n := r.Nodes; n != nil {
			if n.Total > 0 {
				fmt.Fprintf(w, "  Programmed on %d of %d nodes.\n", n.Programmed, n.Total)
			} else if len(n.Unchecked) == 0 {
				fmt.Fprintln(w, "  No node has an agent.")
			}
			for _, unchecked := range n.Unchecked {
				layout.Hanging(w, width, 2, "Not checked: "+unchecked)
			}
		}
	}
	return nil
}

func arrow(before, after string) string {
	if before == after {
		return after
	}
	return before + " -> " + after
}

func percent(p float64) string {
	if p < 0 {
		return noValue
	}
	return strings.TrimSuffix(strconv.FormatFloat(p, 'f', 1, 64), ".0") + "%"
}

// annotationDrained remembers, as JSON by cluster, the weights in a GlobalService's
// spec that a drain has taken the place of.
const annotationDrained = "mesh.io/weights-before-drain"

// globalEdit is a change of a GlobalService: it keeps everything else of the spec,
// also what this version does not know.
type globalEdit struct {
	object  map[string]any
	spec    map[string]any // what of the spec is changed; a nil value takes it away
	drained map[string]int64
	changed bool
}

func newGlobalEdit(raw []byte) (*globalEdit, error) {
	g := &globalEdit{spec: map[string]any{}, drained: map[string]int64{}}
	if err := json.Unmarshal(raw, &g.object); err != nil {
		return nil, fmt.Errorf("reading the GlobalService: %w", err)
	}
	if text, ok := g.annotations()[annotationDrained].(string); ok {
		_ = json.Unmarshal([]byte(text), &g.drained) // what means nothing is forgotten
	}
	if g.drained == nil {
		g.drained = map[string]int64{}
	}
	return g, nil
}

func (g *globalEdit) annotations() map[string]any {
	metadata, _ := g.object["metadata"].(map[string]any)
	annotations, _ := metadata["annotations"].(map[string]any)
	return annotations
}

// entries are the entries of spec.clusters.
func (g *globalEdit) entries() []any {
	spec, _ := g.object["spec"].(map[string]any)
	entries, _ := spec["clusters"].([]any)
	return entries
}

// weight is what the spec says of a cluster; ok is false if it says nothing.
func (g *globalEdit) weight(cluster string) (weight int64, ok bool) {
	for _, e := range g.entries() {
		if entry, _ := e.(map[string]any); entry["name"] == cluster {
			number, ok := entry["weight"].(float64)
			return int64(number), ok
		}
	}
	return 0, false
}

// weigh sets the weight of a cluster, or takes it away.
func (g *globalEdit) weigh(cluster string, weight *int64) error {
	delete(g.drained, cluster)
	if now, ok := g.weight(cluster); ok == (weight != nil) && (!ok || now == *weight) {
		return nil
	}
	g.changed = true
	entries := []any{}
	found := false
	for _, e := range g.entries() {
		entry, _ := e.(map[string]any)
		if entry["name"] != cluster {
			entries = append(entries, e)
			continue
		}
		found = true
		if weight != nil {
			entry["weight"] = float64(*weight)
		} else {
			delete(entry, "weight")
		}
		if len(entry) > 1 {
			entries = append(entries, entry)
		}
	}
	if !found {
		entries = append(entries, map[string]any{"name": cluster, "weight": float64(*weight)})
	}
	if len(entries) == 0 {
		g.spec["clusters"] = nil
	} else {
		g.spec["clusters"] = entries
	}
	return nil
}

// drain sets weight 0 and remembers what was there.
func (g *globalEdit) drain(cluster string) error {
	now, ok := g.weight(cluster)
	if ok && now == 0 {
		return nil
	}
	err := g.weigh(cluster, new(int64))
	if ok {
		g.drained[cluster] = now
	}
	return err
}

// undrain gives back what drain has taken the place of.
func (g *globalEdit) undrain(cluster string) error {
	if now, ok := g.weight(cluster); !ok || now != 0 {
		return nil
	}
	if before, ok := g.drained[cluster]; ok {
		return g.weigh(cluster, &before)
	}
	return g.weigh(cluster, nil)
}

// prefer sets the affinity, or takes it away if it is empty.
func (g *globalEdit) prefer(affinity string) {
	spec, _ := g.object["spec"].(map[string]any)
	if now, _ := spec["affinity"].(string); now == affinity {
		return
	}
	g.changed = true
	if affinity == "" {
		g.spec["affinity"] = nil
		return
	}
	g.spec["affinity"] = affinity
}

// patch is the change as a merge patch. The server refuses it if someone else has
// written meanwhile.
func (g *globalEdit) patch() ([]byte, error) {
	metadata, _ := g.object["metadata"].(map[string]any)
	change := map[string]any{"resourceVersion": metadata["resourceVersion"]}
	_, had := g.annotations()[annotationDrained]
	if len(g.drained) > 0 {
		text, err := json.Marshal(g.drained)
		if err != nil {
			return nil, err
		}
		change["annotations"] = map[string]any{annotationDrained: string(text)}
	} else if had {
		change["annotations"] = map[string]any{annotationDrained: nil}
	}
	return json.Marshal(map[string]any{"metadata": change, "spec": g.spec})
}

// patchGlobal makes a change of a GlobalService, and again if someone else was faster.
// It returns the generation to wait for.
func (t *target) patchGlobal(ctx context.Context, name serviceName, edit func(*globalEdit) error) (generation int64, changed bool, err error) {
	client := t.Mesh.MeshV1alpha1()
	err = retry.OnError(retry.DefaultBackoff, apierrors.IsConflict, func() error {
		raw, err := client.RESTClient().Get().Namespace(name.Namespace).Resource("globalservices").Name(name.Name).
			SetHeader("Accept", "application/json").Do(ctx).Raw()
		if err != nil {
			return err
		}
		g, err := newGlobalEdit(raw)
		if err != nil {
			return err
		}
		if err := edit(g); err != nil {
			return err
		}
		if changed = g.changed; !changed {
			metadata, _ := g.object["metadata"].(map[string]any)
			number, _ := metadata["generation"].(float64)
			generation = int64(number)
			return nil
		}
		patch, err := g.patch()
		if err != nil {
			return err
		}
		patched, err := client.GlobalServices(name.Namespace).Patch(ctx, name.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "meshctl"})
		if err != nil {
			return err
		}
		generation = patched.Generation
		return nil
	})
	if err != nil {
		return 0, false, fmt.Errorf("changing GlobalService %s of %s: %w", name, t.Context, err)
	}
	return generation, changed, nil
}
