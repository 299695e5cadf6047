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
	"net/netip"

	"k8s.io/apimachinery/pkg/util/version"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

// Cluster is what two clusters compare of each other.
type Cluster struct {
	// Context is how the person calls it; empty if the person cannot reach it.
	Context string
	// Name, ID and UID are unique in the mesh.
	Name string
	ID   int32
	UID  string
	// Version is that of its controller.
	Version  string
	PodCIDRs []string
	// Peers are the MeshClusters it has of others.
	Peers []v1alpha1.MeshCluster
}

// LocalOf finds the MeshCluster of the cluster itself among its members.
func LocalOf(members []v1alpha1.MeshCluster) (local *v1alpha1.MeshCluster, peers []v1alpha1.MeshCluster) {
	for i := range members {
		if members[i].Spec.KubeconfigSecretRef == nil {
			local = &members[i]
		} else {
			peers = append(peers, members[i])
		}
	}
	return local, peers
}

// ClusterOf makes a Cluster of its MeshClusters. The local one must be there.
func ClusterOf(context string, local *v1alpha1.MeshCluster, peers []v1alpha1.MeshCluster) Cluster {
	return Cluster{
		Context: context, Name: local.Name, ID: local.Spec.ID, UID: local.Status.UID,
		Version: local.Status.Version, PodCIDRs: local.Spec.PodCIDRs, Peers: peers,
	}
}

func (c Cluster) String() string {
	if c.Context == "" || c.Context == c.Name {
		return fmt.Sprintf("%q", c.Name)
	}
	return fmt.Sprintf("%q (context %q)", c.Name, c.Context)
}

// command is a command of meshctl for the cluster.
func (c Cluster) command(what, more string) string {
	context := c.Context
	if context == "" {
		context = "<its context>"
	}
	return fmt.Sprintf("meshctl %s --context %s%s", what, context, more)
}

// Check says what keeps two clusters from being members of one mesh, each with what to
// do, and what is only to be warned of.
func Check(a, b Cluster) (problems, warnings []string) {
	const again = "uninstall the mesh in one of them and install it with another --cluster-%s (or connect other clusters)"
	if a.UID != "" && a.UID == b.UID {
		// Everything else would be equal, too.
		return []string{fmt.Sprintf("%s and %s are the same cluster (UID %s): give the contexts of two clusters", a, b, a.UID)}, nil
	}
	if a.Name == b.Name {
		problems = append(problems, fmt.Sprintf("both clusters are called %q: names are unique in the mesh; "+again, a.Name, "name"))
	}
	if a.ID == b.ID {
		problems = append(problems, fmt.Sprintf("%s and %s both have the ID %d: IDs are unique in the mesh; "+again, a, b, a.ID, "id"))
	}
	if len(problems) == 0 {
		problems = append(taken(a, b), taken(b, a)...)
	}
	if problem := skew(a, b); problem != "" {
		problems = append(problems, problem)
	}
	for _, mine := range a.PodCIDRs {
		for _, theirs := range b.PodCIDRs {
			if overlap(mine, theirs) {
				warnings = append(warnings, fmt.Sprintf("the pod CIDRs %s of %s and %s of %s overlap: endpoints in both are refused", mine, a, theirs, b))
			}
		}
	}
	return problems, warnings
}

// taken says which members of a claim to be what b is.
func taken(a, b Cluster) []string {
	var problems []string
	for i := range a.Peers {
		member := &a.Peers[i]
		leave := a.command("disconnect", " --peer "+member.Name)
		switch {
		case member.Name == b.Name:
			if member.Spec.ID != b.ID {
				problems = append(problems, fmt.Sprintf("%s has a peer %q with the ID %d, but this one has the ID %d: if that peer is no more, run %q", a, member.Name, member.Spec.ID, b.ID, leave))
			}
			if uid := member.Status.UID; uid != "" && b.UID != "" && uid != b.UID {
				problems = append(problems, fmt.Sprintf("%s has another cluster as its peer %q (UID %s, this one is %s): if that peer is no more, run %q", a, member.Name, uid, b.UID, leave))
			}
		case member.DeletionTimestamp != nil:
		case member.Status.UID != "" && member.Status.UID == b.UID:
			problems = append(problems, fmt.Sprintf("%s has %s as a peer already, by the name %q: run %q first", a, b, member.Name, leave))
		case member.Spec.ID == b.ID:
			problems = append(problems, fmt.Sprintf("the ID %d of %s is taken: %s has a peer %q with it; give one of the two another --cluster-id, or, if that peer is no more, run %q", b.ID, b, a, member.Name, leave))
		}
	}
	return problems
}

// skew says whether the two run releases that do not work together. What is no
// release, as a build of a developer, is not compared.
func skew(a, b Cluster) string {
	va, errA := version.ParseSemantic(a.Version)
	vb, errB := version.ParseSemantic(b.Version)
	if errA != nil || errB != nil {
		return ""
	}
	older, newer := a, b
	if vb.LessThan(va) {
		older, newer, va, vb = b, a, vb, va
	}
	if va.Major() == vb.Major() && vb.Minor()-va.Minor() <= 1 {
		return ""
	}
	return fmt.Sprintf("%s has clustermesh %s and %s has %s: they work together within one minor release; run %q first",
		older, older.Version, newer, newer.Version, older.command("upgrade", ""))
}

func overlap(a, b string) bool {
	x, errX := netip.ParsePrefix(a)
	y, errY := netip.ParsePrefix(b)
	return errX == nil && errY == nil && x.Overlaps(y)
}
