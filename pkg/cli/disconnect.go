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
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/peering"
)

// disconnectTimeout is how long it is waited for a controller to remove what was
// imported, unless it is said otherwise.
const disconnectTimeout = time.Minute

func newDisconnect(o *options) *cobra.Command {
	var (
		destination, name string
		wait              bool
		timeout           time.Duration
	)
	command := &cobra.Command{
		Use:     "disconnect (--peer NAME | --destination-context CONTEXT)",
		GroupID: groupSetup,
		Short:   "Part two clusters, also when one of them is dead",
		Long: `Ends what connect or join has made: in the cluster of --context the peer's account is
deleted, so that its credentials are of no use any more, and its MeshCluster and
Secret, so that nothing of it is used and what was imported is removed. The peer is not
asked. With --destination-context the same is done in the other cluster.

Where only one side is parted, the other one keeps what it had imported until it is
parted, too.`,
		Example: `  meshctl disconnect --context cluster1 --destination-context cluster2
  meshctl disconnect --context cluster1 --peer cluster2`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			if (destination == "") == (name == "") {
				return usage("give either --peer, the name of the cluster to part from, or --destination-context")
			}
			if !wait {
				timeout = 0
			}
			if name != "" {
				return disconnectHere(command.Context(), o, name, timeout)
			}
			return disconnectBoth(command.Context(), o, destination, timeout)
		},
	}
	fs := command.Flags()
	fs.StringVar(&name, "peer", "", "The name of the cluster to part from, as in its MeshCluster.")
	fs.StringVar(&destination, "destination-context", "", "The kubeconfig context of the cluster to part from.")
	fs.BoolVar(&wait, "wait", true, "Wait until what was imported is removed.")
	fs.DurationVar(&timeout, "timeout", disconnectTimeout, "How long to wait.")
	return command
}

// ownName is what a cluster is called in the mesh. It is also known while the mesh API
// does not answer.
func (t *target) ownName(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	members, err := t.members(ctx)
	if own, _ := peering.LocalOf(members); own != nil {
		return own.Name, nil
	}
	if config, failed := t.Kube.CoreV1().ConfigMaps(t.Namespace).Get(ctx, "mesh-config", metav1.GetOptions{}); failed == nil && config.Data["cluster-name"] != "" {
		return config.Data["cluster-name"], nil
	}
	if err == nil {
		err = fmt.Errorf("%q has no MeshCluster of its own yet: mesh-controller makes it", t.Context)
	}
	return "", err
}

func disconnectHere(ctx context.Context, o *options, name string, timeout time.Duration) error {
	if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
		return usage("--peer %q: %s", name, strings.Join(problems, "; "))
	}
	t, err := o.target()
	if err != nil {
		return err
	}
	own, unnamed := t.ownName(ctx)
	if unnamed != nil {
		own = t.Context // it is for messages only
	}
	if unnamed == nil && own == name {
		return usage("%q is the cluster of context %q itself: --peer names another one", name, t.Context)
	}
	found, err := part(ctx, newProgress(o.Err), t, own, name, timeout)
	if err != nil {
		return err
	}
	if !found {
		fmt.Fprintf(o.Out, "%s is not connected to %s: there was nothing to remove%s\n", own, name, peersOf(ctx, t))
		return nil
	}
	fmt.Fprintf(o.Out, "%s is parted from %s, whose credentials here are of no use any more\n", own, name)
	fmt.Fprintf(o.Err, "%s keeps what it has imported from %s until it is parted, too. Whoever administers it runs:\n  meshctl disconnect --context <context of %s> --peer %s\n", name, own, name, own)
	return nil
}

// peersOf names the peers that there are, for whoever got a name wrong.
func peersOf(ctx context.Context, t *target) string {
	members, err := t.members(ctx)
	if err != nil {
		return ""
	}
	var names []string
	_, peers := peering.LocalOf(members)
	for i := range peers {
		names = append(names, peers[i].Name)
	}
	if len(names) == 0 {
		return "; it has no peers"
	}
	return "; its peers are " + strings.Join(names, ", ")
}

func disconnectBoth(ctx context.Context, o *options, destination string, timeout time.Duration) error {
	var sides [2]*target
	var names [2]string
	for i, name := range []string{o.context, destination} {
		t, err := o.targetOf(name)
		if err != nil {
			return err
		}
		sides[i] = t
	}
	if sides[0].Context == sides[1].Context {
		return usage("--context and --destination-context are both %q: give two clusters", sides[0].Context)
	}
	for i, t := range sides {
		var err error
		if names[i], err = t.ownName(ctx); err != nil {
			other := sides[1-i]
			return fmt.Errorf("%w\nIf %q is gone, part the other one from it by its name: meshctl disconnect --context %s --peer NAME%s", err, t.Context, other.Context, peersOf(ctx, other))
		}
	}
	if names[0] == names[1] {
		return fmt.Errorf("the clusters of %q and %q are both called %q in the mesh: they cannot be connected", sides[0].Context, sides[1].Context, names[0])
	}
	p := newProgress(o.Err)
	var errs []error
	any := false
	for i, t := range sides {
		found, err := part(ctx, p, t, names[i], names[1-i], timeout)
		any = any || found
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if !any {
		fmt.Fprintf(o.Out, "%s and %s are not connected: there was nothing to remove\n", names[0], names[1])
		return nil
	}
	fmt.Fprintf(o.Out, "%s and %s are parted\n", names[0], names[1])
	return nil
}

// part removes everything of a peer from a cluster. What can be removed is, whatever
// else fails; found says that there was anything.
func part(ctx context.Context, p *progress, t *target, own, name string, timeout time.Duration) (found bool, err error) {
	err = p.step(fmt.Sprintf("Parting %s from %s", own, name), func(note func(string, ...any)) error {
		var errs []error
		do := func(what string, remove func() (bool, error)) {
			there, err := remove()
			switch {
			case err != nil:
				errs = append(errs, t.reach("deleting "+what, err))
			case there:
				found = true
				note("%s is deleted", what)
			}
		}
		var member *v1alpha1.MeshCluster
		var memberErr error
		func() {
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			account, invite, renew := peering.PeerName(name), peering.InviteName(name), peering.RenewName(name)
			// The peer's access comes first: it ends even if nothing else can be done.
			do("ClusterRoleBinding "+account, func() (bool, error) { return drop(ctx, t.bindings(), account) })
			do("ServiceAccount "+account, func() (bool, error) { return drop(ctx, t.accounts(), account) })
			for _, name := range []string{account, renew} {
				do("RoleBinding "+name, func() (bool, error) { return drop(ctx, t.roleBindings(), name) })
				do("Role "+name, func() (bool, error) { return drop(ctx, t.roles(), name) })
			}
			there, err := dropInvitation(ctx, t, invite)
			found = found || there
			errs = append(errs, err)

			if memberErr = get(ctx, &member, t.meshClusters().Get, name); memberErr == nil && member != nil {
				if member.Spec.KubeconfigSecretRef == nil {
					memberErr = fmt.Errorf("MeshCluster %q in %q is that cluster itself", name, t.Context)
				} else {
					do("MeshCluster "+name, func() (bool, error) { return drop(ctx, t.meshClusters(), name) })
				}
			}
			if member != nil && member.Spec.KubeconfigSecretRef != nil && member.Spec.KubeconfigSecretRef.Name != account {
				note("Secret %s, which meshctl did not make, stays", member.Spec.KubeconfigSecretRef.Name)
			}
			do("Secret "+account, func() (bool, error) { return drop(ctx, t.secrets(), account) })
		}()
		switch {
		case apierrors.IsNotFound(memberErr), memberErr == nil && member == nil:
		case apierrors.IsServiceUnavailable(memberErr):
			errs = append(errs, fmt.Errorf("MeshCluster %s in %q could not be deleted, as the mesh API there does not answer: run the same command again when mesh-apiserver is ready: %w", name, t.Context, memberErr))
		case memberErr != nil:
			errs = append(errs, t.reach("reading MeshCluster "+name, memberErr))
		case timeout > 0 && !slices.ContainsFunc(errs, func(err error) bool { return err != nil }):
			note("What was imported from %s is being removed", name)
			waiting, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			if err := awaitGone(waiting, t.meshClusters(), name, member.UID); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				err := fmt.Errorf("%s is no longer used in %s, but MeshCluster %s still stands after %s: mesh-controller deletes it once it has removed what was imported. Check that it is at work: kubectl --context %s -n %s get deployment mesh-controller",
					name, own, name, timeout, t.Context, t.Namespace)
				errs = append(errs, codeError{err, ExitTimeout})
			}
		}
		return errors.Join(errs...)
	})
	return found, err
}

// drop deletes an object whose name is the mesh's own, and says whether there was one.
func drop[T metav1.Object](ctx context.Context, client objects[T], name string) (bool, error) {
	err := client.Delete(ctx, name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}
