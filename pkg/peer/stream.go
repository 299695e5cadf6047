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

package peer

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"
)

// WatchFunc opens a watch of one kind.
type WatchFunc func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)

// Sink takes what a Stream brings. The calls come one after the other.
type Sink[T runtime.Object] interface {
	// Begin starts a complete listing; End says that it is complete. What was there
	// before and was not Put between the two may be gone: the sink decides. A listing
	// that breaks off has no End.
	Begin()
	End()
	// Put is an object that is there now. listed: it came with a listing, not as a change.
	Put(obj T, listed bool)
	// Delete is an object that the peer says it has deleted.
	Delete(obj T)
	// Alive says that the peer has sent something.
	Alive()
}

// Stream follows one kind of one peer. The listing arrives object by object over
// the watch itself, so a peer with too many objects never fills this process's
// memory. It remembers where it was, and resumes there.
type Stream[T runtime.Object] struct {
	Watch WatchFunc
	Sink  Sink[T]

	resourceVersion string
}

// Listing says whether the next Follow begins with a listing.
func (s *Stream[T]) Listing() bool { return s.resourceVersion == "" }

// Reset makes the next Follow begin with a listing.
func (s *Stream[T]) Reset() { s.resourceVersion = "" }

// initialTimeout is how long a listing may send nothing before it counts as stuck.
const initialTimeout = 30 * time.Second

// Follow brings the sink up to date and keeps it so, until the watch ends. It
// returns nil when the watch ended as watches do: call it again, it resumes.
func (s *Stream[T]) Follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	listing := s.Listing()
	options := metav1.ListOptions{
		ResourceVersion:     s.resourceVersion,
		AllowWatchBookmarks: true,
		TimeoutSeconds:      ptr.To(int64(300 + rand.IntN(300))),
	}
	if listing {
		// "0" is what the peer's cache holds: it answers without its store's quorum.
		listed(&options, "0")
	}
	w, err := s.Watch(ctx, options)
	if err != nil {
		if expired(err) {
			s.Reset()
			return nil
		}
		return err
	}
	defer w.Stop()
	s.Sink.Alive()
	if listing {
		s.Sink.Begin()
	}

	var version string // becomes the stream's once the listing is complete
	stuck := time.NewTimer(initialTimeout)
	defer stuck.Stop()
	for {
		var event watch.Event
		var open bool
		select {
		case <-ctx.Done():
			return nil
		case <-stuck.C:
			if listing {
				return fmt.Errorf("listing: %w", ErrSilent)
			}
			continue
		case event, open = <-w.ResultChan():
		}
		if !open {
			if listing {
				return fmt.Errorf("listing: %w", io.ErrUnexpectedEOF)
			}
			return nil
		}
		if listing {
			stuck.Reset(initialTimeout)
		}
		s.Sink.Alive()
		if event.Type == watch.Error {
			err := apierrors.FromObject(event.Object)
			if expired(err) {
				s.Reset()
				return nil
			}
			return err
		}
		accessor, err := meta.Accessor(event.Object)
		if err != nil {
			return fmt.Errorf("watching: %w", err)
		}
		version = accessor.GetResourceVersion()
		if event.Type == watch.Bookmark {
			if listing && accessor.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
				listing = false
				s.resourceVersion = version
				s.Sink.End()
			}
		} else {
			obj, ok := event.Object.(T)
			if !ok {
				return fmt.Errorf("watching: the peer sent a %T", event.Object)
			}
			switch event.Type {
			case watch.Added, watch.Modified:
				s.Sink.Put(obj, listing)
			case watch.Deleted:
				s.Sink.Delete(obj)
			}
		}
		if !listing {
			s.resourceVersion = version
		}
	}
}

// Each calls visit for each object there is, until it returns false. consistent asks
// the peer's store itself, which needs its quorum; else the peer's cache answers.
func Each[T runtime.Object](ctx context.Context, open WatchFunc, consistent bool, visit func(T) bool) error {
	ctx, cancel := context.WithTimeout(ctx, initialTimeout)
	defer cancel()
	options := metav1.ListOptions{AllowWatchBookmarks: true, TimeoutSeconds: ptr.To(int64(initialTimeout / time.Second))}
	if listed(&options, "0"); consistent {
		listed(&options, "")
	}
	w, err := open(ctx, options)
	if err != nil {
		return err
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case event, open := <-w.ResultChan():
			if !open {
				return fmt.Errorf("listing: %w", io.ErrUnexpectedEOF)
			}
			switch event.Type {
			case watch.Error:
				return apierrors.FromObject(event.Object)
			case watch.Bookmark:
				if accessor, err := meta.Accessor(event.Object); err == nil && accessor.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
					return nil
				}
			case watch.Added:
				obj, ok := event.Object.(T)
				if !ok {
					return fmt.Errorf("listing: the peer sent a %T", event.Object)
				}
				if !visit(obj) {
					return nil
				}
			}
		}
	}
}

// listed makes a watch begin with everything that is there at the version or later.
func listed(options *metav1.ListOptions, version string) {
	options.ResourceVersion = version
	options.ResourceVersionMatch = metav1.ResourceVersionMatchNotOlderThan
	options.SendInitialEvents = ptr.To(true)
}

// expired says that a watch cannot go on from where it was.
func expired(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) ||
		apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
}
