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

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"mesh.io/clustermesh/pkg/cli/peering"
)

const (
	// writeTimeout bounds one write, and undoTimeout all that is undone.
	writeTimeout = 30 * time.Second
	undoTimeout  = time.Minute
)

// journal remembers how to undo what a run of a command makes, and in which order.
type journal struct {
	entries []*entry
}

type entry struct {
	what string // "ServiceAccount x in cluster1"
	undo func(context.Context) error
	void bool
}

// will notes, before something is made, how it is undone: an answer can be lost on
// its way, and then nobody knows whether it was made. void takes the note back.
func (j *journal) will(what string, undo func(context.Context) error) (void func()) {
	e := &entry{what: what, undo: undo}
	j.entries = append(j.entries, e)
	return func() { e.void = true }
}

// empty says that there is nothing to undo.
func (j *journal) empty() bool {
	return !slices.ContainsFunc(j.entries, func(e *entry) bool { return !e.void })
}

// undo undoes everything, the last first. What cannot be undone is named, and does not
// keep the rest from it.
func (j *journal) undo(ctx context.Context, note func(string, ...any)) error {
	var errs []error
	for _, e := range slices.Backward(j.entries) {
		if e.void {
			continue
		}
		note("%s", e.what)
		if err := e.undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", e.what, err))
			continue
		}
		e.void = true
	}
	return errors.Join(errs...)
}

// work is one step of a command that makes something.
type work struct {
	what string // "Letting cluster1 read cluster2"
	run  func(ctx context.Context, note func(string, ...any), j *journal) error
}

// carryOut runs the steps. When one fails or the command is stopped, everything that
// the steps have made is undone; leftover then says how to remove what could not be.
func carryOut(ctx context.Context, p *progress, steps []work, leftover string) error {
	j := &journal{}
	var err error
	for _, step := range steps {
		if err = ctx.Err(); err == nil {
			err = p.step(step.what, func(note func(string, ...any)) error { return step.run(ctx, note, j) })
		}
		if err != nil {
			break
		}
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		err = fmt.Errorf("stopped: %w", context.Cause(ctx))
	}
	if j.empty() {
		return fmt.Errorf("%w\nThis run has made nothing that stays", err)
	}
	// The command may have been stopped: what follows has to happen all the same.
	undoing, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	failed := p.step("Undoing what this run has made", func(note func(string, ...any)) error { return j.undo(undoing, note) })
	if failed != nil {
		return fmt.Errorf("%w\nNot all that this run has made could be undone: %w\nTo remove what is left, run: %s", err, failed, leftover)
	}
	return fmt.Errorf("%w\nWhat this run had made is undone", err)
}

// objects is the part of a typed client that making and removing an object needs.
type objects[T metav1.Object] interface {
	Create(ctx context.Context, obj T, opts metav1.CreateOptions) (T, error)
	Get(ctx context.Context, name string, opts metav1.GetOptions) (T, error)
	Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error
}

// create makes an object. A write that has begun is not broken off by Ctrl-C.
func create[T metav1.Object](ctx context.Context, j *journal, client objects[T], what string, obj T) error {
	var uid types.UID
	void := j.will(what, func(ctx context.Context) error {
		err := remove(ctx, client, obj.GetName(), uid)
		if err != nil {
			return err
		}
		return awaitGone(ctx, client, obj.GetName(), uid)
	})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	made, err := client.Create(ctx, obj, metav1.CreateOptions{})
	if err != nil {
		if refused(err) {
			void()
		}
		return fmt.Errorf("making %s: %w", what, err)
	}
	uid = made.GetUID()
	return nil
}

// refused says that the server has answered, and with no: nothing was made.
func refused(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && status.Status().Code >= 400 && status.Status().Code < 500
}

// remove deletes an object: the one with the UID or, where that is not known, one that
// meshctl made.
func remove[T metav1.Object](ctx context.Context, client objects[T], name string, uid types.UID) error {
	found, err := client.Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return err
	case uid == "" && found.GetLabels()["app.kubernetes.io/managed-by"] != peering.Labels()["app.kubernetes.io/managed-by"]:
		return nil
	case uid != "" && found.GetUID() != uid:
		return nil
	}
	is := found.GetUID()
	err = client.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &is}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// awaitGone waits until an object is not there any more, or is another one.
func awaitGone[T metav1.Object](ctx context.Context, client objects[T], name string, uid types.UID) error {
	for {
		found, err := client.Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil && ctx.Err() == nil:
			return err
		case err == nil && found.GetDeletionTimestamp() == nil && found.GetUID() != uid:
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New("it is marked for deletion, and is still there")
		case <-time.After(200 * time.Millisecond):
		}
	}
}
