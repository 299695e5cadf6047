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
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/peering"
	"mesh.io/clustermesh/pkg/generated/clientset/versioned"
	"mesh.io/clustermesh/pkg/peer"
)

type joinFlags struct {
	oneWay, wait, allowLocal bool
	timeout                  time.Duration
	addresses                addressFlags
}

func newJoin(o *options) *cobra.Command {
	var flags joinFlags
	command := &cobra.Command{
		Use:     "join (LINE | -)",
		GroupID: groupSetup,
		Short:   "Connect this cluster to the one that has invited it",
		Long: `Uses the line that "meshctl invite" has printed in another cluster. Both clusters then
import what the other one exports; with --one-way only this one imports.

The line is a secret: with "-" it is read from the standard input, where neither the
history of the shell nor the list of processes shows it.

The mesh API of the other cluster has to be reachable from where meshctl runs. What was
made in this cluster is undone when the join fails. Once the other cluster has accepted
it, the invitation is used up; if the clusters then do not reach each other, they go on
trying.`,
		Example: `  # Paste the line, or give the file that it was written to.
  meshctl join --context cluster2 -
  meshctl join --context cluster2 - < invitation
  meshctl join --context cluster2 --one-way - < invitation`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usage("give the line of the invitation in quotes, or - to read it from the standard input")
			}
			return nil
		},
		RunE: func(command *cobra.Command, args []string) error {
			return join(command.Context(), o, flags, args[0])
		},
	}
	fs := command.Flags()
	fs.BoolVar(&flags.oneWay, "one-way", false, "Only this cluster imports, and the other one exports to it.")
	fs.BoolVar(&flags.wait, "wait", true, "Wait until the clusters are connected and in sync.")
	fs.DurationVar(&flags.timeout, "timeout", connectTimeout, "How long to wait.")
	fs.BoolVar(&flags.allowLocal, "allow-local", false, "Use the invitation also if it leads to a loopback, link-local or cloud metadata address.")
	flags.addresses.add(fs)
	return command
}

// readLine reads the line of an invitation: all there is in a pipe, one line of a
// terminal.
func (o *options) readLine(ctx context.Context) (string, error) {
	type result struct {
		line string
		err  error
	}
	read := make(chan result, 1)
	go func() {
		if newProgress(o.Err).terminal {
			fmt.Fprintln(o.Err, "Paste the line of the invitation, then press Enter:")
			line, err := bufio.NewReader(io.LimitReader(o.In, 1<<20)).ReadString('\n')
			if errors.Is(err, io.EOF) {
				err = nil
			}
			read <- result{line, err}
			return
		}
		content, err := io.ReadAll(io.LimitReader(o.In, 1<<20))
		read <- result{string(content), err}
	}()
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case r := <-read:
		if r.err != nil {
			return "", fmt.Errorf("reading the invitation from the standard input: %w", r.err)
		}
		return r.line, nil
	}
}

func join(ctx context.Context, o *options, flags joinFlags, line string) error {
	var err error
	if line == "-" {
		if line, err = o.readLine(ctx); err != nil {
			return err
		}
	}
	invitation, err := peering.ParseLine(line)
	if err != nil {
		return codeError{err, ExitUsage}
	}
	t, err := o.target()
	if err != nil {
		return err
	}
	way, err := flags.addresses.options()
	if err != nil {
		return err
	}
	p := newProgress(o.Err)
	joining := &joining{invitation: invitation, oneWay: flags.oneWay, allowLocal: flags.allowLocal}
	err = p.step(fmt.Sprintf("Checking %s and the invitation of %s", t.Context, invitation.Name), func(func(string, ...any)) error {
		var warnings []string
		warnings, err = joining.prepare(ctx, t, way)
		for _, warning := range warnings {
			defer p.say("Warning: %s.", warning)
		}
		return err
	})
	if err != nil {
		return err
	}
	own := joining.side.Name
	leave := fmt.Sprintf("meshctl disconnect --context %s --peer %s", t.Context, invitation.Name)
	err = carryOut(ctx, p, []work{{fmt.Sprintf("Joining %s to %s", own, invitation.Name), joining.make}}, leave)
	if err != nil {
		if joining.accepted {
			err = fmt.Errorf("%w\n%s has accepted the join, though: whoever administers it may invite again, or run: meshctl disconnect --context <context of %s> --peer %s", err, invitation.Name, invitation.Name, own)
		}
		return fmt.Errorf("joining %s to %s: %w", own, invitation.Name, err)
	}
	if flags.wait {
		what := fmt.Sprintf("Waiting until %s is in sync with %s", own, invitation.Name)
		all := []watched{joining.imports.watched()}
		if !flags.oneWay {
			what = fmt.Sprintf("Waiting until %s and %s are in sync", own, invitation.Name)
			all = append(all, watched{joining.exports.Importer, joining.exports.Exporter, joining.exports.Access.Endpoints, joining.remoteState})
		}
		err = p.step(what, func(note func(string, ...any)) error { return await(ctx, flags.timeout, note, all) })
		if err != nil {
			return fmt.Errorf("%s has joined %s, and the two go on trying, but: %w\nTo leave again: %s", own, invitation.Name, err, leave)
		}
	}
	verb := "is importing from"
	if !flags.wait {
		verb = "is set up to import from"
	}
	fmt.Fprintf(o.Out, "%s %s %s\n", own, verb, invitation.Name)
	if !flags.oneWay {
		fmt.Fprintf(o.Out, "%s %s %s\n", invitation.Name, verb, own)
	}
	return nil
}

// joining is a join under way.
type joining struct {
	invitation         peering.Invitation
	oneWay, allowLocal bool
	side               *side
	// imports is this cluster's import from the one that invites, exports the other
	// direction.
	imports, exports link
	// endpoint is where the other mesh API was reached.
	endpoint string
	accepted bool
}

// prepare checks everything that can be checked before something is made.
func (g *joining) prepare(ctx context.Context, t *target, way sideOptions) (warnings []string, err error) {
	if g.side, err = t.side(ctx, way, !g.oneWay); err != nil {
		return nil, err
	}
	if why := g.invitation.Refuse(g.side.Name, time.Now()); why != "" {
		return nil, errors.New(why)
	}
	if !g.allowLocal {
		for _, endpoint := range g.invitation.Endpoints {
			if err := peer.CheckAddress(endpoint); err != nil {
				return nil, fmt.Errorf("the invitation is not used, as it leads to an address of this machine or its surroundings: %w. If you know that this is right, join with --allow-local", err)
			}
		}
	}
	if err := t.allowed(ctx, true, !g.oneWay, way); err != nil {
		return nil, err
	}
	inviter := g.invitation.Cluster()
	problems, warnings := peering.Check(g.side.Cluster, inviter)
	if len(problems) > 0 {
		return nil, fmt.Errorf("%s cannot join %s:\n- %s", g.side.Name, inviter.Name, strings.Join(problems, "\n- "))
	}
	g.imports = link{
		Link: peering.Link{Importer: g.side.Cluster, Exporter: inviter, Access: peering.Access{
			Endpoints: g.invitation.Endpoints, ServerName: g.invitation.ServerName, CA: g.invitation.CA,
		}},
		importer: t, guarded: !g.allowLocal,
	}
	links := []*link{&g.imports}
	if !g.oneWay {
		g.exports = link{
			Link:     peering.Link{Importer: inviter, Exporter: g.side.Cluster, Namespace: t.Namespace, Access: g.side.access},
			exporter: t,
		}
		links = append(links, &g.exports)
	}
	for _, l := range links {
		// The token that comes with a join takes the place of the one there was.
		if _, err := l.look(ctx, true); err != nil {
			return nil, err
		}
	}
	g.endpoint, err = reachable(ctx, g.imports.Access, g.allowLocal)
	if err != nil {
		return nil, fmt.Errorf("reaching the mesh API of %s: %w", inviter.Name, err)
	}
	return warnings, nil
}

// reachable finds an endpoint that answers with a certificate of the pinned
// authority. The invitation is good for one request: it is not tried out with it.
func reachable(ctx context.Context, access peering.Access, allowLocal bool) (string, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(access.CA)
	dialer := tls.Dialer{
		NetDialer: peer.Dialer(!allowLocal),
		Config:    &tls.Config{RootCAs: roots, ServerName: access.ServerName, MinVersion: tls.VersionTLS12},
	}
	type result struct {
		endpoint string
		err      error
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	results := make(chan result, len(access.Endpoints))
	for _, endpoint := range access.Endpoints {
		go func() {
			conn, err := dialer.DialContext(ctx, "tcp", endpoint)
			if err == nil {
				_ = conn.Close()
			}
			results <- result{endpoint, err}
		}()
	}
	var errs []error
	for range access.Endpoints {
		r := <-results
		if r.err == nil {
			return r.endpoint, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", r.endpoint, r.err))
	}
	return "", fmt.Errorf("none of its addresses answers as the invitation says; ask for an invitation with the right --endpoint, or run meshctl where they are reachable: %w", errors.Join(errs...))
}

// client reaches the other cluster's mesh API directly, with a token.
func (g *joining) client(token string) (versioned.Interface, error) {
	config := &rest.Config{
		Host: "https://" + g.endpoint, BearerToken: token, Timeout: writeTimeout, Dial: peer.Dialer(!g.allowLocal).DialContext,
		TLSClientConfig: rest.TLSClientConfig{CAData: g.imports.Access.CA, ServerName: g.imports.Access.ServerName},
	}
	peer.Straight(config)
	return versioned.NewForConfig(peer.Bounded(config))
}

// make makes what is to be made here, asks to be let in, and writes what the answer
// brings.
func (g *joining) make(ctx context.Context, note func(string, ...any), j *journal) error {
	inviter := g.invitation.Name
	request := &v1alpha1.JoinRequest{Spec: v1alpha1.JoinRequestSpec{Name: g.side.Name, ID: g.side.ID, UID: g.side.UID}}
	if !g.oneWay {
		if err := g.exports.make(ctx, note, j, inExporter); err != nil {
			return err
		}
		if err := g.exports.askToken(ctx); err != nil {
			return err
		}
		access := g.exports.Access
		access.Token = g.exports.token
		var err error
		if request.Spec.Kubeconfig, err = peering.Kubeconfig(access); err != nil {
			return fmt.Errorf("writing the credentials for %s: %w", inviter, err)
		}
	}
	renewing := func(a peering.Action) bool { return a == peering.MakeRenewRole || a == peering.MakeRenewBinding }
	if err := g.imports.make(ctx, note, j, renewing); err != nil {
		return err
	}
	// What would be refused later had better be refused before the invitation is used up.
	if g.imports.existing.Member == nil {
		options := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
		if _, err := g.imports.importer.meshClusters().Create(ctx, peering.Member(g.imports.Exporter), options); err != nil {
			return fmt.Errorf("making MeshCluster %s in %s: %w", inviter, g.side.Name, err)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	note("asking %s to let %s in", inviter, g.side.Name)
	client, err := g.client(g.invitation.Token)
	if err != nil {
		return fmt.Errorf("preparing to reach %s: %w", inviter, err)
	}
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	answer, err := client.MeshV1alpha1().JoinRequests().Create(asking, request, metav1.CreateOptions{})
	switch {
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s does not know the invitation any more: it has been used, withdrawn, or has expired; ask for another one", inviter)
	case err != nil:
		// Whether an answer that was lost has let this cluster in, nobody knows here.
		g.accepted = !refused(err)
		return fmt.Errorf("asking %s to let %s in: %w", inviter, g.side.Name, err)
	}
	g.accepted = true
	if answer.Status.UID != g.invitation.UID || answer.Status.Name != inviter || answer.Status.Token == "" {
		return fmt.Errorf("%s answers as another cluster than the one that has invited: %q (UID %s)", inviter, answer.Status.Name, answer.Status.UID)
	}
	if _, err := peer.ReadToken(answer.Status.Token); err != nil {
		return fmt.Errorf("%s has accepted the join, and its answer cannot be used: %w", inviter, err)
	}
	g.imports.token = answer.Status.Token
	if len(answer.Status.CABundle) > 0 {
		g.imports.Access.CA = answer.Status.CABundle
	}
	if answer.Status.TLSServerName != "" {
		g.imports.Access.ServerName = answer.Status.TLSServerName
	}
	// From here on it is finished: the invitation is used up.
	ctx = context.WithoutCancel(ctx)
	return g.imports.make(ctx, note, j, func(a peering.Action) bool {
		return a == peering.WriteCredentials || a == peering.MakeMember
	})
}

// remoteState reads how far the other cluster is, with the rights of a peer.
func (g *joining) remoteState(ctx context.Context) (peering.State, error) {
	client, err := g.client(g.imports.token)
	if err != nil {
		return peering.State{}, err
	}
	member, err := client.MeshV1alpha1().MeshClusters().Get(ctx, g.side.Name, metav1.GetOptions{})
	if err != nil {
		return peering.State{}, err
	}
	return peering.StateOf(member), nil
}
