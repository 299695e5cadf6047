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

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/agent/dump"
)

// agentName is the name of the agent's container, and the label of its pods.
const agentName = "mesh-agent"

// agents lists the agents' pods of a cluster, or of one of its nodes.
func (t *target) agents(ctx context.Context, node string) ([]corev1.Pod, error) {
	options := metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + agentName}
	if node != "" {
		options.FieldSelector = "spec.nodeName=" + node
	}
	pods, err := t.Kube.CoreV1().Pods(t.Namespace).List(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("listing the agents of %q: %w", t.Context, err)
	}
	slices.SortFunc(pods.Items, func(a, b corev1.Pod) int {
		// Of two on one node, as in an update, the one that is there to stay comes first.
		if (a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) {
			if a.DeletionTimestamp == nil {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Spec.NodeName, b.Spec.NodeName)
	})
	return pods.Items, nil
}

// dump reads the kernel's table of a node through its agent's pod; of one service,
// namespace/name, if any is named.
func (t *target) dump(ctx context.Context, pod *corev1.Pod, service string) (*dump.Document, error) {
	command := []string{"mesh-agent", "dump", "-o", "json"}
	if service != "" {
		command = append(command, "--service", service)
	}
	out, err := t.exec(ctx, pod, command)
	if err != nil {
		return nil, fmt.Errorf("reading the kernel's table of node %s: %w", pod.Spec.NodeName, err)
	}
	var document dump.Document
	if err := json.Unmarshal(out, &document); err != nil {
		return nil, fmt.Errorf("reading the kernel's table of node %s: it is no document: %w", pod.Spec.NodeName, err)
	}
	return &document, nil
}

// exec runs a command in the agent's container and returns what it printed.
func (t *target) exec(ctx context.Context, pod *corev1.Pod, command []string) ([]byte, error) {
	return t.remote().Exec(ctx, pod.Namespace, pod.Name, agentName, command...)
}

// agentOf is the agent's pod of a node.
func (t *target) agentOf(ctx context.Context, node string) (*corev1.Pod, error) {
	pods, err := t.agents(ctx, node)
	if err != nil {
		return nil, err
	}
	if len(pods) > 0 {
		return &pods[0], nil
	}
	_, err = t.Kube.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("%q has no node %q", t.Context, node)
	case err != nil && !apierrors.IsForbidden(err):
		return nil, fmt.Errorf("reading node %q: %w", node, err)
	}
	return nil, errors.New("no mesh-agent runs on node " + node + ": is the mesh installed, and may its pods run there?")
}
