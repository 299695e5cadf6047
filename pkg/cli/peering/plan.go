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

package peering

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

const (
	// Role is the ClusterRole with what peers may do.
	Role = "mesh-peer"
	// SecretKey is the entry of a peer's Secret with the kubeconfig.
	SecretKey = "kubeconfig"
)

// PeerName is the name of what is there for a peer: the account and its bindings in the
// exporter, named for the importer, and the Secret in the importer, named for the
// exporter.
func PeerName(peer string) string { return v1alpha1.PeerPrefix + peer }

// RenewName is the name of what lets an importer's controller renew its credentials.
func RenewName(exporter string) string { return v1alpha1.RenewPrefix + exporter }

// InviteName is the name of what an invitation consists of.
func InviteName(invited string) string { return v1alpha1.InvitePrefix + invited }

// Labels are on everything that meshctl makes.
func Labels() map[string]string {
	return map[string]string{"app.kubernetes.io/managed-by": "meshctl", "app.kubernetes.io/part-of": "clustermesh"}
}

// Link is one direction of a connection: the importer reads what the exporter offers.
type Link struct {
	Importer, Exporter Cluster
	// Namespace is that of the exporter's mesh, where the account is.
	Namespace string
	// Access is how the importer reaches the exporter, without the token.
	Access Access
}

// Existing is what there is of a link. What is not there is nil.
type Existing struct {
	// In the exporter.
	Account      *corev1.ServiceAccount
	Binding      *rbacv1.ClusterRoleBinding
	TokenRole    *rbacv1.Role
	TokenBinding *rbacv1.RoleBinding
	// In the importer.
	Secret       *corev1.Secret
	RenewRole    *rbacv1.Role
	RenewBinding *rbacv1.RoleBinding
	Member       *v1alpha1.MeshCluster
}

// Action is something to be made.
type Action string

// The actions, in the order in which they are done.
const (
	MakeAccount      Action = "make the account"
	MakeBinding      Action = "bind the account"
	MakeTokenRole    Action = "make the role to renew its token"
	MakeTokenBinding Action = "bind the role to renew its token"
	WriteCredentials Action = "write the credentials"
	MakeRenewRole    Action = "make the role to renew the credentials"
	MakeRenewBinding Action = "bind the role to renew the credentials"
	MakeMember       Action = "make the MeshCluster"
)

// Plan says what is to be done for a link, with notes for a person. It is an error if
// something stands in the way that meshctl did not make or that is being deleted.
func Plan(link Link, existing Existing, renew bool, now time.Time) (actions []Action, notes []string, err error) {
	name := PeerName(link.Importer.Name)
	if binding := existing.Binding; binding != nil && !binds(binding, name, link.Namespace) {
		return nil, nil, fmt.Errorf("ClusterRoleBinding %s in %s exists and binds something else: delete it and try again", name, link.Exporter)
	}
	if member := existing.Member; member != nil {
		if member.DeletionTimestamp != nil {
			return nil, nil, fmt.Errorf("MeshCluster %q in %s is being deleted: try again when it is gone; mesh-controller there removes what was imported first", member.Name, link.Importer)
		}
		if ref := member.Spec.KubeconfigSecretRef; ref == nil || ref.Name != PeerName(link.Exporter.Name) || ref.Key != "" && ref.Key != SecretKey {
			return nil, nil, fmt.Errorf("MeshCluster %q in %s takes its credentials from a Secret that meshctl did not make: delete that MeshCluster and try again", member.Name, link.Importer)
		}
	}
	accountUID := ""
	if account := existing.Account; account != nil {
		accountUID = string(account.UID)
	} else {
		actions = append(actions, MakeAccount)
	}
	for _, step := range []struct {
		there  bool
		action Action
	}{{existing.Binding != nil, MakeBinding}, {existing.TokenRole != nil, MakeTokenRole}, {existing.TokenBinding != nil, MakeTokenBinding}} {
		if !step.there {
			actions = append(actions, step.action)
		}
	}
	switch {
	case existing.Secret == nil, renew:
		actions = append(actions, WriteCredentials)
	default:
		kubeconfig := existing.Secret.Data[SecretKey]
		if why := Stale(kubeconfig, accountUID, link.Access, now); why != "" {
			actions = append(actions, WriteCredentials)
			notes = append(notes, fmt.Sprintf("the credentials that %s has for %s are of no use any more and made anew: %s", link.Importer, link.Exporter, why))
		} else if OtherEndpoints(kubeconfig, link.Access.Endpoints) {
			notes = append(notes, fmt.Sprintf("the addresses of %s have changed: --renew tells %s of them", link.Exporter, link.Importer))
		}
	}
	for _, step := range []struct {
		there  bool
		action Action
	}{{existing.RenewRole != nil, MakeRenewRole}, {existing.RenewBinding != nil, MakeRenewBinding}, {existing.Member != nil, MakeMember}} {
		if !step.there {
			actions = append(actions, step.action)
		}
	}
	return actions, notes, nil
}

// Account is an account: an importer's in an exporter, or that of an invitation.
func Account(name, namespace string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: Labels()}}
}

// Binding gives the account of the same name what peers may do.
func Binding(name, namespace string) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: Labels()},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: Role},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: name, Namespace: namespace}},
	}
}

// TokenRole lets an exporter's API server renew the token of an importer's account.
func TokenRole(importer, namespace string) *rbacv1.Role {
	return role(PeerName(importer), namespace, rule("serviceaccounts/token", PeerName(importer), "create"))
}

// TokenBinding gives TokenRole to the exporter's API server.
func TokenBinding(importer, namespace string) *rbacv1.RoleBinding {
	return roleBinding(PeerName(importer), namespace, "mesh-apiserver")
}

// RenewRole lets an importer's controller write the credentials that it has renewed.
func RenewRole(exporter, namespace string) *rbacv1.Role {
	return role(RenewName(exporter), namespace, rule("secrets", PeerName(exporter), "update"))
}

// RenewBinding gives RenewRole to the importer's controller.
func RenewBinding(exporter, namespace string) *rbacv1.RoleBinding {
	return roleBinding(RenewName(exporter), namespace, "mesh-controller")
}

// Invited is what an invitation consists of beside its Secret, with which it goes.
type Invited struct {
	Account *corev1.ServiceAccount
	Role    *rbacv1.Role
	Binding *rbacv1.RoleBinding
}

// NewInvited makes it for an invitation: an account, and the role that lets the inviting
// cluster's API server use the invitation up and write the credentials that come with
// the join, and its controller delete it when its time is over.
func NewInvited(invited string, secret *corev1.Secret) Invited {
	name, namespace := InviteName(invited), secret.Namespace
	i := Invited{
		Account: Account(name, namespace),
		Role: role(name, namespace,
			rule("secrets", name, "get", "update", "delete"), rule("secrets", PeerName(invited), "get", "update")),
		Binding: roleBinding(name, namespace, "mesh-apiserver", "mesh-controller"),
	}
	owner := []metav1.OwnerReference{{APIVersion: "v1", Kind: "Secret", Name: secret.Name, UID: secret.UID}}
	i.Account.OwnerReferences, i.Role.OwnerReferences, i.Binding.OwnerReferences = owner, owner, owner
	return i
}

func rule(resource, name string, verbs ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{resource}, ResourceNames: []string{name}, Verbs: verbs}
}

func role(name, namespace string, rules ...rbacv1.PolicyRule) *rbacv1.Role {
	return &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: Labels()}, Rules: rules}
}

func roleBinding(name, namespace string, accounts ...string) *rbacv1.RoleBinding {
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: Labels()},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
	}
	for _, account := range accounts {
		binding.Subjects = append(binding.Subjects, rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Name: account, Namespace: namespace})
	}
	return binding
}

func binds(binding *rbacv1.ClusterRoleBinding, account, namespace string) bool {
	if binding.RoleRef.Kind != "ClusterRole" || binding.RoleRef.Name != Role {
		return false
	}
	for _, subject := range binding.Subjects {
		if subject.Kind == rbacv1.ServiceAccountKind && subject.Name == account && subject.Namespace == namespace {
			return true
		}
	}
	return false
}

// Secret holds an importer's credentials for an exporter.
func Secret(exporter, namespace string, kubeconfig []byte) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: PeerName(exporter), Namespace: namespace, Labels: Labels()},
		Type:       corev1.SecretTypeOpaque,
		Data:       map[string][]byte{SecretKey: kubeconfig},
	}
}

// Member is the exporter's MeshCluster in the importer.
func Member(exporter Cluster) *v1alpha1.MeshCluster {
	return &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: exporter.Name, Labels: Labels()},
		Spec:       v1alpha1.MeshClusterSpec{ID: exporter.ID, KubeconfigSecretRef: &v1alpha1.SecretReference{Name: PeerName(exporter.Name)}},
	}
}

// State is how far an importer is with a peer.
type State struct {
	// Done: everything is imported.
	Done bool
	// Hopeless: waiting will not help.
	Hopeless bool
	// Reason and Message are those of the condition that is not met.
	Reason, Message string
}

// StateOf reads the conditions of a peer's MeshCluster.
func StateOf(member *v1alpha1.MeshCluster) State {
	conditions := member.Status.Conditions
	if found := meta.FindStatusCondition(conditions, v1alpha1.MeshClusterIdentityConflict); found != nil && found.Status == metav1.ConditionTrue {
		return State{Hopeless: true, Reason: found.Reason, Message: found.Message}
	}
	for _, kind := range []string{v1alpha1.MeshClusterConnected, v1alpha1.MeshClusterSynced} {
		switch found := meta.FindStatusCondition(conditions, kind); {
		case found == nil:
			return State{Reason: "Unobserved", Message: "The controller has not looked at the peer yet."}
		case found.Status != metav1.ConditionTrue:
			return State{Reason: found.Reason, Message: found.Message}
		}
	}
	return State{Done: true}
}
