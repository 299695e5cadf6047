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

package v1alpha1

// How what belongs to a peer's credentials is called, in the namespace of the mesh.
// PeerToken and JoinRequest tell what each is for.
const (
	// PeerPrefix begins, in the cluster that is read, the names of the account that a
	// peer is given and of its bindings; in the cluster that reads, the name of the Secret
	// with the peer's kubeconfig. The name of the other cluster follows.
	PeerPrefix = "mesh-peer-"
	// InvitePrefix begins the names of what an invitation consists of. The name of the
	// invited cluster follows.
	InvitePrefix = "mesh-invite-"
	// RenewPrefix begins the name of the Role, and of its binding, that lets the mesh
	// controller update the Secret with a peer's kubeconfig. The peer's name follows.
	RenewPrefix = "mesh-renew-"

	// AnnotationInvited is on the Secret with a peer's kubeconfig that a join has brought:
	// no administrator of this cluster has seen the addresses in it, so the controller does
	// not let itself be led to loopback, link-local and metadata addresses by it.
	AnnotationInvited = "mesh.io/invited"

	// InvitationExpires is the entry of an invitation's Secret that holds the end of its
	// time (RFC 3339).
	InvitationExpires = "expires"
	// InvitationTokenID is the entry of an invitation's Secret that holds the ID ("jti")
	// of the one token that may use it.
	InvitationTokenID = "token-id"
	// InvitationUsed is the entry that an invitation's Secret gets when a join uses it up
	// (RFC 3339).
	InvitationUsed = "used"
)
