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

// Package renewal keeps the credentials of this cluster at its peers alive: it asks a
// peer for another token when a third of the life of the one there is is over, and
// writes it into the peer's Secret.
package renewal

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/metrics"
	"mesh.io/clustermesh/pkg/controller/view"
	mesh "mesh.io/clustermesh/pkg/generated/clientset/versioned"
	"mesh.io/clustermesh/pkg/peer"
)

const (
	// firstRetry and lastRetry bound the pause after a failure, which doubles.
	firstRetry = 5 * time.Second
	lastRetry  = 10 * time.Minute
	// timeout bounds what one address of a peer is asked.
	timeout = 10 * time.Second
	// workers is how many peers are asked at once.
	workers = 4
)

// The reasons of the condition CredentialsExpiring.
const (
	reasonFailing = "RenewalFailed"
	reasonRenewed = "Renewed"
)

// Config is what a Loop works with.
type Config struct {
	View   *view.View
	Client mesh.Interface
	Kube   kubernetes.Interface
	// Secrets are those in Namespace, the mesh's.
	Secrets   cache.SharedIndexInformer
	Namespace string
	Events    record.EventRecorder
	Clock     clock.PassiveClock
}

// Loop renews what is due. It lives for one leadership.
type Loop struct {
	Config
	queue workqueue.TypedRateLimitingInterface[string]
}

// New makes a Loop.
func New(config Config) *Loop {
	return &Loop{Config: config, queue: workqueue.NewTypedRateLimitingQueueWithConfig(
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRetry, lastRetry),
		workqueue.TypedRateLimitingQueueConfig[string]{Name: "peer-credentials"})}
}

// Run renews until the context ends. What it has told of is then another's to tell.
func (l *Loop) Run(ctx context.Context) error {
	defer metrics.CredentialsExpiry.Reset()
	clusters, err := l.View.Clusters.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { l.queue.Add(obj.(*v1alpha1.MeshCluster).Name) },
		UpdateFunc: func(old, obj any) {
			if before, now := old.(*v1alpha1.MeshCluster), obj.(*v1alpha1.MeshCluster); before.UID != now.UID || before.Generation != now.Generation {
				l.queue.Add(now.Name)
			}
		},
		DeleteFunc: func(obj any) {
			if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = unknown.Obj
			}
			if cluster, ok := obj.(*v1alpha1.MeshCluster); ok {
				l.queue.Add(cluster.Name)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watching for credentials: %w", err)
	}
	defer func() { _ = l.View.Clusters.RemoveEventHandler(clusters) }()
	changed := func(obj any) {
		secret := obj.(*corev1.Secret)
		for _, cluster := range view.List[*v1alpha1.MeshCluster](l.View.Clusters) {
			if ref := cluster.Spec.KubeconfigSecretRef; ref != nil && ref.Name == secret.Name {
				l.queue.Add(cluster.Name)
			}
		}
	}
	secrets, err := l.Secrets.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: changed, UpdateFunc: func(_, obj any) { changed(obj) },
	})
	if err != nil {
		return fmt.Errorf("watching for credentials: %w", err)
	}
	defer func() { _ = l.Secrets.RemoveEventHandler(secrets) }()
	go func() {
		<-ctx.Done()
		l.queue.ShutDown()
	}()
	// A peer that does not answer holds up no other.
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				name, shutdown := l.queue.Get()
				if shutdown {
					return
				}
				l.look(ctx, name)
				l.queue.Done(name)
			}
		})
	}
	wg.Wait()
	return nil
}

// look renews the credentials for one peer, if that is due, and sees to it that it is
// looked at again.
func (l *Loop) look(ctx context.Context, name string) {
	cluster, secret, plan, ok := l.find(name)
	if !ok {
		metrics.CredentialsExpiry.DeleteLabelValues(name)
		l.queue.Forget(name)
		return
	}
	metrics.CredentialsExpiry.WithLabelValues(name).Set(float64(plan.Token.Expires.Unix()))
	logger := klog.FromContext(ctx)
	now := l.Clock.Now()
	if wait := plan.Due.Sub(now); wait > 0 {
		l.queue.Forget(name)
		l.queue.AddAfter(name, wait)
		// Somebody may have put in other ones.
		if err := l.report(ctx, cluster, plan, nil); err != nil {
			l.queue.AddAfter(name, firstRetry)
		}
		return
	}
	err := l.renew(ctx, cluster, secret, plan)
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		metrics.Renewals.WithLabelValues(name, "renewed").Inc()
		logger.Info("Renewed the credentials at a peer", "cluster", name)
		l.queue.Forget(name)
		return // the Secret has changed, which has it looked at again
	}
	metrics.Renewals.WithLabelValues(name, "failed").Inc()
	logger.Info("Credentials at a peer could not be renewed", "cluster", name, "expires", plan.Token.Expires, "err", err)
	if !now.Before(plan.Late) {
		if err := l.report(ctx, cluster, plan, err); err != nil {
			logger.V(2).Info("Condition could not be written", "cluster", name, "err", err)
		}
	}
	l.queue.AddRateLimited(name)
}

// find returns what there is to renew of a peer.
func (l *Loop) find(name string) (*v1alpha1.MeshCluster, *corev1.Secret, Plan, bool) {
	cluster, ok := view.Get[*v1alpha1.MeshCluster](l.View.Clusters, "", name)
	if !ok || cluster.Spec.KubeconfigSecretRef == nil || cluster.DeletionTimestamp != nil {
		return nil, nil, Plan{}, false
	}
	obj, found, err := l.Secrets.GetIndexer().GetByKey(l.Namespace + "/" + cluster.Spec.KubeconfigSecretRef.Name)
	if err != nil || !found {
		return nil, nil, Plan{}, false
	}
	secret := obj.(*corev1.Secret)
	plan, ok := NewPlan(secret.Data[cluster.Spec.KubeconfigSecretRef.Key], l.View.ClusterName)
	return cluster, secret, plan, ok
}

// renew gets another token, sees that it works, and only then writes it.
func (l *Loop) renew(ctx context.Context, cluster *v1alpha1.MeshCluster, secret *corev1.Secret, plan Plan) error {
	ctx = peer.Quiet(ctx)
	key := cluster.Spec.KubeconfigSecretRef.Key
	// No token is asked for that could not be kept: each is good for weeks.
	if err := l.write(ctx, cluster, secret, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		return err
	}
	token, err := l.ask(ctx, secret.Data[key], secret.Annotations[v1alpha1.AnnotationInvited] != "", plan)
	if err != nil {
		return err
	}
	changed := secret.DeepCopy()
	if changed.Data[key], err = plan.Put(secret.Data[key], token); err != nil {
		return err
	}
	return l.write(ctx, cluster, changed, metav1.UpdateOptions{})
}

// write writes the Secret, unless somebody has changed it since it was read.
func (l *Loop) write(ctx context.Context, cluster *v1alpha1.MeshCluster, secret *corev1.Secret, options metav1.UpdateOptions) error {
	_, err := l.Kube.CoreV1().Secrets(l.Namespace).Update(ctx, secret, options)
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("mesh-controller may not write Secret %s/%s: Role %s%s and its binding must let it update that Secret",
			l.Namespace, secret.Name, v1alpha1.RenewPrefix, cluster.Name)
	}
	if err != nil {
		return fmt.Errorf("writing Secret %s/%s: %w", l.Namespace, secret.Name, err)
	}
	return nil
}

// ask asks the peer, by one address after the other, for another token.
func (l *Loop) ask(ctx context.Context, kubeconfig []byte, invited bool, plan Plan) (string, error) {
	endpoints, err := peer.Endpoints(kubeconfig)
	if err != nil {
		return "", err
	}
	if invited {
		peer.Guard(endpoints)
	}
	err = errors.New("no context of the kubeconfig uses the token")
	for _, endpoint := range endpoints {
		if used, readErr := peer.ReadToken(endpoint.Config.BearerToken); readErr != nil || used.Subject != plan.Token.Subject {
			continue
		}
		var token string
		if token, err = l.askAt(ctx, endpoint.Config, plan); err == nil {
			return token, nil
		}
		var answered apierrors.APIStatus
		if errors.As(err, &answered) && (apierrors.IsForbidden(err) || apierrors.IsNotFound(err) || apierrors.IsUnauthorized(err)) {
			break // it is the same peer at every address
		}
	}
	return "", err
}

func (l *Loop) askAt(ctx context.Context, config *rest.Config, plan Plan) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	config = peer.Bounded(config)
	client, err := mesh.NewForConfig(config)
	if err != nil {
		return "", fmt.Errorf("reaching the peer: %w", err)
	}
	answer, err := client.MeshV1alpha1().PeerTokens().Create(ctx, &v1alpha1.PeerToken{}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("asking the peer for another token: %w", err)
	}
	if err := plan.Accept(answer.Status.Token, l.Clock.Now()); err != nil {
		return "", err
	}
	fresh := rest.CopyConfig(config)
	fresh.BearerToken = answer.Status.Token
	if client, err = mesh.NewForConfig(fresh); err != nil {
		return "", fmt.Errorf("reaching the peer: %w", err)
	}
	if _, err := client.MeshV1alpha1().MeshClusters().List(ctx, metav1.ListOptions{Limit: 1, ResourceVersion: "0"}); err != nil {
		return "", fmt.Errorf("trying the token that the peer has answered with: %w", err)
	}
	return answer.Status.Token, nil
}

// report says in the peer's MeshCluster that its credentials are about to be lost, and
// why, or that they no longer are.
func (l *Loop) report(ctx context.Context, cluster *v1alpha1.MeshCluster, plan Plan, failure error) error {
	expires := plan.Token.Expires.UTC().Format(time.RFC3339)
	condition := metav1.Condition{
		Type: v1alpha1.MeshClusterCredentialsExpiring, Status: metav1.ConditionFalse, Reason: reasonRenewed,
		Message: fmt.Sprintf("The token for the peer is valid until %s.", expires), ObservedGeneration: cluster.Generation,
	}
	before := meta.FindStatusCondition(cluster.Status.Conditions, condition.Type)
	if failure == nil && (before == nil || before.Status == metav1.ConditionFalse) {
		return nil
	}
	if failure != nil {
		condition.Status, condition.Reason = metav1.ConditionTrue, reasonFailing
		state := "expires"
		if !l.Clock.Now().Before(plan.Token.Expires) {
			state = "has expired"
		}
		condition.Message = fmt.Sprintf("The token for the peer %s at %s and cannot be renewed: %.500v. When it is lost, connect the two clusters again; what was imported is kept.", state, expires, failure)
	}
	changed := cluster.DeepCopy()
	if !meta.SetStatusCondition(&changed.Status.Conditions, condition) {
		return nil
	}
	if _, err := l.Client.MeshV1alpha1().MeshClusters().UpdateStatus(ctx, changed, metav1.UpdateOptions{}); err != nil {
		return err
	}
	switch {
	case failure == nil:
		l.Events.Event(cluster, corev1.EventTypeNormal, condition.Reason, condition.Message)
	case before == nil || before.Status != condition.Status:
		l.Events.Event(cluster, corev1.EventTypeWarning, condition.Reason, condition.Message)
	}
	return nil
}
