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

// Package invitation deletes invitations to the mesh that have been used, or whose time
// is over: their Secret, whose garbage the rest of them then is.
package invitation

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

const (
	// grace is how long an invitation is kept after its end: whoever comes late learns
	// why it is of no use, and a join under way deletes it itself.
	grace = time.Minute
	// unfinished is how long one may take to be made.
	unfinished = time.Hour
	// firstRetry and lastRetry bound the pause after a failure, which doubles.
	firstRetry = time.Second
	lastRetry  = 10 * time.Minute
)

// Config is what a Loop works with.
type Config struct {
	Kube kubernetes.Interface
	// Secrets are those in Namespace, the mesh's.
	Secrets   cache.SharedIndexInformer
	Namespace string
	Clock     clock.WithTicker
}

// Loop deletes what is over. It lives for one leadership.
type Loop struct {
	Config
	queue workqueue.TypedRateLimitingInterface[string]
}

// New makes a Loop.
func New(config Config) *Loop {
	return &Loop{Config: config, queue: workqueue.NewTypedRateLimitingQueueWithConfig(
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRetry, lastRetry),
		workqueue.TypedRateLimitingQueueConfig[string]{Name: "invitations", Clock: config.Clock})}
}

// Over is when an invitation is to be deleted; false says that the Secret is none.
func Over(secret *corev1.Secret) (time.Time, bool) {
	if !strings.HasPrefix(secret.Name, v1alpha1.InvitePrefix) || secret.DeletionTimestamp != nil {
		return time.Time{}, false
	}
	at := func(key string) (time.Time, bool) {
		t, err := time.Parse(time.RFC3339, string(secret.Data[key]))
		return t.Add(grace), err == nil
	}
	if used, ok := at(v1alpha1.InvitationUsed); ok {
		return used, true
	}
	if expires, ok := at(v1alpha1.InvitationExpires); ok {
		return expires, true
	}
	return secret.CreationTimestamp.Add(unfinished), true
}

// Run deletes until the context ends.
func (l *Loop) Run(ctx context.Context) error {
	look := func(obj any) {
		if secret := obj.(*corev1.Secret); strings.HasPrefix(secret.Name, v1alpha1.InvitePrefix) {
			l.queue.Add(secret.Name)
		}
	}
	registration, err := l.Secrets.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: look, UpdateFunc: func(_, obj any) { look(obj) },
	})
	if err != nil {
		l.queue.ShutDown()
		return fmt.Errorf("watching for invitations: %w", err)
	}
	defer func() { _ = l.Secrets.RemoveEventHandler(registration) }()
	go func() {
		<-ctx.Done()
		l.queue.ShutDown()
	}()
	for {
		name, shutdown := l.queue.Get()
		if shutdown {
			return nil
		}
		l.look(ctx, name)
		l.queue.Done(name)
	}
}

// look deletes an invitation that is over, and sees to it that another one is looked at
// when it is.
func (l *Loop) look(ctx context.Context, name string) {
	obj, found, err := l.Secrets.GetIndexer().GetByKey(l.Namespace + "/" + name)
	if err != nil || !found {
		l.queue.Forget(name)
		return
	}
	secret := obj.(*corev1.Secret)
	over, ok := Over(secret)
	if !ok {
		l.queue.Forget(name)
		return
	}
	if wait := over.Sub(l.Clock.Now()); wait > 0 {
		l.queue.Forget(name)
		l.queue.AddAfter(name, wait)
		return
	}
	logger := klog.FromContext(ctx)
	// Another one by the same name may have been made since, or this one be completed.
	err = l.Kube.CoreV1().Secrets(l.Namespace).Delete(ctx, name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &secret.UID, ResourceVersion: &secret.ResourceVersion},
	})
	switch {
	case err == nil:
		logger.Info("Deleted an invitation that was over", "secret", klog.KObj(secret))
		l.queue.Forget(name)
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		l.queue.Forget(name) // what there is now is looked at when it is seen
	case ctx.Err() == nil:
		logger.Info("An invitation that is over could not be deleted", "secret", klog.KObj(secret), "err", err)
		l.queue.AddRateLimited(name)
	}
}
