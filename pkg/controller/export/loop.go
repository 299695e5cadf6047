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

package export

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/apply"
	"mesh.io/clustermesh/pkg/controller/view"
	mesh "mesh.io/clustermesh/pkg/generated/clientset/versioned"
)

// rejectedEvery is how often it is tried whether the mesh API takes by now what it has
// refused: it may have been upgraded.
const rejectedEvery = 5 * time.Minute

func equal(a, b any) bool { return equality.Semantic.DeepEqual(a, b) }

// item is a Service, or one of this cluster's EndpointSlices, that may need to be
// exported anew.
type item struct {
	slice bool
	apply.Key
}

// Config is what a Loop works with.
type Config struct {
	View    *view.View
	Client  mesh.Interface
	Events  record.EventRecorder
	Self    Identity
	Workers int
}

// Loop keeps the exports as the local Services want them. It lives for one
// leadership.
type Loop struct {
	Config
	queue    workqueue.TypedRateLimitingInterface[item]
	services apply.Writer[*v1alpha1.ExportedService]
	slices   apply.Writer[*v1alpha1.ExportedEndpointSlice]

	mu sync.Mutex
	// seen is when a slice was seen to change that is not exported yet.
	seen map[apply.Key]time.Time
	// initial are the items that were there at the start and are not exported yet.
	initial sets.Set[item]
	started bool
	failing map[item]error
	// rejected is what the mesh API does not take, and why. It holds up nothing else.
	rejected map[item]string
	told     map[apply.Key]string // the warning that each Service has been given
	toldNS   map[string]string    // and each Namespace
	onSynced func()
}

// New makes a Loop. onSynced is called whenever what Synced says may have changed.
func New(config Config, onSynced func()) *Loop {
	l := &Loop{
		Config: config,
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[item](10*time.Millisecond, 10*time.Second),
			workqueue.TypedRateLimitingQueueConfig[item]{Name: "export"}),
		seen: map[apply.Key]time.Time{}, initial: sets.New[item](), failing: map[item]error{}, rejected: map[item]string{},
		told: map[apply.Key]string{}, toldNS: map[string]string{}, onSynced: onSynced,
	}
	l.services = apply.Writer[*v1alpha1.ExportedService]{
		Kind: "ExportedService",
		Client: func(namespace string) apply.Client[*v1alpha1.ExportedService] {
			return config.Client.MeshV1alpha1().ExportedServices(namespace)
		},
		Cached: func(key apply.Key) (*v1alpha1.ExportedService, bool) {
			return view.Get[*v1alpha1.ExportedService](config.View.ExportedServices, key.Namespace, key.Name)
		},
		Same: sameService,
	}
	l.slices = apply.Writer[*v1alpha1.ExportedEndpointSlice]{
		Kind: "ExportedEndpointSlice",
		Client: func(namespace string) apply.Client[*v1alpha1.ExportedEndpointSlice] {
			return config.Client.MeshV1alpha1().ExportedEndpointSlices(namespace)
		},
		Cached: func(key apply.Key) (*v1alpha1.ExportedEndpointSlice, bool) {
			return view.Get[*v1alpha1.ExportedEndpointSlice](config.View.ExportedSlices, key.Namespace, key.Name)
		},
		Same: sameSlice,
	}
	return l
}

// Run exports until the context ends.
func (l *Loop) Run(ctx context.Context) error {
	defer l.queue.ShutDown()
	registrations, err := l.watch()
	defer func() {
		for informer, registration := range registrations {
			_ = informer.RemoveEventHandler(registration)
		}
	}()
	if err != nil {
		return fmt.Errorf("watching for exports: %w", err)
	}
	for _, registration := range registrations {
		if !cache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
			return nil
		}
	}
	l.Resync()

	var wg sync.WaitGroup
	for range max(1, l.Workers) {
		wg.Go(func() {
			for l.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	l.queue.ShutDown()
	wg.Wait()
	return nil
}

// Resync looks at everything again, and counts as not synced until it has.
func (l *Loop) Resync() {
	all := sets.New[item]()
	for _, service := range view.List[*corev1.Service](l.View.Services) {
		all.Insert(item{false, apply.Key{Namespace: service.Namespace, Name: service.Name}})
	}
	for _, exported := range view.List[*v1alpha1.ExportedService](l.View.ExportedServices) {
		all.Insert(item{false, apply.Key{Namespace: exported.Namespace, Name: exported.Name}})
	}
	for _, slice := range view.List[*discoveryv1.EndpointSlice](l.View.EndpointSlices) {
		all.Insert(item{true, apply.Key{Namespace: slice.Namespace, Name: slice.Name}})
	}
	for _, exported := range view.List[*v1alpha1.ExportedEndpointSlice](l.View.ExportedSlices) {
		all.Insert(item{true, apply.Key{Namespace: exported.Namespace, Name: view.Source(exported)}})
	}
	l.mu.Lock()
	l.initial, l.started = all.Clone(), true
	l.mu.Unlock()
	for item := range all {
		l.queue.Add(item)
	}
	l.onSynced()
}

// Synced says whether everything that should be exported is: a reason and a sentence.
// What the mesh API refuses is not waited for, as an importer would then never again
// delete anything; it is told instead.
func (l *Loop) Synced() (synced bool, reason, message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.started:
		return false, "Exporting", "This cluster's Services are being read."
	case len(l.initial) > 0:
		return false, "Exporting", "The exports are being brought up to date."
	case len(l.failing) > 0:
		item := least(l.failing)
		return false, "Exporting", clip(fmt.Sprintf("%d exports cannot be written, among them that of %s: %v", len(l.failing), item.Key, l.failing[item]))
	case len(l.rejected) > 0:
		item := least(l.rejected)
		return true, "SyncedWithRefusals", clip(fmt.Sprintf("Everything that should be exported is, but for %d that the mesh API refuses, among them that of %s: %s",
			len(l.rejected), item.Key, l.rejected[item]))
	}
	return true, "Synced", "Everything that should be exported is."
}

// least is the first item in order, so that what is said does not change by itself.
func least[T any](items map[item]T) item {
	return slices.MinFunc(slices.Collect(maps.Keys(items)), func(a, b item) int {
		return strings.Compare(a.String(), b.String())
	})
}

// clip shortens a text to what belongs in a condition.
func clip(text string) string {
	const most = 1024
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most-len("…")], "") + "…"
}

func (l *Loop) watch() (map[cache.SharedIndexInformer]cache.ResourceEventHandlerRegistration, error) {
	registrations := map[cache.SharedIndexInformer]cache.ResourceEventHandlerRegistration{}
	for informer, mark := range map[cache.SharedIndexInformer]func(old, obj any){
		l.View.Services: func(_, obj any) {
			l.queue.Add(item{false, apply.KeyOf(obj)})
		},
		l.View.EndpointSlices: func(_, obj any) {
			key := apply.KeyOf(obj)
			l.mu.Lock()
			if _, waiting := l.seen[key]; !waiting {
				l.seen[key] = time.Now()
			}
			l.mu.Unlock()
			l.queue.Add(item{true, key})
		},
		l.View.Namespaces: func(old, obj any) {
			if old == nil || !equal(old.(*corev1.Namespace).Annotations, obj.(*corev1.Namespace).Annotations) {
				l.namespace(apply.KeyOf(obj).Name)
			}
		},
		l.View.GlobalServices: func(old, obj any) {
			if old == nil || apply.ReplacedOrChanged(old.(*v1alpha1.GlobalService), obj.(*v1alpha1.GlobalService)) {
				l.queue.Add(item{false, apply.KeyOf(obj)})
			}
		},
		l.View.Clusters: func(old, obj any) {
			if apply.KeyOf(obj).Name == l.Self.Name && (old == nil || !equal(old.(*v1alpha1.MeshCluster).Spec.Export, obj.(*v1alpha1.MeshCluster).Spec.Export)) {
				for _, service := range view.List[*corev1.Service](l.View.Services) {
					l.queue.Add(item{false, apply.Key{Namespace: service.Namespace, Name: service.Name}})
				}
			}
		},
		// Our own objects: somebody else may have changed or deleted them.
		l.View.ExportedServices: func(_, obj any) {
			l.queue.Add(item{false, apply.KeyOf(obj)})
		},
		l.View.ExportedSlices: func(_, obj any) {
			exported := obj.(*v1alpha1.ExportedEndpointSlice)
			l.queue.Add(item{true, apply.Key{Namespace: exported.Namespace, Name: view.Source(exported)}})
		},
	} {
		registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { mark(nil, obj) },
			UpdateFunc: func(old, obj any) { mark(old, obj) },
			DeleteFunc: func(obj any) {
				if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
					obj = unknown.Obj
				}
				switch obj := obj.(type) {
				case *v1alpha1.ExportedService:
					l.services.Forget(apply.KeyOf(obj), string(obj.UID))
				case *v1alpha1.ExportedEndpointSlice:
					l.slices.Forget(apply.KeyOf(obj), string(obj.UID))
				}
				mark(nil, obj)
			},
		})
		if err != nil {
			return registrations, err
		}
		registrations[informer] = registration
	}
	return registrations, nil
}

// namespace looks at all Services of a namespace again.
func (l *Loop) namespace(name string) {
	l.mu.Lock()
	delete(l.toldNS, name)
	l.mu.Unlock()
	for _, service := range view.Indexed[*corev1.Service](l.View.Services, cache.NamespaceIndex, name) {
		l.queue.Add(item{false, apply.KeyOf(service)})
	}
}

func (l *Loop) next(ctx context.Context) bool {
	item, shutdown := l.queue.Get()
	if shutdown {
		return false
	}
	defer l.queue.Done(item)
	var err error
	if item.slice {
		err = l.syncSlice(ctx, item.Key)
	} else {
		err = l.syncService(ctx, item.Key)
	}
	if ctx.Err() != nil {
		return true
	}
	rejected := ""
	switch {
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		err = nil // nothing new is offered from a namespace that is going away
	case refused(err):
		// Trying again at once would not help, and must not hold up everything else.
		rejected = err.Error()
		l.queue.AddAfter(item, rejectedEvery)
		err = nil
	}

	l.mu.Lock()
	wasDone := len(l.initial) == 0 && len(l.failing) == 0
	before := l.rejected[item]
	if rejected != "" {
		l.rejected[item] = rejected
	} else if err == nil {
		delete(l.rejected, item)
	}
	if err == nil {
		l.initial.Delete(item)
		delete(l.failing, item)
		l.queue.Forget(item)
	} else {
		// A conflict or two is a cache that lags behind; more is trouble.
		if l.queue.NumRequeues(item) >= 3 {
			l.failing[item] = err
		}
		l.queue.AddRateLimited(item)
	}
	isDone := len(l.initial) == 0 && len(l.failing) == 0
	l.mu.Unlock()
	if err != nil {
		klog.FromContext(ctx).V(2).Info("Export is tried again", "service", item.Key, "err", err)
	}
	if rejected != "" && rejected != before {
		l.tellRejected(item, rejected)
	}
	if wasDone != isDone || err == nil && rejected != before {
		l.onSynced()
	}
	return true
}

// refused says whether the mesh API does not take an object as it is.
func refused(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsRequestEntityTooLargeError(err)
}

// tellRejected tells people that the mesh API does not take an export.
func (l *Loop) tellRejected(item item, message string) {
	key := item.Key
	if slice, ok := view.Get[*discoveryv1.EndpointSlice](l.View.EndpointSlices, key.Namespace, key.Name); ok && item.slice {
		key.Name = slice.Labels[discoveryv1.LabelServiceName]
	}
	if service, ok := l.View.Service(key.Namespace, key.Name); ok {
		l.Events.Event(service.Service, corev1.EventTypeWarning, "ExportRejected", clip(message))
	}
}

// decision is what is to be done about one Service.
type decision struct {
	view.Service
	offered         bool
	reason, message string
}

// decide says whether a Service is exported; one that is not there is not.
func (l *Loop) decide(key apply.Key) (decision, error) {
	local, ok := l.View.Local()
	if !ok {
		return decision{}, errors.New("the MeshCluster of this cluster is not known yet")
	}
	service, ok := l.View.Service(key.Namespace, key.Name)
	if !ok {
		return decision{}, nil
	}
	d := decision{Service: service}
	d.offered, d.reason, d.message = Offered(service, local.Spec.Export.Namespaces)
	return d, nil
}

func (l *Loop) syncService(ctx context.Context, key apply.Key) error {
	service, err := l.decide(key)
	if err != nil {
		return err
	}
	l.warn(key, service)

	// Whether its slices are exported hangs on the Service. They have keys of their
	// own, so that one slice is never written twice at once.
	index := key.String()
	for _, slice := range view.Indexed[*discoveryv1.EndpointSlice](l.View.EndpointSlices, view.ByService, index) {
		l.queue.Add(item{true, apply.KeyOf(slice)})
	}
	for _, exported := range view.Indexed[*v1alpha1.ExportedEndpointSlice](l.View.ExportedSlices, view.ByService, index) {
		l.queue.Add(item{true, apply.Key{Namespace: key.Namespace, Name: view.Source(exported)}})
	}
	if !service.offered {
		_, err := l.services.Remove(ctx, key)
		return err
	}
	exportedAt := metav1.NewTime(time.Now())
	if actual, ok := l.services.Get(key); ok && !actual.Spec.ExportedAt.IsZero() {
		exportedAt = actual.Spec.ExportedAt
	}
	_, err = l.services.Apply(ctx, Service(service.Service.Service, l.Self, exportedAt))
	return err
}

func (l *Loop) syncSlice(ctx context.Context, key apply.Key) error {
	l.mu.Lock()
	changedAt, seen := l.seen[key]
	l.mu.Unlock()
	if !seen {
		changedAt = time.Now()
	}

	var previous []*v1alpha1.ExportedEndpointSlice
	for part := 0; ; part++ {
		exported, ok := l.slices.Get(apply.Key{Namespace: key.Namespace, Name: PartName(key.Name, part)})
		if !ok {
			break
		}
		previous = append(previous, exported)
	}
	var desired []*v1alpha1.ExportedEndpointSlice
	if slice, ok := view.Get[*discoveryv1.EndpointSlice](l.View.EndpointSlices, key.Namespace, key.Name); ok {
		service, err := l.decide(apply.Key{Namespace: key.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]})
		if err != nil {
			return err
		}
		if service.offered && OwnSlice(slice, service.Policy.ExportManual) && slice.DeletionTimestamp == nil {
			headless := service.Spec.ClusterIP == corev1.ClusterIPNone
			desired = Slices(slice, headless, l.Self, previous, metav1.NewMicroTime(changedAt))
		}
	}
	err := l.write(ctx, key, desired, previous)
	if err != nil && !refused(err) {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[key].Equal(changedAt) {
		delete(l.seen, key)
	}
	return err
}

// write makes the parts of a slice's export what is desired. A part that is refused
// does not keep the others from being written.
func (l *Loop) write(ctx context.Context, key apply.Key, desired, previous []*v1alpha1.ExportedEndpointSlice) error {
	var rejected error
	for _, part := range desired {
		// What a slice belongs to cannot be changed, only replaced.
		if actual, ok := l.slices.Get(apply.KeyOf(part)); ok &&
			(actual.Spec.Service != part.Spec.Service || actual.Spec.AddressType != part.Spec.AddressType ||
				actual.Spec.Cluster != part.Spec.Cluster || actual.Spec.ClusterID != part.Spec.ClusterID) {
			if _, err := l.slices.Remove(ctx, apply.KeyOf(part)); err != nil {
				return err
			}
			return fmt.Errorf("replacing the export of slice %s, whose identity has changed", key)
		}
		record := *part.Spec.DeepCopy()
		if _, err := l.slices.Apply(ctx, part); refused(err) {
			rejected = errors.Join(rejected, err)
			if err := l.correct(ctx, apply.KeyOf(part), record); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
	}
	// The last first, so that there is never a gap that the next look would stop at.
	for part := len(previous) - 1; part >= len(desired); part-- {
		if _, err := l.slices.Remove(ctx, apply.KeyOf(previous[part])); err != nil {
			return err
		}
	}
	if err := l.removeStrays(ctx, key, slices.Concat(desired, previous)); err != nil {
		return err
	}
	return rejected
}

// removeStrays removes the parts that are not known: they come after a gap, as somebody
// has deleted one of them.
func (l *Loop) removeStrays(ctx context.Context, key apply.Key, known []*v1alpha1.ExportedEndpointSlice) error {
	for _, exported := range view.Indexed[*v1alpha1.ExportedEndpointSlice](l.View.ExportedSlices, view.BySource, key.String()) {
		if slices.ContainsFunc(known, func(part *v1alpha1.ExportedEndpointSlice) bool { return part.Name == exported.Name }) {
			continue
		}
		if _, err := l.slices.Remove(ctx, apply.KeyOf(exported)); err != nil {
			return err
		}
	}
	return nil
}

// correct takes from an export what is no longer so, where the mesh API has refused
// its successor: endpoints that are gone would be offered for ever. If not even that
// is taken, the export goes.
func (l *Loop) correct(ctx context.Context, key apply.Key, now v1alpha1.SliceRecord) error {
	actual, exists := l.slices.Get(key)
	if !exists {
		return nil
	}
	if !equal(actual.Spec.Ports, now.Ports) {
		_, err := l.slices.Remove(ctx, key)
		return err
	}
	kept := actual.DeepCopy()
	kept.Spec.Endpoints = remaining(actual.Spec.Endpoints, now.Endpoints)
	kept.Spec.ChangedAt = now.ChangedAt
	_, err := l.slices.Apply(ctx, kept)
	if refused(err) {
		_, err = l.slices.Remove(ctx, key)
	}
	return err
}

// remaining is what is left of endpoints, with the state that they have now.
func remaining(endpoints, now []v1alpha1.Endpoint) []v1alpha1.Endpoint {
	states := map[string]v1alpha1.Endpoint{}
	for _, endpoint := range now {
		states[endpoint.Address] = endpoint
	}
	var left []v1alpha1.Endpoint
	for _, endpoint := range endpoints {
		if state, ok := states[endpoint.Address]; ok {
			endpoint.Ready, endpoint.Serving, endpoint.Terminating = state.Ready, state.Serving, state.Terminating
			left = append(left, endpoint)
		}
	}
	return left
}

// warn tells people, once for each change, what is wrong with a Service's annotations.
func (l *Loop) warn(key apply.Key, service decision) {
	type warning struct{ reason, message string }
	var warnings []warning
	if service.reason != "" {
		warnings = append(warnings, warning{service.reason, service.message})
	}
	namespaceProblem := ""
	text := service.reason + service.message
	for _, problem := range service.Policy.Problems {
		if !problem.OnService {
			namespaceProblem = problem.String()
			continue
		}
		warnings = append(warnings, warning{"InvalidAnnotation", problem.String()})
		text += problem.String()
	}

	l.mu.Lock()
	changed := l.told[key] != text
	if text == "" {
		delete(l.told, key)
	} else {
		l.told[key] = text
	}
	there := service.Service.Service
	changedNS := there != nil && namespaceProblem != "" && l.toldNS[key.Namespace] != namespaceProblem
	if namespaceProblem != "" {
		l.toldNS[key.Namespace] = namespaceProblem
	}
	l.mu.Unlock()
	if changed && there != nil {
		for _, w := range warnings {
			l.Events.Event(there, corev1.EventTypeWarning, w.reason, w.message)
		}
	}
	if changedNS {
		if namespace, ok := view.Get[*corev1.Namespace](l.View.Namespaces, "", key.Namespace); ok {
			l.Events.Event(namespace, corev1.EventTypeWarning, "InvalidAnnotation", namespaceProblem)
		}
	}
}
