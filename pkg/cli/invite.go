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
	"strings"
	"time"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/peering"
)

const (
	// inviteLife is how long an invitation is good, unless it is said otherwise, and
	// maxInviteLife the longest.
	inviteLife    = 15 * time.Minute
	maxInviteLife = 24 * time.Hour
	// minTokenLife is the shortest that Kubernetes gives a token.
	minTokenLife = 10 * time.Minute
	// newPeer, on the Secret of an invitation, says that the account of the peer was
	// made for it: whoever withdraws the invitation takes it along.
	newPeer = "meshctl.mesh.io/new-peer"
)

type inviteFlags struct {
	name      string
	ttl       time.Duration
	withdraw  bool
	addresses addressFlags
}

func newInvite(o *options) *cobra.Command {
	var flags inviteFlags
	command := &cobra.Command{
		Use:     "invite --cluster-name NAME",
		GroupID: groupSetup,
		Short:   "Print a line by which another cluster can join, once",
		Long: `Prints one line that the administrator of another cluster gives to "meshctl join". It
holds a token that is good for one join, of the cluster of that name, within --ttl; and
where this cluster's mesh API is and how to know it. Neither of the two administrators
needs credentials of the other's cluster.

The line is a secret: send it by a way that only its receiver reads. Another invitation
for the same name takes the place of the first; --withdraw takes it back. What it
consists of goes when it is used or its time is over.`,
		Example: `  meshctl invite --context cluster1 --cluster-name cluster2
  umask 077; meshctl invite --context cluster1 --cluster-name cluster2 --ttl 1h > invitation
  meshctl invite --context cluster1 --cluster-name cluster2 --withdraw`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return invite(command.Context(), o, flags)
		},
	}
	fs := command.Flags()
	fs.StringVar(&flags.name, "cluster-name", "", "The name, in the mesh, of the cluster that is invited. Required.")
	fs.DurationVar(&flags.ttl, "ttl", inviteLife, "How long the invitation is good; at most 24h.")
	fs.BoolVar(&flags.withdraw, "withdraw", false, "Take the invitation for the name back.")
	flags.addresses.add(fs)
	return command
}

func invite(ctx context.Context, o *options, flags inviteFlags) error {
	switch problems := validation.IsDNS1123Label(flags.name); {
	case flags.name == "":
		return usage("who is invited is missing: give --cluster-name")
	case len(problems) > 0:
		return usage("--cluster-name %q: %s", flags.name, strings.Join(problems, "; "))
	case len(flags.name) > 32:
		return usage("--cluster-name %q: it has more than 32 characters", flags.name)
	case flags.ttl < time.Second || flags.ttl > maxInviteLife:
		return usage("--ttl %s: it is between 1s and 24h", flags.ttl)
	}
	t, err := o.target()
	if err != nil {
		return err
	}
	if flags.withdraw {
		return withdraw(ctx, o, t, flags.name)
	}
	way, err := flags.addresses.options()
	if err != nil {
		return err
	}
	p := newProgress(o.Err)
	i := &inviting{target: t, name: flags.name, ttl: flags.ttl}
	err = p.step("Checking "+t.Context, func(func(string, ...any)) error {
		// The one who invites both exports and, once the other has joined, imports.
		if i.side, err = t.side(ctx, way, true); err != nil {
			return err
		}
		if err := t.allowed(ctx, true, true, way); err != nil {
			return err
		}
		return i.look(ctx)
	})
	if err != nil {
		return err
	}
	err = carryOut(ctx, p, []work{{fmt.Sprintf("Making an invitation for %s", flags.name), i.make}},
		fmt.Sprintf("meshctl invite --context %s --cluster-name %s --withdraw", t.Context, flags.name))
	if err != nil {
		return fmt.Errorf("inviting %s: %w", flags.name, err)
	}
	fmt.Fprintln(o.Out, i.line)
	fmt.Fprintf(o.Err, `
This line is a secret. Give it to the administrator of %s, who has until %s to run
  meshctl join --context <context of %s> -
and to paste it there (as an argument it would stay in the history of the shell).
`, flags.name, i.expires.Local().Format("15:04:05 MST"), flags.name)
	return nil
}

// inviting is an invitation that is being made.
type inviting struct {
	*target
	side    *side
	name    string
	ttl     time.Duration
	expires time.Time
	line    string

	// What there is already.
	exports, imports link
	invite           struct {
		account *corev1.ServiceAccount
		secret  *corev1.Secret
	}
}

// look reads what there is. A member by the name may join again.
func (i *inviting) look(ctx context.Context) error {
	if i.name == i.side.Name {
		return fmt.Errorf("%q is the name of the cluster that invites: names are unique in the mesh", i.name)
	}
	invited := peering.Cluster{Name: i.name}
	i.exports = link{Link: peering.Link{Importer: invited, Exporter: i.side.Cluster, Namespace: i.Namespace, Access: i.side.access}, exporter: i.target}
	i.imports = link{Link: peering.Link{Importer: i.side.Cluster, Exporter: invited}, importer: i.target}
	for _, l := range []*link{&i.exports, &i.imports} {
		if _, err := l.look(ctx, true); err != nil {
			return err
		}
	}
	return errors.Join(
		get(ctx, &i.invite.account, i.accounts().Get, peering.InviteName(i.name)),
		get(ctx, &i.invite.secret, i.secrets().Get, peering.InviteName(i.name)),
	)
}

// make makes everything that the invitation consists of; the token comes last.
func (i *inviting) make(ctx context.Context, note func(string, ...any), j *journal) error {
	name, in := peering.InviteName(i.name), " in "+i.side.Name
	if i.invite.secret != nil || i.invite.account != nil {
		note("the invitation that there was for %s is taken back", i.name)
	}
	anew := i.exports.existing.Account == nil || i.invite.secret != nil && i.invite.secret.Annotations[newPeer] != ""
	if _, err := dropInvitation(ctx, i.target, name); err != nil {
		return fmt.Errorf("taking the earlier invitation back: %w", err)
	}
	if err := i.exports.make(ctx, note, j, inExporter); err != nil {
		return err
	}
	// The controller will renew what the other cluster brings.
	renewing := func(a peering.Action) bool { return a == peering.MakeRenewRole || a == peering.MakeRenewBinding }
	if err := i.imports.make(ctx, note, j, renewing); err != nil {
		return err
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: i.Namespace, Labels: peering.Labels()}, Type: corev1.SecretTypeOpaque}
	if anew {
		secret.Annotations = map[string]string{newPeer: "true"}
	}
	// The Secret comes first: the rest is its own, and goes with it.
	if err := create(ctx, j, i.secrets(), "Secret "+name+in, secret); err != nil {
		return err
	}
	made, err := i.secrets().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading Secret %s: %w", name, err)
	}
	invited := peering.NewInvited(i.name, made)
	err = firstError(
		func() error { return create(ctx, j, i.accounts(), "ServiceAccount "+name+in, invited.Account) },
		func() error { return create(ctx, j, i.roles(), "Role "+name+in, invited.Role) },
		func() error { return create(ctx, j, i.roleBindings(), "RoleBinding "+name+in, invited.Binding) },
	)
	if err != nil {
		return err
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: ptr.To(int64(max(i.ttl, minTokenLife) / time.Second)),
		BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Secret", APIVersion: "v1", Name: name, UID: made.UID},
	}}
	i.expires = time.Now().Add(i.ttl).Truncate(time.Second)
	answer, err := i.accounts().CreateToken(ctx, name, request, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("asking for the token of the invitation: %w", err)
	}
	id, err := peering.TokenID(answer.Status.Token)
	if err != nil {
		return fmt.Errorf("asking for the token of the invitation: %w", err)
	}
	made.Data = map[string][]byte{
		v1alpha1.InvitationExpires: []byte(i.expires.UTC().Format(time.RFC3339)),
		v1alpha1.InvitationTokenID: []byte(id),
	}
	if _, err := i.secrets().Update(ctx, made, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("completing Secret %s: %w", name, err)
	}
	i.line, err = peering.Invitation{
		Invited: i.name, Expires: i.expires,
		Name: i.side.Name, ID: i.side.ID, UID: i.side.UID, Version: i.side.Version, PodCIDRs: i.side.PodCIDRs,
		Endpoints: i.side.access.Endpoints, ServerName: i.side.access.ServerName, CA: i.side.access.CA,
		Token: answer.Status.Token,
	}.Line()
	return err
}

// firstError runs one after the other, until one fails.
func firstError(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// dropInvitation deletes what only the invitation consists of; the Secret first, as
// with it the token dies.
func dropInvitation(ctx context.Context, t *target, name string) (found bool, err error) {
	var errs []error
	for _, remove := range []func() (bool, error){
		func() (bool, error) { return drop(ctx, t.secrets(), name) },
		func() (bool, error) { return drop(ctx, t.accounts(), name) },
		func() (bool, error) { return drop(ctx, t.roleBindings(), name) },
		func() (bool, error) { return drop(ctx, t.roles(), name) },
	} {
		there, err := remove()
		found = found || there
		if err != nil {
			errs = append(errs, t.reach("deleting the invitation "+name, err))
		}
	}
	return found, errors.Join(errs...)
}

// withdraw takes an invitation back, and what was made for a peer that has not come.
func withdraw(ctx context.Context, o *options, t *target, name string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var secret *corev1.Secret
	if err := get(ctx, &secret, t.secrets().Get, peering.InviteName(name)); err != nil {
		return t.reach("reading the invitation", err)
	}
	found, err := dropInvitation(ctx, t, peering.InviteName(name))
	if err != nil {
		return err
	}
	if secret != nil && secret.Annotations[newPeer] != "" {
		account, renew := peering.PeerName(name), peering.RenewName(name)
		for _, remove := range []func() (bool, error){
			func() (bool, error) { return drop(ctx, t.bindings(), account) },
			func() (bool, error) { return drop(ctx, t.accounts(), account) },
			func() (bool, error) { return drop(ctx, t.roleBindings(), account) },
			func() (bool, error) { return drop(ctx, t.roles(), account) },
			func() (bool, error) { return drop(ctx, t.roleBindings(), renew) },
			func() (bool, error) { return drop(ctx, t.roles(), renew) },
		} {
			if _, err := remove(); err != nil {
				return t.reach("deleting what was made for "+name, err)
			}
		}
	}
	if secret == nil {
		fmt.Fprintf(o.Err, "What there may be of %s as a peer stays: meshctl disconnect --context %s --peer %s removes it\n", name, t.Context, name)
	}
	switch {
	case secret != nil:
		fmt.Fprintf(o.Out, "the invitation for %s is taken back\n", name)
	case found:
		fmt.Fprintf(o.Out, "the invitation for %s was used, or its time was over; what was left of it is removed\n", name)
	default:
		fmt.Fprintf(o.Out, "there is no invitation for %s\n", name)
	}
	return nil
}
