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
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	mesh "mesh.io/clustermesh/pkg/generated/clientset/versioned"
)

const (
	userAgent = "mesh-controller"
	protobuf  = "application/vnd.kubernetes.protobuf"

	// caConfigMap is where mesh-apiserver says which authorities its certificate may
	// be from, and caKey its entry.
	caConfigMap = "mesh-ca"
	caKey       = "ca.crt"
	// caFileEvery is how often the file with the authorities is looked at.
	caFileEvery = 10 * time.Second
)

func kubeConfig(path string) (*rest.Config, error) {
	var config *rest.Config
	var err error
	if path != "" {
		config, err = clientcmd.BuildConfigFromFlags("", path)
	} else {
		config, err = rest.InClusterConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("reading how to reach the API server: %w", err)
	}
	// The server bounds the requests, by priority and fairness; its store is the limit.
	config.QPS = -1
	config.UserAgent = userAgent
	config.ContentType = protobuf
	config.AcceptContentTypes = protobuf + ",application/json"
	return config, nil
}

// meshClient returns the client of this cluster's mesh API. It waits until the
// authorities are known, and follows them from then on.
func meshClient(ctx context.Context, options Options, kube *rest.Config, client kubernetes.Interface) (mesh.Interface, error) {
	if options.MeshKubeconfig != "" {
		config, err := kubeConfig(options.MeshKubeconfig)
		if err != nil {
			return nil, err
		}
		return mesh.NewForConfig(config)
	}
	base := rest.CopyConfig(kube)
	base.Host, base.APIPath, base.TLSClientConfig.ServerName = options.MeshServer, "", options.MeshServerName
	base.TLSClientConfig.CAFile, base.TLSClientConfig.CAData = "", nil
	base.TLSClientConfig.Insecure = false
	trust := &trust{base: base, known: make(chan struct{})}
	if options.MeshCAFile != "" {
		trust.followFile(ctx, options.MeshCAFile)
	} else {
		trust.followConfigMap(ctx, client, options.Namespace)
	}
	klog.FromContext(ctx).V(2).Info("Waiting for the authorities of mesh-apiserver")
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-trust.known:
	}
	return mesh.NewForConfig(&rest.Config{
		Host: options.MeshServer, Transport: trust, QPS: -1, UserAgent: userAgent,
		ContentConfig: rest.ContentConfig{ContentType: base.ContentType, AcceptContentTypes: base.AcceptContentTypes},
	})
}

// trust is a transport that follows the authorities of mesh-apiserver: when they
// change, new requests are made with the new ones, while those under way go on.
type trust struct {
	base      *rest.Config
	transport atomic.Pointer[http.RoundTripper]
	pem       []byte
	known     chan struct{}
}

// RoundTrip sends a request with what is trusted now.
func (t *trust) RoundTrip(request *http.Request) (*http.Response, error) {
	transport := t.transport.Load()
	if transport == nil {
		return nil, errors.New("the authorities of mesh-apiserver are not known yet")
	}
	return (*transport).RoundTrip(request)
}

// set is called by one goroutine only.
func (t *trust) set(logger klog.Logger, pem []byte) {
	if len(pem) == 0 || bytes.Equal(pem, t.pem) {
		return
	}
	config := rest.CopyConfig(t.base)
	config.TLSClientConfig.CAData = pem
	transport, err := rest.TransportFor(config)
	if err != nil {
		logger.Error(err, "The authorities of mesh-apiserver cannot be used; those known before stay")
		return
	}
	first := t.pem == nil
	t.pem = bytes.Clone(pem)
	t.transport.Store(&transport)
	if first {
		close(t.known)
	} else {
		logger.Info("The authorities of mesh-apiserver have changed")
	}
}

func (t *trust) followFile(ctx context.Context, path string) {
	logger := klog.FromContext(ctx)
	go func() {
		ticker := time.NewTicker(caFileEvery)
		defer ticker.Stop()
		for {
			pem, err := os.ReadFile(path)
			if err != nil {
				logger.Error(err, "Reading the authorities of mesh-apiserver")
			}
			t.set(logger, pem)
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	}()
}

func (t *trust) followConfigMap(ctx context.Context, client kubernetes.Interface, namespace string) {
	logger := klog.FromContext(ctx)
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(options *metav1.ListOptions) {
			options.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, caConfigMap).String()
		}))
	use := func(obj any) { t.set(logger, []byte(obj.(*corev1.ConfigMap).Data[caKey])) }
	_, err := factory.Core().V1().ConfigMaps().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    use,
		UpdateFunc: func(_, obj any) { use(obj) },
	})
	if err != nil {
		logger.Error(err, "Watching the authorities of mesh-apiserver")
	}
	factory.Start(ctx.Done())
}
