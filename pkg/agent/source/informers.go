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

package source

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/agent/optout"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/generated/clientset/versioned"
)

// The resources that are watched, by the names that people see in /readyz.
const (
	Services               = "services"
	EndpointSlices         = "endpointslices"
	Namespaces             = "namespaces"
	ServicePolicies        = "servicepolicies"
	ImportedEndpointSlices = "importedendpointslices"
	MeshMembers            = "meshmembers"
	CABundle               = "configmap-mesh-ca"
	Node                   = "node"
	Pods                   = "pods"
	Zone                   = "node-zone"
)

// record is what is kept of an API object. It stands in the informer's cache in the
// object's place, so that nothing is kept twice.
type record[T any] struct {
	metav1.ObjectMeta
	value T
}

// GetObjectMeta makes the record an object for the informer.
func (r *record[T]) GetObjectMeta() metav1.Object { return &r.ObjectMeta }

// Contact is how the watch of one resource goes.
type Contact struct {
	Resource string
	Synced   bool
	// Err is why the last list or watch failed; nil while it goes on.
	Err error
	// Since is when that began.
	Since time.Time
}

// Refused says whether the server answers, and refuses: it may well tell others
// what it does not tell us.
func (c Contact) Refused() bool {
	var status apierrors.APIStatus
	return c.Err != nil && errors.As(c.Err, &status) &&
		(apierrors.IsUnauthorized(c.Err) || apierrors.IsForbidden(c.Err) || apierrors.IsNotFound(c.Err))
}

// watched is one resource that is listed and watched.
type watched struct {
	resource   string
	store      cache.Store
	controller cache.Controller

	mu    sync.Mutex
	err   error
	since time.Time
}

func (w *watched) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if (err == nil) != (w.err == nil) || w.since.IsZero() {
		w.since = time.Now()
	}
	w.err = err
}

func (w *watched) contact() Contact {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Contact{w.resource, w.controller.HasSynced(), w.err, w.since}
}

// mostWait is the longest wait before a server that does not answer is asked again,
// but for the jitter.
const mostWait = 4 * time.Second

// insist asks until the server answers, be it with an error, and notes each result.
// The informers' own wait after an error grows to half a minute: too long for what
// balances connections, once the server is back.
func insist[T any](ctx context.Context, note func(error), ask func() (T, error)) (T, error) {
	for wait := 250 * time.Millisecond; ; wait = min(2*wait, mostWait) {
		result, err := ask()
		if ctx.Err() != nil {
			return result, err
		}
		note(err)
		var status apierrors.APIStatus
		if err == nil || errors.As(err, &status) {
			return result, err
		}
		timer := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-ctx.Done():
			timer.Stop()
			return result, err
		case <-timer.C:
		}
	}
}

// events is what to do with the objects of one resource. missed is for an object
// that a later list does not have; deleted, for one that was seen to be deleted.
type events[T any] struct {
	set     func(old, new *record[T])
	deleted func(*record[T])
	missed  func(*record[T])
}

// newWatched prepares to list and watch one resource. convert makes of each object
// what is kept of it.
func newWatched[O runtime.Object, T any](resource string, example O, lw *cache.ListWatch, client any,
	convert func(O) (*record[T], error), on events[T],
) *watched {
	w := &watched{resource: resource}
	list, watchAll := lw.ListWithContextFunc, lw.WatchFuncWithContext
	tracked := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return insist(ctx, w.note, func() (runtime.Object, error) { return list(ctx, options) })
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return insist(ctx, w.note, func() (watch.Interface, error) { return watchAll(ctx, options) })
		},
	}
	if on.missed == nil {
		on.missed = on.deleted
	}
	w.store, w.controller = cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.ToListWatcherWithWatchListSemantics(tracked, client),
		ObjectType:    example,
		Transform: func(obj any) (any, error) {
			o, ok := obj.(O)
			if !ok {
				return obj, nil // it has been through here
			}
			return convert(o)
		},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: func(obj any) { on.set(nil, obj.(*record[T])) },
			UpdateFunc: func(old, obj any) {
				if o, n := old.(*record[T]), obj.(*record[T]); o.ResourceVersion != n.ResourceVersion || o.UID != n.UID {
					on.set(o, n)
				}
			},
			DeleteFunc: func(obj any) {
				// A tombstone stands for what was gone when the resource was listed again.
				if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
					if r, ok := tombstone.Obj.(*record[T]); ok {
						on.missed(r)
					}
					return
				}
				on.deleted(obj.(*record[T]))
			},
		},
	})
	return w
}

// newRecord keeps of an object's metadata what the informer needs.
func newRecord[T any](meta *metav1.ObjectMeta, value T) *record[T] {
	return &record[T]{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       meta.Namespace,
			Name:            meta.Name,
			UID:             meta.UID,
			ResourceVersion: meta.ResourceVersion,
		},
		value: value,
	}
}

// Watches is a group of resources of one API server.
type Watches struct {
	watched []*watched
	synced  func()
	missed  chan struct{}
}

// Contacts says how each watch goes.
func (w *Watches) Contacts() []Contact {
	contacts := make([]Contact, len(w.watched))
	for i := range w.watched {
		contacts[i] = w.watched[i].contact()
	}
	return contacts
}

// Present says whether there is any object.
func (w *Watches) Present() bool {
	for _, one := range w.watched {
		if len(one.store.ListKeys()) > 0 {
			return true
		}
	}
	return false
}

// Run lists and watches until ctx ends.
func (w *Watches) Run(ctx context.Context) {
	var group sync.WaitGroup
	for _, one := range w.watched {
		group.Go(func() { one.controller.RunWithContext(ctx) })
	}
	for _, one := range w.watched {
		select {
		case <-one.controller.HasSyncedChecker().Done():
		case <-ctx.Done():
		}
	}
	if ctx.Err() == nil {
		w.synced()
	}
	group.Wait()
}

// NewLocal watches what this cluster's kube-apiserver knows, and puts it into the
// state. onMesh is called after each change of a Service in the mesh's own namespace:
// the mesh API may have another address.
func NewLocal(state *State, kube kubernetes.Interface, meta metadata.Interface, meshNamespace string, onMesh func()) *Watches {
	services := newWatched(Services, &corev1.Service{}, &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return kube.CoreV1().Services(metav1.NamespaceAll).List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return kube.CoreV1().Services(metav1.NamespaceAll).Watch(ctx, options)
		},
	}, kube, func(s *corev1.Service) (*record[*desired.LocalService], error) {
		return newRecord(&s.ObjectMeta, convertService(s)), nil
	}, events[*desired.LocalService]{
		set: func(_, r *record[*desired.LocalService]) {
			state.SetService(desired.Name{Namespace: r.Namespace, Name: r.Name}, r.value)
			if r.Namespace == meshNamespace {
				onMesh()
			}
		},
		deleted: func(r *record[*desired.LocalService]) {
			state.SetService(desired.Name{Namespace: r.Namespace, Name: r.Name}, nil)
			if r.Namespace == meshNamespace {
				onMesh()
			}
		},
	})
	endpointSlices := newWatched(EndpointSlices, &discoveryv1.EndpointSlice{}, &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return kube.DiscoveryV1().EndpointSlices(metav1.NamespaceAll).List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return kube.DiscoveryV1().EndpointSlices(metav1.NamespaceAll).Watch(ctx, options)
		},
	}, kube, func(s *discoveryv1.EndpointSlice) (*record[*desired.Slice], error) {
		return newRecord(&s.ObjectMeta, convertSlice(s)), nil
	}, events[*desired.Slice]{
		set: func(old, r *record[*desired.Slice]) {
			var previous *desired.Slice
			if old != nil {
				previous = old.value
			}
			state.SetSlice(previous, r.value)
		},
		deleted: func(r *record[*desired.Slice]) { state.SetSlice(r.value, nil) },
	})
	gvr := corev1.SchemeGroupVersion.WithResource("namespaces")
	namespaces := newWatched(Namespaces, &metav1.PartialObjectMetadata{}, &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return meta.Resource(gvr).List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return meta.Resource(gvr).Watch(ctx, options)
		},
	}, meta, func(n *metav1.PartialObjectMetadata) (*record[map[string]string], error) {
		return newRecord(&n.ObjectMeta, n.Annotations), nil
	}, events[map[string]string]{
		set:     func(_, r *record[map[string]string]) { state.SetNamespace(r.Name, r.value) },
		deleted: func(r *record[map[string]string]) { state.DeleteNamespace(r.Name) },
	})
	return &Watches{watched: []*watched{services, endpointSlices, namespaces}, synced: state.SyncedLocal}
}

// NewMesh watches what this cluster's mesh API knows, and puts it into the state. It
// watches nothing that counts and freshness are written to. Whenever a list misses
// something, or a member says something new, it asks for a witness; see RunWitness.
func NewMesh(state *State, mesh versioned.Interface) *Watches {
	client := mesh.MeshV1alpha1()
	doubt := make(chan struct{}, 1)
	doubted := func() {
		select {
		case doubt <- struct{}{}:
		default:
		}
	}
	specs := newWatched(ServicePolicies, &v1alpha1.ServicePolicy{}, &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return client.ServicePolicies(metav1.NamespaceAll).List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return client.ServicePolicies(metav1.NamespaceAll).Watch(ctx, options)
		},
	}, mesh, func(p *v1alpha1.ServicePolicy) (*record[*v1alpha1.GlobalServiceSpec], error) {
		return newRecord(&p.ObjectMeta, &p.Spec), nil
	}, events[*v1alpha1.GlobalServiceSpec]{
		set: func(_, r *record[*v1alpha1.GlobalServiceSpec]) {
			state.Saw(revisionOf(r.ResourceVersion))
			state.SetSpec(desired.Name{Namespace: r.Namespace, Name: r.Name}, r.value)
		},
		deleted: func(r *record[*v1alpha1.GlobalServiceSpec]) {
			state.DeleteSpec(desired.Name{Namespace: r.Namespace, Name: r.Name})
		},
		missed: func(r *record[*v1alpha1.GlobalServiceSpec]) {
			state.MissSpec(desired.Name{Namespace: r.Namespace, Name: r.Name})
			doubted()
		},
	})
	imported := newWatched(ImportedEndpointSlices, &v1alpha1.ImportedEndpointSlice{}, &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return client.ImportedEndpointSlices(metav1.NamespaceAll).List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return client.ImportedEndpointSlices(metav1.NamespaceAll).Watch(ctx, options)
		},
	}, mesh, func(s *v1alpha1.ImportedEndpointSlice) (*record[*desired.Slice], error) {
		return newRecord(&s.ObjectMeta, convertImported(s)), nil
	}, events[*desired.Slice]{
		set: func(_, r *record[*desired.Slice]) {
			state.Saw(revisionOf(r.ResourceVersion))
			state.SetImported(r.value)
		},
		deleted: func(r *record[*desired.Slice]) { state.DeleteImported(r.Namespace, r.Name) },
		missed: func(r *record[*desired.Slice]) {
			state.MissImported(r.Namespace, r.Name)
			doubted()
		},
	})
	members := newWatched(MeshMembers, &v1alpha1.MeshMember{}, &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return client.MeshMembers().List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return client.MeshMembers().Watch(ctx, options)
		},
	}, mesh, func(m *v1alpha1.MeshMember) (*record[Member], error) {
		return newRecord(&m.ObjectMeta, convertMember(m)), nil
	}, events[Member]{
		set: func(_, r *record[Member]) {
			state.Saw(revisionOf(r.ResourceVersion))
			state.SetMember(r.value)
			doubted()
		},
		deleted: func(r *record[Member]) { state.DeleteMember(r.Name) },
		missed: func(r *record[Member]) {
			state.MissMember(r.Name)
			doubted()
		},
	})
	return &Watches{
		watched: []*watched{specs, imported, members},
		synced: func() {
			state.SyncedMesh()
			doubted()
		},
		missed: doubt,
	}
}

// witnessBackoff is how much longer the witness waits after each reading that settled
// nothing, up to so many periods. What is held of a cluster that nobody hears of may be
// held for days.
const (
	witnessBackoff     = 1.5
	witnessMostPeriods = 12
)

// RunWitness reads the MeshClusters from the mesh API itself, after the lists, and
// lets the state judge by them what it holds, while it holds anything: at once when
// something is missed, and again and again, ever less often. It returns when ctx ends.
//
// Each reading is one of the store, by each node, so there is at most one in a period,
// and nodes that all saw the same do not read at once.
func (w *Watches) RunWitness(ctx context.Context, state *State, mesh versioned.Interface, period time.Duration) {
	// wait returns early, and says so, when there is something new.
	wait := func(d time.Duration, wake <-chan struct{}) bool {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-ctx.Done():
		case <-wake:
			return true
		case <-timer.C:
		}
		return false
	}
	pause := period
	for ctx.Err() == nil {
		wait(rand.N(period/4+1), nil)
		// A resource that was lost may not have been listed again from the store that
		// the MeshClusters are read from: what it has yet to miss is in doubt.
		if state.Settled() || w.lost() {
			wait(period, w.missed)
			pause = period
			continue
		}
		before := state.Revision()
		// Lost contact is doubt, and the watches report it.
		if members, err := readMembers(ctx, mesh); err == nil && !w.lost() {
			state.Resolve(members, before)
		}
		wait(period, nil)
		if wait(pause-period, w.missed) {
			pause = period
		} else {
			pause = min(time.Duration(witnessBackoff*float64(pause)), witnessMostPeriods*period)
		}
	}
}

// lost says whether any watch does not go on.
func (w *Watches) lost() bool {
	return slices.ContainsFunc(w.watched, func(one *watched) bool { return one.contact().Err != nil })
}

// readMembers reads the MeshClusters, from the store and not from a cache.
func readMembers(ctx context.Context, mesh versioned.Interface) (map[string]Member, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	list, err := mesh.MeshV1alpha1().MeshClusters().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the MeshClusters: %w", err)
	}
	members := make(map[string]Member, len(list.Items))
	for i := range list.Items {
		if list.Items[i].DeletionTimestamp == nil {
			members[list.Items[i].Name] = convertTestimony(&list.Items[i], revisionOf(list.ResourceVersion))
		}
	}
	return members, nil
}

// NewCA watches the ConfigMap in which the mesh API publishes its CA, and calls onCA
// with each bundle.
func NewCA(kube kubernetes.Interface, namespace, name string, onCA func(bundle []byte)) *Watches {
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	ca := newWatched(CABundle, &corev1.ConfigMap{}, &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selector
			return kube.CoreV1().ConfigMaps(namespace).List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = selector
			return kube.CoreV1().ConfigMaps(namespace).Watch(ctx, options)
		},
	}, kube, func(m *corev1.ConfigMap) (*record[string], error) {
		return newRecord(&m.ObjectMeta, m.Data[CAKey]), nil
	}, events[string]{
		set: func(_, r *record[string]) { onCA([]byte(r.value)) },
		// A CA that is gone is no reason to trust less: the last one stays.
		deleted: func(*record[string]) {},
	})
	return &Watches{watched: []*watched{ca}, synced: func() {}}
}

// NewNode watches one Node and calls onTaints with its taints whenever it changes.
func NewNode(kube kubernetes.Interface, name string, onTaints func([]corev1.Taint)) *Watches {
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	node := newWatched(Node, &corev1.Node{}, &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selector
			return kube.CoreV1().Nodes().List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = selector
			return kube.CoreV1().Nodes().Watch(ctx, options)
		},
	}, kube, func(n *corev1.Node) (*record[[]corev1.Taint], error) {
		return newRecord(&n.ObjectMeta, n.Spec.Taints), nil
	}, events[[]corev1.Taint]{
		set:     func(_, r *record[[]corev1.Taint]) { onTaints(r.value) },
		deleted: func(*record[[]corev1.Taint]) { onTaints(nil) },
	})
	return &Watches{watched: []*watched{node}, synced: func() {}}
}

// NewZone watches a node's metadata and puts its zone into the state.
func NewZone(state *State, meta metadata.Interface, node string) *Watches {
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, node).String()
	gvr := corev1.SchemeGroupVersion.WithResource("nodes")
	zone := newWatched(Zone, &metav1.PartialObjectMetadata{}, &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selector
			return meta.Resource(gvr).List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = selector
			return meta.Resource(gvr).Watch(ctx, options)
		},
	}, meta, func(n *metav1.PartialObjectMetadata) (*record[string], error) {
		return newRecord(&n.ObjectMeta, n.Labels[corev1.LabelTopologyZone]), nil
	}, events[string]{
		set: func(_, r *record[string]) { state.SetZone(r.value) },
		// A node that is no longer there has not moved.
		deleted: func(*record[string]) {},
	})
	return &Watches{watched: []*watched{zone}, synced: func() {}}
}

// NewPods watches the metadata of a node's pods and calls set with each that comes or
// changes, and deleted with the name of each that has gone.
func NewPods(meta metadata.Interface, node string, set func(optout.Pod), deleted func(namespace, name string)) *Watches {
	selector := fields.OneTermEqualSelector("spec.nodeName", node).String()
	gvr := corev1.SchemeGroupVersion.WithResource("pods")
	pods := newWatched(Pods, &metav1.PartialObjectMetadata{}, &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selector
			return meta.Resource(gvr).List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = selector
			return meta.Resource(gvr).Watch(ctx, options)
		},
	}, meta, func(p *metav1.PartialObjectMetadata) (*record[optout.Pod], error) {
		return newRecord(&p.ObjectMeta, convertPod(&p.ObjectMeta)), nil
	}, events[optout.Pod]{
		set:     func(_, r *record[optout.Pod]) { set(r.value) },
		deleted: func(r *record[optout.Pod]) { deleted(r.Namespace, r.Name) },
	})
	return &Watches{watched: []*watched{pods}, synced: func() {}}
}

// CAKey is the entry of the ConfigMap that holds the CA bundle in PEM form.
const CAKey = "ca.crt"
