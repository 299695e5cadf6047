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

// Package projection serves read-only resources that are made from stored ones: a
// part of each object, for clients that must not pay for the rest of it.
package projection

import (
	"context"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
)

// Config says how S, which is stored, is made into P, which is served.
type Config[S, P runtime.Object] struct {
	// Resource and Singular name what is served.
	Resource, Singular schema.GroupResource
	// New returns an empty P, and List the list of some.
	New  func() P
	List func(metav1.ListMeta, []P) runtime.Object
	// Of returns the part of an object that is served; ok is false where there is none
	// of it.
	Of func(S) (part P, ok bool)
	// Version is what the function Version returned when the object was last written.
	Version func(S) string
	// Table prints what is served.
	Table rest.TableConvertor
}

// Storage serves a projection of a stored resource: get, list and watch.
type Storage[S, P runtime.Object] struct {
	rest.TableConvertor
	config Config[S, P]
	source *genericregistry.Store
}

// New returns the storage of a projection of what the source stores.
func New[S, P runtime.Object](source *genericregistry.Store, config Config[S, P]) *Storage[S, P] {
	return &Storage[S, P]{config.Table, config, source}
}

// Version returns what an object that is being written keeps, so that a watch can
// leave out the writes that change nothing of what is served: the version of the last
// write that did, or nothing where that is this one. version is the old object's
// resourceVersion, and kept what it keeps.
func Version(changed bool, version, kept string) string {
	switch {
	case changed:
		return ""
	case kept == "":
		return version
	}
	return kept
}

// Meta is the metadata of what is served: enough to find, select and order it.
func Meta(of *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace:         of.Namespace,
		Name:              of.Name,
		UID:               of.UID,
		ResourceVersion:   of.ResourceVersion,
		Generation:        of.Generation,
		CreationTimestamp: of.CreationTimestamp,
		Labels:            of.Labels,
	}
}

// New returns an empty object.
func (s *Storage[S, P]) New() runtime.Object { return s.config.New() }

// NewList returns an empty list.
func (s *Storage[S, P]) NewList() runtime.Object { return s.config.List(metav1.ListMeta{}, nil) }

// Destroy does nothing: the source is closed with its own resource.
func (s *Storage[S, P]) Destroy() {}

// NamespaceScoped says whether the source is.
func (s *Storage[S, P]) NamespaceScoped() bool { return s.source.NamespaceScoped() }

// GetSingularName returns the name of one object, as kubectl takes it.
func (s *Storage[S, P]) GetSingularName() string { return s.config.Singular.Resource }

// Get reads one object.
func (s *Storage[S, P]) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	missing := apierrors.NewNotFound(s.config.Resource, name)
	object, err := s.source.Get(ctx, name, options)
	if apierrors.IsNotFound(err) {
		return nil, missing
	}
	if err != nil {
		return nil, err
	}
	if part, ok := s.config.Of(object.(S)); ok {
		return part, nil
	}
	return nil, missing
}

// List reads all objects that match. A page may have fewer than its limit.
func (s *Storage[S, P]) List(ctx context.Context, options *internalversion.ListOptions) (runtime.Object, error) {
	list, err := s.source.List(ctx, options)
	if err != nil {
		return nil, err
	}
	var parts []P
	err = meta.EachListItem(list, func(object runtime.Object) error {
		if part, ok := s.config.Of(object.(S)); ok {
			parts = append(parts, part)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	of, err := meta.ListAccessor(list)
	if err != nil {
		return nil, err
	}
	return s.config.List(metav1.ListMeta{
		ResourceVersion: of.GetResourceVersion(), Continue: of.GetContinue(), RemainingItemCount: of.GetRemainingItemCount(),
	}, parts), nil
}

// Watch reports the changes of what is served, and no other write of the source.
func (s *Storage[S, P]) Watch(ctx context.Context, options *internalversion.ListOptions) (watch.Interface, error) {
	source, err := s.source.Watch(ctx, options)
	if err != nil {
		return nil, err
	}
	w := &filtered{source: source, result: make(chan watch.Event), stopped: make(chan struct{})}
	go w.run(s.event)
	return w, nil
}

// filtered is a watch of a part of another watch's events. Unlike that of package
// watch, it does not wait for ever for a client that has gone.
type filtered struct {
	source  watch.Interface
	result  chan watch.Event
	stopped chan struct{}
	once    sync.Once
}

func (w *filtered) ResultChan() <-chan watch.Event { return w.result }

func (w *filtered) Stop() {
	w.once.Do(func() { close(w.stopped) })
	w.source.Stop()
}

func (w *filtered) run(filter watch.FilterFunc) {
	defer close(w.result)
	for in := range w.source.ResultChan() {
		out, pass := filter(in)
		if !pass {
			continue
		}
		select {
		case w.result <- out:
		case <-w.stopped:
			return
		}
	}
}

// event makes an event of the source into one of what is served; pass is false where
// there is none.
func (s *Storage[S, P]) event(in watch.Event) (out watch.Event, pass bool) {
	if in.Type == watch.Error {
		return in, true
	}
	object := in.Object
	// Watchers share one copy of an object, with what it is encoded to.
	if shared, ok := object.(runtime.CacheableObject); ok {
		object = shared.GetObject()
	}
	source, ok := object.(S)
	if !ok {
		return in, true // an error in an object's place
	}
	from, err := meta.Accessor(source)
	if err != nil {
		return in, false
	}
	if in.Type == watch.Bookmark {
		mark := s.mark(from)
		if to, err := meta.Accessor(mark); err == nil {
			to.SetAnnotations(from.GetAnnotations()) // they say what it marks
		}
		return watch.Event{Type: in.Type, Object: mark}, true
	}
	// Nobody is asked what to keep when a deletion begins.
	if in.Type == watch.Modified && from.GetDeletionTimestamp() == nil && s.config.Version(source) != "" {
		return in, false
	}
	part, served := s.config.Of(source)
	switch {
	case served:
		return watch.Event{Type: in.Type, Object: part}, true
	case in.Type == watch.Modified:
		// There was one of it, for all that is known.
		return watch.Event{Type: watch.Deleted, Object: s.mark(from)}, true
	}
	// What is not served when it is deleted ceased to be served before.
	return in, false
}

// mark is an empty object that says which one, and at which version.
func (s *Storage[S, P]) mark(of metav1.Object) P {
	empty := s.config.New()
	if to, err := meta.Accessor(empty); err == nil {
		to.SetNamespace(of.GetNamespace())
		to.SetName(of.GetName())
		to.SetUID(of.GetUID())
		to.SetResourceVersion(of.GetResourceVersion())
	}
	return empty
}
