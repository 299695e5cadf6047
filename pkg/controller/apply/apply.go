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

// Package apply makes one object of the mesh API equal to what is desired, with a
// precondition on every write: a controller that has lost its leadership, or reads
// an old cache, fails instead of overwriting.
package apply

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"mesh.io/clustermesh/pkg/controller/metrics"
)

// Object is a pointer to an object of the API.
type Object interface {
	metav1.Object
	runtime.Object
}

// Client writes objects of one kind in one namespace. Generated clients are Clients.
type Client[T any] interface {
	Create(ctx context.Context, obj T, opts metav1.CreateOptions) (T, error)
	Update(ctx context.Context, obj T, opts metav1.UpdateOptions) (T, error)
	Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error
}

// Key names an object.
type Key struct{ Namespace, Name string }

// String formats a key as namespace/name.
func (k Key) String() string { return k.Namespace + "/" + k.Name }

// KeyOf returns the key of an object, or none for what is no object.
func KeyOf(obj any) Key {
	accessor, err := meta.Accessor(obj)
	if err != nil {
		return Key{}
	}
	return Key{Namespace: accessor.GetNamespace(), Name: accessor.GetName()}
}

// ReplacedOrChanged says whether the spec may be another one: that of an object of the
// same name may be, too, which the cache shows as an update.
func ReplacedOrChanged(old, now metav1.Object) bool {
	return old.GetUID() != now.GetUID() || old.GetGeneration() != now.GetGeneration()
}

// Writer writes the objects of one kind. Callers see to it that no two of them
// write the same object at once.
type Writer[T Object] struct {
	Kind   string
	Client func(namespace string) Client[T]
	// Cached reads the informer's cache.
	Cached func(key Key) (T, bool)
	// Same says whether an object has everything that is desired of it.
	Same func(actual, desired T) bool

	mu      sync.Mutex
	written map[Key]written[T]
}

// written is our last write of an object, until the cache shows it.
type written[T Object] struct {
	obj T
	at  time.Time
}

// writtenFor bounds how long our own write is believed if the cache never shows it.
const writtenFor = 30 * time.Second

// Get returns the newest state that is known: the cache's, or our own last write.
func (w *Writer[T]) Get(key Key) (T, bool) {
	cached, ok := w.Cached(key)
	w.mu.Lock()
	defer w.mu.Unlock()
	own, wrote := w.written[key]
	if !wrote {
		return cached, ok
	}
	if time.Since(own.at) > writtenFor || ok && Version(cached) >= Version(own.obj) {
		delete(w.written, key)
		return cached, ok
	}
	return own.obj, true
}

// Forget is told of each deletion that the informer sees.
func (w *Writer[T]) Forget(key Key, uid string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if own, ok := w.written[key]; ok && (uid == "" || string(own.obj.GetUID()) == uid) {
		delete(w.written, key)
	}
}

// Apply creates or updates the object, or does nothing where it is as desired.
// It owns desired.
func (w *Writer[T]) Apply(ctx context.Context, desired T) (changed bool, err error) {
	key := Key{desired.GetNamespace(), desired.GetName()}
	actual, exists := w.Get(key)
	operation := "update"
	var result T
	switch {
	case !exists:
		operation = "create"
		result, err = w.Client(key.Namespace).Create(ctx, desired, metav1.CreateOptions{})
	case w.Same(actual, desired):
		return false, nil
	default:
		desired.SetResourceVersion(actual.GetResourceVersion())
		desired.SetUID(actual.GetUID())
		desired.SetFinalizers(actual.GetFinalizers())
		result, err = w.Client(key.Namespace).Update(ctx, desired, metav1.UpdateOptions{})
	}
	w.count(operation, err)
	if err != nil {
		if apierrors.IsNotFound(err) {
			w.Forget(key, "")
		}
		return false, fmt.Errorf("writing %s %s: %w", w.Kind, key, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.written == nil {
		w.written = map[Key]written[T]{}
	}
	w.written[key] = written[T]{result, time.Now()}
	return true, nil
}

// Remove deletes the object if it is there, and still the one that is known.
func (w *Writer[T]) Remove(ctx context.Context, key Key) (changed bool, err error) {
	actual, exists := w.Get(key)
	if !exists || actual.GetDeletionTimestamp() != nil {
		return false, nil
	}
	uid, resourceVersion := actual.GetUID(), actual.GetResourceVersion()
	err = w.Client(key.Namespace).Delete(ctx, key.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &resourceVersion},
	})
	w.Forget(key, "")
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	w.count("delete", err)
	if err != nil {
		return false, fmt.Errorf("deleting %s %s: %w", w.Kind, key, err)
	}
	return true, nil
}

func (w *Writer[T]) count(operation string, err error) {
	result := "ok"
	switch {
	case err == nil:
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		result = "conflict"
	case apierrors.IsInvalid(err), apierrors.IsForbidden(err), apierrors.IsRequestEntityTooLargeError(err):
		result = "rejected"
	default:
		result = "error"
	}
	metrics.Writes.WithLabelValues(w.Kind, operation, result).Inc()
}

// Version reads a resourceVersion, which grows with every write.
func Version(obj metav1.Object) uint64 {
	v, _ := strconv.ParseUint(obj.GetResourceVersion(), 10, 64)
	return v
}
