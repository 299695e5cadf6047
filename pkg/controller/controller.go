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
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	kubescheme "k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"mesh.io/clustermesh/pkg/controller/export"
	"mesh.io/clustermesh/pkg/controller/importer"
	"mesh.io/clustermesh/pkg/controller/invitation"
	"mesh.io/clustermesh/pkg/controller/merge"
	"mesh.io/clustermesh/pkg/controller/metrics"
	"mesh.io/clustermesh/pkg/controller/renewal"
	"mesh.io/clustermesh/pkg/controller/view"
	mesh "mesh.io/clustermesh/pkg/generated/clientset/versioned"
	meshscheme "mesh.io/clustermesh/pkg/generated/clientset/versioned/scheme"
	meshinformers "mesh.io/clustermesh/pkg/generated/informers/externalversions"
	"mesh.io/clustermesh/pkg/policy"
	"mesh.io/clustermesh/pkg/version"
)

// authoritySecret is where mesh-apiserver keeps the key of its authority.
const authoritySecret = "mesh-apiserver-ca"

func equal(a, b any) bool { return equality.Semantic.DeepEqual(a, b) }

// controller is what every replica has ready, whether or not it leads.
type controller struct {
	options Options
	kube    kubernetes.Interface
	mesh    mesh.Interface
	view    *view.View
	secrets cache.SharedIndexInformer
	events  record.EventRecorder
	uid     string
}

// Run runs the controller until the context ends.
func Run(ctx context.Context, options Options) error {
	logger := klog.FromContext(ctx)
	logger.Info("Starting mesh-controller", "version", version.String(), "cluster", options.ClusterName, "id", options.ClusterID)
	metrics.Register()
	kubeREST, err := kubeConfig(options.Kubeconfig)
	if err != nil {
		return err
	}
	kube, err := kubernetes.NewForConfig(kubeREST)
	if err != nil {
		return fmt.Errorf("reaching the API server: %w", err)
	}
	var ready atomic.Pointer[view.View]
	err = serve(ctx, options.MetricsAddress, func() error {
		switch caches := ready.Load(); {
		case caches == nil:
			return errors.New("connecting to the mesh API")
		case !caches.Synced():
			return errors.New("filling the caches")
		}
		return nil
	})
	if err != nil {
		return err
	}

	c := &controller{options: options, kube: kube}
	c.uid, err = retry(ctx, "Reading this cluster's UID", func() (string, error) {
		namespace, err := kube.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return string(namespace.UID), nil
	})
	if err != nil {
		return err
	}
	cilium, err := retry(ctx, "Looking for Cilium", func() (bool, error) {
		return ciliumAnnotations(ctx, options.CiliumAnnotations, kube)
	})
	if err != nil {
		return err
	}
	if c.mesh, err = meshClient(ctx, options, kubeREST, kube); err != nil {
		return fmt.Errorf("reaching the mesh API: %w", err)
	}

	kubeFactory := informers.NewSharedInformerFactory(kube, 0)
	meshFactory := meshinformers.NewSharedInformerFactory(c.mesh, 0)
	ownFactory := informers.NewSharedInformerFactoryWithOptions(kube, 0, informers.WithNamespace(options.Namespace),
		informers.WithTweakListOptions(withoutAuthority))
	c.view, err = view.New(view.Config{
		Kube: kubeFactory, Mesh: meshFactory, MeshNamespace: options.Namespace,
		ClusterName: options.ClusterName, Reader: policy.Reader{Cilium: cilium},
	})
	if err != nil {
		return fmt.Errorf("making the caches: %w", err)
	}
	c.secrets = ownFactory.Core().V1().Secrets().Informer()
	ready.Store(c.view)

	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{kubescheme.AddToScheme, meshscheme.AddToScheme} {
		if err := add(scheme); err != nil {
			return fmt.Errorf("registering the types: %w", err)
		}
	}
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: kube.CoreV1().Events(metav1.NamespaceAll)})
	c.events = broadcaster.NewRecorder(scheme, corev1.EventSource{Component: "mesh-controller"})

	kubeFactory.Start(ctx.Done())
	ownFactory.Start(ctx.Done())
	meshFactory.Start(ctx.Done())
	logger.V(2).Info("Filling the caches")
	for !c.view.Synced() || !c.secrets.HasSynced() {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
	logger.V(2).Info("Caches are filled; standing for election")
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	if options.CiliumAnnotations == "auto" {
		go func() { end(watchCilium(ctx, kube, cilium)) }()
	}
	err = elect(ctx, options, kube, c.events, c.lead)
	if errors.Is(context.Cause(ctx), errCiliumChanged) {
		return errors.Join(errCiliumChanged, err)
	}
	return err
}

// withoutAuthority leaves out the Secret with the key of mesh-apiserver's authority:
// only the peers' Secrets are read here.
func withoutAuthority(options *metav1.ListOptions) {
	options.FieldSelector = fields.OneTermNotEqualSelector(metav1.ObjectNameField, authoritySecret).String()
}

// lead works until the context ends.
func (c *controller) lead(ctx context.Context) error {
	logger := klog.FromContext(ctx)
	logger.Info("Leading")
	metrics.Leader.Set(1)
	defer metrics.Leader.Set(0)

	local := &member{
		view: c.view, client: c.mesh, events: c.events, id: c.options.ClusterID,
		uid: c.uid, run: rand.Text(), wake: make(chan struct{}, 1),
	}
	for {
		err := local.ensure(ctx)
		if err == nil {
			break
		}
		wait := time.Second
		var wrong *contradiction
		if errors.As(err, &wrong) {
			logger.Error(err, "This process may not run as this cluster; nothing is exported or imported")
			wait = heartbeat
		} else if ctx.Err() == nil {
			logger.Error(err, "The members of the mesh cannot be read yet")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}

	catchUp(ctx, c.kinds(), barrierFor)

	exports := export.New(export.Config{
		View: c.view, Client: c.mesh, Events: c.events, Workers: c.options.Workers,
		Self: export.Identity{Name: c.options.ClusterName, ID: c.options.ClusterID},
	}, local.dirty)
	local.synced, local.resync = exports.Synced, exports.Resync
	imports := importer.New(importer.Config{
		View: c.view, Client: c.mesh, Kube: c.kube, Secrets: c.secrets, Events: c.events, UID: c.uid, Workers: c.options.Workers,
	})
	merges := merge.New(merge.Config{
		View: c.view, Client: c.mesh, Events: c.events, ID: c.options.ClusterID, Workers: c.options.Workers,
		KeepFor: c.options.KeepFor, Clock: clock.RealClock{},
	})
	renewals := renewal.New(renewal.Config{
		View: c.view, Client: c.mesh, Kube: c.kube, Secrets: c.secrets, Namespace: c.options.Namespace,
		Events: c.events, Clock: clock.RealClock{},
	})

	invitations := invitation.New(invitation.Config{
		Kube: c.kube, Secrets: c.secrets, Namespace: c.options.Namespace, Clock: clock.RealClock{},
	})

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	loops := []func(context.Context) error{local.loop, exports.Run, imports.Run, merges.Run, renewals.Run, invitations.Run}
	errs := make([]error, len(loops))
	var wg sync.WaitGroup
	for i, loop := range loops {
		wg.Go(func() {
			defer cancel()
			errs[i] = loop(ctx)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// retry calls f until it succeeds.
func retry[T any](ctx context.Context, what string, f func() (T, error)) (T, error) {
	for {
		result, err := f()
		if err == nil {
			return result, nil
		}
		klog.FromContext(ctx).Info(what+" is tried again", "err", err)
		select {
		case <-ctx.Done():
			return result, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}
