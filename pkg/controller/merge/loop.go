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

package merge

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/apply"
	"mesh.io/clustermesh/pkg/controller/metrics"
	"mesh.io/clustermesh/pkg/controller/view"
	mesh "mesh.io/clustermesh/pkg/generated/clientset/versioned"
)

// statusEvery is the least time between two writes of one status.
const statusEvery = time.Second

// Config is what a Loop works with.
type Config struct {
	View   *view.View
	Client mesh.Interface
	Events record.EventRecorder
	// ID is this cluster's.
	ID      int32
	Workers int
	// KeepFor is how long a GlobalService stays after the last export has ended.
	KeepFor time.Duration
	Clock   clock.WithTicker
}

// Loop keeps the GlobalServices. It lives for one leadership.
type Loop struct {
	Config
	queue workqueue.TypedRateLimitingInterface[apply.Key]

	mu sync.Mutex
	// written is when each status was last written; unwanted since when
	// no cluster exports a Service.
	written  map[apply.Key]time.Time
	unwanted map[apply.Key]time.Time
}

// New makes a Loop.
func New(config Config) *Loop {
	return &Loop{
		Config: config,
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[apply.Key](20*time.Millisecond, 10*time.Second),
			workqueue.TypedRateLimitingQueueConfig[apply.Key]{Name: "merge", Clock: config.Clock}),
		written: map[apply.Key]time.Time{}, unwanted: map[apply.Key]time.Time{},
	}
}

// Run merges until the context ends.
func (l *Loop) Run(ctx context.Context) error {
	defer l.queue.ShutDown()
	registrations, err := l.watch()
	defer func() {
		for informer, registration := range registrations {
			_ = informer.RemoveEventHandler(registration)
		}
	}()
	if err != nil {
		return fmt.Errorf("watching for global services: %w", err)
	}
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

func (l *Loop) watch() (map[cache.SharedIndexInformer]cache.ResourceEventHandlerRegistration, error) {
	byName := func(_, obj any) {
		l.queue.Add(keyOf(obj, ""))
	}
	byLabel := func(label string) func(old, obj any) {
		return func(_, obj any) {
			if key := keyOf(obj, label); key.Name != "" {
				l.queue.Add(key)
			}
		}
	}
	registrations := map[cache.SharedIndexInformer]cache.ResourceEventHandlerRegistration{}
	for informer, mark := range map[cache.SharedIndexInformer]func(old, obj any){
		l.View.Services:         byName,
		l.View.GlobalServices:   byName,
		l.View.ExportedServices: byName,
		l.View.EndpointSlices:   byLabel(discoveryv1.LabelServiceName),
		l.View.ImportedServices: byLabel(v1alpha1.LabelServiceName),
		l.View.ImportedSlices:   byLabel(v1alpha1.LabelServiceName),
		l.View.Clusters: func(old, obj any) {
			if old != nil && !apply.ReplacedOrChanged(old.(*v1alpha1.MeshCluster), obj.(*v1alpha1.MeshCluster)) {
				return
			}
			for _, global := range view.List[*v1alpha1.GlobalService](l.View.GlobalServices) {
				l.queue.Add(keyOf(global, ""))
			}
		},
		l.View.Namespaces: func(old, obj any) {
			if old == nil || reflect.DeepEqual(old.(*corev1.Namespace).Annotations, obj.(*corev1.Namespace).Annotations) {
				return
			}
			for _, service := range view.Indexed[*corev1.Service](l.View.Services, cache.NamespaceIndex, obj.(*corev1.Namespace).Name) {
				l.queue.Add(keyOf(service, ""))
			}
		},
	} {
		registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { mark(nil, obj) },
			UpdateFunc: func(old, obj any) { mark(old, obj) },
			DeleteFunc: func(obj any) {
				if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
					obj = unknown.Obj
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

// keyOf is the key of the service that an object is of: its own name, or its label's.
func keyOf(obj any, label string) apply.Key {
	accessor, err := meta.Accessor(obj)
	if err != nil {
		return apply.Key{}
	}
	if label == "" {
		return apply.Key{Namespace: accessor.GetNamespace(), Name: accessor.GetName()}
	}
	return apply.Key{Namespace: accessor.GetNamespace(), Name: accessor.GetLabels()[label]}
}

func (l *Loop) next(ctx context.Context) bool {
	key, shutdown := l.queue.Get()
	if shutdown {
		return false
	}
	defer l.queue.Done(key)
	err := l.sync(ctx, key)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		err = nil
	}
	if err != nil {
		if ctx.Err() == nil && !apierrors.IsConflict(err) {
			klog.FromContext(ctx).V(2).Info("Global service is looked at again", "service", key, "err", err)
		}
		l.queue.AddRateLimited(key)
		return true
	}
	l.queue.Forget(key)
	return true
}

func (l *Loop) input(key apply.Key) Input {
	index := key.String()
	in := Input{
		Cluster: l.View.ClusterName, ID: l.ID, Members: map[string]*v1alpha1.MeshClusterSpec{},
		Slices:         view.Indexed[*discoveryv1.EndpointSlice](l.View.EndpointSlices, view.ByService, index),
		Imported:       view.Indexed[*v1alpha1.ImportedService](l.View.ImportedServices, view.ByService, index),
		ImportedSlices: view.Indexed[*v1alpha1.ImportedEndpointSlice](l.View.ImportedSlices, view.ByService, index),
	}
	for _, imported := range in.Imported {
		if member, ok := view.Get[*v1alpha1.MeshCluster](l.View.Clusters, "", imported.Spec.Cluster); ok {
			in.Members[member.Name] = &member.Spec
		}
	}
	if local, ok := l.View.Local(); ok {
		in.Members[local.Name] = &local.Spec
	}
	in.Global, _ = view.Get[*v1alpha1.GlobalService](l.View.GlobalServices, key.Namespace, key.Name)
	in.Exported, _ = view.Get[*v1alpha1.ExportedService](l.View.ExportedServices, key.Namespace, key.Name)
	if service, ok := l.View.Service(key.Namespace, key.Name); ok {
		in.Service, in.Policy, in.Reserved = service.Service, service.Policy, service.Reserved
	}
	return in
}

func (l *Loop) sync(ctx context.Context, key apply.Key) error {
	in := l.input(key)
	client := l.Client.MeshV1alpha1().GlobalServices(key.Namespace)
	wanted := Wanted(in)
	if in.Global == nil {
		l.forget(key)
		if !wanted || !l.View.NamespaceReady(key.Namespace) {
			return nil
		}
		_, err := client.Create(ctx, Made(key.Namespace, key.Name), metav1.CreateOptions{})
		count("create", err)
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("making the global service %s: %w", key, err)
		}
		return nil // its coming wakes us again, for the status
	}
	if in.Global.DeletionTimestamp != nil {
		return nil
	}
	if gone, err := l.expire(ctx, key, in.Global, wanted); gone || err != nil {
		return err
	}
	return l.writeStatus(ctx, key, in)
}

// expire deletes a GlobalService of our own that no cluster has exported for long.
func (l *Loop) expire(ctx context.Context, key apply.Key, global *v1alpha1.GlobalService, wanted bool) (gone bool, err error) {
	l.mu.Lock()
	since, waiting := l.unwanted[key]
	if wanted || !Ours(global) {
		delete(l.unwanted, key)
		l.mu.Unlock()
		return false, nil
	}
	if !waiting {
		since = l.Clock.Now()
		l.unwanted[key] = since
	}
	l.mu.Unlock()
	if left := l.KeepFor - l.Clock.Since(since); left > 0 {
		l.queue.AddAfter(key, left)
		return false, nil
	}
	err = l.Client.MeshV1alpha1().GlobalServices(key.Namespace).Delete(ctx, key.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &global.UID, ResourceVersion: &global.ResourceVersion},
	})
	count("delete", err)
	if err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("deleting the global service %s: %w", key, err)
	}
	return true, nil
}

func (l *Loop) writeStatus(ctx context.Context, key apply.Key, in Input) error {
	status := Status(in)
	if equality.Semantic.DeepEqual(status, in.Global.Status) {
		return nil
	}
	l.mu.Lock()
	last := l.written[key]
	l.mu.Unlock()
	if wait := statusEvery - l.Clock.Since(last); wait > 0 {
		l.queue.AddAfter(key, wait)
		return nil
	}
	changed := in.Global.DeepCopy()
	changed.Status = status
	_, err := l.Client.MeshV1alpha1().GlobalServices(key.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{})
	count("status", err)
	if err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("writing the status of global service %s: %w", key, err)
	}
	l.conflictEvent(in.Global, status)
	l.mu.Lock()
	l.written[key] = l.Clock.Now()
	l.mu.Unlock()
	return nil
}

// conflictEvent tells of a conflict once, when it begins or becomes another one.
func (l *Loop) conflictEvent(global *v1alpha1.GlobalService, status v1alpha1.GlobalServiceStatus) {
	before := meta.FindStatusCondition(global.Status.Conditions, v1alpha1.GlobalServiceConflict)
	now := meta.FindStatusCondition(status.Conditions, v1alpha1.GlobalServiceConflict)
	if now.Status == metav1.ConditionTrue && (before == nil || before.Status != now.Status || before.Message != now.Message) {
		l.Events.Event(global, corev1.EventTypeWarning, "Conflict", now.Message)
	}
}

func (l *Loop) forget(key apply.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.written, key)
	delete(l.unwanted, key)
}

func count(operation string, err error) {
	result := "ok"
	switch {
	case err == nil:
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		result = "conflict"
	default:
		result = "error"
	}
	metrics.Writes.WithLabelValues("GlobalService", operation, result).Inc()
}
