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

package certificate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/retry"
	"k8s.io/klog/v2"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregator "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"
)

const (
	// SecretName is the Secret that the authority is kept in.
	SecretName = "mesh-apiserver-ca"
	// ConfigMapName is the ConfigMap that says which authorities to trust.
	ConfigMapName = "mesh-ca"
	// ConfigMapKey is its entry.
	ConfigMapKey = "ca.crt"

	// labelManagedBy, with the value managedBy, is on what this server may overwrite.
	labelManagedBy = "mesh.io/managed-by"
	managedBy      = "mesh-apiserver"

	// settle is the time that clients have to learn of a new authority before the
	// server shows a certificate of it.
	settle = 10 * time.Second
	// pauseFailed and pauseIdle are the pauses after a failure and without any event.
	pauseFailed = 2 * time.Second
	pauseIdle   = 10 * time.Minute
)

// Config says for whom certificates are made and where their authority is kept.
type Config struct {
	// Namespace and Service are the server's own.
	Namespace, Service string
	// APIService is the name of the APIService that forwards to this server.
	APIService string
	// Names and Addresses are those that the serving certificate is valid for.
	Names     []string
	Addresses []net.IP
	// Client and Aggregator reach the cluster's own API server.
	Client     kubernetes.Interface
	Aggregator aggregator.Interface
	// Events tells people of what they have to look at.
	Events record.EventRecorder
}

// Keeper owns the serving certificate: it gets the authority, renews both before
// they expire, and publishes what clients have to trust.
type Keeper struct {
	config Config

	mu        sync.Mutex
	leaf      *leaf
	listeners []dynamiccertificates.Listener

	// Of the loop only: the authority that was published, and when that was done first.
	published   *authority
	publishedAt time.Time
	complaint   string
}

var _ dynamiccertificates.CertKeyContentProvider = &Keeper{}

// New reads the authority, or makes it, and issues the first serving certificate.
func New(ctx context.Context, config Config) (*Keeper, error) {
	k := &Keeper{config: config}
	authority, err := k.authority(ctx, time.Now())
	if err != nil {
		return nil, err
	}
	if k.leaf, err = authority.issue(time.Now(), config.Names, config.Addresses); err != nil {
		return nil, err
	}
	return k, nil
}

// Name is what logs call the certificate.
func (k *Keeper) Name() string { return "serving certificate" }

// CurrentCertKeyContent is the certificate and the key to serve with.
func (k *Keeper) CurrentCertKeyContent() (cert, key []byte) {
	current := k.current()
	return current.certPEM, current.keyPEM
}

// AddListener asks for a call whenever the certificate changes.
func (k *Keeper) AddListener(listener dynamiccertificates.Listener) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.listeners = append(k.listeners, listener)
}

func (k *Keeper) current() *leaf {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.leaf
}

func (k *Keeper) replace(next *leaf) {
	k.mu.Lock()
	k.leaf = next
	listeners := k.listeners
	k.mu.Unlock()
	for _, listener := range listeners {
		listener.Enqueue()
	}
}

// Run keeps certificates and what is published current until the context ends.
func (k *Keeper) Run(ctx context.Context) {
	logger := klog.FromContext(ctx)
	wake := make(chan struct{}, 1)
	k.watch(ctx, func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	for {
		pause, err := k.sync(ctx, time.Now())
		if err != nil && ctx.Err() == nil {
			logger.Error(err, "Could not keep certificates current", "retryAfter", pauseFailed)
			pause = pauseFailed
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// watch calls back when any of the objects that hold certificates changes.
func (k *Keeper) watch(ctx context.Context, changed func()) {
	core := k.config.Client.CoreV1().RESTClient()
	registration := k.config.Aggregator.ApiregistrationV1().RESTClient()
	for _, source := range []struct {
		client                    cache.Getter
		resource, namespace, name string
		object                    runtime.Object
	}{
		{core, "secrets", k.config.Namespace, SecretName, &corev1.Secret{}},
		{core, "configmaps", k.config.Namespace, ConfigMapName, &corev1.ConfigMap{}},
		{registration, "apiservices", metav1.NamespaceAll, k.config.APIService, &apiregistrationv1.APIService{}},
	} {
		_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
			ListerWatcher: cache.NewListWatchFromClient(source.client, source.resource, source.namespace,
				fields.OneTermEqualSelector(metav1.ObjectNameField, source.name)),
			ObjectType: source.object,
			Handler: cache.ResourceEventHandlerFuncs{
				AddFunc:    func(any) { changed() },
				UpdateFunc: func(any, any) { changed() },
				DeleteFunc: func(any) { changed() },
			},
		})
		go informer.RunWithContext(ctx)
	}
}

// sync does what is due and returns when to look again at the latest.
func (k *Keeper) sync(ctx context.Context, now time.Time) (time.Duration, error) {
	authority, err := k.authority(ctx, now)
	if err != nil {
		return 0, err
	}
	if err := k.publish(ctx, authority); err != nil {
		return 0, err
	}
	if k.published == nil || !bytes.Equal(k.published.certPEM, authority.certPEM) {
		k.published, k.publishedAt = authority, now
	}

	serving := k.current()
	foreign := !serving.signedBy(authority)
	if !foreign && !serving.due(now) {
		return pauseIdle, nil
	}
	// Clients first learn whom to trust, then see a certificate of it. One that they
	// already trust, they need not wait for.
	if wait := k.publishedAt.Add(settle).Sub(now); foreign && wait > 0 {
		return wait, nil
	}
	next, err := authority.issue(now, k.config.Names, k.config.Addresses)
	if err != nil {
		return 0, err
	}
	k.replace(next)
	klog.FromContext(ctx).Info("Renewed the serving certificate", "notAfter", next.cert.NotAfter)
	if err := k.publish(ctx, authority); err != nil {
		return 0, err
	}
	return pauseIdle, nil
}

// authority returns the authority that the Secret holds, after making or replacing
// it where that is due.
func (k *Keeper) authority(ctx context.Context, now time.Time) (*authority, error) {
	logger := klog.FromContext(ctx)
	secrets := k.config.Client.CoreV1().Secrets(k.config.Namespace)
	for {
		secret, err := secrets.Get(ctx, SecretName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			made, err := newAuthority(now, nil)
			if err != nil {
				return nil, err
			}
			_, err = secrets.Create(ctx, &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Name: SecretName, Labels: map[string]string{labelManagedBy: managedBy}},
				Type:       corev1.SecretTypeTLS,
				Data:       made.data(),
			}, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				continue // another replica was faster
			}
			if err != nil {
				return nil, fmt.Errorf("creating Secret %s/%s: %w", k.config.Namespace, SecretName, err)
			}
			logger.Info("Made a certificate authority", "secret", klog.KRef(k.config.Namespace, SecretName))
			return made, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading Secret %s/%s: %w", k.config.Namespace, SecretName, err)
		}

		found, err := parseAuthority(secret.Data, now)
		if err != nil {
			return nil, fmt.Errorf("reading the authority in Secret %s/%s (delete the Secret to have it made anew): %w",
				k.config.Namespace, SecretName, err)
		}
		next := found
		switch {
		case found.due(now):
			if next, err = newAuthority(now, found.certPEM); err != nil {
				return nil, err
			}
			logger.Info("Replacing the certificate authority", "notAfter", found.cert.NotAfter)
		case found.previousExpired(now):
			dropped := *found
			dropped.previous = nil
			next = &dropped
		default:
			return found, nil
		}
		secret.Data = next.data()
		_, err = secrets.Update(ctx, secret, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("updating Secret %s/%s: %w", k.config.Namespace, SecretName, err)
		}
		return next, nil
	}
}

// publish tells people's and programs' clients what to trust.
func (k *Keeper) publish(ctx context.Context, authority *authority) error {
	bundle := authority.bundle()
	// What is served now is trusted until it is not served any more.
	if serving := k.current(); !serving.signedBy(authority) && !bytes.Contains(bundle, serving.issuer.certPEM) {
		bundle = append(bundle, serving.issuer.certPEM...)
	}
	return errors.Join(
		retry.RetryOnConflict(retry.DefaultRetry, func() error { return k.publishConfigMap(ctx, bundle) }),
		retry.RetryOnConflict(retry.DefaultRetry, func() error { return k.publishAPIService(ctx, bundle) }),
	)
}

func (k *Keeper) publishConfigMap(ctx context.Context, bundle []byte) error {
	maps := k.config.Client.CoreV1().ConfigMaps(k.config.Namespace)
	found, err := maps.Get(ctx, ConfigMapName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = maps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: ConfigMapName, Labels: map[string]string{labelManagedBy: managedBy}},
			Data:       map[string]string{ConfigMapKey: string(bundle)},
		}, metav1.CreateOptions{})
	} else if err == nil && found.Data[ConfigMapKey] != string(bundle) {
		if found.Data == nil {
			found.Data = map[string]string{}
		}
		found.Data[ConfigMapKey] = string(bundle)
		_, err = maps.Update(ctx, found, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("publishing to ConfigMap %s/%s: %w", k.config.Namespace, ConfigMapName, err)
	}
	return nil
}

func (k *Keeper) publishAPIService(ctx context.Context, bundle []byte) error {
	services := k.config.Aggregator.ApiregistrationV1().APIServices()
	found, err := services.Get(ctx, k.config.APIService, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // not registered (yet): people's clients cannot come through it
	}
	if err != nil {
		return fmt.Errorf("reading APIService %q: %w", k.config.APIService, err)
	}
	if complaint := k.notOurs(found, bundle); complaint != "" {
		if complaint != k.complaint {
			klog.FromContext(ctx).Error(nil, "Left the APIService alone", "apiService", found.Name, "reason", complaint)
			k.config.Events.Event(found, corev1.EventTypeWarning, "CABundleNotPublished", complaint)
		}
		k.complaint = complaint
		return nil
	}
	k.complaint = ""
	if bytes.Equal(found.Spec.CABundle, bundle) && !found.Spec.InsecureSkipTLSVerify {
		return nil
	}
	// Whoever leaves the bundle empty leaves it to this server, from now on.
	metav1.SetMetaDataLabel(&found.ObjectMeta, labelManagedBy, managedBy)
	found.Spec.CABundle = bundle
	found.Spec.InsecureSkipTLSVerify = false
	if _, err := services.Update(ctx, found, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("publishing to APIService %q: %w", k.config.APIService, err)
	}
	return nil
}

// notOurs says why an APIService is not this server's to change, or nothing.
func (k *Keeper) notOurs(found *apiregistrationv1.APIService, bundle []byte) string {
	service := found.Spec.Service
	switch {
	case service == nil || service.Namespace != k.config.Namespace || service.Name != k.config.Service:
		return fmt.Sprintf("APIService %q does not forward to Service %s/%s", found.Name, k.config.Namespace, k.config.Service)
	case found.Labels[labelManagedBy] == managedBy:
		return ""
	case len(found.Spec.CABundle) > 0 && !bytes.Equal(found.Spec.CABundle, bundle), found.Spec.InsecureSkipTLSVerify:
		return fmt.Sprintf("APIService %q has a caBundle or skips verification by somebody else's will; label it %s=%s to have it set by this server",
			found.Name, labelManagedBy, managedBy)
	}
	return ""
}
