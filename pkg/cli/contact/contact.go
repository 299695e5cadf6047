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

// Package contact judges whether what a cluster knows of a peer still holds, by what
// its controller has written into the MeshClusters. It asks nobody.
package contact

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

// Stale is the age at which a time that a controller writes every 10 seconds shows that
// it no longer does. Of a link that stands, the last contact is written at an age of at
// most 10 seconds, and again 11 seconds later at the latest.
const Stale = 30 * time.Second

// Link is how current what is known of a peer is.
type Link struct {
	// Heard is how long ago the peer last sent anything; negative if it never has.
	Heard time.Duration
	// Doubt says why the link may be broken although its conditions do not say so; it
	// is empty if nothing speaks for that.
	Doubt string
	// Blind is set where the doubt is not about the peer: no controller watches it.
	Blind bool
}

// Age is how long ago a controller has written something; negative if it never has.
// Clocks differ: what is still to come is now.
func Age(now time.Time, at metav1.Time) time.Duration {
	if at.IsZero() {
		return -1
	}
	return max(0, now.Sub(at.Time))
}

// Ended says whether a controller has ceased to lead. That none ever has is another matter.
func Ended(now time.Time, own *v1alpha1.MeshCluster) bool {
	return own != nil && Age(now, own.Status.LastContactTime) > Stale
}

// Of judges the link to a peer. now is the time by the cluster's clock; own is its own
// MeshCluster, nil where there is none.
func Of(now time.Time, own, peer *v1alpha1.MeshCluster) Link {
	l := Link{Heard: Age(now, peer.Status.LastContactTime)}
	connected := meta.FindStatusCondition(peer.Status.Conditions, v1alpha1.MeshClusterConnected)
	switch {
	case Ended(now, own):
		l.Blind = true
		l.Doubt = fmt.Sprintf("the mesh-controller of %s, which would notice, was last alive %s ago", own.Name, ago(Age(now, own.Status.LastContactTime)))
		if l.Heard >= 0 {
			l.Doubt = l.LastHeard() + "; " + l.Doubt
		}
	case connected != nil && connected.Status == metav1.ConditionUnknown:
		l.Doubt = l.LastHeard() + ", and it has not answered when it was asked since"
	case l.Heard > Stale:
		l.Doubt = l.LastHeard() + ", while a link that stands is heard of every 10 seconds"
	}
	return l
}

// LastHeard says when the peer was last heard of.
func (l Link) LastHeard() string {
	if l.Heard < 0 {
		return "never heard of"
	}
	return fmt.Sprintf("last heard of %s ago", ago(l.Heard))
}

func ago(d time.Duration) string { return duration.HumanDuration(d) }
