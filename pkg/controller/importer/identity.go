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
	"slices"
	"strconv"

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
	// ResourceVersion is the MeshCluster's, in the peer's store: a store that shows a lower one
	// than before has been restored to what it was earlier.
	ResourceVersion uint64
}

// IdentityOf reads a peer's MeshCluster of itself.
func IdentityOf(cluster *v1alpha1.MeshCluster) Identity {
	version, _ := strconv.ParseUint(cluster.ResourceVersion, 10, 64)
	return Identity{
		Name: clip(cluster.Name, maxIdentity), ID: cluster.Spec.ID,
		UID: clip(cluster.Status.UID, maxIdentity), Version: clip(cluster.Status.Version, maxIdentity),
		StoreEpoch: clip(cluster.Status.StoreEpoch, maxIdentity), ControllerRun: clip(cluster.Status.ControllerRun, maxIdentity),
		ExportsSynced: meta.IsStatusConditionTrue(cluster.Status.Conditions, v1alpha1.MeshClusterExportsSynced), ResourceVersion: version,
	}
}

// Complete says whether the peer's controller has introduced itself.
func (i Identity) Complete() bool { return i.Name != "" && i.UID != "" }

// Vouches says whether what a listing between the two does not show is really gone:
// the same store, not set back, the same run of the peer's controller, and all of its exports written.
func Vouches(before, after Identity) bool {
	return before.StoreEpoch != "" && before.StoreEpoch == after.StoreEpoch &&
		before.ControllerRun != "" && before.ControllerRun == after.ControllerRun &&
		before.ExportsSynced && after.ExportsSynced &&
		before.ResourceVersion <= after.ResourceVersion
}

// history is what was seen of one store of a peer, to notice that it has been
// restored: that does not change its epoch.
type history struct {
	epoch, run string
	highest    uint64
	// doubted are the runs of the peer's controller that do not vouch for what the
	// store lacks, until it is beyond where it has been: the run that it shows may be
	// as old as the rest of it, and the one that was seen last may not know.
	doubted []string
	beyond  uint64
}

// behind says whether the store shows less than it has shown before.
func (h *history) behind(seen Identity) bool {
	return seen.StoreEpoch == h.epoch && seen.ResourceVersion < h.highest
}

// restart notes the beginning of a connection. It returns true where versions that
// were seen earlier mean nothing any more.
func (h *history) restart(seen Identity) bool {
	if seen.StoreEpoch != h.epoch {
		*h = history{epoch: seen.StoreEpoch}
		h.note(seen)
		return true
	}
	back := h.behind(seen)
	if back {
		h.doubted, h.beyond = []string{h.run, seen.ControllerRun}, max(h.beyond, h.highest)
		h.highest = 0
	}
	h.note(seen)
	return back
}

// note is told of what the store shows.
func (h *history) note(seen Identity) {
	if seen.StoreEpoch == h.epoch {
		h.highest, h.run = max(h.highest, seen.ResourceVersion), seen.ControllerRun
	}
}

// trusts says whether the peer's word for its store may be taken.
func (h *history) trusts(seen Identity) bool {
	return seen.StoreEpoch == h.epoch && (seen.ResourceVersion > h.beyond || !slices.Contains(h.doubted, seen.ControllerRun))
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
