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
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/cli/explain"
	"mesh.io/clustermesh/pkg/layout"
)

func newServiceExplain(o *options) *cobra.Command {
	var (
		as   output
		from string
		to   []string
	)
	command := &cobra.Command{
		Use:   "explain NAMESPACE/NAME --from CLUSTER/NODE",
		Short: "Follow a global service to a node's kernel, and name the first broken link",
		Long: `explain follows a global service link by link: the annotation, the policy in effect,
the Service here; for each other cluster its export, the connection, the import, the
GlobalService and its share; then the agent of the node, and what the kernel there has
programmed. It names the first link that is broken and what to do about it.

--contexts gives the contexts of all clusters that can be asked; without the one of
another cluster, what it exports is known from what was imported only. The exit code
is 3 if a link is broken.`,
		Example: `  meshctl service explain song/userlist-svc --from cluster1/cluster1-node1 --contexts cluster1,cluster2
  meshctl service explain song/userlist-svc --from cluster1/cluster1-node1 --to cluster2`,
		Args:              serviceArg(),
		ValidArgsFunction: o.completeServices,
		RunE: func(command *cobra.Command, args []string) error {
			name, err := parseService(args[0])
			if err != nil {
				return err
			}
			cluster, node, ok := strings.Cut(from, "/")
			if !ok || cluster == "" || node == "" {
				return usage("--from CLUSTER/NODE says where the client is, as in cluster1/cluster1-node1")
			}
			targets, err := o.explainTargets(cluster)
			if err != nil {
				return err
			}
			facts, err := collect(command.Context(), targets, name, cluster, node, to)
			if err != nil {
				return err
			}
			result := newExplanation(facts, node)
			if err := as.print(o.Out, result, func(w io.Writer) error { return writeExplanation(w, layout.Width(w), result, facts.Now) }); err != nil {
				return err
			}
			if result.FirstBroken != "" {
				return unmet("%s is broken at %s", name, result.FirstBroken)
			}
			return nil
		},
	}
	command.Flags().StringVar(&from, "from", "", "The cluster and node of the client, as CLUSTER/NODE.")
	command.Flags().StringSliceVar(&to, "to", nil, "The clusters whose backends are followed; by default all that take part.")
	o.addContexts(command)
	addOutput(command, &as)
	return command
}

// explainTargets are those of --contexts or --context; without either, that of the
// context with the cluster's name, if there is one.
func (o *options) explainTargets(cluster string) ([]*target, error) {
	if len(o.contexts) == 0 && o.context == "" {
		if raw, err := o.loadingRules().Load(); err == nil && raw.Contexts[cluster] != nil {
			t, err := o.targetOf(cluster)
			if err != nil {
				return nil, err
			}
			return []*target{t}, nil
		}
	}
	return o.targets()
}

// collect reads the facts about a service from all clusters, and from the node.
func collect(ctx context.Context, targets []*target, name serviceName, cluster, node string, to []string) (*explain.Facts, error) {
	f := &explain.Facts{Namespace: name.Namespace, Name: name.Name, Only: len(to) > 0, Now: time.Now()}
	read := make([]*explain.Cluster, len(targets))
	var group sync.WaitGroup
	for i, t := range targets {
		group.Go(func() { read[i] = t.facts(ctx, name.Namespace, name.Name) })
	}
	group.Wait()
	here := slices.IndexFunc(read, func(c *explain.Cluster) bool { return c.Name == cluster })
	if here < 0 {
		// People know clusters by their contexts, too.
		here = slices.IndexFunc(read, func(c *explain.Cluster) bool { return c.Context == cluster })
	}
	if here < 0 {
		var names []string
		for _, c := range read {
			names = append(names, c.Name)
		}
		return nil, usage("--from names cluster %q, and the contexts are those of %s: add its context to --contexts", cluster, strings.Join(names, ", "))
	}
	f.Here = *read[here]
	f.Now = f.Now.Add(targets[here].clockAhead(ctx))
	f.Node = targets[here].node(ctx, node, name)

	peers := to
	if len(peers) == 0 {
		peers = f.Here.Peers()
		// A cluster whose context was given is asked about, connected or not, if it is
		// known which one it is.
		for i, c := range read {
			if i != here && explain.Local(c.Members) != nil && !slices.Contains(peers, c.Name) {
				peers = append(peers, c.Name)
			}
		}
	}
	for i, c := range read {
		if problem := cmp.Or(c.Problem, c.MeshProblem); i != here && problem != "" && explain.Local(c.Members) == nil {
			f.Unnamed = append(f.Unnamed, problem)
		}
	}
	for _, peer := range peers {
		p := explain.Peer{Name: peer}
		if i := slices.IndexFunc(read, func(c *explain.Cluster) bool { return c.Name == peer }); i >= 0 {
			p.There = read[i]
		}
		if peer == f.Here.Name {
			return nil, usage("--to %s is the cluster of --from", peer)
		}
		f.Peers = append(f.Peers, p)
	}
	return f, nil
}

// node reads what there is on a node.
func (t *target) node(ctx context.Context, node string, name serviceName) explain.Node {
	n := explain.Node{Name: node}
	_, err := t.Kube.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return n
	case err != nil && !apierrors.IsForbidden(err):
		n.Problem = fmt.Sprintf("could not read node %s: %v", node, err)
		return n
	}
	n.Exists = true
	pods, err := t.agents(ctx, node)
	if err != nil {
		n.Problem = err.Error()
		return n
	}
	if len(pods) == 0 {
		return n
	}
	n.Pod = &pods[0]
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	if n.Dump, err = t.dump(ctx, n.Pod, name.String()); err != nil {
		n.DumpProblem = err.Error()
	}
	return n
}

// nodeTimeout is how long a node may take to answer.
const nodeTimeout = 15 * time.Second

// explanation is the result of explain.
type explanation struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Cluster   string `json:"cluster"`
	Node      string `json:"node"`
	// FirstBroken names the first link that is broken; empty if none is known to be.
	FirstBroken string         `json:"firstBroken,omitempty"`
	Links       []explain.Link `json:"links"`
}

func newExplanation(f *explain.Facts, node string) explanation {
	e := explanation{Namespace: f.Namespace, Name: f.Name, Cluster: f.Here.Name, Node: node, Links: explain.Chain(*f)}
	if i := explain.FirstBroken(e.Links); i >= 0 {
		e.FirstBroken = linkName(&e.Links[i])
	}
	return e
}

// linkName says which link it is: "import of cluster2 in cluster1".
func linkName(l *explain.Link) string {
	if l.Peer != "" && l.Peer != l.Cluster {
		return fmt.Sprintf("%s of %s in %s", l.Name, l.Peer, l.Cluster)
	}
	return l.Name + " in " + l.Cluster
}

// evidence is what shows the state of a link. Some of it are sentences.
func evidence(l *explain.Link) string {
	var parts []string
	for _, e := range l.Evidence {
		parts = append(parts, strings.TrimSuffix(e, "."))
	}
	return strings.Join(parts, "; ")
}

func writeExplanation(w io.Writer, width int, e explanation, now time.Time) error {
	layout.Hanging(w, width, 0, fmt.Sprintf("%s/%s for clients on %s/%s", e.Namespace, e.Name, e.Cluster, e.Node))
	fmt.Fprintln(w)
	states, names, clusters := 0, 0, 0
	where := func(l *explain.Link) string {
		if l.Peer != "" && l.Peer != l.Cluster {
			return l.Cluster + " < " + l.Peer
		}
		return l.Cluster
	}
	for i := range e.Links {
		l := &e.Links[i]
		states, names, clusters = max(states, len(l.State)), max(names, len(l.Name)), max(clusters, len(where(l)))
	}
	broken, unknown := explain.FirstBroken(e.Links), 0
	for i := range e.Links {
		l := &e.Links[i]
		if l.State == explain.Unknown {
			unknown++
		}
		text := evidence(l)
		if !l.Since.IsZero() {
			text += " (" + explain.Age(now.Sub(l.Since)) + ")"
		}
		head := fmt.Sprintf("%-*s  %-*s  %-*s  ", states, l.State, names, l.Name, clusters, where(l))
		indent := len(head)
		if width > 0 && indent > width/2 {
			before := fmt.Sprintf("%-*s  %-*s  ", states, l.State, names, l.Name)
			fmt.Fprint(w, layout.Text(width, before, strings.Repeat(" ", len(before)+2), where(l)))
			head, indent = strings.Repeat(" ", 9), 9
		}
		layout.Wrapped(w, width, indent, head, text)
	}
	fmt.Fprintln(w)
	switch {
	case broken >= 0:
		l := &e.Links[broken]
		layout.Wrapped(w, width, 14, "First broken:", fmt.Sprintf("%s: %s", linkName(l), evidence(l)))
		if l.Do != "" {
			layout.Wrapped(w, width, 14, "Do:", l.Do)
		}
	case unknown > 0:
		fmt.Fprintf(w, "No link is broken as far as could be seen; %d could not be.\n", unknown)
		for i := range e.Links {
			if l := &e.Links[i]; l.State == explain.Unknown && l.Do != "" {
				layout.Wrapped(w, width, 14, "To see more:", l.Do)
			}
		}
	default:
		fmt.Fprintln(w, "No link is broken.")
	}
	return nil
}
