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
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/peering"
)

const (
	// beatAge is how old a controller's heartbeat may be, by this machine's clock; an
	// older one has to change within beatWait, as clocks differ.
	beatAge  = 30 * time.Second
	beatWait = 15 * time.Second
	// askTimeout bounds what is read of a cluster before anything is done.
	askTimeout = 30 * time.Second
)

// side is a cluster with a mesh, about to be connected.
type side struct {
	*target
	peering.Cluster
	access peering.Access // how peers reach its mesh API, without a token
}

// sideOptions say how peers reach a cluster.
type sideOptions struct {
	endpoints []string
	prefer    corev1.NodeAddressType
}

// reach explains why a cluster's API server did not answer.
func (t *target) reach(doing string, err error) error {
	switch {
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s in %q: the credentials of this context are not enough: %w", doing, t.Context, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s in %q: the API server does not answer: %w", doing, t.Context, err)
	}
	return fmt.Errorf("%s in %q: %w", doing, t.Context, err)
}

// members reads the MeshClusters of a cluster.
func (t *target) members(ctx context.Context) ([]v1alpha1.MeshCluster, error) {
	list, err := t.Mesh.MeshV1alpha1().MeshClusters().List(ctx, metav1.ListOptions{})
	switch {
	case err == nil:
		return list.Items, nil
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("the mesh is not installed in %q: run \"meshctl install --context %s --cluster-name NAME --cluster-id NUMBER\" first", t.Context, t.Context)
	case apierrors.IsServiceUnavailable(err):
		return nil, fmt.Errorf("the mesh API of %q does not answer: look at \"kubectl --context %s -n %s get pods\", and try again when mesh-apiserver is ready: %w", t.Context, t.Context, t.Namespace, err)
	}
	return nil, t.reach("reading MeshClusters", err)
}

// local reads the members of a cluster and wants its controller to be at work.
func (t *target) local(ctx context.Context) (peering.Cluster, error) {
	first := metav1.Time{}
	for begin := time.Now(); ; {
		members, err := t.members(ctx)
		if err != nil {
			return peering.Cluster{}, err
		}
		own, peers := peering.LocalOf(members)
		if own != nil && own.Status.UID != "" {
			beat := own.Status.LastContactTime
			if first.IsZero() {
				first = beat
			}
			if time.Since(beat.Time) < beatAge || !beat.Equal(&first) {
				return peering.ClusterOf(t.Context, own, peers), nil
			}
		}
		if time.Since(begin) > beatWait {
			return peering.Cluster{}, fmt.Errorf("mesh-controller in %q is not at work: look at \"kubectl --context %s -n %s logs deployment/mesh-controller\", and try again when it is ready", t.Context, t.Context, t.Namespace)
		}
		select {
		case <-ctx.Done():
			return peering.Cluster{}, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// reachable finds out how peers reach the mesh API of a cluster.
func (t *target) reachable(ctx context.Context, options sideOptions) (peering.Access, error) {
	access := peering.Access{ServerName: "mesh-apiserver." + t.Namespace + ".svc", Endpoints: options.endpoints}
	authority, err := t.Kube.CoreV1().ConfigMaps(t.Namespace).Get(ctx, "mesh-ca", metav1.GetOptions{})
	if err != nil {
		return access, t.reach("reading the authority of the mesh API (ConfigMap mesh-ca)", err)
	}
	if access.CA = []byte(authority.Data["ca.crt"]); len(access.CA) == 0 {
		return access, fmt.Errorf("ConfigMap mesh-ca in %q has no ca.crt yet: try again when mesh-apiserver is ready", t.Context)
	}
	if len(access.Endpoints) > 0 {
		return access, nil
	}
	service, err := t.Kube.CoreV1().Services(t.Namespace).Get(ctx, peering.PeerService, metav1.GetOptions{})
	if err != nil {
		return access, t.reach("reading Service "+peering.PeerService, err)
	}
	var nodes []corev1.Node
	if service.Spec.Type == corev1.ServiceTypeNodePort {
		list, err := t.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return access, t.reach("listing Nodes", err)
		}
		nodes = list.Items
	}
	if access.Endpoints, err = peering.Discover(service, nodes, options.prefer); err != nil {
		return access, fmt.Errorf("finding the addresses of the mesh API of %q: %w; or give them yourself, see --help", t.Context, err)
	}
	return access, nil
}

// side reads everything about a cluster that is about to be connected. Whether others
// read from it decides whether its addresses matter.
func (t *target) side(ctx context.Context, options sideOptions, exports bool) (*side, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	s := &side{target: t}
	var err error
	if s.Cluster, err = t.local(ctx); err != nil {
		return nil, err
	}
	if exports {
		if s.access, err = t.reachable(ctx, options); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// right is something that a person has to be allowed to do.
type right struct {
	verbs                []string
	group, resource, sub string
	namespaced           bool
	importing, exporting bool // which role of the cluster needs it
	withoutAddress       bool // it is not needed where the addresses are given
}

// rights are those that making a connection needs in a cluster.
var rights = []right{
	{verbs: []string{"get", "create", "delete"}, resource: "serviceaccounts", namespaced: true, exporting: true},
	{verbs: []string{"create"}, resource: "serviceaccounts", sub: "token", namespaced: true, exporting: true},
	{verbs: []string{"get", "create", "delete"}, group: "rbac.authorization.k8s.io", resource: "clusterrolebindings", exporting: true},
	{verbs: []string{"get", "create", "delete"}, group: "rbac.authorization.k8s.io", resource: "roles", namespaced: true, importing: true, exporting: true},
	{verbs: []string{"get", "create", "delete"}, group: "rbac.authorization.k8s.io", resource: "rolebindings", namespaced: true, importing: true, exporting: true},
	{verbs: []string{"get"}, resource: "services", namespaced: true, exporting: true, withoutAddress: true},
	{verbs: []string{"list"}, resource: "nodes", exporting: true, withoutAddress: true},
	{verbs: []string{"get", "create", "update", "delete"}, resource: "secrets", namespaced: true, importing: true},
	{verbs: []string{"get", "create", "delete"}, group: v1alpha1.GroupName, resource: "meshclusters", importing: true},
}

// allowed asks whether the person may do what a connection needs, and names all that
// is missing.
func (t *target) allowed(ctx context.Context, imports, exports bool, options sideOptions) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	type question struct {
		*authorizationv1.ResourceAttributes
		allowed bool
		err     error
	}
	var questions []*question
	for _, r := range rights {
		needed := r.importing && imports || r.exporting && exports
		if !needed || r.withoutAddress && len(options.endpoints) > 0 {
			continue
		}
		for _, verb := range r.verbs {
			attributes := &authorizationv1.ResourceAttributes{Verb: verb, Group: r.group, Resource: r.resource, Subresource: r.sub}
			if r.namespaced {
				attributes.Namespace = t.Namespace
			}
			questions = append(questions, &question{ResourceAttributes: attributes})
		}
	}
	var wg sync.WaitGroup
	for _, q := range questions {
		wg.Go(func() {
			review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: q.ResourceAttributes}}
			answer, err := t.Kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
			if q.err = err; err == nil {
				q.allowed = answer.Status.Allowed
			}
		})
	}
	wg.Wait()
	var missing []string
	for _, q := range questions {
		if q.err != nil {
			return t.reach("asking what you may do", q.err)
		}
		if !q.allowed {
			name := q.Resource
			if q.Subresource != "" {
				name += "/" + q.Subresource
			}
			if q.Group != "" {
				name += "." + q.Group
			}
			missing = append(missing, q.Verb+" "+name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the user of context %q may not do what is needed there (Secrets and accounts in namespace %s): %s", t.Context, t.Namespace, strings.Join(missing, ", "))
	}
	return nil
}
