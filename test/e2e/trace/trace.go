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

// Package trace takes pictures of all that there is in a cluster of the lab, on its API
// and on its nodes, and compares them. So a test sees what an installation leaves behind,
// also where nobody thought of looking.
package trace

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Lab is where the cluster is.
type Lab struct {
	Kubeconfig string // with a context named as each cluster
	Program    string // path of the program "lab", which is beside the others
	StateDir   string // of the lab; "" is the default one
}

// Picture is what there is in a cluster: what it is called, and what it is like.
type Picture map[string]string

// Take takes a picture of a cluster. What changes by itself is not in it: status, Events,
// Leases, versions of objects, numbers of processes.
func (l Lab) Take(ctx context.Context, cluster string) (Picture, error) {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: l.Kubeconfig}, &clientcmd.ConfigOverrides{CurrentContext: cluster}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("taking a picture of %s: %w", cluster, err)
	}
	config.QPS, config.Burst = 200, 200
	config.WarningHandler = rest.NoWarnings{} // old kinds are looked at, too
	p := Picture{}
	if err := p.takeAPI(ctx, config); err != nil {
		return nil, fmt.Errorf("taking a picture of the API of %s: %w", cluster, err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("taking a picture of %s: %w", cluster, err)
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("taking a picture of %s: %w", cluster, err)
	}
	for i := range nodes.Items {
		if err := l.takeNode(ctx, p, nodes.Items[i].Name); err != nil {
			return nil, fmt.Errorf("taking a picture of node %s: %w", nodes.Items[i].Name, err)
		}
	}
	return p, nil
}

// Differences are what a later picture has more, less and otherwise, a line each.
func (p Picture) Differences(later Picture) []string {
	var lines []string
	for name, now := range later {
		if was, ok := p[name]; !ok {
			lines = append(lines, "left: "+name+" "+now)
		} else if was != now {
			lines = append(lines, "changed: "+name+"\n"+cmp.Diff(was, now))
		}
	}
	for name, was := range p {
		if _, ok := later[name]; !ok {
			lines = append(lines, "gone: "+name+" "+was)
		}
	}
	slices.Sort(lines)
	return lines
}

// Settled takes pictures until there is no difference from an earlier one, and returns
// what still differs when patience has an end: kubelets and garbage collectors tidy up
// some seconds after.
func (l Lab) Settled(ctx context.Context, cluster string, before Picture, patience time.Duration) ([]string, error) {
	for began := time.Now(); ; {
		now, err := l.Take(ctx, cluster)
		if err != nil {
			return nil, err
		}
		lines := before.Differences(now)
		if len(lines) == 0 || time.Since(began) > patience {
			return lines, nil
		}
		select {
		case <-ctx.Done():
			return lines, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}
