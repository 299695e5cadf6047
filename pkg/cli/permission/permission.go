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

// Package permission says what an install or an uninstall asks a cluster to let it do,
// and what of that somebody lacks. It is pure: the cluster's answers are given to it.
package permission

import (
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Access is one thing to do.
type Access struct {
	Verb string
	// Path is what is asked for outside of the API's resources, as in /metrics.
	Path string
	// Group and Resource are what it is done to; a subresource follows after a slash.
	Group, Resource string
	// Namespace is "" for what belongs to none, and for what is in any.
	Namespace string
	// Name is "" for all.
	Name string
}

// Split is the resource, and its subresource or "".
func (a Access) Split() (resource, subresource string) {
	resource, subresource, _ = strings.Cut(a.Resource, "/")
	return resource, subresource
}

// Everything is what a cluster's administrator may do.
var Everything = Access{Verb: "*", Group: "*", Resource: "*"}

// Grant is a right that is given to somebody else. RBAC lets one give what one has, or
// anything if one has Unless.
type Grant struct {
	// To is the role that has it, or is to have it: "ClusterRole mesh-agent".
	To     string
	Unless Access
	Rights []Access
}

// Plan is what somebody is going to do.
type Plan struct {
	Needs  []Access
	Grants []Grant
}

// Need adds several verbs on a resource.
func (p *Plan) Need(group, resource, namespace string, verbs ...string) {
	for _, verb := range verbs {
		p.Needs = append(p.Needs, Access{Verb: verb, Group: group, Resource: resource, Namespace: namespace})
	}
}

// NeedOne adds several verbs on one object.
func (p *Plan) NeedOne(group, resource, namespace, name string, verbs ...string) {
	for _, verb := range verbs {
		p.Needs = append(p.Needs, Access{Verb: verb, Group: group, Resource: resource, Namespace: namespace, Name: name})
	}
}

// Apply adds what it takes to apply objects, as Helm does: it looks whether each is
// there, and sends it as a server-side apply, which creates what is not there. Roles and
// their bindings give rights, too.
func (p *Plan) Apply(objects []*unstructured.Unstructured) error {
	roles := map[string][]rbacv1.PolicyRule{}
	for _, o := range objects {
		gvr, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
		p.NeedOne(gvr.Group, gvr.Resource, o.GetNamespace(), o.GetName(), "get", "create", "patch")
		if o.GroupVersionKind().Group != rbacv1.GroupName || !strings.HasSuffix(o.GetKind(), "Role") {
			continue
		}
		// A Role and a ClusterRole have the same rules.
		var role rbacv1.ClusterRole
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &role); err != nil {
			return fmt.Errorf("reading %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		roles[key(o.GetKind(), o.GetNamespace(), o.GetName())] = role.Rules
		p.Grants = append(p.Grants, Grant{
			To:     o.GetKind() + " " + o.GetName(),
			Unless: Access{Verb: "escalate", Group: gvr.Group, Resource: gvr.Resource, Namespace: o.GetNamespace(), Name: o.GetName()},
			Rights: rights(role.Rules, o.GetNamespace()),
		})
	}
	for _, o := range objects {
		if o.GroupVersionKind().Group != rbacv1.GroupName || !strings.HasSuffix(o.GetKind(), "Binding") {
			continue
		}
		var binding rbacv1.ClusterRoleBinding
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &binding); err != nil {
			return fmt.Errorf("reading %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		ref, where := binding.RoleRef, ""
		if ref.Kind == "Role" {
			where = o.GetNamespace()
		}
		rules, known := roles[key(ref.Kind, where, ref.Name)]
		if !known {
			rules = kubernetesRoles[ref.Name]
		}
		p.Grants = append(p.Grants, Grant{
			To:     ref.Kind + " " + ref.Name,
			Unless: Access{Verb: "bind", Group: rbacv1.GroupName, Resource: strings.ToLower(ref.Kind) + "s", Namespace: where, Name: ref.Name},
			Rights: rights(rules, o.GetNamespace()),
		})
	}
	return nil
}

// kubernetesRoles are roles that every cluster has, and that the mesh's accounts are bound to.
var kubernetesRoles = map[string][]rbacv1.PolicyRule{
	"system:auth-delegator": {
		{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
		{APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"}, Verbs: []string{"create"}},
	},
	"extension-apiserver-authentication-reader": {
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"extension-apiserver-authentication"}, Verbs: []string{"get", "list", "watch"}},
	},
}

func key(kind, namespace, name string) string { return kind + " " + namespace + "/" + name }

// rights are those of a role's rules, one by one.
func rights(rules []rbacv1.PolicyRule, namespace string) []Access {
	var all []Access
	for _, rule := range rules {
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, verb := range rule.Verbs {
			for _, path := range rule.NonResourceURLs {
				all = append(all, Access{Verb: verb, Path: path})
			}
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, name := range names {
						all = append(all, Access{Verb: verb, Group: group, Resource: resource, Namespace: namespace, Name: name})
					}
				}
			}
		}
	}
	return all
}

// Remove adds what it takes to delete an object.
func (p *Plan) Remove(resource schema.GroupVersionResource, namespace, name string) {
	p.NeedOne(resource.Group, resource.Resource, namespace, name, "delete")
}

// Replace adds what it takes to delete those of some objects that are not among others.
func (p *Plan) Replace(before, after []*unstructured.Unstructured) {
	name := func(o *unstructured.Unstructured) string {
		return key(o.GroupVersionKind().GroupKind().String(), o.GetNamespace(), o.GetName())
	}
	stay := map[string]bool{}
	for _, o := range after {
		stay[name(o)] = true
	}
	for _, o := range before {
		if !stay[name(o)] {
			gvr, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
			p.Remove(gvr, o.GetNamespace(), o.GetName())
		}
	}
}

// Asked is all that the cluster is to be asked, each once.
func (p *Plan) Asked() []Access {
	var all []Access
	seen := map[Access]bool{}
	add := func(a Access) {
		if !seen[a] {
			seen[a] = true
			all = append(all, a)
		}
	}
	for _, a := range p.Needs {
		add(a)
	}
	for _, g := range p.Grants {
		add(g.Unless)
		for _, a := range g.Rights {
			add(a)
		}
	}
	return all
}

// maxTold is how many things that are lacking are told.
const maxTold = 5

// Lacking says in words what is needed and not allowed, that on one resource together,
// as what follows on "you may not": "create and patch clusterroles; pass on the right to
// watch nodes, which you don't have (to ClusterRole mesh-agent)". It is "" if nothing is
// lacking.
func (p *Plan) Lacking(allowed map[Access]bool) string {
	lines := grouped(p.Needs, allowed)
	var rights []string
	to := map[string][]string{}
	for _, g := range p.Grants {
		if allowed[g.Unless] {
			continue
		}
		for _, right := range grouped(g.Rights, allowed) {
			rights, to[right] = with(rights, right), with(to[right], g.To)
		}
	}
	for _, right := range rights {
		lines = append(lines, fmt.Sprintf("pass on the right to %s, which you don't have (to %s)", right, and(to[right])))
	}
	if len(lines) > maxTold {
		lines = append(lines[:maxTold], fmt.Sprintf("and %d more", len(lines)-maxTold))
	}
	return strings.Join(lines, "; ")
}

// with is a list with an item in it, once.
func with(list []string, item string) []string {
	if slices.Contains(list, item) {
		return list
	}
	return append(list, item)
}

func grouped(needs []Access, allowed map[Access]bool) []string {
	type place struct{ group, resource, path, namespace string }
	var places []place
	verbs, names := map[place][]string{}, map[place][]string{}
	for _, a := range needs {
		if allowed[a] {
			continue
		}
		at := place{a.Group, a.Resource, a.Path, a.Namespace}
		places = append(places, at)
		verbs[at], names[at] = with(verbs[at], a.Verb), with(names[at], a.Name)
	}
	var lines []string
	for i, at := range places {
		if slices.Contains(places[:i], at) {
			continue
		}
		line := and(verbs[at]) + " " + at.resource + at.path
		// Of one object it is told which; of many, that they are of this kind is enough.
		if len(names[at]) == 1 && names[at][0] != "" {
			line += " " + names[at][0]
		}
		if at.namespace != metav1.NamespaceAll {
			line += " in " + at.namespace
		}
		lines = append(lines, line)
	}
	return lines
}

// and joins words as a sentence does.
func and(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}
