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

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/apply"
	"mesh.io/clustermesh/pkg/controller/view"
)

// next writes one object.
func (s *session) next(ctx context.Context) bool {
	i, shutdown := s.queue.Get()
	if shutdown {
		return false
	}
	defer s.queue.Done(i)
	s.mu.Lock()
	s.outstanding.Delete(i)
	s.writing++
	s.mu.Unlock()

	err := s.write(ctx, i)
	switch {
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		err = nil // it waits for the namespace to be there again
	case apierrors.IsInvalid(err), apierrors.IsRequestEntityTooLargeError(err):
		// It is refused alone, as by our own rules, and trying again would not help.
		s.refused(i, []Refusal{{RefusedByAPI, clip(err.Error(), maxMessage), 1}})
		err = s.remove(ctx, i)
	}
	s.mu.Lock()
	s.writing--
	if err != nil {
		s.outstanding.Insert(i)
		if s.queue.NumRequeues(i) >= 3 {
			s.failing[i] = err
		}
		s.queue.AddRateLimited(i)
	} else {
		delete(s.failing, i)
		s.queue.Forget(i)
	}
	quiet := len(s.outstanding) == 0 && s.writing == 0
	s.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).V(2).Info("Import is tried again", "object", i.String(), "err", err)
	}
	if quiet {
		s.checkSynced()
	}
	return true
}

// write makes one imported object what the peer's object, checked, makes of it.
func (s *session) write(ctx context.Context, i item) error {
	obj, held := s.store.get(i)
	if !held {
		s.store.checked(i, nil)
		return s.unheld(ctx, i)
	}
	rules := s.rules.Load()
	if obj == nil {
		return s.keep(ctx, i, rules)
	}
	if !s.loop.View.NamespaceReady(i.Namespace) {
		s.loop.status.dirty(s.name)
		return nil // parked: the namespace's coming brings it back
	}

	if i.kind == serviceKind {
		from := obj.(*v1alpha1.ExportedService)
		if !rules.OfferedHere(from.Spec.Consumers) {
			return s.remove(ctx, i)
		}
		desired, refusal := rules.Service(from)
		if refusal != nil {
			s.refused(i, []Refusal{*refusal})
			return s.remove(ctx, i)
		}
		s.refused(i, nil)
		_, err := s.loop.services.Apply(ctx, desired)
		return err
	}

	from := obj.(*v1alpha1.ExportedEndpointSlice)
	// Checked even where it is not wanted, so that what is refused is known.
	desired, refusals := rules.Slice(from)
	s.refused(i, refusals)
	if desired == nil || !s.wanted(rules, from.Namespace, from.Spec.Service) {
		return s.remove(ctx, i)
	}
	if s.park(i, from.Namespace, from.Spec.Service) {
		return nil
	}
	if actual, ok := s.loop.slices.Get(i.Key); ok &&
		(actual.Spec.Service != desired.Spec.Service || actual.Spec.AddressType != desired.Spec.AddressType || actual.Spec.ClusterID != desired.Spec.ClusterID) {
		// What a slice belongs to cannot be changed, only replaced.
		if err := s.remove(ctx, i); err != nil {
			return err
		}
		return fmt.Errorf("replacing %s, whose identity has changed", i)
	}
	_, err := s.loop.slices.Apply(ctx, desired)
	return err
}

// unheld decides about what is not held. An import of it is no evidence against it:
// the cache may show late what was there before this session.
func (s *session) unheld(ctx context.Context, i item) error {
	s.mu.Lock()
	delete(s.parked, i)
	s.mu.Unlock()
	var service string
	var endpoints int
	if i.kind == serviceKind {
		imported, ok := s.loop.services.Get(i.Key)
		if !ok {
			s.store.removed(i)
			return nil
		}
		service = imported.Labels[v1alpha1.LabelServiceName]
	} else {
		imported, ok := s.loop.slices.Get(i.Key)
		if !ok {
			s.store.removed(i)
			return nil
		}
		service, endpoints = imported.Spec.Service, len(imported.Spec.Endpoints)
	}
	remove, doubt := s.store.adopt(i, service, endpoints)
	if remove {
		return s.remove(ctx, i)
	}
	if doubt {
		notify(s.prove)
	}
	return s.keep(ctx, i, s.rules.Load())
}

// keep leaves what was imported earlier as it is until the peer has spoken, unless
// this cluster itself no longer wants it.
func (s *session) keep(ctx context.Context, i item, rules *Rules) error {
	if i.kind == serviceKind {
		imported, ok := s.loop.services.Get(i.Key)
		if ok && rules.Object(i.Namespace, i.Name, imported.Labels[v1alpha1.LabelServiceName]) != nil {
			return s.remove(ctx, i)
		}
		return nil
	}
	imported, ok := s.loop.slices.Get(i.Key)
	if ok && (rules.Object(i.Namespace, i.Name, imported.Spec.Service) != nil || !s.wanted(rules, i.Namespace, imported.Spec.Service)) {
		return s.remove(ctx, i)
	}
	return nil
}

// wanted says whether a Service's slices are imported: it takes part here, and the
// peer offers it to this cluster.
func (s *session) wanted(rules *Rules, namespace, name string) bool {
	service, ok := s.loop.View.Service(namespace, name)
	if !ok || !service.Global() {
		return false
	}
	obj, _ := s.store.get(s.item(serviceKind, namespace, name))
	if exported, ok := obj.(*v1alpha1.ExportedService); ok && !rules.OfferedHere(exported.Spec.Consumers) {
		return false
	}
	return true
}

// park leaves a slice as it is while it is not known to whom the peer offers its
// Service: the coming of the Service brings it back, or the end of the listing.
func (s *session) park(i item, namespace, service string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	obj, _, listed := s.store.lookup(s.item(serviceKind, namespace, service))
	if obj != nil || listed {
		delete(s.parked, i)
		return false
	}
	s.parked.Insert(i)
	return true
}

func (s *session) refused(i item, refusals []Refusal) {
	s.store.checked(i, refusals)
	if len(refusals) > 0 {
		s.loop.status.dirty(s.name)
	}
}

func (s *session) remove(ctx context.Context, i item) error {
	var err error
	if i.kind == serviceKind {
		_, err = s.loop.services.Remove(ctx, i.Key)
	} else {
		_, err = s.loop.slices.Remove(ctx, i.Key)
	}
	return err
}

// importedOf returns what is imported from a cluster, by the cache.
func (l *Loop) importedOf(cluster string) []item {
	var items []item
	for _, imported := range view.Indexed[*v1alpha1.ImportedService](l.View.ImportedServices, view.ByCluster, cluster) {
		items = append(items, item{serviceKind, apply.KeyOf(imported)})
	}
	for _, imported := range view.Indexed[*v1alpha1.ImportedEndpointSlice](l.View.ImportedSlices, view.ByCluster, cluster) {
		items = append(items, item{sliceKind, apply.KeyOf(imported)})
	}
	return items
}
