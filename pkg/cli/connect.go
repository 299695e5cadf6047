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
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"

	"mesh.io/clustermesh/pkg/cli/peering"
	"mesh.io/clustermesh/pkg/layout"
)

// connectTimeout is how long a connection is waited for, unless it is said otherwise.
const connectTimeout = 2 * time.Minute

// connectFlags are those of connect.
type connectFlags struct {
	destination          string
	oneWay, renew, wait  bool
	addresses            addressFlags
	destinationEndpoints []string
	timeout              time.Duration
}

// addressFlags say at which addresses another cluster reaches the mesh API of this one.
type addressFlags struct {
	endpoints []string
	nodes     nodeAddress
}

func (f *addressFlags) add(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.endpoints, "endpoint", nil, "Addresses HOST[:PORT] at which the other cluster reaches the mesh API of this one.")
	f.nodes = "internal"
	flags.Var(&f.nodes, "node-address", "Which addresses of the nodes peers use, where the mesh API is a NodePort; the other kind where no node has one of this.")
}

// options are what the flags say of one side.
func (f *addressFlags) options() (sideOptions, error) { return f.nodes.options(f.endpoints) }

func (a nodeAddress) options(endpoints []string) (sideOptions, error) {
	parsed, err := peering.ParseEndpoints(endpoints)
	if err != nil {
		return sideOptions{}, usage("%w", err)
	}
	return sideOptions{endpoints: parsed, prefer: a.kind()}, nil
}

// nodeAddress is which addresses of nodes peers use.
type nodeAddress string

// String, Set and Type make it a flag.
func (a *nodeAddress) String() string { return string(*a) }

// Type names the values in help.
func (*nodeAddress) Type() string { return "internal|external" }

// Set takes one of the two.
func (a *nodeAddress) Set(value string) error {
	if value != "internal" && value != "external" {
		return errors.New("it is one of internal, external")
	}
	*a = nodeAddress(value)
	return nil
}

var _ pflag.Value = (*nodeAddress)(nil)

func (a nodeAddress) kind() corev1.NodeAddressType {
	if a == "external" {
		return corev1.NodeExternalIP
	}
	return corev1.NodeInternalIP
}

func newConnect(o *options) *cobra.Command {
	var flags connectFlags
	command := &cobra.Command{
		Use:     "connect --destination-context CONTEXT",
		GroupID: groupSetup,
		Short:   "Connect two clusters, so that each imports what the other exports",
		Long: `Connects the meshes of two clusters: each gets an account in the other one that may
read what is exported there and nothing else, and the other one as a MeshCluster. The
clusters need no common certificate authority. With --one-way only the cluster of
--context imports.

Nothing is changed before it is clear that the two can be members of one mesh. When
something fails, or on Ctrl-C, all that was made in either cluster is undone. A second
call completes what one that was killed has left, and else changes nothing.

Peers reach the mesh API by the Service mesh-apiserver-peer: at its load balancer, or
at its port on every node. Where that is not how the other cluster reaches it, give the
address with --endpoint (of the cluster of --context) or --destination-endpoint.`,
		Example: `  meshctl connect --context cluster1 --destination-context cluster2
  meshctl connect --context cluster1 --destination-context cluster2 --one-way
  meshctl connect --context cluster1 --destination-context cluster2 --renew`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return connect(command.Context(), o, flags)
		},
	}
	fs := command.Flags()
	fs.StringVar(&flags.destination, "destination-context", "", "The kubeconfig context of the other cluster. Required.")
	fs.BoolVar(&flags.oneWay, "one-way", false, "Only the cluster of --context imports, and the other one exports to it.")
	fs.BoolVar(&flags.renew, "renew", false, "Write new credentials and addresses, also where those that there are can be used.")
	fs.BoolVar(&flags.wait, "wait", true, "Wait until the clusters are connected and in sync.")
	fs.DurationVar(&flags.timeout, "timeout", connectTimeout, "How long to wait.")
	flags.addresses.add(fs)
	fs.StringSliceVar(&flags.destinationEndpoints, "destination-endpoint", nil, "Addresses HOST[:PORT] at which this cluster reaches the mesh API of the other one.")
	return command
}

func connect(ctx context.Context, o *options, flags connectFlags) error {
	if flags.destination == "" {
		return usage("which cluster to connect is missing: give --destination-context")
	}
	mine, err := o.target()
	if err != nil {
		return err
	}
	theirs, err := o.targetOf(flags.destination)
	if err != nil {
		return err
	}
	if mine.Context == theirs.Context {
		return usage("--context and --destination-context are both %q: give two clusters", mine.Context)
	}
	var ways [2]sideOptions
	if ways[0], err = flags.addresses.options(); err != nil {
		return err
	}
	if ways[1], err = flags.addresses.nodes.options(flags.destinationEndpoints); err != nil {
		return err
	}

	p := newProgress(o.Err)
	var links []*link
	err = p.step(fmt.Sprintf("Checking %s and %s", mine.Context, theirs.Context), func(note func(string, ...any)) error {
		var warnings []string
		links, warnings, err = prepare(ctx, mine, theirs, ways, flags)
		for _, warning := range warnings {
			defer p.say("Warning: %s.", warning)
		}
		return err
	})
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("stopped; nothing has been changed: %w", err)
		}
		return err
	}

	var steps []work
	for _, l := range links {
		if len(l.actions) == 0 {
			continue
		}
		steps = append(steps, work{
			what: fmt.Sprintf("Letting %s import from %s", l.Importer.Name, l.Exporter.Name),
			run: func(ctx context.Context, note func(string, ...any), j *journal) error {
				return l.make(ctx, note, j, func(peering.Action) bool { return true })
			},
		})
	}
	done := len(steps) == 0
	if flags.wait {
		var all []watched
		for _, l := range links {
			all = append(all, l.watched())
		}
		steps = append(steps, work{
			what: "Waiting until " + directions(links),
			run: func(ctx context.Context, note func(string, ...any), _ *journal) error {
				return await(ctx, flags.timeout, note, all)
			},
		})
	}
	if err := carryOut(ctx, p, steps, fmt.Sprintf("meshctl disconnect --context %s --destination-context %s", mine.Context, theirs.Context)); err != nil {
		return fmt.Errorf("connecting %s and %s: %w", mine.Context, theirs.Context, err)
	}
	return writeConnected(o.Out, layout.Width(o.Out), links, done, flags.wait)
}

// writeConnected says what is connected now. done says that it was so before, waited
// that the clusters are in sync.
func writeConnected(w io.Writer, width int, links []*link, done, waited bool) error {
	var text strings.Builder
	verb := "is"
	if done {
		verb = "was already"
	}
	for _, l := range links {
		what := "importing from"
		if !waited && !done {
			what = "set up to import from"
		}
		layout.Hanging(&text, width, 0, fmt.Sprintf("%s %s %s %s", l.Importer.Name, verb, what, l.Exporter.Name))
	}
	if done {
		text.WriteString("The clusters are already connected: nothing was changed\n")
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// directions says what is waited for.
func directions(links []*link) string {
	if len(links) == 1 {
		return fmt.Sprintf("%s is in sync with %s", links[0].Importer.Name, links[0].Exporter.Name)
	}
	return fmt.Sprintf("%s and %s are in sync", links[0].Importer.Name, links[0].Exporter.Name)
}

// prepare checks everything that can be checked before something is made.
func prepare(ctx context.Context, mine, theirs *target, ways [2]sideOptions, flags connectFlags) (links []*link, warnings []string, err error) {
	var sides [2]*side
	var errs [2]error
	var wg sync.WaitGroup
	for i, t := range []*target{mine, theirs} {
		wg.Go(func() {
			// The destination exports in any case; with one way it does not import.
			exports := i == 1 || !flags.oneWay
			if sides[i], errs[i] = t.side(ctx, ways[i], exports); errs[i] == nil {
				errs[i] = t.allowed(ctx, i == 0 || !flags.oneWay, exports, ways[i])
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return nil, nil, err
	}
	problems, warnings := peering.Check(sides[0].Cluster, sides[1].Cluster)
	if len(problems) > 0 {
		return nil, nil, fmt.Errorf("%s and %s cannot be connected:\n- %s", mine.Context, theirs.Context, strings.Join(problems, "\n- "))
	}
	pairs := [][2]*side{{sides[0], sides[1]}, {sides[1], sides[0]}}
	if flags.oneWay {
		pairs = pairs[:1]
	}
	for _, pair := range pairs {
		l := &link{
			Link:     peering.Link{Importer: pair[0].Cluster, Exporter: pair[1].Cluster, Namespace: pair[1].Namespace, Access: pair[1].access},
			importer: pair[0].target, exporter: pair[1].target,
		}
		notes, err := l.look(ctx, flags.renew)
		if err != nil {
			return nil, nil, err
		}
		warnings = append(warnings, notes...)
		links = append(links, l)
	}
	return links, warnings, nil
}
