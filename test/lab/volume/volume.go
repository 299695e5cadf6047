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

// Package volume provisions the lab's PersistentVolumes, as a cloud's provisioner does for
// its disks: a claim of the lab's StorageClass gets a folder of the node that the scheduler
// has chosen, and when the claim goes, the folder goes with all that is in it.
package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"mesh.io/clustermesh/test/lab/container"
)

const (
	// Provisioner is how the StorageClass names this provisioner.
	Provisioner = "mesh.io/lab-volumes"

	// Kubernetes says by these annotations what it wants, and is told what was done.
	wantedBy = "volume.kubernetes.io/storage-provisioner"
	chosen   = "volume.kubernetes.io/selected-node"
	madeBy   = "pv.kubernetes.io/provisioned-by"
	hostname = corev1.LabelHostname
)

// Config says where a cluster is.
type Config struct {
	Kubeconfig string `json:"kubeconfig"`
	// Folders are those that the nodes see as container.VolumesDir, as this program sees them, by node.
	Folders map[string]string `json:"folders"`
}

// Run provisions and reclaims until the context ends.
func Run(ctx context.Context, config Config) error {
	rest, err := clientcmd.BuildConfigFromFlags("", config.Kubeconfig)
	if err != nil {
		return fmt.Errorf("reading the kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return fmt.Errorf("preparing to connect: %w", err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	claims, volumes := factory.Core().V1().PersistentVolumeClaims(), factory.Core().V1().PersistentVolumes()
	wake := make(chan struct{}, 1)
	changed := func(any) {
		select {
		case wake <- struct{}{}:
		default: // it is awake anyway
		}
	}
	for _, informer := range []cache.SharedIndexInformer{claims.Informer(), volumes.Informer()} {
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: changed, UpdateFunc: func(_, now any) { changed(now) }, DeleteFunc: changed,
		})
		if err != nil {
			return fmt.Errorf("watching: %w", err)
		}
	}
	factory.StartWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), claims.Informer().HasSynced, volumes.Informer().HasSynced) {
		return ctx.Err()
	}
	for {
		all, err := claims.Lister().List(labels.Everything())
		if err != nil {
			return err
		}
		have, err := volumes.Lister().List(labels.Everything())
		if err != nil {
			return err
		}
		var again <-chan time.Time
		if err := config.do(ctx, client, decide(all, have)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			again = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-again:
		}
	}
}

// work is what is to be done.
type work struct {
	provision []*corev1.PersistentVolume
	reclaim   []*corev1.PersistentVolume
}

// decide compares the claims that wait for a volume with the volumes that there are.
func decide(claims []*corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume) work {
	var w work
	for _, claim := range claims {
		if claim.Annotations[wantedBy] != Provisioner || claim.Annotations[chosen] == "" || claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil {
			continue
		}
		volume := volumeFor(claim)
		if !slices.ContainsFunc(volumes, func(v *corev1.PersistentVolume) bool { return v.Name == volume.Name }) {
			w.provision = append(w.provision, volume)
		}
	}
	for _, volume := range volumes {
		if volume.Annotations[madeBy] == Provisioner && volume.Status.Phase == corev1.VolumeReleased &&
			volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete && volume.DeletionTimestamp == nil {
			w.reclaim = append(w.reclaim, volume)
		}
	}
	return w
}

func volumeFor(claim *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
	name := "pvc-" + string(claim.UID)
	class := ""
	if claim.Spec.StorageClassName != nil {
		class = *claim.Spec.StorageClassName
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{madeBy: Provisioner}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes: claim.Spec.AccessModes, VolumeMode: claim.Spec.VolumeMode, StorageClassName: class,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			// Not a hostPath: of a local volume the kubelet heeds the pod's fsGroup.
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: filepath.Join(container.VolumesDir, name)}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: hostname, Operator: corev1.NodeSelectorOpIn, Values: []string{claim.Annotations[chosen]},
				}},
			}}}},
		},
	}
}

// folder is where a volume that this provisioner made is.
func (c Config) folder(volume *corev1.PersistentVolume) (string, error) {
	affinity := volume.Spec.NodeAffinity
	if affinity == nil || affinity.Required == nil || len(affinity.Required.NodeSelectorTerms) != 1 ||
		len(affinity.Required.NodeSelectorTerms[0].MatchExpressions) != 1 || len(affinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values) != 1 {
		return "", fmt.Errorf("volume %s is not as it was made: it has another node affinity", volume.Name)
	}
	node := affinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0]
	if c.Folders[node] == "" {
		return "", fmt.Errorf("volume %s is on node %s, which the lab does not have", volume.Name, node)
	}
	return filepath.Join(c.Folders[node], volume.Name), nil
}

func (c Config) do(ctx context.Context, client kubernetes.Interface, w work) error {
	volumes := client.CoreV1().PersistentVolumes()
	var failures []error
	for _, volume := range w.provision {
		folder, err := c.folder(volume)
		if err == nil {
			err = os.MkdirAll(folder, 0o750)
		}
		if err == nil {
			// Another time it is there already, when the cache has not heard of it yet.
			if _, err = volumes.Create(ctx, volume, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
				err = nil
			}
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("provisioning %s: %w", volume.Name, err))
		}
	}
	for _, volume := range w.reclaim {
		folder, err := c.folder(volume)
		if err == nil {
			err = os.RemoveAll(folder)
		}
		if err == nil {
			if err = volumes.Delete(ctx, volume.Name, metav1.DeleteOptions{}); apierrors.IsNotFound(err) {
				err = nil
			}
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("reclaiming %s: %w", volume.Name, err))
		}
	}
	return errors.Join(failures...)
}
