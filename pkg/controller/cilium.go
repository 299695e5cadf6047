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

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
)

// ciliumAnnotations decides whether Cilium's annotations count. Where Cilium's own
// cluster mesh runs, it acts on them itself, and two must not.
func ciliumAnnotations(ctx context.Context, mode string, client kubernetes.Interface) (bool, error) {
	if mode != "auto" {
		return mode == "on", nil
	}
	// Where it cannot be told, the annotations are left alone: two that act on them
	// would do harm, and ours always work.
	unknown := func(err error) (bool, error) {
		if apierrors.IsForbidden(err) {
			klog.FromContext(ctx).Error(err, "Whether Cilium's cluster mesh runs cannot be read; its annotations do not count. Allow it, or set --cilium-annotations")
			return false, nil
		}
		return false, fmt.Errorf("finding out whether Cilium's cluster mesh runs: %w", err)
	}
	config, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, "cilium-config", metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return unknown(err)
	}
	secret, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, "cilium-clustermesh", metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return unknown(err)
	}
	if ciliumMesh(config.Data, secret.Data) {
		klog.FromContext(ctx).Info("Cilium's own cluster mesh runs here: its annotations are left to it; --cilium-annotations=on overrides this")
		return false, nil
	}
	return true, nil
}

// ciliumMesh says whether Cilium's configuration and its Secret of peers, either of
// which may be nil, are those of a cluster mesh.
func ciliumMesh(config map[string]string, peers map[string][]byte) bool {
	id := config["cluster-id"]
	return id != "" && id != "0" || len(peers) > 0
}
