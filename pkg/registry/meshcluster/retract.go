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

package meshcluster

import (
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

// retract takes back what the status says of a store that this one was restored from:
// that all exports are in it was true of that one. Peers take the word of the local
// cluster for what they may remove, and read it before its controller has written
// again; they may even have begun only now, and not know that the epoch was another.
func retract(cluster *mesh.MeshCluster, storeEpoch string) {
	if !local(cluster) || cluster.Status.StoreEpoch == storeEpoch {
		return
	}
	cluster.Status.StoreEpoch = storeEpoch
	// It keeps its time: every read, by every replica, has to give the same.
	if synced := meta.FindStatusCondition(cluster.Status.Conditions, v1alpha1.MeshClusterExportsSynced); synced != nil && synced.Status == metav1.ConditionTrue {
		synced.Status, synced.Reason = metav1.ConditionFalse, "StoreRestored"
		synced.Message = "The store was restored, and the controller has not checked the exports since."
	}
}

// currentGetter makes the store read every object as retract leaves it, wherever it
// is read from: by a get, a list or a watch, for a client or for an update.
type currentGetter struct {
	generic.RESTOptionsGetter
	storeEpoch string
}

func (g currentGetter) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (generic.RESTOptions, error) {
	options, err := g.RESTOptionsGetter.GetRESTOptions(resource, example)
	if err != nil {
		return options, err
	}
	config := *options.StorageConfig
	config.Codec = currentCodec{config.Codec, g.storeEpoch}
	options.StorageConfig = &config
	return options, nil
}

type currentCodec struct {
	runtime.Codec
	storeEpoch string
}

func (c currentCodec) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	obj, kind, err := c.Codec.Decode(data, defaults, into)
	if cluster, ok := obj.(*mesh.MeshCluster); ok && err == nil {
		retract(cluster, c.storeEpoch)
	}
	return obj, kind, err
}
