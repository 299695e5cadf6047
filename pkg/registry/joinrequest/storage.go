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

// Package joinrequest lets a cluster become a member of the mesh by an invitation.
// Requests are not stored: what they lead to is.
package joinrequest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/operation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/apis/mesh/validation"
	typed "mesh.io/clustermesh/pkg/generated/clientset/versioned/typed/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/peer"
	"mesh.io/clustermesh/pkg/registry/account"
)

const (
	// maxKubeconfig is room for a hundred addresses.
	maxKubeconfig = 64 << 10
	// timeout bounds what is done once the invitation is used up, which the end of
	// the request does not break off.
	timeout = 8 * time.Second
)

var resource = mesh.Resource("joinrequests")

// labels are on what belongs to a connection of two clusters.
var labels = map[string]string{"app.kubernetes.io/managed-by": "meshctl", "app.kubernetes.io/part-of": "clustermesh"}

// Config is what a Storage works with.
type Config struct {
	Accounts account.Accounts
	// Members is a client of this server itself, so that what a join writes is checked
	// and admitted like anybody's.
	Members typed.MeshClustersGetter
	// Trust is the authorities that clients of this server have to trust; none where
	// the server does not know them.
	Trust func(context.Context) ([]byte, error)
	// ServerName is in the server's certificate, whatever its address.
	ServerName string
	// AllowLocal lets clusters join by loopback, link-local and metadata addresses.
	AllowLocal bool
}

// Storage serves joinrequests.
type Storage struct {
	Config
	rules rest.DeclarativeValidation
	// one join at a time: two with one ID would not see each other.
	one sync.Mutex
}

var (
	_ rest.Scoper               = &Storage{}
	_ rest.SingularNameProvider = &Storage{}
)

// NewStorage returns the storage of the resource.
func NewStorage(scheme *runtime.Scheme, config Config) *Storage {
	return &Storage{Config: config, rules: rest.DeclarativeValidation{Scheme: scheme}}
}

// New returns an empty request.
func (*Storage) New() runtime.Object { return &mesh.JoinRequest{} }

// Destroy has nothing to give up.
func (*Storage) Destroy() {}

// NamespaceScoped says that the resource belongs to no namespace.
func (*Storage) NamespaceScoped() bool { return false }

// GetSingularName is what one of them is called.
func (*Storage) GetSingularName() string { return "joinrequest" }

// Create answers the request.
func (s *Storage) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	request := obj.(*mesh.JoinRequest)
	name := request.Spec.Name
	caller, err := s.Accounts.Caller(ctx, v1alpha1.InvitePrefix)
	if err != nil {
		return nil, apierrors.NewForbidden(resource, name, err)
	}
	if name != caller.Cluster {
		return nil, apierrors.NewForbidden(resource, name, fmt.Errorf("the invitation is for cluster %q, not for %q", caller.Cluster, name))
	}
	s.one.Lock()
	defer s.one.Unlock()
	// The cluster itself is asked, now: who has asked before may be remembered for a while.
	invitation, err := s.secrets().Get(ctx, caller.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, apierrors.NewForbidden(resource, name, errUsed)
	case apierrors.IsForbidden(err):
		return nil, apierrors.NewForbidden(resource, name, s.missing(caller, err))
	case err != nil:
		return nil, unavailable("reading the invitation", err)
	}
	if err := admits(invitation, caller, time.Now()); err != nil {
		return nil, apierrors.NewForbidden(resource, name, err)
	}
	if errs := s.validate(ctx, request); len(errs) > 0 {
		return nil, apierrors.NewInvalid(mesh.Kind("JoinRequest"), name, errs)
	}
	if err := validate(ctx, request.DeepCopy()); err != nil {
		return nil, err
	}
	return s.join(ctx, request, caller, invitation, len(options.DryRun) > 0)
}

func (s *Storage) validate(ctx context.Context, request *mesh.JoinRequest) field.ErrorList {
	errs := s.rules.ValidateDeclaratively(ctx, request, nil, nil, operation.Create, s.rules.DeclarativeValidationConfig(ctx, request, nil))
	spec := field.NewPath("spec")
	for _, problem := range validation.ClusterName(request.Spec.Name) {
		errs = append(errs, field.Invalid(spec.Child("name"), request.Spec.Name, problem))
	}
	switch kubeconfig := request.Spec.Kubeconfig; {
	case len(kubeconfig) > maxKubeconfig:
		errs = append(errs, field.TooLong(spec.Child("kubeconfig"), "", maxKubeconfig))
	case len(kubeconfig) > 0:
		if err := peer.CheckInvited(kubeconfig, s.AllowLocal); err != nil {
			errs = append(errs, field.Invalid(spec.Child("kubeconfig"), field.OmitValueType{}, err.Error()))
		}
	}
	return errs
}

// join does everything that can fail for a reason before the invitation is used up,
// and hands out nothing before that.
func (s *Storage) join(ctx context.Context, request *mesh.JoinRequest, caller account.Caller, invitation *corev1.Secret, dryRun bool) (runtime.Object, error) {
	joining := request.Spec
	members, err := s.Members.MeshClusters().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, unavailable("reading the members of the mesh", err)
	}
	found, err := decide(joining, members.Items)
	if err != nil {
		return nil, err
	}
	if len(joining.Kubeconfig) > 0 {
		if _, err := s.secrets().Get(peer.Quiet(ctx), v1alpha1.PeerPrefix+joining.Name, metav1.GetOptions{}); apierrors.IsForbidden(err) {
			return nil, apierrors.NewForbidden(resource, joining.Name, s.missing(caller, err))
		}
	}
	bundle, err := s.Trust(ctx)
	if err != nil {
		return nil, unavailable("reading whom to trust", err)
	}
	token, err := s.Accounts.Token(ctx, v1alpha1.PeerPrefix+joining.Name, "", account.Life)
	if errors.Is(err, account.ErrGone) {
		err = fmt.Errorf("there is no ServiceAccount %s/%s%s, which is part of the invitation; ask for another",
			s.Accounts.Namespace, v1alpha1.PeerPrefix, joining.Name)
	}
	var answered apierrors.APIStatus
	switch {
	case errors.As(err, &answered):
		return nil, err
	case err != nil:
		return nil, apierrors.NewForbidden(resource, joining.Name, err)
	}
	answer := &mesh.JoinRequest{
		ObjectMeta: metav1.ObjectMeta{Name: joining.Name, CreationTimestamp: metav1.Now()},
		Spec:       mesh.JoinRequestSpec{Name: joining.Name, ID: joining.ID, UID: joining.UID},
		Status:     mesh.JoinRequestStatus{Name: found.local.Name, ID: found.local.Spec.ID, UID: found.local.Status.UID},
	}
	if dryRun {
		return answer, nil
	}

	// The one moment that counts: of two that come this far, one finds it used, as it is
	// not what it has read any more. It is deleted later: with it go the rights to write.
	invitation = invitation.DeepCopy()
	invitation.Data[v1alpha1.InvitationUsed] = []byte(time.Now().UTC().Format(time.RFC3339))
	_, err = s.secrets().Update(ctx, invitation, metav1.UpdateOptions{})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil, apierrors.NewForbidden(resource, joining.Name, errUsed)
	case apierrors.IsForbidden(err):
		return nil, apierrors.NewForbidden(resource, joining.Name, s.missing(caller, err))
	case err != nil:
		return nil, unavailable("using up the invitation (if another attempt finds it used, ask for another)", err)
	}
	// Who asked may be gone by now; what has begun is brought to its end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	logger := klog.FromContext(ctx)
	defer func() {
		err := s.secrets().Delete(ctx, invitation.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &invitation.UID}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			logger.Info("An invitation that is used up could not be deleted, and is left to the controller", "cluster", joining.Name, "err", err)
		}
	}()
	if len(joining.Kubeconfig) > 0 {
		if err := s.admit(ctx, joining, found.known); err != nil {
			logger.Error(err, "An invitation was used up, and the cluster has not joined", "cluster", joining.Name)
			return nil, apierrors.NewInternalError(fmt.Errorf("%w; the invitation is used up: ask for another, which puts this right", err))
		}
	}
	logger.Info("A cluster has joined by invitation", "cluster", joining.Name, "id", joining.ID, "uid", joining.UID,
		"imported", len(joining.Kubeconfig) > 0, "again", found.known != nil)
	answer.Status.Token, answer.Status.ExpirationTimestamp = token.Token, token.ExpirationTimestamp
	answer.Status.CABundle, answer.Status.TLSServerName = bundle, s.ServerName
	return answer, nil
}

// admit writes what makes the cluster a member that this one imports from.
func (s *Storage) admit(ctx context.Context, joining mesh.JoinRequestSpec, known *v1alpha1.MeshCluster) error {
	ref := reference(joining.Name)
	quiet := peer.Quiet(ctx)
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: ref.Name, Labels: maps.Clone(labels)},
		Data:       map[string][]byte{ref.Key: joining.Kubeconfig},
	}
	if !s.AllowLocal {
		secret.Annotations = map[string]string{v1alpha1.AnnotationInvited: "true"}
	}
	_, err := s.secrets().Create(quiet, secret, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		// Of an earlier join. Its version is of no interest: this one is what was last agreed on.
		_, err = s.secrets().Update(quiet, secret, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("writing Secret %s/%s: %w", s.Accounts.Namespace, ref.Name, err)
	}
	if known != nil {
		return nil
	}
	_, err = s.Members.MeshClusters().Create(ctx, &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: joining.Name, Labels: maps.Clone(labels)},
		Spec:       v1alpha1.MeshClusterSpec{ID: joining.ID, KubeconfigSecretRef: ptr.To(ref)},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("making MeshCluster %q: %w", joining.Name, err)
	}
	return nil
}

func (s *Storage) secrets() typedcorev1.SecretInterface {
	return s.Accounts.Client.CoreV1().Secrets(s.Accounts.Namespace)
}

// missing tells what right of this server's an invitation lacks.
func (s *Storage) missing(caller account.Caller, err error) error {
	return fmt.Errorf("the invitation is not complete: Role %s/%s must let mesh-apiserver get, update and delete Secret %s, and get and update Secret %s%s: %w",
		s.Accounts.Namespace, caller.Name, caller.Name, v1alpha1.PeerPrefix, caller.Cluster, err)
}

// unavailable keeps what the cluster answers this server from being taken for an
// answer to whoever asks.
func unavailable(what string, err error) error {
	return apierrors.NewServiceUnavailable(fmt.Sprintf("%s: %v", what, err))
}
