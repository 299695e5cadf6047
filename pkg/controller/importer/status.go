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
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/metrics"
	"mesh.io/clustermesh/pkg/controller/view"
	"mesh.io/clustermesh/pkg/peer"
)

const (
	// statusEvery is the least time between two looks at one peer's status, and
	// freshEvery how often its freshness alone is written.
	statusEvery = time.Second
	freshEvery  = 10 * time.Second
	// maxWaiting is how many waiting namespaces a status names.
	maxWaiting = 100
)

// statusWriter writes what the sessions know into the peers' MeshClusters.
type statusWriter struct {
	loop  *Loop
	queue workqueue.TypedDelayingInterface[string]

	mu     sync.Mutex
	looked map[string]time.Time
	told   map[string]map[string]bool // the refusals that an Event has told of
}

func newStatusWriter(loop *Loop) *statusWriter {
	return &statusWriter{
		loop:   loop,
		queue:  workqueue.NewTypedDelayingQueueWithConfig(workqueue.TypedDelayingQueueConfig[string]{Name: "peer-status"}),
		looked: map[string]time.Time{}, told: map[string]map[string]bool{},
	}
}

// dirty asks for a peer's status to be looked at: at once if it has not been for a while.
func (w *statusWriter) dirty(name string) { w.queue.Add(name) }

// forget is told of a member that is gone.
func (w *statusWriter) forget(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.looked, name)
	delete(w.told, name)
}

func (w *statusWriter) run(ctx context.Context) {
	go func() {
		ticker := time.NewTicker(freshEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				w.queue.ShutDown()
				return
			case <-ticker.C:
				for _, s := range w.loop.all() {
					w.dirty(s.name)
				}
			}
		}
	}()
	for {
		name, shutdown := w.queue.Get()
		if shutdown {
			return
		}
		w.mu.Lock()
		wait := statusEvery - time.Since(w.looked[name])
		if wait <= 0 {
			w.looked[name] = time.Now()
		}
		w.mu.Unlock()
		if wait > 0 {
			w.queue.AddAfter(name, wait)
		} else if err := w.write(ctx, name); err != nil && ctx.Err() == nil {
			if !apierrors.IsConflict(err) {
				klog.FromContext(ctx).V(2).Info("Status of a member is written again", "cluster", name, "err", err)
			}
			w.queue.AddAfter(name, statusEvery)
		}
		w.queue.Done(name)
	}
}

func (w *statusWriter) write(ctx context.Context, name string) error {
	s := w.loop.session(name)
	cluster, ok := view.Get[*v1alpha1.MeshCluster](w.loop.View.Clusters, "", name)
	if s == nil || !ok || cluster.DeletionTimestamp != nil {
		return nil
	}
	facts := s.facts()
	status := Status(cluster, facts)
	s.countRefusals(facts.summary.byReason)

	// Freshness alone is no reason to write before its time, unless the connection is new:
	// who has given the peer's credentials waits for a sign that they are good.
	quiet := status.DeepCopy()
	quiet.LastContactTime, quiet.LagMilliseconds = cluster.Status.LastContactTime, cluster.Status.LagMilliseconds
	connected := s.connections.Load()
	if equal(*quiet, cluster.Status) && connected == s.told.Load() && !Due(cluster.Status.LastContactTime.Time, status.LastContactTime.Time, facts.now) {
		w.tell(cluster, status) // what is refused, if this process has not told of it
		return nil
	}
	changed := cluster.DeepCopy()
	changed.Status = *status
	if _, err := w.loop.Client.MeshV1alpha1().MeshClusters().UpdateStatus(ctx, changed, metav1.UpdateOptions{}); err != nil {
		return err // and no Event, which the next attempt would repeat
	}
	s.told.Store(connected)
	w.tell(cluster, status)
	return nil
}

// Due says whether the time of the last contact is to be written anew: it is newer than
// the one that was written, and that one is of a certain age. One that is still to come
// was written by a clock that has been put right since.
func Due(written, contact, now time.Time) bool {
	written, contact = written.Truncate(time.Second), contact.Truncate(time.Second) // as they are kept
	return contact.Before(written) || contact.After(written) && now.Sub(written) >= freshEvery-statusEvery
}

// tell emits Events for what has changed in the conditions and what is newly refused.
func (w *statusWriter) tell(cluster *v1alpha1.MeshCluster, status *v1alpha1.MeshClusterStatus) {
	for _, kind := range []string{v1alpha1.MeshClusterConnected, v1alpha1.MeshClusterIdentityConflict} {
		before, now := meta.FindStatusCondition(cluster.Status.Conditions, kind), meta.FindStatusCondition(status.Conditions, kind)
		// The text of a failure may name a port or a time; what a person got wrong has a
		// text that only changes when they have changed something.
		again := now != nil && (now.Reason == peer.ReasonSecretMissing || now.Reason == peer.ReasonKubeconfigInvalid)
		if now == nil || before != nil && before.Reason == now.Reason && (!again || before.Message == now.Message) {
			continue
		}
		switch bad := (now.Status == metav1.ConditionTrue) == (kind == v1alpha1.MeshClusterIdentityConflict); {
		case now.Reason == peer.ReasonConnecting, before == nil && now.Reason == ConflictNone:
		case bad:
			w.loop.Events.Event(cluster, corev1.EventTypeWarning, now.Reason, now.Message)
		default:
			w.loop.Events.Event(cluster, corev1.EventTypeNormal, now.Reason, now.Message)
		}
	}
	w.mu.Lock()
	told := w.told[cluster.Name]
	w.told[cluster.Name] = map[string]bool{}
	for _, refusal := range status.Refusals {
		w.told[cluster.Name][refusal] = true
	}
	w.mu.Unlock()
	for _, refusal := range status.Refusals {
		if !told[refusal] {
			w.loop.Events.Event(cluster, corev1.EventTypeWarning, "Refused", refusal)
		}
	}
}

// facts is what a peer's status is made of.
type facts struct {
	state
	summary
	services, endpoints int
	waiting             []string
	listed              bool
	outstanding         int
	failing             int
	failure             string
	contact             time.Time
	lag                 int64
	now                 time.Time
}

// facts gathers what is known of the peer now.
func (s *session) facts() facts {
	f := facts{summary: s.store.summary(), listed: s.store.listed(), lag: s.lag.Load(), now: time.Now()}
	if contact := s.contact.Load(); contact != 0 {
		f.contact = time.Unix(0, contact)
	}
	imported := view.Indexed[*v1alpha1.ImportedEndpointSlice](s.loop.View.ImportedSlices, view.ByCluster, s.name)
	for _, slice := range imported {
		f.endpoints += len(slice.Spec.Endpoints)
	}
	f.services = len(view.Indexed[*v1alpha1.ImportedService](s.loop.View.ImportedServices, view.ByCluster, s.name))
	for _, namespace := range f.summary.namespaces {
		if !s.loop.View.NamespaceReady(namespace) {
			f.waiting = append(f.waiting, namespace)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f.state, f.outstanding, f.failing = s.state, len(s.outstanding), len(s.failing)
	for i, err := range s.failing {
		f.failure = fmt.Sprintf("%s: %s", i, clip(err.Error(), maxMessage/2))
		break
	}
	return f
}

// countRefusals shows the refusals as metrics.
func (s *session) countRefusals(byReason map[string]int) {
	for _, reason := range []string{RefusedName, RefusedNamespace, RefusedReserved, RefusedInvalid, RefusedAddress, RefusedLimit, RefusedByAPI} {
		if byReason == nil {
			metrics.Refusals.DeleteLabelValues(s.name, reason)
			continue
		}
		metrics.Refusals.WithLabelValues(s.name, reason).Set(float64(byReason[reason]))
	}
}

// Status is the status of a peer's MeshCluster.
func Status(cluster *v1alpha1.MeshCluster, f facts) *v1alpha1.MeshClusterStatus {
	status := cluster.Status.DeepCopy()
	status.ObservedGeneration = cluster.Generation
	status.Services, status.Endpoints = int32(f.services), int32(f.endpoints)
	status.Refused, status.Refusals = int32(f.refused), f.refusals
	status.WaitingNamespaces = f.waiting[:min(len(f.waiting), maxWaiting)]
	status.LagMilliseconds = f.lag
	if f.contact.After(status.LastContactTime.Time) {
		status.LastContactTime = metav1.NewTime(f.contact)
	}
	// A clock that is set back leaves times of the future behind.
	if status.LastContactTime.After(f.now) {
		status.LastContactTime = metav1.NewTime(f.now)
	}
	// What a peer says of itself is believed once nothing speaks against it, and the
	// UID that was seen first stays.
	if f.following {
		status.UID, status.Version = f.identity.UID, f.identity.Version
		status.StoreEpoch, status.ControllerRun = f.identity.StoreEpoch, f.identity.ControllerRun
	}

	condition := func(kind string, value metav1.ConditionStatus, reason, message string) {
		meta.SetStatusCondition(&status.Conditions, metav1.Condition{
			Type: kind, Status: value, Reason: reason, Message: clip(message, maxMessage), ObservedGeneration: cluster.Generation,
		})
	}
	conflict := f.conflictReason != ConflictNone
	if f.connected && f.silent {
		condition(v1alpha1.MeshClusterConnected, metav1.ConditionUnknown, peer.ReasonSilent,
			"The peer has gone silent, and has not answered when it was asked. What was imported is kept.")
	} else {
		condition(v1alpha1.MeshClusterConnected, is(f.connected), f.reason, f.message)
	}
	condition(v1alpha1.MeshClusterIdentityConflict, is(conflict), f.conflictReason, f.conflictMessage)
	synced, reason, message := false, "", ""
	switch {
	case conflict:
		reason, message = "IdentityConflict", "Nothing is exchanged with the peer; what was imported earlier is kept."
	case !f.connected:
		reason, message = "NotConnected", "What was imported is kept as it was when the peer last answered."
	case !f.identity.Complete():
		reason, message = "PeerNotReady", "The peer's mesh API answers, but its controller has not introduced the cluster yet."
	case !f.listed:
		reason, message = "Listing", "What the peer exports is being read."
	case f.doubt != "":
		reason, message = "Unconfirmed", f.doubt
	case f.failing > 0:
		reason, message = "WritesFailing", fmt.Sprintf("%d objects cannot be written, among them %s.", f.failing, f.failure)
	case !f.everSynced:
		reason, message = "Writing", fmt.Sprintf("What the peer exports is being written: %d objects are left.", f.outstanding)
	case f.refused > 0 || f.more:
		number := strconv.Itoa(f.refused)
		if f.more {
			number = "at least " + number
		}
		synced, reason, message = true, "SyncedWithRefusals", fmt.Sprintf("Everything is imported but for %s objects or endpoints that are refused; see status.refusals.", number)
	default:
		synced, reason, message = true, "Synced", "Everything that the peer exports is imported."
	}
	condition(v1alpha1.MeshClusterSynced, is(synced), reason, message)
	return status
}

func is(so bool) metav1.ConditionStatus {
	if so {
		return metav1.ConditionTrue
	}
	return metav1.ConditionFalse
}
