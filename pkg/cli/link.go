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

	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	typedrbacv1 "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/peering"
	meshv1alpha1 "mesh.io/clustermesh/pkg/generated/clientset/versioned/typed/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/peer"
)

// credentialLife is how long the token of a peer is asked to be valid. The peer's
// controller renews it long before.
const credentialLife = 90 * 24 * time.Hour

// The clients of what a connection consists of.
func (t *target) accounts() typedcorev1.ServiceAccountInterface {
	return t.Kube.CoreV1().ServiceAccounts(t.Namespace)
}

func (t *target) secrets() typedcorev1.SecretInterface { return t.Kube.CoreV1().Secrets(t.Namespace) }

func (t *target) bindings() typedrbacv1.ClusterRoleBindingInterface {
	return t.Kube.RbacV1().ClusterRoleBindings()
}

func (t *target) roles() typedrbacv1.RoleInterface { return t.Kube.RbacV1().Roles(t.Namespace) }

func (t *target) roleBindings() typedrbacv1.RoleBindingInterface {
	return t.Kube.RbacV1().RoleBindings(t.Namespace)
}

func (t *target) meshClusters() meshv1alpha1.MeshClusterInterface {
	return t.Mesh.MeshV1alpha1().MeshClusters()
}

// link is one direction of a connection that meshctl makes: importer and exporter are
// the clusters that it can reach, nil for one that another person administers.
type link struct {
	peering.Link
	importer, exporter *target
	// guarded says that no administrator of the importer has seen where the link leads.
	guarded bool

	existing peering.Existing
	actions  []peering.Action
	token    string // of the importer's account, once it is asked for
	// since is when the importer had last heard of the exporter before the credentials
	// were replaced: what its conditions said until then is about the old ones.
	since *metav1.Time
}

// get reads an object that may not be there.
func get[T any](ctx context.Context, into **T, from func(ctx context.Context, name string, opts metav1.GetOptions) (*T, error), name string) error {
	found, err := from(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil {
		*into = found
	}
	return err
}

// look reads what there is of the link, and decides what is to be made.
func (l *link) look(ctx context.Context, renew bool) (notes []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	e := &l.existing
	if t := l.exporter; t != nil {
		name := peering.PeerName(l.Importer.Name)
		err := errors.Join(
			get(ctx, &e.Account, t.accounts().Get, name),
			get(ctx, &e.Binding, t.bindings().Get, name),
			get(ctx, &e.TokenRole, t.roles().Get, name),
			get(ctx, &e.TokenBinding, t.roleBindings().Get, name),
		)
		if err != nil {
			return nil, t.reach("looking for the account of "+l.Importer.Name, err)
		}
	}
	if t := l.importer; t != nil {
		name := peering.PeerName(l.Exporter.Name)
		err := errors.Join(
			get(ctx, &e.Secret, t.secrets().Get, name),
			get(ctx, &e.RenewRole, t.roles().Get, peering.RenewName(l.Exporter.Name)),
			get(ctx, &e.RenewBinding, t.roleBindings().Get, peering.RenewName(l.Exporter.Name)),
			get(ctx, &e.Member, t.meshClusters().Get, l.Exporter.Name),
		)
		if err != nil {
			return nil, t.reach("looking for the peer "+l.Exporter.Name, err)
		}
	}
	l.actions, notes, err = peering.Plan(l.Link, l.existing, renew, time.Now())
	return notes, err
}

// make does what is to be done, those of the actions that are asked for.
func (l *link) make(ctx context.Context, note func(string, ...any), j *journal, wanted func(peering.Action) bool) error {
	for _, action := range l.actions {
		if !wanted(action) {
			continue
		}
		// A request that is under way is finished, and no other one begun.
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.do(ctx, note, j, action); err != nil {
			return err
		}
	}
	return nil
}

// inExporter says whether an action is one in the exporter.
func inExporter(action peering.Action) bool {
	switch action {
	case peering.MakeAccount, peering.MakeBinding, peering.MakeTokenRole, peering.MakeTokenBinding:
		return true
	}
	return false
}

func (l *link) do(ctx context.Context, note func(string, ...any), j *journal, action peering.Action) error {
	importer, exporter := l.Importer.Name, l.Exporter.Name
	account, renew := peering.PeerName(importer), peering.RenewName(exporter)
	in := func(kind, name, cluster string) string {
		what := fmt.Sprintf("%s %s in %s", kind, name, cluster)
		note("%s", what)
		return what
	}
	switch action {
	case peering.MakeAccount:
		return create(ctx, j, l.exporter.accounts(), in("ServiceAccount", account, exporter), peering.Account(account, l.exporter.Namespace))
	case peering.MakeBinding:
		return create(ctx, j, l.exporter.bindings(), in("ClusterRoleBinding", account, exporter), peering.Binding(account, l.exporter.Namespace))
	case peering.MakeTokenRole:
		return create(ctx, j, l.exporter.roles(), in("Role", account, exporter), peering.TokenRole(importer, l.exporter.Namespace))
	case peering.MakeTokenBinding:
		return create(ctx, j, l.exporter.roleBindings(), in("RoleBinding", account, exporter), peering.TokenBinding(importer, l.exporter.Namespace))
	case peering.WriteCredentials:
		return l.writeCredentials(ctx, j, in("Secret", peering.PeerName(exporter), importer))
	case peering.MakeRenewRole:
		return create(ctx, j, l.importer.roles(), in("Role", renew, importer), peering.RenewRole(exporter, l.importer.Namespace))
	case peering.MakeRenewBinding:
		return create(ctx, j, l.importer.roleBindings(), in("RoleBinding", renew, importer), peering.RenewBinding(exporter, l.importer.Namespace))
	case peering.MakeMember:
		return create(ctx, j, l.importer.meshClusters(), in("MeshCluster", exporter, importer), peering.Member(l.Exporter))
	}
	return fmt.Errorf("nobody knows how to %s", action)
}

// askToken has the exporter issue a token for the importer's account.
func (l *link) askToken(ctx context.Context) error {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To(int64(credentialLife / time.Second))}}
	answer, err := l.exporter.accounts().CreateToken(ctx, peering.PeerName(l.Importer.Name), request, metav1.CreateOptions{})
	if err != nil {
		return l.exporter.reach("asking for a token of "+peering.PeerName(l.Importer.Name), err)
	}
	l.token = answer.Status.Token
	return nil
}

// writeCredentials writes the importer's Secret, with a token that is asked for unless
// it is there.
func (l *link) writeCredentials(ctx context.Context, j *journal, what string) error {
	if l.token == "" {
		if err := l.askToken(ctx); err != nil {
			return err
		}
	}
	access := l.Access
	access.Token = l.token
	kubeconfig, err := peering.Kubeconfig(access)
	if err != nil {
		return fmt.Errorf("writing %s: %w", what, err)
	}
	if l.existing.Secret == nil {
		secret := peering.Secret(l.Exporter.Name, l.importer.Namespace, kubeconfig)
		if l.guarded {
			secret.Annotations = map[string]string{v1alpha1.AnnotationInvited: "true"}
		}
		return create(ctx, j, l.importer.secrets(), what, secret)
	}
	before := l.existing.Secret
	if member := l.existing.Member; member != nil {
		l.since = &member.Status.LastContactTime
	}
	void := j.will(what+", as it was", func(ctx context.Context) error {
		now, err := l.importer.secrets().Get(ctx, before.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		now.Data, now.Annotations = before.Data, before.Annotations
		_, err = l.importer.secrets().Update(ctx, now, metav1.UpdateOptions{})
		return err
	})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	changed := before.DeepCopy()
	if changed.Data == nil {
		changed.Data = map[string][]byte{}
	}
	changed.Data[peering.SecretKey] = kubeconfig
	if delete(changed.Annotations, v1alpha1.AnnotationInvited); l.guarded {
		metav1.SetMetaDataAnnotation(&changed.ObjectMeta, v1alpha1.AnnotationInvited, "true")
	}
	if _, err := l.importer.secrets().Update(ctx, changed, metav1.UpdateOptions{}); err != nil {
		if refused(err) {
			void()
		}
		return fmt.Errorf("writing %s: %w", what, err)
	}
	return nil
}

// state reads how far the importer is.
func (l *link) state(ctx context.Context) (peering.State, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	member, err := l.importer.meshClusters().Get(ctx, l.Exporter.Name, metav1.GetOptions{})
	if err != nil {
		return peering.State{}, err
	}
	if state := peering.StateOf(member); !state.Done || l.since == nil || member.Status.LastContactTime.After(l.since.Time) {
		return state, nil
	}
	return peering.State{Reason: peer.ReasonConnecting, Message: "The peer has not answered to the new credentials yet."}, nil
}

// watched is one end of a connection that is waited for.
type watched struct {
	importer, exporter peering.Cluster
	endpoints          []string
	state              func(context.Context) (peering.State, error)
}

func (l *link) watched() watched {
	return watched{l.Importer, l.Exporter, l.Access.Endpoints, l.state}
}

// await waits until all are connected and in sync.
func await(ctx context.Context, timeout time.Duration, note func(string, ...any), all []watched) error {
	waiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		var open *watched
		var state peering.State
		for i := range all {
			w := &all[i]
			found, err := w.state(waiting)
			if err != nil {
				// One answer that fails says nothing yet.
				found = peering.State{Reason: "Unknown", Message: fmt.Sprintf("The state cannot be read: %v.", err)}
			}
			if found.Hopeless {
				return fmt.Errorf("%s does not import from %s: %s: %s", w.importer.Name, w.exporter.Name, found.Reason, found.Message)
			}
			if !found.Done && open == nil {
				open, state = w, found
			}
		}
		if open == nil {
			return nil
		}
		if waiting.Err() == nil {
			note("%s: %s", open.importer.Name, state.Message)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-waiting.Done():
			err := fmt.Errorf("%s is not in sync with %s after %s: %s: %s%s", open.importer.Name, open.exporter.Name, timeout, state.Reason, state.Message, hint(state.Reason, open))
			return codeError{err, ExitTimeout}
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// hint says what to check beyond what the condition tells.
func hint(reason string, w *watched) string {
	switch reason {
	case peer.ReasonUnreachable, peer.ReasonCertificateNotTrusted, peer.ReasonNotMeshAPI, peer.ReasonConnecting:
		return fmt.Sprintf("\nThe nodes of %s have to reach the mesh API of %s at %s. If that is not its address, give the right one (--endpoint, --destination-endpoint)",
			w.importer.Name, w.exporter.Name, strings.Join(w.endpoints, ", "))
	case "Unobserved":
		return fmt.Sprintf("\nCheck that mesh-controller in %s is at work", w.importer.Name)
	}
	return ""
}

var _ objects[*rbacv1.Role] = typedrbacv1.RoleInterface(nil)
