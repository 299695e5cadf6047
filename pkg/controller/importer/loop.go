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
	"maps"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/apply"
	"mesh.io/clustermesh/pkg/controller/view"
	mesh "mesh.io/clustermesh/pkg/generated/clientset/versioned"
)

// Config is what a Loop works with.
type Config struct {
	View   *view.View
	Client mesh.Interface
	Kube   kubernetes.Interface
	// Secrets are those in the mesh's namespace.
	Secrets cache.SharedIndexInformer
	Events  record.EventRecorder
	// UID is this cluster's.
	UID string
	// Workers is how many objects of one peer are written at once.
	Workers int
}

// Loop keeps a session for each peer. It lives for one leadership.
type Loop struct {
	Config
	queue    workqueue.TypedRateLimitingInterface[string]
	services apply.Writer[*v1alpha1.ImportedService]
	slices   apply.Writer[*v1alpha1.ImportedEndpointSlice]
	status   *statusWriter
	// nodes is sent to when the Nodes here have changed.
	nodes chan struct{}

	mu       sync.Mutex
	sessions map[string]*session
}

// New makes a Loop.
func New(config Config) *Loop {
	l := &Loop{
		Config: config,
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](50*time.Millisecond, 10*time.Second),
			workqueue.TypedRateLimitingQueueConfig[string]{Name: "peers"}),
		sessions: map[string]*session{}, nodes: make(chan struct{}, 1),
	}
	l.services = apply.Writer[*v1alpha1.ImportedService]{
		Kind: "ImportedService",
		Client: func(namespace string) apply.Client[*v1alpha1.ImportedService] {
			return config.Client.MeshV1alpha1().ImportedServices(namespace)
		},
		Cached: func(key apply.Key) (*v1alpha1.ImportedService, bool) {
			return view.Get[*v1alpha1.ImportedService](config.View.ImportedServices, key.Namespace, key.Name)
		},
		Same: sameService,
	}
	l.slices = apply.Writer[*v1alpha1.ImportedEndpointSlice]{
		Kind: "ImportedEndpointSlice",
		Client: func(namespace string) apply.Client[*v1alpha1.ImportedEndpointSlice] {
			return config.Client.MeshV1alpha1().ImportedEndpointSlices(namespace)
		},
		Cached: func(key apply.Key) (*v1alpha1.ImportedEndpointSlice, bool) {
			return view.Get[*v1alpha1.ImportedEndpointSlice](config.View.ImportedSlices, key.Namespace, key.Name)
		},
		Same: sameSlice,
	}
	l.status = newStatusWriter(l)
	return l
}

// Run imports until the context ends.
func (l *Loop) Run(ctx context.Context) error {
	registrations, err := l.watch()
	defer func() {
		for informer, registration := range registrations {
			_ = informer.RemoveEventHandler(registration)
		}
	}()
	if err != nil {
		l.queue.ShutDown()
		return fmt.Errorf("watching for imports: %w", err)
	}
	// What was imported from a cluster whose MeshCluster is gone goes too.
	orphans := sets.New[string]()
	orphans.Insert(l.View.ImportedServices.GetIndexer().ListIndexFuncValues(view.ByCluster)...)
	orphans.Insert(l.View.ImportedSlices.GetIndexer().ListIndexFuncValues(view.ByCluster)...)
	for name := range orphans {
		l.queue.Add(name)
	}

	var wg sync.WaitGroup
	wg.Go(func() { l.status.run(ctx) })
	wg.Go(func() { l.followNodes(ctx) })
	for range 4 {
		wg.Go(func() {
			for l.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	l.queue.ShutDown()
	wg.Wait()
	for _, s := range l.all() {
		s.stop()
	}
	return nil
}

// nodesEvery is how long changes of Nodes are gathered: each has everything that is
// imported checked against their addresses.
const nodesEvery = time.Second

func (l *Loop) followNodes(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.nodes:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(nodesEvery):
		}
		select {
		case <-l.nodes: // those that came meanwhile are looked at now
		default:
		}
		for _, s := range l.all() {
			l.setRules(s)
			s.pokeNamespace("")
		}
	}
}

func (l *Loop) all() []*session {
	l.mu.Lock()
	defer l.mu.Unlock()
	var sessions []*session
	for _, s := range l.sessions {
		sessions = append(sessions, s)
	}
	return sessions
}

func (l *Loop) session(name string) *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sessions[name]
}

// watch wires what changes here to the sessions that it concerns.
func (l *Loop) watch() (map[cache.SharedIndexInformer]cache.ResourceEventHandlerRegistration, error) {
	imported := func(k kind) func(old, obj any) {
		return func(_, obj any) {
			accessor, err := meta.Accessor(obj)
			if err != nil {
				return
			}
			if s := l.session(accessor.GetLabels()[v1alpha1.LabelCluster]); s != nil {
				s.queue.Add(item{k, apply.KeyOf(obj)})
				l.status.dirty(s.name)
			}
		}
	}
	registrations := map[cache.SharedIndexInformer]cache.ResourceEventHandlerRegistration{}
	for informer, mark := range map[cache.SharedIndexInformer]func(old, obj any){
		l.View.Clusters: l.clusterChanged,
		l.Secrets: func(old, obj any) {
			if old != nil && reflect.DeepEqual(old.(*corev1.Secret).Data, obj.(*corev1.Secret).Data) {
				return
			}
			for _, cluster := range view.List[*v1alpha1.MeshCluster](l.View.Clusters) {
				if ref := cluster.Spec.KubeconfigSecretRef; ref != nil && ref.Name == apply.KeyOf(obj).Name {
					if s := l.session(cluster.Name); s != nil {
						s.poke(true, false)
					}
				}
			}
		},
		l.View.Namespaces: func(old, obj any) {
			now := obj.(*corev1.Namespace)
			if old != nil {
				before := old.(*corev1.Namespace)
				if reflect.DeepEqual(before.Annotations, now.Annotations) && before.Status.Phase == now.Status.Phase && before.UID == now.UID {
					return
				}
			}
			for _, s := range l.all() {
				s.pokeNamespace(now.Name)
				l.status.dirty(s.name)
			}
		},
		l.View.Services: func(old, obj any) {
			if old != nil {
				// Only what decides about taking part concerns the imports.
				before, now := old.(*corev1.Service), obj.(*corev1.Service)
				if maps.Equal(before.Annotations, now.Annotations) && before.Spec.Type == now.Spec.Type && before.DeletionTimestamp.Equal(now.DeletionTimestamp) {
					return
				}
			}
			for _, s := range l.all() {
				s.pokeSlices(apply.KeyOf(obj).Namespace, apply.KeyOf(obj).Name)
			}
		},
		l.View.Nodes: func(old, obj any) {
			now := obj.(*corev1.Node)
			if old != nil {
				before := old.(*corev1.Node)
				if reflect.DeepEqual(before.Spec.PodCIDRs, now.Spec.PodCIDRs) && reflect.DeepEqual(before.Status.Addresses, now.Status.Addresses) {
					return
				}
			}
			notify(l.nodes)
		},
		// Our own objects: somebody else may have changed or deleted them.
		l.View.ImportedServices: imported(serviceKind),
		l.View.ImportedSlices:   imported(sliceKind),
	} {
		registration, err := informer.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
			AddFunc: func(obj any, isInInitialList bool) {
				// A session begins by looking at everything that it holds: what was there
				// before it is no news, only its coming is.
				if !isInInitialList || informer == l.View.Clusters {
					mark(nil, obj)
				}
			},
			UpdateFunc: func(old, obj any) { mark(old, obj) },
			DeleteFunc: func(obj any) {
				if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
					obj = unknown.Obj
				}
				switch obj := obj.(type) {
				case *v1alpha1.ImportedService:
					l.services.Forget(apply.KeyOf(obj), string(obj.UID))
				case *v1alpha1.ImportedEndpointSlice:
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

// clusterChanged hears of changes of any member, this cluster included. What the
// controller writes into status itself concerns nobody.
func (l *Loop) clusterChanged(old, obj any) {
	now := obj.(*v1alpha1.MeshCluster)
	var before *v1alpha1.MeshCluster
	if old != nil {
		before = old.(*v1alpha1.MeshCluster)
		if before.UID == now.UID && before.Generation == now.Generation && before.Status.UID == now.Status.UID &&
			before.DeletionTimestamp.Equal(now.DeletionTimestamp) && len(before.Finalizers) == len(now.Finalizers) {
			return
		}
	}
	l.queue.Add(now.Name)
	changed := before == nil || before.UID != now.UID || before.Generation != now.Generation
	connect, list := false, false
	if before != nil && changed {
		connect = !equal(before.Spec.KubeconfigSecretRef, now.Spec.KubeconfigSecretRef)
		// Only what decides about objects before they are held has them listed again.
		list = before.UID != now.UID || before.Spec.ID != now.Spec.ID ||
			!equal(before.Spec.Import.Limits, now.Spec.Import.Limits) || !equal(before.Spec.Import.Namespaces, now.Spec.Import.Namespaces)
	}
	for _, s := range l.all() {
		if changed && (s.name == now.Name || now.Name == l.View.ClusterName) {
			l.setRules(s)
			s.pokeNamespace("")
		}
		s.poke(connect && s.name == now.Name, list && s.name == now.Name)
	}
}

// setRules tells a session what to check against now.
func (l *Loop) setRules(s *session) {
	cluster, ok := view.Get[*v1alpha1.MeshCluster](l.View.Clusters, "", s.name)
	if !ok {
		return
	}
	local, _ := l.View.Local()
	rules := NewRules(cluster, local, view.List[*corev1.Node](l.View.Nodes), l.View.MeshNamespace, func(ip string) bool {
		keys, err := l.View.Services.GetIndexer().IndexKeys(view.ByClusterIP, ip)
		return err == nil && len(keys) > 0
	})
	s.rules.Store(rules)
}

func (l *Loop) next(ctx context.Context) bool {
	name, shutdown := l.queue.Get()
	if shutdown {
		return false
	}
	defer l.queue.Done(name)
	if err := l.sync(ctx, name); err != nil {
		if ctx.Err() == nil {
			klog.FromContext(ctx).V(2).Info("Member is looked at again", "cluster", name, "err", err)
		}
		l.queue.AddRateLimited(name)
		return true
	}
	l.queue.Forget(name)
	return true
}

// sync starts and stops the session of one peer.
func (l *Loop) sync(ctx context.Context, name string) error {
	if name == l.View.ClusterName || name == "" {
		return nil
	}
	cluster, ok := view.Get[*v1alpha1.MeshCluster](l.View.Clusters, "", name)
	if !ok || cluster.DeletionTimestamp != nil {
		l.mu.Lock()
		s := l.sessions[name]
		delete(l.sessions, name)
		l.mu.Unlock()
		if s != nil {
			s.stop()
		}
		l.status.forget(name)
		return l.clean(ctx, name, cluster)
	}
	if cluster.Spec.KubeconfigSecretRef == nil {
		return nil // one that claims to be local is for the local loop to refuse
	}
	if !hasFinalizer(cluster) {
		changed := cluster.DeepCopy()
		changed.Finalizers = append(changed.Finalizers, v1alpha1.FinalizerCluster)
		_, err := l.Client.MeshV1alpha1().MeshClusters().Update(ctx, changed, metav1.UpdateOptions{})
		if err != nil {
			return fmt.Errorf("adding the finalizer of member %q: %w", name, err)
		}
	}
	if l.session(name) == nil {
		s := newSession(l, name)
		if l.setRules(s); s.rules.Load() == nil {
			return fmt.Errorf("member %q has just gone", name)
		}
		l.mu.Lock()
		l.sessions[name] = s
		l.mu.Unlock()
		s.start(ctx)
		l.status.dirty(name)
	}
	return nil
}

func hasFinalizer(cluster *v1alpha1.MeshCluster) bool {
	for _, finalizer := range cluster.Finalizers {
		if finalizer == v1alpha1.FinalizerCluster {
			return true
		}
	}
	return false
}

// clean removes everything that was imported from a cluster that is no longer a
// member, and then lets its MeshCluster go. The peer is not asked.
func (l *Loop) clean(ctx context.Context, name string, cluster *v1alpha1.MeshCluster) error {
	if cluster == nil && len(l.importedOf(name)) > 0 {
		// That a cache does not show it is no proof that a person has deleted it.
		_, err := l.Client.MeshV1alpha1().MeshClusters().Get(ctx, name, metav1.GetOptions{})
		switch {
		case err == nil:
			return fmt.Errorf("member %q is there, and only the cache does not show it", name)
		case !apierrors.IsNotFound(err):
			return fmt.Errorf("making sure that member %q is gone: %w", name, err)
		}
	}
	work := make(chan item)
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() {
			var failed error
			for i := range work {
				var err error
				if i.kind == serviceKind {
					_, err = l.services.Remove(ctx, i.Key)
				} else {
					_, err = l.slices.Remove(ctx, i.Key)
				}
				if err != nil {
					failed = err
				}
			}
			errs <- failed
		}()
	}
	for _, i := range l.importedOf(name) {
		work <- i
	}
	close(work)
	var failed error
	for range cap(errs) {
		if err := <-errs; err != nil {
			failed = err
		}
	}
	if failed != nil {
		return fmt.Errorf("removing what was imported from %q: %w", name, failed)
	}
	if cluster == nil || !hasFinalizer(cluster) {
		return nil
	}

	// The cache may lag behind: ask the store before the last trace is let go.
	options := metav1.ListOptions{LabelSelector: v1alpha1.LabelCluster + "=" + name, Limit: 1}
	services, err := l.Client.MeshV1alpha1().ImportedServices(metav1.NamespaceAll).List(ctx, options)
	if err != nil {
		return fmt.Errorf("looking for what is left of %q: %w", name, err)
	}
	slices, err := l.Client.MeshV1alpha1().ImportedEndpointSlices(metav1.NamespaceAll).List(ctx, options)
	if err != nil {
		return fmt.Errorf("looking for what is left of %q: %w", name, err)
	}
	if len(services.Items)+len(slices.Items) > 0 {
		return fmt.Errorf("removing what was imported from %q: not everything is gone yet", name)
	}
	changed := cluster.DeepCopy()
	changed.Finalizers = nil
	for _, finalizer := range cluster.Finalizers {
		if finalizer != v1alpha1.FinalizerCluster {
			changed.Finalizers = append(changed.Finalizers, finalizer)
		}
	}
	if _, err := l.Client.MeshV1alpha1().MeshClusters().Update(ctx, changed, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("letting go of member %q: %w", name, err)
	}
	return nil
}
