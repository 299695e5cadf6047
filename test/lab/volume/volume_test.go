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

package volume

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func claim(change func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	class := "local"
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "mesh-system", Name: "data-0", UID: "u-1",
			Annotations: map[string]string{wantedBy: Provisioner, chosen: "cluster1-node2"},
		},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("4Gi")}},
		},
	}
	if change != nil {
		change(c)
	}
	return c
}

func TestAClaimGetsAFolderOfItsNode(t *testing.T) {
	w := decide([]*corev1.PersistentVolumeClaim{claim(nil)}, nil)
	if len(w.provision) != 1 || len(w.reclaim) != 0 {
		t.Fatalf("got %+v", w)
	}
	volume := w.provision[0]
	if volume.Spec.Local.Path != "/var/lib/volumes/pvc-u-1" || volume.Spec.ClaimRef.UID != "u-1" || volume.Spec.StorageClassName != "local" ||
		volume.Spec.Capacity.Storage().String() != "4Gi" {
		t.Errorf("got %+v", volume.Spec)
	}
	config := Config{Folders: map[string]string{"cluster1-node2": "/lab/node2/volumes"}}
	if folder, err := config.folder(volume); folder != "/lab/node2/volumes/pvc-u-1" || err != nil {
		t.Errorf("got %q, %v", folder, err)
	}
	if w := decide([]*corev1.PersistentVolumeClaim{claim(nil)}, w.provision); len(w.provision) != 0 {
		t.Errorf("it is made twice: %+v", w)
	}
}

func TestWhatIsLeftAlone(t *testing.T) {
	for name, change := range map[string]func(*corev1.PersistentVolumeClaim){
		"of another class":         func(c *corev1.PersistentVolumeClaim) { c.Annotations[wantedBy] = "disks.example.com" },
		"whose pod waits":          func(c *corev1.PersistentVolumeClaim) { delete(c.Annotations, chosen) },
		"that has its volume":      func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "pvc-u-1" },
		"that is being taken back": func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = &metav1.Time{} },
	} {
		if w := decide([]*corev1.PersistentVolumeClaim{claim(change)}, nil); len(w.provision) != 0 {
			t.Errorf("a claim %s gets %+v", name, w.provision)
		}
	}
	volume := volumeFor(claim(nil))
	volume.Status.Phase = corev1.VolumeReleased
	if w := decide(nil, []*corev1.PersistentVolume{volume}); len(w.reclaim) != 1 {
		t.Errorf("a volume whose claim is gone stays")
	}
	for name, change := range map[string]func(*corev1.PersistentVolume){
		"in use":           func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeBound },
		"of somebody else": func(v *corev1.PersistentVolume) { delete(v.Annotations, madeBy) },
		"that is to be kept": func(v *corev1.PersistentVolume) {
			v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
		},
		"that is going anyway": func(v *corev1.PersistentVolume) { v.DeletionTimestamp = &metav1.Time{} },
	} {
		other := volume.DeepCopy()
		change(other)
		if w := decide(nil, []*corev1.PersistentVolume{other}); len(w.reclaim) != 0 {
			t.Errorf("a volume %s is removed", name)
		}
	}
}
