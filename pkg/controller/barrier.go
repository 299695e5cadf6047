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
	"fmt"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/pager"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/controller/apply"
)

// barrierFor is how long a new leader waits for its caches at most. Every write has a
// precondition, so that an old cache costs attempts and does no harm.
const barrierFor = 5 * time.Second

// kind is a kind of object that the controller writes, in the store and in the cache.
type kind struct {
	name  string
	cache cache.SharedIndexInformer
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
}

func (c *controller) kinds() []kind {
	api := c.mesh.MeshV1alpha1()
	return []kind{
		{"ExportedService", c.view.ExportedServices, func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return api.ExportedServices(metav1.NamespaceAll).List(ctx, options)
		}},
		{"ExportedEndpointSlice", c.view.ExportedSlices, func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return api.ExportedEndpointSlices(metav1.NamespaceAll).List(ctx, options)
		}},
		{"ImportedService", c.view.ImportedServices, func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return api.ImportedServices(metav1.NamespaceAll).List(ctx, options)
		}},
		{"ImportedEndpointSlice", c.view.ImportedSlices, func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return api.ImportedEndpointSlices(metav1.NamespaceAll).List(ctx, options)
		}},
		{"GlobalService", c.view.GlobalServices, func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return api.GlobalServices(metav1.NamespaceAll).List(ctx, options)
		}},
		{"MeshCluster", c.view.Clusters, func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return api.MeshClusters().List(ctx, options)
		}},
	}
}

// catchUp waits until the caches show what the leader before has written.
func catchUp(ctx context.Context, kinds []kind, most time.Duration) {
	logger := klog.FromContext(ctx)
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	var wg sync.WaitGroup
	for _, kind := range kinds {
		wg.Go(func() {
			if err := kind.catchUp(bounded); err != nil && ctx.Err() == nil {
				logger.Info("Going on with a cache that may be behind the store", "kind", kind.name, "err", err)
			}
		})
	}
	wg.Wait()
	logger.V(2).Info("The caches have caught up", "took", time.Since(began))
}

func (k kind) catchUp(ctx context.Context) error {
	store, err := k.read(ctx)
	if err != nil {
		return err
	}
	for {
		behind := store.behind(k.cache)
		if behind == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d objects differ: %w", behind, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// content is what the store had of a kind at a version.
type content struct {
	version uint64
	objects map[string]uint64 // the version of each by its key in the cache
}

// read reads the store, consistently.
func (k kind) read(ctx context.Context) (content, error) {
	c := content{objects: map[string]uint64{}}
	pages := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		page, err := k.list(ctx, options)
		if err != nil {
			return nil, err
		}
		if list, err := meta.ListAccessor(page); err == nil {
			c.version, _ = strconv.ParseUint(list.GetResourceVersion(), 10, 64)
		}
		return page, nil
	})
	pages.PageBufferSize = 0
	err := pages.EachListItem(ctx, metav1.ListOptions{}, func(obj runtime.Object) error {
		key, err := cache.MetaNamespaceKeyFunc(obj)
		if err != nil {
			return err
		}
		object, err := meta.Accessor(obj)
		if err != nil {
			return err
		}
		c.objects[key] = apply.Version(object)
		return nil
	})
	return c, err
}

// behind counts the objects that the cache does not show yet as the store had them. The
// version of a cache alone does not tell: it stands still while other kinds change.
func (c content) behind(informer cache.SharedIndexInformer) int {
	if shown, _ := strconv.ParseUint(informer.LastSyncResourceVersion(), 10, 64); shown > 0 && shown >= c.version {
		return 0
	}
	behind := len(c.objects)
	for _, obj := range informer.GetStore().List() {
		object, err := meta.Accessor(obj)
		if err != nil {
			continue
		}
		key, _ := cache.MetaNamespaceKeyFunc(obj)
		cached := apply.Version(object)
		switch version, exists := c.objects[key]; {
		case exists && cached >= version:
			behind--
		case !exists && cached <= c.version:
			behind++ // it has been deleted
		}
	}
	return behind
}
