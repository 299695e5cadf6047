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
	"fmt"
	"sync"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/permission"
	"mesh.io/clustermesh/pkg/cli/release"
	"mesh.io/clustermesh/pkg/cli/removal"
)

// askAtOnce is how many permissions a cluster is asked about at the same time.
const askAtOnce = 20

// lacking says in words what of a plan the cluster does not let the person do, or "".
func (t *target) lacking(ctx context.Context, plan *permission.Plan) (string, error) {
	// These are many small questions: the client's own limit would draw them out.
	config := rest.CopyConfig(t.REST)
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return "", fmt.Errorf("preparing to connect to %q: %w", t.Context, err)
	}
	ask := func(a permission.Access) (bool, error) {
		review := &authorizationv1.SelfSubjectAccessReview{}
		if a.Path != "" {
			review.Spec.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Path: a.Path, Verb: a.Verb}
		} else {
			resource, subresource := a.Split()
			review.Spec.ResourceAttributes = &authorizationv1.ResourceAttributes{
				Namespace: a.Namespace, Verb: a.Verb, Group: a.Group, Resource: resource, Subresource: subresource, Name: a.Name,
			}
		}
		answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			return false, fmt.Errorf("asking %q what you may do: %w", t.Context, err)
		}
		return answer.Status.Allowed, nil
	}
	// An administrator is known by one question.
	all, err := ask(permission.Everything)
	if err != nil {
		return "", err
	}
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		failed  error
		allowed = map[permission.Access]bool{}
		turns   = make(chan struct{}, askAtOnce)
	)
	for _, a := range plan.Asked() {
		if all && a.Path == "" {
			allowed[a] = true
			continue
		}
		turns <- struct{}{}
		wg.Go(func() {
			yes, err := ask(a)
			mu.Lock()
			defer mu.Unlock()
			allowed[a] = yes
			if err != nil {
				failed = err
			}
			<-turns
		})
	}
	wg.Wait()
	if failed != nil {
		return "", failed
	}
	return plan.Lacking(allowed), nil
}

// forbidden says what the person may not do.
func forbidden(lacking string) error {
	return fmt.Errorf("you may not %s: use an account that is bound to ClusterRole cluster-admin; nothing was changed", lacking)
}

// installPlan is what an install or upgrade does: the objects of the chart, the record of
// the release, and the waiting. last is the release that is there, or nil.
func installPlan(namespace string, exists bool, objects []*unstructured.Unstructured, last *release.Release) (*permission.Plan, error) {
	p := &permission.Plan{}
	p.NeedOne("", "namespaces", "", namespace, "get")
	if !exists {
		p.NeedOne("", "namespaces", "", namespace, "create")
	}
	p.Need("", "secrets", namespace, "list", "create", "update")
	p.Need("", "pods", namespace, "list")
	p.Need(v1alpha1.SchemeGroupVersion.Group, "meshclusters", "", "list")
	if err := p.Apply(objects); err != nil {
		return nil, err
	}
	if last == nil {
		return p, nil
	}
	// The oldest records go, and objects that are no longer of the chart.
	p.Need("", "secrets", namespace, "get", "delete")
	before, err := release.Objects(last.Manifest)
	if err != nil {
		return nil, err
	}
	p.Replace(before, objects)
	return p, nil
}

// lookPlan is what an uninstall does to find what there is.
func lookPlan(namespace string) *permission.Plan {
	p := &permission.Plan{}
	p.NeedOne("", "namespaces", "", namespace, "get")
	for _, kind := range removal.Kinds {
		if kind.Optional {
			continue
		}
		for _, where := range kind.Where(namespace) {
			p.Need(kind.Group, kind.Resource, where, "list")
		}
	}
	p.Need("", "persistentvolumeclaims", namespace, "list")
	p.Need("", "nodes", "", "list")
	p.NeedOne(removal.Registrations.Group, removal.Registrations.Resource, "", meshAPIService, "get")
	return p
}

// removePlan is what an uninstall does to what it has found.
func (r *remover) removePlan(u *uninstallOptions) *permission.Plan {
	p, f := &permission.Plan{}, r.found
	if f.registered {
		p.Remove(removal.Registrations, "", meshAPIService)
	}
	for _, o := range f.objects {
		p.Remove(o.Resource, o.Namespace, o.Name)
	}
	p.Need("", "pods", r.Namespace, "list", "delete", "deletecollection")
	if !u.skipNodes && !f.cleaned() {
		p.Need("", "pods", r.Namespace, "create")
	}
	if f.release != nil {
		p.Need("", "secrets", r.Namespace, "update", "delete")
	}
	if u.purge {
		for _, claim := range f.claims {
			p.Remove(removal.Claims, r.Namespace, claim)
		}
	}
	if r.removesNamespace(u) {
		p.NeedOne("", "namespaces", "", r.Namespace, "delete")
	}
	return p
}
