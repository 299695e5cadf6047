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
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/apply"
	"mesh.io/clustermesh/pkg/controller/view"
	mesh "mesh.io/clustermesh/pkg/generated/clientset/versioned"
	"mesh.io/clustermesh/pkg/version"
)

const (
	// heartbeat is how often the local MeshCluster says that the controller lives.
	heartbeat = 10 * time.Second
	// memberEvery is the least time between two writes of it.
	memberEvery = time.Second
)

// member keeps the MeshCluster of this cluster itself: who it is, that its
// controller lives, and whether its exports are complete.
type member struct {
	view   *view.View
	client mesh.Interface
	events record.EventRecorder
	id     int32
	uid    string
	run    string // random for each leadership
	// synced says whether all exports are written; resync makes sure of it anew.
	synced func() (synced bool, reason, message string)
	resync func()
	wake   chan struct{}

	// vouched is the MeshCluster and store for which ExportsSynced may be True.
	vouched vouched
	// newest is the highest version that was seen of the MeshCluster with the UID.
	newest struct {
		uid     types.UID
		version uint64
	}
}

// vouched is a store, as far as the local MeshCluster tells stores apart.
type vouched struct {
	uid   types.UID
	epoch string
}

func (m *member) dirty() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// contradiction is a MeshCluster that says something else about this cluster than
// this process was told.
type contradiction struct{ message string }

func (c *contradiction) Error() string { return c.message }

// ensure makes the local MeshCluster, or checks the one that is there.
func (m *member) ensure(ctx context.Context) error {
	clusters := m.client.MeshV1alpha1().MeshClusters()
	list, err := clusters.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("reading the members of the mesh: %w", err)
	}
	found := false
	for i := range list.Items {
		cluster := &list.Items[i]
		message := Contradiction(cluster, m.view.ClusterName, m.id)
		if message != "" {
			m.refuse(ctx, cluster, message)
			return &contradiction{message}
		}
		found = found || cluster.Name == m.view.ClusterName
	}
	if found {
		return nil
	}
	_, err = clusters.Create(ctx, &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: m.view.ClusterName},
		Spec:       v1alpha1.MeshClusterSpec{ID: m.id},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("making the MeshCluster of this cluster: %w", err)
	}
	klog.FromContext(ctx).Info("Made the MeshCluster of this cluster", "cluster", m.view.ClusterName, "id", m.id)
	return nil
}

// Contradiction says what a MeshCluster has against this cluster having the given
// name and ID, or "".
func Contradiction(cluster *v1alpha1.MeshCluster, name string, id int32) string {
	local := cluster.Spec.KubeconfigSecretRef == nil
	switch {
	case cluster.Name == name && !local:
		return fmt.Sprintf("MeshCluster %q is a peer (it has a kubeconfigSecretRef), but the controller of this cluster was given that name.", name)
	case cluster.Name == name && cluster.Spec.ID != id:
		return fmt.Sprintf("MeshCluster %q has the ID %d, but the controller was started with --cluster-id=%d.", name, cluster.Spec.ID, id)
	case cluster.Name != name && local:
		return fmt.Sprintf("This cluster is called %q by its MeshCluster, but the controller was started with --cluster-name=%s.", cluster.Name, name)
	}
	return ""
}

// refuse tells of a contradiction where people look.
func (m *member) refuse(ctx context.Context, cluster *v1alpha1.MeshCluster, message string) {
	changed := meta.SetStatusCondition(&cluster.Status.Conditions, metav1.Condition{
		Type: v1alpha1.MeshClusterIdentityConflict, Status: metav1.ConditionTrue, Reason: "Contradiction",
		Message: message + " Nothing is exported or imported until they agree. If it is the MeshCluster that is wrong, delete it: as long as this stands, that is allowed.", ObservedGeneration: cluster.Generation,
	})
	if !changed {
		return
	}
	m.events.Event(cluster, corev1.EventTypeWarning, "IdentityConflict", message)
	if _, err := m.client.MeshV1alpha1().MeshClusters().UpdateStatus(ctx, cluster, metav1.UpdateOptions{}); err != nil {
		klog.FromContext(ctx).V(2).Info("Condition could not be written", "cluster", cluster.Name, "err", err)
	}
}

// loop writes the status until the context ends.
func (m *member) loop(ctx context.Context) error {
	registration, err := m.view.Clusters.AddEventHandler(cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool {
			cluster, ok := obj.(*v1alpha1.MeshCluster)
			return !ok || cluster.Name == m.view.ClusterName
		},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { m.dirty() },
			UpdateFunc: func(_, _ any) { m.dirty() },
			DeleteFunc: func(any) { m.dirty() },
		},
	})
	if err != nil {
		return fmt.Errorf("watching the local MeshCluster: %w", err)
	}
	defer func() { _ = m.view.Clusters.RemoveEventHandler(registration) }()
	ticker := time.NewTicker(heartbeat)
	defer ticker.Stop()
	for {
		if err := m.write(ctx); err != nil && ctx.Err() == nil {
			if !apierrors.IsConflict(err) {
				klog.FromContext(ctx).V(2).Info("Status of this cluster is written again", "err", err)
			}
			m.dirty()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(memberEvery):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-m.wake:
		}
	}
}

func (m *member) write(ctx context.Context) error {
	cluster, ok := m.view.Local()
	if !ok {
		// Somebody has removed it, or the store is another one: be a member anew.
		return m.ensure(ctx)
	}
	if message := Contradiction(cluster, m.view.ClusterName, m.id); message != "" {
		return &contradiction{message}
	}
	if m.restored(cluster) {
		m.vouched = vouched{}
		m.resync()
	}
	synced, reason, message := m.synced()
	store := vouched{cluster.UID, cluster.Status.StoreEpoch}
	if synced && m.vouched != store {
		// That our caches say so is no proof that this store has the exports: they may
		// still show another. A peer deletes what we say is complete and it cannot see.
		if cluster.Status.ControllerRun != m.run {
			synced, reason, message = false, "Exporting", "The exports are being checked."
		} else if why, err := m.prove(ctx, store); err != nil {
			return err
		} else if why != "" {
			synced, reason, message = false, "Exporting", why
			m.resync()
		} else {
			m.vouched = store
		}
	}
	services, endpoints := m.counts()
	status := cluster.Status.DeepCopy()
	status.ObservedGeneration = cluster.Generation
	status.UID, status.Version, status.ControllerRun = m.uid, version.String(), m.run
	status.Services, status.Endpoints = services, endpoints
	condition := metav1.Condition{Type: v1alpha1.MeshClusterExportsSynced, Status: metav1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: cluster.Generation}
	if synced {
		condition.Status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&status.Conditions, condition)
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{
		Type: v1alpha1.MeshClusterIdentityConflict, Status: metav1.ConditionFalse, Reason: "NoConflict", ObservedGeneration: cluster.Generation,
	})
	if equal(*status, cluster.Status) && !due(cluster.Status.LastContactTime.Time, time.Now()) {
		if !synced {
			m.dirty()
		}
		return nil
	}
	status.LastContactTime = metav1.Now()
	changed := cluster.DeepCopy()
	changed.Status = *status
	_, err := m.client.MeshV1alpha1().MeshClusters().UpdateStatus(ctx, changed, metav1.UpdateOptions{})
	if !synced {
		m.dirty()
	}
	return err
}

// due says whether a heartbeat has to be written. A last one that is still to come was
// written by a clock that has been put right since.
func due(last, now time.Time) bool {
	age := now.Sub(last)
	return age < 0 || age >= heartbeat-memberEvery
}

// restored says whether the local MeshCluster is older than it has been: then the
// store was put back to an earlier state, which may lack exports that it has had.
func (m *member) restored(cluster *v1alpha1.MeshCluster) bool {
	version := apply.Version(cluster)
	older := m.newest.uid == cluster.UID && version < m.newest.version
	m.newest.uid, m.newest.version = cluster.UID, version
	return older
}

// prove asks the store itself whether it has every export that the caches show, and
// none of them in an earlier state. It returns why not, or "".
func (m *member) prove(ctx context.Context, store vouched) (why string, err error) {
	api := m.client.MeshV1alpha1()
	missing := map[types.UID]uint64{}
	found := func(object metav1.Object) {
		if version, ok := missing[object.GetUID()]; ok && apply.Version(object) >= version {
			delete(missing, object.GetUID())
		}
	}
	for _, exported := range view.List[*v1alpha1.ExportedService](m.view.ExportedServices) {
		missing[exported.UID] = apply.Version(exported)
	}
	for _, exported := range view.List[*v1alpha1.ExportedEndpointSlice](m.view.ExportedSlices) {
		missing[exported.UID] = apply.Version(exported)
	}
	options := metav1.ListOptions{Limit: 500}
	for {
		page, err := api.ExportedServices(metav1.NamespaceAll).List(ctx, options)
		if err != nil {
			return "", fmt.Errorf("checking the exports: %w", err)
		}
		for i := range page.Items {
			found(&page.Items[i])
		}
		if options.Continue = page.Continue; options.Continue == "" {
			break
		}
	}
	for {
		page, err := api.ExportedEndpointSlices(metav1.NamespaceAll).List(ctx, options)
		if err != nil {
			return "", fmt.Errorf("checking the exports: %w", err)
		}
		for i := range page.Items {
			found(&page.Items[i])
		}
		if options.Continue = page.Continue; options.Continue == "" {
			break
		}
	}
	now, err := api.MeshClusters().Get(ctx, m.view.ClusterName, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("checking the exports: %w", err)
	}
	if len(missing) > 0 || apply.Version(now) < m.newest.version || (vouched{now.UID, now.Status.StoreEpoch}) != store {
		return "The store does not have all exports yet.", nil
	}
	return "", nil
}

// counts says how much is exported: services, and endpoints.
func (m *member) counts() (services, endpoints int32) {
	for _, exported := range view.List[*v1alpha1.ExportedEndpointSlice](m.view.ExportedSlices) {
		endpoints += int32(len(exported.Spec.Endpoints))
	}
	return int32(len(m.view.ExportedServices.GetStore().ListKeys())), endpoints
}
