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

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/agent/source"
)

// startupTaintCheck is the line of /readyz that tells of the startup taint. It is
// never a problem: the agent that cannot remove it is ready all the same.
const startupTaintCheck = "startup-taint"

// startupTaint keeps pods away from a node whose table is not complete: whoever makes
// the node, or starts it again, puts it there, and the agent takes it away. It is
// watched for as long as the agent runs, so that a node may be tainted again.
type startupTaint struct {
	kube      kubernetes.Interface
	node, key string
	watch     *source.Watches
	wake      chan struct{}

	mu      sync.Mutex
	known   bool           // whether the node was seen
	taints  []corev1.Taint // of the node
	waiting []string       // for what the taint stays
	err     error          // of the last try to remove it
}

func newStartupTaint(kube kubernetes.Interface, node, key string) *startupTaint {
	t := &startupTaint{kube: kube, node: node, key: key, wake: make(chan struct{}, 1)}
	t.watch = source.NewNode(kube, node, func(taints []corev1.Taint) {
		t.mu.Lock()
		t.known, t.taints = true, taints
		t.mu.Unlock()
		select {
		case t.wake <- struct{}{}:
		default:
		}
	})
	return t
}

// mostTaintWait is the longest wait between two tries to remove the taint.
const mostTaintWait = 30 * time.Second

// run takes the taint away whenever the node has it and nothing is missing, until ctx
// ends.
func (t *startupTaint) run(ctx context.Context, missing func() []string) {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { t.watch.Run(ctx) })
	logger := klog.FromContext(ctx)
	const look = 100 * time.Millisecond // readiness is looked at, as many things make it
	wait := look
	for ctx.Err() == nil {
		if !t.tainted() {
			t.set(nil, nil)
			select {
			case <-ctx.Done():
			case <-t.wake:
			}
			continue
		}
		if waiting := missing(); len(waiting) > 0 {
			t.set(waiting, nil)
			wait = look
		} else if err := t.remove(ctx); err != nil && ctx.Err() == nil {
			// That the node has changed meanwhile is no failure: it is looked at again.
			if !apierrors.IsInvalid(err) || wait > look {
				logger.Error(err, "Cannot remove the startup taint; this will be tried again", "node", t.node, "taint", t.key)
			}
			t.set(nil, err)
			wait = min(2*wait, mostTaintWait)
		} else if err == nil {
			logger.Info("Removed the startup taint: the node is ready for pods", "node", t.node, "taint", t.key)
			wait = look
		}
		pause(ctx, wait)
	}
}

func (t *startupTaint) set(waiting []string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting, t.err = waiting, err
}

// tainted says whether the node has the taint.
func (t *startupTaint) tainted() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.taints, func(taint corev1.Taint) bool { return taint.Key == t.key })
}

// note tells people of the taint.
func (t *startupTaint) note() string {
	tainted := t.tainted()
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.err != nil && tainted:
		return fmt.Sprintf("%s cannot be taken from the node: %v", t.key, t.err)
	case len(t.waiting) > 0 && tainted:
		return fmt.Sprintf("%s stays on the node, for want of: %s", t.key, strings.Join(t.waiting, ", "))
	case tainted:
		return t.key + " is to be taken from the node"
	case !t.known:
		return "node " + t.node + " has not been seen yet" + because(t.watch.Contacts()[0].Err)
	}
	return ""
}

// remove takes the taint from the node, and nothing else.
func (t *startupTaint) remove(ctx context.Context) error {
	t.mu.Lock()
	patch := untaint(t.taints, t.key)
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	node, err := t.kube.CoreV1().Nodes().Patch(ctx, t.node, types.JSONPatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("removing taint %s from node %s: %w", t.key, t.node, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taints = node.Spec.Taints
	return nil
}

// untaint returns the JSON patch that removes the taints of the key from the list. It
// fails as a whole where the node has others by now.
func untaint(taints []corev1.Taint, key string) []byte {
	type operation struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value string `json:"value,omitempty"`
	}
	var patch []operation
	for i := len(taints) - 1; i >= 0; i-- {
		if taints[i].Key == key {
			path := fmt.Sprintf("/spec/taints/%d", i)
			patch = append(patch, operation{Op: "test", Path: path + "/key", Value: key}, operation{Op: "remove", Path: path})
		}
	}
	data, err := json.Marshal(patch)
	if err != nil {
		panic(err) // strings alone
	}
	return data
}
