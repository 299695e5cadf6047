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
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/apply"
	"mesh.io/clustermesh/pkg/controller/metrics"
	"mesh.io/clustermesh/pkg/controller/view"
	mesh "mesh.io/clustermesh/pkg/generated/clientset/versioned"
	"mesh.io/clustermesh/pkg/peer"
)

const (
	identifyTimeout = 5 * time.Second
	// silence is how long a peer may send nothing before it is asked whether it is
	// there. After one question without an answer it counts as silent, after two the
	// connection ends: a cut shows within 10 seconds.
	silence = 4 * time.Second
	// lookEvery is how often is looked whether it is time to ask.
	lookEvery = time.Second
	// proofEvery is how often a peer is asked in any case, so that credentials that
	// are refused are noticed while the watches still stand.
	proofEvery = 30 * time.Second
	maxBackoff = 15 * time.Second
)

// errAnew ends a connection that is to be made anew, with nothing being wrong.
var errAnew = errors.New("connecting anew")

// session is the import from one peer: while its MeshCluster exists, whether or
// not it answers.
type session struct {
	loop   *Loop
	name   string
	cancel context.CancelFunc
	done   sync.WaitGroup
	queue  workqueue.TypedRateLimitingInterface[item]
	store  *store
	rules  atomic.Pointer[Rules]
	// wake is sent to when something changes here that the connection hangs on.
	wake chan struct{}
	// prove is sent to when there are doubtful objects.
	prove chan struct{}
	// anew is set when the next connection has to begin with a listing, and reconnect
	// when there has to be another, which may resume.
	anew, reconnect atomic.Bool
	// relist is sent to when there is room for objects that were refused.
	relist chan struct{}
	// contact is when the peer last sent anything, in Unix nanoseconds; lag how old
	// its last change was on arrival.
	contact atomic.Int64
	lag     atomic.Int64
	// connections counts them, and told is how many of them a status has been written of.
	connections, told atomic.Int64

	services peer.Stream[*v1alpha1.ExportedService]
	slices   peer.Stream[*v1alpha1.ExportedEndpointSlice]
	endpoint int  // of the kubeconfig, to be tried next
	doubted  bool // the cached credentials: the peer has refused them, or they cannot be used
	room     pace

	mu          sync.Mutex
	state       state
	outstanding sets.Set[item]
	writing     int
	failing     map[item]error
	parked      sets.Set[item] // slices that wait for the listing of the Services
	history     history        // of the store that the streams are in
}

// state is what the conditions of the peer's MeshCluster tell.
type state struct {
	connected                       bool
	silent                          bool // connected, and a question is without an answer
	reason, message                 string
	conflictReason, conflictMessage string
	identity                        Identity
	following                       bool   // the peer's exports are being followed
	doubt                           string // why doubtful objects are kept
	everSynced                      bool   // since the connection was made
}

func newSession(loop *Loop, name string) *session {
	s := &session{
		loop: loop, name: name,
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[item](10*time.Millisecond, 10*time.Second),
			workqueue.TypedRateLimitingQueueConfig[item]{Name: "import-" + name}),
		wake: make(chan struct{}, 1), prove: make(chan struct{}, 1), relist: make(chan struct{}, 1),
		state:       state{reason: peer.ReasonConnecting, message: "The peer is being connected.", conflictReason: ConflictNone},
		outstanding: sets.New[item](), parked: sets.New[item](), failing: map[item]error{},
	}
	s.store = newStore(s.enqueue)
	return s
}

// start begins the session. What was imported earlier is known, but in doubt.
func (s *session) start(ctx context.Context) {
	ctx, s.cancel = context.WithCancel(klog.NewContext(ctx, klog.FromContext(ctx).WithValues("cluster", s.name)))
	for _, imported := range view.Indexed[*v1alpha1.ImportedService](s.loop.View.ImportedServices, view.ByCluster, s.name) {
		s.store.seed(item{serviceKind, apply.Key{Namespace: imported.Namespace, Name: imported.Name}}, imported.Labels[v1alpha1.LabelServiceName], 0)
	}
	for _, imported := range view.Indexed[*v1alpha1.ImportedEndpointSlice](s.loop.View.ImportedSlices, view.ByCluster, s.name) {
		s.store.seed(item{sliceKind, apply.Key{Namespace: imported.Namespace, Name: imported.Name}}, imported.Spec.Service, len(imported.Spec.Endpoints))
	}
	for _, i := range s.store.items("") {
		s.enqueue(i)
	}
	for range max(1, s.loop.Workers) {
		s.done.Go(func() {
			for s.next(ctx) {
			}
		})
	}
	s.done.Go(func() {
		<-ctx.Done()
		s.queue.ShutDown()
	})
	s.done.Go(func() { s.run(ctx) })
}

// stop ends the session and waits for what it is writing.
func (s *session) stop() {
	s.cancel()
	s.done.Wait()
	metrics.Connected.DeleteLabelValues(s.name)
	s.countRefusals(nil)
}

// poke asks the session to look again at what its connection hangs on; connect: to
// connect anew, with other credentials; list: to list everything again as well.
func (s *session) poke(connect, list bool) {
	if connect {
		s.reconnect.Store(true)
	}
	if list {
		s.anew.Store(true)
	}
	notify(s.wake)
}

const (
	// roomFirst is how long the first listing because of room that was made waits for
	// more of it, roomEvery the least time between two, and roomMost the most that it
	// grows to while one follows the other.
	roomFirst = 2 * time.Second
	roomEvery = time.Minute
	roomMost  = 10 * time.Minute
)

// pace spaces the listings that a peer just over a limit would cause without end.
type pace struct {
	last  time.Time
	every time.Duration
}

// wait is how long the next listing has to wait.
func (p *pace) wait(now time.Time) time.Duration {
	if p.last.IsZero() {
		return roomFirst
	}
	return max(roomFirst, p.last.Add(p.every).Sub(now))
}

// done notes a listing.
func (p *pace) done(now time.Time) {
	if since := now.Sub(p.last); p.last.IsZero() || since > 2*p.every {
		p.every = roomEvery
	} else {
		p.every = min(roomMost, 2*p.every)
	}
	p.last = now
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *session) enqueue(i item) {
	s.mu.Lock()
	s.outstanding.Insert(i)
	s.mu.Unlock()
	s.queue.Add(i)
}

// run keeps the peer connected.
func (s *session) run(ctx context.Context) {
	backoff := time.Duration(0)
	for ctx.Err() == nil {
		began := time.Now()
		err := s.connect(ctx)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errAnew) {
			backoff = 0
			continue
		}
		if time.Since(began) > time.Minute {
			backoff = 0
		}
		backoff = min(maxBackoff, max(500*time.Millisecond, 2*backoff))
		s.disconnected(ctx, err)
		s.doubted = doubtful(err)
		select {
		case <-ctx.Done():
		case <-s.wake:
			backoff = 0
		case <-time.After(backoff/2 + rand.N(backoff/2)):
		}
	}
}

// reasonError is a failure that has a reason of its own.
type reasonError struct {
	reason, message string
}

func (e *reasonError) Error() string { return e.message }

func (s *session) disconnected(ctx context.Context, err error) {
	reason, message := "", ""
	var own *reasonError
	if errors.As(err, &own) {
		reason, message = own.reason, own.message
	} else {
		var advice string
		reason, advice = peer.Reason(err)
		message = fmt.Sprintf("%s What was imported is kept. (%s)", advice, clip(err.Error(), maxMessage/2))
	}
	klog.FromContext(ctx).V(2).Info("Peer is not connected", "reason", reason, "err", err)
	metrics.Connected.WithLabelValues(s.name).Set(0)
	s.set(func(st *state) {
		st.connected, st.silent, st.following, st.everSynced = false, false, false, false
		st.reason, st.message = reason, message
	})
}

// set changes the state and has it written.
func (s *session) set(change func(*state)) {
	s.mu.Lock()
	before := s.state
	change(&s.state)
	after := s.state
	s.mu.Unlock()
	if before != after {
		s.loop.status.dirty(s.name)
	}
}

// doubtful says whether a failure may come from credentials that somebody has replaced.
func doubtful(err error) bool {
	reason, _ := peer.Reason(err)
	var own *reasonError
	if errors.As(err, &own) {
		reason = own.reason
	}
	switch reason {
	case peer.ReasonUnauthorized, peer.ReasonForbidden, peer.ReasonCertificateNotTrusted, peer.ReasonSecretMissing, peer.ReasonKubeconfigInvalid:
		return true
	}
	return false
}

// secret is the Secret with the peer's kubeconfig, as it is cached. Where that is in
// doubt it is read: after its API server was away, a cache lags behind for a minute.
func (s *session) secret(ctx context.Context, name string) (*corev1.Secret, bool) {
	if s.doubted {
		ctx, cancel := context.WithTimeout(peer.Quiet(ctx), identifyTimeout)
		defer cancel()
		secret, err := s.loop.Kube.CoreV1().Secrets(s.loop.View.MeshNamespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil || apierrors.IsNotFound(err) {
			return secret, err == nil
		}
	}
	return view.Get[*corev1.Secret](s.loop.Secrets, s.loop.View.MeshNamespace, name)
}

// endpoints reads the peer's kubeconfig.
func (s *session) endpoints(ctx context.Context, cluster *v1alpha1.MeshCluster) ([]peer.Endpoint, error) {
	reference := cluster.Spec.KubeconfigSecretRef
	key := reference.Key
	if key == "" {
		key = v1alpha1.DefaultSecretKey
	}
	secret, ok := s.secret(ctx, reference.Name)
	if !ok {
		return nil, &reasonError{peer.ReasonSecretMissing, fmt.Sprintf("There is no Secret %q in namespace %q: make it, with the peer's kubeconfig in the entry %q.", reference.Name, s.loop.View.MeshNamespace, key)}
	}
	data, ok := secret.Data[key]
	if !ok {
		return nil, &reasonError{peer.ReasonSecretMissing, fmt.Sprintf("Secret %q in namespace %q has no entry %q: put the peer's kubeconfig there.", reference.Name, s.loop.View.MeshNamespace, key)}
	}
	endpoints, err := peer.Endpoints(data)
	if err != nil {
		return nil, &reasonError{peer.ReasonKubeconfigInvalid, fmt.Sprintf("The kubeconfig in Secret %q cannot be used: %v.", reference.Name, err)}
	}
	if secret.Annotations[v1alpha1.AnnotationInvited] != "" {
		peer.Guard(endpoints)
	}
	return endpoints, nil
}

// connect imports from the peer until that ends, and says why.
func (s *session) connect(ctx context.Context) error {
	s.reconnect.Store(false)
	cluster, ok := view.Get[*v1alpha1.MeshCluster](s.loop.View.Clusters, "", s.name)
	if !ok || cluster.Spec.KubeconfigSecretRef == nil {
		return &reasonError{peer.ReasonConnecting, "The MeshCluster is being read."}
	}
	if reason, message := s.conflict(nil); reason != ConflictNone {
		s.set(func(st *state) {
			st.conflictReason, st.conflictMessage = reason, message
			st.connected, st.silent, st.following = false, false, false
			st.reason, st.message = "IdentityConflict", "The peer is not asked while its identity is in doubt."
		})
		metrics.Connected.WithLabelValues(s.name).Set(0)
		return s.wait(ctx, 10*time.Second)
	}
	endpoints, err := s.endpoints(ctx, cluster)
	if err != nil {
		return err
	}
	client, err := mesh.NewForConfig(endpoints[s.endpoint%len(endpoints)].Config)
	if err != nil {
		return &reasonError{peer.ReasonKubeconfigInvalid, fmt.Sprintf("The kubeconfig cannot be used: %v.", err)}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	identity, err := s.identify(ctx, client, false)
	if err != nil {
		s.endpoint++
		return err
	}
	metrics.Connected.WithLabelValues(s.name).Set(1)
	conflict, conflictMessage := s.conflict(&identity)
	s.set(func(st *state) {
		st.connected, st.silent, st.reason, st.message = true, false, peer.ReasonConnected, "The peer's mesh API answers."
		st.identity, st.conflictReason, st.conflictMessage = identity, conflict, conflictMessage
		st.following = conflict == ConflictNone && identity.Complete()
		st.doubt, st.everSynced = "", false
	})
	s.connections.Add(1)
	s.loop.status.dirty(s.name)
	switch {
	case conflict != ConflictNone:
		return s.wait(ctx, 5*time.Second)
	case !identity.Complete():
		return s.wait(ctx, time.Second)
	}
	klog.FromContext(ctx).V(2).Info("Peer is connected", "uid", identity.UID, "storeEpoch", identity.StoreEpoch)

	// Versions of one store mean nothing in another, or in one that was restored.
	s.mu.Lock()
	another := s.history.restart(identity)
	s.mu.Unlock()
	anew := s.anew.Swap(false)
	if cluster, ok := view.Get[*v1alpha1.MeshCluster](s.loop.View.Clusters, "", s.name); ok {
		s.store.setLimits(limitsOf(cluster.Spec.Import.Limits)) // as they are now: what changes from here on comes anew
	}
	if anew || another {
		s.services.Reset()
		s.slices.Reset()
		s.store.unlist()
		select {
		case <-s.relist: // this is it
		default:
		}
	}
	s.checkSynced() // where the streams resume, no listing will say so
	typed := client.MeshV1alpha1()
	s.services.Watch = typed.ExportedServices(metav1.NamespaceAll).Watch
	s.services.Sink = &serviceSink{s}
	s.slices.Watch = typed.ExportedEndpointSlices(metav1.NamespaceAll).Watch
	s.slices.Sink = &sliceSink{s}
	clusters := &peer.Stream[*v1alpha1.MeshCluster]{Watch: typed.MeshClusters().Watch, Sink: &clusterSink{s, cancel}}

	var wg sync.WaitGroup
	for _, part := range []func(context.Context) error{
		func(ctx context.Context) error { return follow(ctx, s, client, clusters) },
		func(ctx context.Context) error { return follow(ctx, s, client, &s.services) },
		func(ctx context.Context) error { return follow(ctx, s, client, &s.slices) },
		func(ctx context.Context) error { return s.keepAsking(ctx, client) },
		func(ctx context.Context) error { return s.resolve(ctx, client) },
		s.heed,
	} {
		wg.Go(func() { cancel(part(ctx)) })
	}
	wg.Wait()
	return context.Cause(ctx)
}

// wait holds a peer with which nothing may be exchanged, or not yet.
func (s *session) wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
	case <-s.wake:
	case <-time.After(d):
	}
	return errAnew
}

// heed ends the connection when something changes here that it hangs on.
func (s *session) heed(ctx context.Context) error {
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			if due != nil {
				notify(s.relist)
			}
			return nil
		case <-s.wake:
			s.mu.Lock()
			identity := s.state.identity
			s.mu.Unlock()
			if reason, _ := s.conflict(&identity); reason == ConflictNone && !s.anew.Load() && !s.reconnect.Load() {
				continue
			}
			if due != nil {
				notify(s.relist)
			}
		case <-s.relist:
			// A listing costs the peer something: not at every deletion.
			if due == nil {
				due = time.After(s.room.wait(time.Now()))
			}
			continue
		case now := <-due:
			s.room.done(now)
			s.anew.Store(true)
		}
		return errAnew
	}
}

// follow follows one kind, and makes sure before each resumption that the peer still
// has the store that the stream is in.
func follow[T runtime.Object](ctx context.Context, s *session, client mesh.Interface, stream *peer.Stream[T]) error {
	for {
		began := time.Now()
		if err := stream.Follow(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		if ended := time.Since(began); ended < time.Second {
			select { // never spin on a peer that ends every watch at once
			case <-ctx.Done():
			case <-time.After(time.Second - ended):
			}
		}
		identity, err := s.identify(ctx, client, false)
		if err != nil {
			return err
		}
		if err := s.same(identity); err != nil {
			return err
		}
	}
}

// same ends the connection where the peer is no longer what it was.
func (s *session) same(identity Identity) error {
	s.mu.Lock()
	before, back := s.state.identity, s.history.behind(identity)
	if !back {
		s.history.note(identity)
	}
	s.mu.Unlock()
	if back || identity.StoreEpoch != before.StoreEpoch || identity.UID != before.UID || identity.Name != before.Name || identity.ID != before.ID {
		return errAnew
	}
	if identity.ControllerRun != before.ControllerRun || identity.ExportsSynced != before.ExportsSynced || identity.Version != before.Version {
		s.set(func(st *state) { st.identity = identity })
		notify(s.prove)
	}
	return nil
}

func (s *session) conflict(seen *Identity) (reason, message string) {
	cluster, ok := view.Get[*v1alpha1.MeshCluster](s.loop.View.Clusters, "", s.name)
	if !ok {
		return ConflictNone, ""
	}
	return Conflict(cluster, view.List[*v1alpha1.MeshCluster](s.loop.View.Clusters), s.loop.UID, seen)
}

// maxClusters bounds how many members a peer may list before the one that it is.
const maxClusters = 2000

// identify asks the peer who it is.
func (s *session) identify(ctx context.Context, client mesh.Interface, consistent bool) (Identity, error) {
	identity, err := s.ask(ctx, client, consistent)
	if err == nil && !consistent && s.behind(identity) {
		// One of several servers may only lag: the store knows. If it does not answer, a
		// listing too many does no harm.
		if stored, err := s.ask(ctx, client, true); err == nil {
			identity = stored
		}
	}
	return identity, err
}

func (s *session) behind(identity Identity) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.history.behind(identity)
}

func (s *session) ask(ctx context.Context, client mesh.Interface, consistent bool) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, identifyTimeout)
	defer cancel()
	var identity Identity
	left := maxClusters
	open := func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
		return client.MeshV1alpha1().MeshClusters().Watch(ctx, options)
	}
	err := peer.Each(ctx, open, consistent, func(cluster *v1alpha1.MeshCluster) bool {
		if cluster.Spec.KubeconfigSecretRef == nil && (identity.Name == "" || cluster.Name == s.name) {
			identity = IdentityOf(cluster)
		}
		left--
		return left > 0 && identity.Name != s.name
	})
	if err != nil {
		return identity, fmt.Errorf("asking the peer who it is: %w", err)
	}
	s.alive()
	return identity, nil
}

func (s *session) alive() { s.contact.Store(time.Now().UnixNano()) }

// keepAsking notices a peer that has gone silent, or refuses us by now.
func (s *session) keepAsking(ctx context.Context, client mesh.Interface) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	asked, unanswered := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if heard := time.Since(time.Unix(0, s.contact.Load())); heard < silence {
			unanswered = 0
			s.set(func(st *state) { st.silent = false })
			if time.Since(asked) < proofEvery {
				continue
			}
		}
		asked = time.Now()
		identity, err := s.identify(ctx, client, false)
		if err != nil && ctx.Err() == nil {
			if reason, _ := peer.Reason(err); reason != peer.ReasonUnreachable {
				return err
			}
			if time.Unix(0, s.contact.Load()).After(asked) {
				unanswered = 0 // it has sent something else meanwhile
				continue
			}
			if unanswered++; unanswered > 1 {
				return err
			}
			s.set(func(st *state) { st.silent = true })
			continue
		}
		unanswered = 0
		s.set(func(st *state) { st.silent = false })
		if err := s.same(identity); err != nil {
			return err
		}
	}
}

// resolve finds out whether objects that a listing did not show are really gone. It
// asks the peer's store itself, and believes it only if the same run of the peer's
// controller has all of its exports in the same store before and after.
func (s *session) resolve(ctx context.Context, client mesh.Interface) error {
	backoff := time.Second
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.prove:
			backoff = time.Second
		case <-timer.C:
		}
		doubt := ""
		for k := range kinds {
			candidates := s.store.doubtful(k)
			if len(candidates) == 0 {
				continue
			}
			if why, err := s.resolveKind(ctx, client, k, candidates); err != nil {
				doubt = fmt.Sprintf("%d %ss that the peer no longer shows are kept, as asking it failed: %s.", len(candidates), k, clip(err.Error(), maxMessage/2))
			} else if why != "" {
				doubt = fmt.Sprintf("%d %ss that the peer no longer shows are kept: %s.", len(candidates), k, why)
			}
		}
		s.set(func(st *state) { st.doubt = doubt })
		s.checkSynced()
		if doubt != "" {
			timer.Reset(backoff)
			backoff = min(30*time.Second, 2*backoff)
		}
	}
}

func (s *session) resolveKind(ctx context.Context, client mesh.Interface, k kind, candidates map[apply.Key]bool) (why string, err error) {
	before, err := s.identify(ctx, client, true)
	if err != nil {
		return "", err
	}
	if !before.ExportsSynced {
		return "the peer's controller has not written all of its exports", nil
	}
	visit := func(namespace, name string) bool {
		delete(candidates, apply.Key{Namespace: namespace, Name: Name(s.name, name)})
		return len(candidates) > 0
	}
	typed := client.MeshV1alpha1()
	if k == serviceKind {
		err = peer.Each(ctx, typed.ExportedServices(metav1.NamespaceAll).Watch, true, func(obj *v1alpha1.ExportedService) bool {
			return visit(obj.Namespace, obj.Name)
		})
	} else {
		err = peer.Each(ctx, typed.ExportedEndpointSlices(metav1.NamespaceAll).Watch, true, func(obj *v1alpha1.ExportedEndpointSlice) bool {
			return visit(obj.Namespace, obj.Name)
		})
	}
	if err != nil {
		return "", err
	}
	after, err := s.identify(ctx, client, true)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	trusted := s.history.trusts(after) && !s.history.behind(after)
	s.mu.Unlock()
	if !trusted {
		return "the peer's store was restored to an earlier state, and its controller has not started anew since", nil
	}
	if !Vouches(before, after) || after.UID != before.UID || after.StoreEpoch != s.currentEpoch() {
		return "the peer's store or its controller changed while it was asked", nil
	}
	if s.store.sweep(k, candidates) {
		notify(s.relist)
	}
	return "", nil
}

func (s *session) currentEpoch() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.identity.StoreEpoch
}

// checkSynced notes when everything that the peer offers has been written.
func (s *session) checkSynced() {
	if !s.store.listed() {
		return
	}
	s.set(func(st *state) {
		if st.following && len(s.outstanding) == 0 && s.writing == 0 && !st.everSynced {
			st.everSynced = true
		}
	})
}

// serviceSink and sliceSink put what the peer sends into the store.
type serviceSink struct{ *session }

func (s *serviceSink) Alive() { s.alive() }
func (s *serviceSink) Begin() { s.store.begin(serviceKind) }
func (s *serviceSink) End()   { s.listed(serviceKind) }

func (s *serviceSink) Put(obj *v1alpha1.ExportedService, _ bool) {
	obj = &v1alpha1.ExportedService{ObjectMeta: bare(obj), Spec: obj.Spec}
	refusal := s.rules.Load().Object(obj.Namespace, obj.Name, obj.Name)
	if refusal == nil {
		refusal = checkService(obj)
	}
	i := s.item(serviceKind, obj.Namespace, obj.Name)
	held, _ := s.store.get(i)
	before, known := held.(*v1alpha1.ExportedService)
	s.store.put(offer{item: i, obj: obj, service: obj.Name, refusal: refusal})
	// Whether the slices are taken hangs on whom the Service is offered to.
	if refusal == nil && (!known || !slices.Equal(before.Spec.Consumers, obj.Spec.Consumers)) {
		s.pokeSlices(obj.Namespace, obj.Name)
	}
	s.loop.status.dirty(s.name)
}

func (s *serviceSink) Delete(obj *v1alpha1.ExportedService) {
	s.removed(s.item(serviceKind, obj.Namespace, obj.Name))
}

type sliceSink struct{ *session }

func (s *sliceSink) Alive() { s.alive() }
func (s *sliceSink) Begin() { s.store.begin(sliceKind) }
func (s *sliceSink) End()   { s.listed(sliceKind) }

func (s *sliceSink) Put(obj *v1alpha1.ExportedEndpointSlice, listed bool) {
	obj = &v1alpha1.ExportedEndpointSlice{ObjectMeta: bare(obj), Spec: obj.Spec}
	if changed := obj.Spec.ChangedAt.Time; !listed && !changed.IsZero() {
		lag := time.Since(changed)
		s.lag.Store(max(0, lag.Milliseconds()))
		metrics.Lag.WithLabelValues(s.name).Observe(max(0, lag.Seconds()))
	}
	cut := func(n int) any {
		short := *obj
		short.Spec.Endpoints = slices.Clone(obj.Spec.Endpoints[:n])
		return &short
	}
	refusal := s.rules.Load().Object(obj.Namespace, obj.Name, obj.Spec.Service)
	if refusal == nil {
		refusal = checkSlice(obj)
	}
	if s.store.put(offer{
		item: s.item(sliceKind, obj.Namespace, obj.Name), obj: obj, service: obj.Spec.Service,
		endpoints: len(obj.Spec.Endpoints), cut: cut, refusal: refusal,
	}) {
		notify(s.relist)
	}
	s.loop.status.dirty(s.name)
}

func (s *sliceSink) Delete(obj *v1alpha1.ExportedEndpointSlice) {
	s.removed(s.item(sliceKind, obj.Namespace, obj.Name))
}

// bare is all of an object's metadata that is kept: the rest is the peer's to choose,
// and as large as it likes.
func bare(obj metav1.Object) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: obj.GetNamespace(), Name: obj.GetName()}
}

// item is the name that an object has here. One that no object can have is always
// refused, and is told from others of its kind by a hash.
func (s *session) item(k kind, namespace, name string) item {
	if len(validation.IsDNS1123Label(namespace)) > 0 || len(validation.IsDNS1123Subdomain(name)) > 0 {
		sum := sha256.Sum256([]byte(namespace + "/" + name))
		return item{k, apply.Key{Name: "?" + hex.EncodeToString(sum[:8])}}
	}
	return item{k, apply.Key{Namespace: namespace, Name: Name(s.name, name)}}
}

func (s *session) removed(i item) {
	if s.store.remove(i) {
		notify(s.relist)
	}
	s.loop.status.dirty(s.name)
}

func (s *session) listed(k kind) {
	if s.store.end(k) > 0 {
		notify(s.prove)
	}
	if k == serviceKind {
		s.mu.Lock()
		parked := s.parked
		s.parked = sets.New[item]()
		s.mu.Unlock()
		for i := range parked {
			s.enqueue(i)
		}
	}
	s.checkSynced()
	s.loop.status.dirty(s.name)
}

// pokeSlices looks again at the slices of a Service.
func (s *session) pokeSlices(namespace, service string) {
	for _, i := range s.store.slicesOf(apply.Key{Namespace: namespace, Name: service}) {
		s.enqueue(i)
	}
}

// pokeNamespace looks again at everything in a namespace, or everywhere for "".
func (s *session) pokeNamespace(namespace string) {
	for _, i := range s.store.items(namespace) {
		s.enqueue(i)
	}
}

// clusterSink watches who the peer says it is.
type clusterSink struct {
	*session
	cancel context.CancelCauseFunc
}

func (s *clusterSink) Alive() { s.alive() }
func (s *clusterSink) Begin() {}
func (s *clusterSink) End()   {}

func (s *clusterSink) Put(cluster *v1alpha1.MeshCluster, _ bool) {
	if cluster.Spec.KubeconfigSecretRef != nil || cluster.Name != s.name {
		return
	}
	identity := IdentityOf(cluster)
	if s.behind(identity) {
		return // a server that lags may say so: where the store was restored, the next question shows it
	}
	if err := s.same(identity); err != nil {
		s.cancel(err)
	}
}

// Delete is not evidence of anything: the peer may just have lost its store.
func (s *clusterSink) Delete(*v1alpha1.MeshCluster) {}
