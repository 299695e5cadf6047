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
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"mesh.io/clustermesh/pkg/cli/remote"
	"mesh.io/clustermesh/pkg/generated/clientset/versioned"
)

// DefaultNamespace is where the mesh's programs run, unless it is said otherwise.
const DefaultNamespace = "mesh-system"

// options are what all commands share.
type options struct {
	Streams
	kubeconfig string
	context    string
	contexts   []string
	namespace  string
}

func (o *options) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "Path to the kubeconfig file; by default $KUBECONFIG, then ~/.kube/config.")
	flags.StringVar(&o.context, "context", "", "The kubeconfig context of the cluster to work on; by default the current one.")
	flags.StringVar(&o.namespace, "mesh-namespace", DefaultNamespace, "The namespace that the mesh's programs run in.")
}

// target is one cluster that a command works on.
type target struct {
	// Context is the kubeconfig context, by which people know the cluster.
	Context string
	// Namespace is the mesh's own.
	Namespace string
	// REST is the way to its kube-apiserver.
	REST *rest.Config
	Kube kubernetes.Interface
	// Mesh is the mesh API as people reach it: through the kube-apiserver.
	Mesh versioned.Interface
	// Config is the kubeconfig with the context as the current one.
	Config clientcmd.ClientConfig

	clock struct {
		sync.Once
		ahead time.Duration
	}
}

// clockAhead is how far the cluster's clock is ahead of this machine's, as far as that
// can be told. It is asked for once.
func (t *target) clockAhead(ctx context.Context) time.Duration {
	t.clock.Do(func() {
		if ahead, within, err := remote.Clock(ctx, t.REST); err == nil && ahead.Abs() > within {
			t.clock.ahead = ahead
		}
	})
	return t.clock.ahead
}

// line is the beginning of a command line that works on the same mesh.
func (t *target) line(command string) string {
	line := "meshctl " + command + " --context " + t.Context
	if t.Namespace != DefaultNamespace {
		line += " --mesh-namespace " + t.Namespace
	}
	return line
}

func (o *options) loadingRules() *clientcmd.ClientConfigLoadingRules {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	return rules
}

// target returns the cluster of --context.
func (o *options) target() (*target, error) { return o.targetOf(o.context) }

// addContexts adds --contexts to a command that looks at several clusters at once.
func (o *options) addContexts(command *cobra.Command) {
	command.Flags().StringSliceVar(&o.contexts, "contexts", nil, "The kubeconfig contexts of several clusters, separated by commas; in the place of --context.")
}

// targets returns the clusters of --contexts; without it there is one, that of
// --context.
func (o *options) targets() ([]*target, error) {
	if len(o.contexts) > 0 && o.context != "" {
		return nil, usage("--context and --contexts exclude each other")
	}
	contexts := o.contexts
	if len(contexts) == 0 {
		contexts = []string{o.context}
	}
	var targets []*target
	for i, context := range contexts {
		if context == "" && len(o.contexts) > 0 || slices.Contains(contexts[:i], context) {
			return nil, usage("--contexts names each context once: %q", o.contexts)
		}
		t, err := o.targetOf(context)
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	return targets, nil
}

// targetOf returns the cluster of a context; the current one if it is empty.
func (o *options) targetOf(context string) (*target, error) {
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(o.loadingRules(), &clientcmd.ConfigOverrides{CurrentContext: context})
	raw, err := loader.RawConfig()
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	if context == "" {
		context = raw.CurrentContext
	}
	if _, ok := raw.Contexts[context]; !ok {
		return nil, usage("the kubeconfig has no context %q: it has %v", context, contextNames(&raw))
	}
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("reading context %q of the kubeconfig: %w", context, err)
	}
	// A person waits for the answers: the usual limits are for controllers.
	config.QPS, config.Burst = 50, 100
	config.WarningHandler = rest.NewWarningWriter(o.Err, rest.WarningWriterOptions{Deduplicate: true})
	t := &target{Context: context, Namespace: o.namespace, REST: config, Config: loader}
	if t.Kube, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("preparing to connect to %q: %w", context, err)
	}
	if t.Mesh, err = versioned.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("preparing to connect to %q: %w", context, err)
	}
	return t, nil
}

func contextNames(config *clientcmdapi.Config) []string {
	return slices.Sorted(maps.Keys(config.Contexts))
}
