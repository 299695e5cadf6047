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

package joinrequest

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/registry/account"
)

// errUsed answers who comes with an invitation that is not there any more.
var errUsed = errors.New("the invitation has been used or withdrawn; ask for another")

// admits says why an invitation does not let its caller in, or nothing.
func admits(invitation *corev1.Secret, caller account.Caller, now time.Time) error {
	id := string(invitation.Data[v1alpha1.InvitationTokenID])
	expires, err := time.Parse(time.RFC3339, string(invitation.Data[v1alpha1.InvitationExpires]))
	switch {
	case invitation.DeletionTimestamp != nil, len(invitation.Data[v1alpha1.InvitationUsed]) > 0, id != "" && id != caller.TokenID:
		// Another invitation of the same cluster has taken the place of the caller's.
		return errUsed
	case id == "", err != nil:
		return errors.New("the invitation is not complete; ask for another")
	case !now.Before(expires):
		return fmt.Errorf("the invitation has expired at %s; ask for another", expires.UTC().Format(time.RFC3339))
	}
	return nil
}

// decision is what a join finds among the members.
type decision struct {
	local *v1alpha1.MeshCluster
	// known is the member that joins again; nil if it joins for the first time.
	known *v1alpha1.MeshCluster
}

// decide says whether a cluster may become a member beside those that there are: its
// name, ID and UID are either all free or all those of one member.
func decide(joining mesh.JoinRequestSpec, members []v1alpha1.MeshCluster) (decision, error) {
	var d decision
	for i := range members {
		if member := &members[i]; member.Spec.KubeconfigSecretRef == nil && member.Status.UID != "" {
			d.local = member
		}
	}
	if d.local == nil {
		return d, apierrors.NewServiceUnavailable("this cluster's mesh-controller has not introduced the cluster yet; see that it runs, and try again")
	}
	for i := range members {
		member := &members[i]
		who := fmt.Sprintf("member %q of the mesh", member.Name)
		if member == d.local {
			who = fmt.Sprintf("this cluster, %q, itself", member.Name)
		}
		deleted := member.DeletionTimestamp != nil
		if member.Name != joining.Name {
			switch {
			case deleted:
			case member.Spec.ID == joining.ID:
				return d, taken(joining.Name, "the ID %d is that of %s; IDs are unique in the mesh: install one of the two clusters with another --cluster-id", joining.ID, who)
			case member.Status.UID == joining.UID:
				return d, taken(joining.Name, "the cluster with the UID %s is %s; a cluster has one name in the mesh", joining.UID, who)
			}
			continue
		}
		ref := member.Spec.KubeconfigSecretRef
		switch {
		case member == d.local, ref == nil:
			return d, taken(joining.Name, "the name %q is that of %s; names are unique in the mesh: install one of the two clusters with another --cluster-name", joining.Name, who)
		case deleted:
			return d, apierrors.NewConflict(resource, joining.Name, fmt.Errorf("%s is being removed here; try again in a minute, with the same invitation", who))
		case member.Spec.ID != joining.ID:
			return d, taken(joining.Name, "%s has the ID %d, not %d; if that cluster is no more, disconnect it here first", who, member.Spec.ID, joining.ID)
		case member.Status.UID != "" && member.Status.UID != joining.UID:
			return d, taken(joining.Name, "%s is another cluster (UID %s); if that cluster is no more, disconnect it here first", who, member.Status.UID)
		case len(joining.Kubeconfig) > 0 && *ref != reference(joining.Name):
			return d, taken(joining.Name, "%s has its credentials in entry %q of Secret %q, which are somebody's own; disconnect it here first", who, ref.Key, ref.Name)
		}
		d.known = member
	}
	return d, nil
}

// reference is where a member that has joined has its kubeconfig.
func reference(name string) v1alpha1.SecretReference {
	return v1alpha1.SecretReference{Name: v1alpha1.PeerPrefix + name, Key: v1alpha1.DefaultSecretKey}
}

// taken is the answer to who asks for what is somebody else's.
func taken(name, format string, args ...any) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusConflict, Reason: metav1.StatusReasonAlreadyExists,
		Message: fmt.Sprintf("cluster %q cannot join: %s", name, fmt.Sprintf(format, args...)),
		Details: &metav1.StatusDetails{Group: resource.Group, Kind: resource.Resource, Name: name},
	}}
}
