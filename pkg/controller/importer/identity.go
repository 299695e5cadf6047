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

package importer

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

// Why a peer's identity is refused: the reasons of the condition IdentityConflict.
const (
	ConflictNone       = "NoConflict"
	ConflictID         = "DuplicateID"
	ConflictName       = "NameDiffers"
	ConflictIDDiffers  = "IDDiffers"
	ConflictSelf       = "SameCluster"
	ConflictUID        = "DuplicateUID"
	ConflictUIDChanged = "UIDChanged"
)

// Identity is what a peer says about itself, in the MeshCluster that it has of itself.
type Identity struct {
	Name          string
	ID            int32
	UID           string
	Version       string
	StoreEpoch    string
	ControllerRun string
	ExportsSynced bool
}

// IdentityOf reads a peer's MeshCluster of itself.
func IdentityOf(cluster *v1alpha1.MeshCluster) Identity {
	return Identity{
		Name: cluster.Name, ID: cluster.Spec.ID, UID: cluster.Status.UID, Version: cluster.Status.Version,
		StoreEpoch: cluster.Status.StoreEpoch, ControllerRun: cluster.Status.ControllerRun,
		ExportsSynced: meta.IsStatusConditionTrue(cluster.Status.Conditions, v1alpha1.MeshClusterExportsSynced),
	}
}

// Complete says whether the peer's controller has introduced itself.
func (i Identity) Complete() bool { return i.Name != "" && i.UID != "" }

// Vouches says whether what a listing between the two does not show is really gone:
// the same store, the same run of the peer's controller, and all of its exports written.
func Vouches(before, after Identity) bool {
	return before.StoreEpoch != "" && before.StoreEpoch == after.StoreEpoch &&
		before.ControllerRun != "" && before.ControllerRun == after.ControllerRun &&
		before.ExportsSynced && after.ExportsSynced
}

// Conflict says why nothing may be exchanged with a peer, as a reason and a
// sentence; ConflictNone if nothing speaks against it. ownUID is this cluster's.
// seen is what the peer says of itself; nil before it has said anything.
func Conflict(cluster *v1alpha1.MeshCluster, all []*v1alpha1.MeshCluster, ownUID string, seen *Identity) (reason, message string) {
	for _, other := range all {
		if other.Name == cluster.Name || other.DeletionTimestamp != nil {
			continue
		}
		if other.Spec.ID == cluster.Spec.ID {
			return ConflictID, fmt.Sprintf("MeshCluster %q has the ID %d too. IDs are unique in the mesh: give one of the two clusters another.", other.Name, cluster.Spec.ID)
		}
	}
	if seen == nil || !seen.Complete() {
		return ConflictNone, ""
	}
	switch {
	case seen.UID == ownUID:
		return ConflictSelf, "The address in the kubeconfig is that of this very cluster."
	case seen.Name != cluster.Name:
		return ConflictName, fmt.Sprintf("The peer calls itself %q. A MeshCluster must have the name that the cluster has in the mesh.", seen.Name)
	case seen.ID != cluster.Spec.ID:
		return ConflictIDDiffers, fmt.Sprintf("The peer has the ID %d in the mesh, not %d. Delete this MeshCluster and make it anew with the right one.", seen.ID, cluster.Spec.ID)
	case cluster.Status.UID != "" && cluster.Status.UID != seen.UID:
		return ConflictUIDChanged, fmt.Sprintf("Another cluster (UID %s) now answers for the one known here by this name (UID %s). Its backends are kept. If that is intended, delete this MeshCluster and make it anew.", seen.UID, cluster.Status.UID)
	}
	for _, other := range all {
		if other.Name != cluster.Name && other.DeletionTimestamp == nil && other.Status.UID == seen.UID {
			return ConflictUID, fmt.Sprintf("MeshCluster %q is the same cluster (UID %s). Delete one of the two.", other.Name, seen.UID)
		}
	}
	return ConflictNone, ""
}
