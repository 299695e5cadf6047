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
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/policy"
)

const (
	// ciliumRecheck is how often it is looked whether Cilium's cluster mesh came or went.
	ciliumRecheck = 30 * time.Second
	// ciliumFor is how long that has to last: an upgrade of Cilium may make its Service
	// anew.
	ciliumFor = 5 * time.Minute
)

// ciliumAnnotations decides whether Cilium's annotations count.
func ciliumAnnotations(ctx context.Context, mode string, client kubernetes.Interface) (bool, error) {
	if mode != "auto" {
		return mode == "on", nil
	}
	_, err := client.CoreV1().Services(policy.CiliumMesh.Namespace).Get(ctx, policy.CiliumMesh.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("finding out whether Cilium's cluster mesh runs: %w", err)
	}
	klog.FromContext(ctx).Info("Cilium's own cluster mesh runs here: its annotations are left to it; --cilium-annotations=on overrides this")
	return false, nil
}

// errCiliumChanged ends the process: every decision has to be made again.
var errCiliumChanged = errors.New("the cluster mesh of Cilium came or went, which changes what its annotations mean: starting again")

// watchCilium returns errCiliumChanged once the decision would have been another one for
// ciliumFor.
func watchCilium(ctx context.Context, client kubernetes.Interface, decided bool) error {
	ticker := time.NewTicker(ciliumRecheck)
	defer ticker.Stop()
	other := change{lasts: ciliumFor}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			// Where it cannot be told, nothing is known to have changed.
			now, err := ciliumAnnotations(klog.NewContext(ctx, klog.Logger{}), "auto", client)
			if other.seen(time.Now(), err == nil && now != decided) {
				return errCiliumChanged
			}
		}
	}
}

// change is something that counts only when it lasts.
type change struct {
	lasts time.Duration
	since time.Time
}

// seen is told what is seen, and says whether it has lasted.
func (c *change) seen(at time.Time, changed bool) bool {
	switch {
	case !changed:
		c.since = time.Time{}
	case c.since.IsZero():
		c.since = at
	}
	return changed && at.Sub(c.since) >= c.lasts
}
