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

package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
)

// errLeadershipLost ends the process: another one leads by now.
var errLeadershipLost = errors.New("leadership was lost")

// elect waits for leadership and then runs lead, whose work has ended before the
// lease is given back. A replica that waits watches the lease, so that one that is
// given back is taken at once and not at the next try.
func elect(ctx context.Context, options Options, client kubernetes.Interface, events record.EventRecorder, lead func(context.Context) error) error {
	if !options.LeaderElect {
		return lead(ctx)
	}
	released := make(chan struct{}, 1)
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(options.Namespace),
		informers.WithTweakListOptions(func(list *metav1.ListOptions) {
			list.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, options.LeaseName).String()
		}))
	look := func(obj any) {
		if lease := obj.(*coordinationv1.Lease); ptr.Deref(lease.Spec.HolderIdentity, "") == "" {
			select {
			case released <- struct{}{}:
			default:
			}
		}
	}
	if _, err := factory.Coordination().V1().Leases().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: look, UpdateFunc: func(_, obj any) { look(obj) },
	}); err != nil {
		return fmt.Errorf("watching the lease: %w", err)
	}
	watchCtx, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	factory.Start(watchCtx.Done())

	for ctx.Err() == nil {
		led, err := candidate(ctx, options, client, events, released, lead)
		if led {
			return err
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// candidate stands for election until it has led, or the lease is given back and it
// has to stand anew.
func candidate(ctx context.Context, options Options, client kubernetes.Interface, events record.EventRecorder, released <-chan struct{}, lead func(context.Context) error) (led bool, err error) {
	// The lease outlives ctx until the work has ended.
	leaseCtx, giveBack := context.WithCancel(context.WithoutCancel(ctx))
	defer giveBack()
	started := make(chan context.Context, 1)
	stopped := make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: options.LeaseName,
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: options.Namespace, Name: options.LeaseName},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: options.Identity},
		},
		LeaseDuration: options.LeaseDuration, RenewDeadline: options.RenewDeadline, RetryPeriod: options.RetryPeriod,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) { started <- ctx },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return false, fmt.Errorf("standing for election: %w", err)
	}
	go func() {
		defer close(stopped)
		elector.Run(leaseCtx)
	}()

	var leadCtx context.Context
	for leadCtx == nil {
		select {
		case leadCtx = <-started:
		case <-stopped:
			select {
			case leadCtx = <-started:
			default:
				return false, nil
			}
		case <-ctx.Done():
			giveBack()
			<-stopped
			return false, nil
		case <-released:
			// It may be us that has just taken it.
			select {
			case leadCtx = <-started:
			case <-time.After(50 * time.Millisecond):
				if !elector.IsLeader() {
					giveBack()
					<-stopped
					return false, nil
				}
			}
		}
	}
	workCtx, stopWork := context.WithCancelCause(ctx)
	context.AfterFunc(leadCtx, func() { stopWork(errLeadershipLost) })
	err = lead(workCtx)
	if cause := context.Cause(workCtx); errors.Is(cause, errLeadershipLost) && ctx.Err() == nil {
		err = errLeadershipLost
	}
	giveBack()
	<-stopped
	return true, err
}
