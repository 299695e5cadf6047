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
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/cli/preflight"
)

// addCompletion adds cobra's own completion command, and examples to it.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd("completion")
	bash := `  mkdir -p ~/.local/share/bash-completion/completions
  meshctl completion bash > ~/.local/share/bash-completion/completions/meshctl`
	examples := map[string]string{
		"completion": bash,
		"bash":       bash,
		"zsh": `  # With these in ~/.zshrc: fpath=(~/.zsh $fpath); autoload -U compinit; compinit
  mkdir -p ~/.zsh
  meshctl completion zsh > ~/.zsh/_meshctl`,
		"fish": `  mkdir -p ~/.config/fish/completions
  meshctl completion fish > ~/.config/fish/completions/meshctl.fish`,
		"powershell": `  # With this in the profile: . ~/meshctl.ps1
  meshctl completion powershell > ~/meshctl.ps1`,
	}
	for _, c := range root.Commands() {
		if c.Name() != "completion" {
			continue
		}
		c.Example = examples[c.Name()]
		for _, shell := range c.Commands() {
			shell.Example = examples[shell.Name()]
		}
	}
}

// completionTimeout is how long a person waits for a cluster that does not answer.
const completionTimeout = 3 * time.Second

// completion is what a flag or an argument is completed by.
type completion func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// complete makes all flags and arguments of a command and those below it complete
// themselves: from the kubeconfig, from a cluster, or by nothing. What is not named here
// is a file or a word that nobody can guess.
func complete(command *cobra.Command, o *options) {
	var checks []string
	for _, check := range preflight.Checks {
		checks = append(checks, check.Name)
	}
	flags := map[string]completion{
		"context": o.completeContexts, "destination-context": o.completeContexts, "multi-cluster": o.completeContexts,
		"contexts": list(o.completeContexts), "mesh-contexts": list(o.completeContexts),
		"cluster": o.ask(clusters), "to": list(o.ask(clusters)), "peer": o.ask(peers),
		"node": o.ask(nodes), "from": o.ask(clusterNodes),
		"mesh-namespace": o.ask(namespaces), "skip-check": list(fixed(checks...)), "node-address": fixed("internal", "external"),
	}
	files := []string{"kubeconfig", "values", "output-file"}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			do, known := flags[f.Name]
			switch {
			case f.Name == "namespace" && c.Name() == "list":
				do = o.ask(namespaces)
			case !known && (f.NoOptDefVal != "" || slices.Contains(files, f.Name)):
				return
			case !known:
				do = fixed()
			}
			// An error says that the command has completed the flag itself.
			_ = c.RegisterFlagCompletionFunc(f.Name, do)
		})
		if c.ValidArgsFunction == nil && len(c.ValidArgs) == 0 && !c.HasSubCommands() {
			c.ValidArgsFunction = cobra.NoFileCompletions
		}
		for _, child := range c.Commands() {
			visit(child)
		}
	}
	visit(command)
}

// fixed offers some words.
func fixed(words ...string) completion {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

// list completes the last one of several values, which commas separate.
func list(one completion) completion {
	return func(command *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		before := begun[:strings.LastIndex(begun, ",")+1]
		found, directive := one(command, args, begun[len(before):])
		var offered []string
		for _, value := range found {
			if !slices.Contains(strings.Split(before, ","), value) {
				offered = append(offered, before+value)
			}
		}
		return offered, directive | cobra.ShellCompDirectiveNoSpace
	}
}

// completeContexts offers the contexts of the kubeconfig.
func (o *options) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	raw, err := o.loadingRules().Load()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return contextNames(raw), cobra.ShellCompDirectiveNoFileComp
}

// completeServices offers services as the first argument.
func (o *options) completeServices(command *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return o.ask(services)(command, args, begun)
}

// ask offers what the clusters of --context or --contexts answer in time.
func (o *options) ask(question func(context.Context, *target) ([]string, error)) completion {
	return func(command *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		// For a completion cobra reads the flags twice, which adds to lists.
		slices.Sort(o.contexts)
		o.contexts = slices.Compact(o.contexts)
		targets, err := o.targets()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		ctx, cancel := context.WithTimeout(command.Context(), completionTimeout)
		defer cancel()
		answers := make([][]string, len(targets))
		var group sync.WaitGroup
		for i, t := range targets {
			group.Go(func() { answers[i], _ = question(ctx, t) })
		}
		group.Wait()
		found := slices.Concat(answers...)
		slices.Sort(found)
		return slices.Compact(found), cobra.ShellCompDirectiveNoFileComp
	}
}

// fromCache is enough for a completion, and the cheapest for a server.
var fromCache = metav1.ListOptions{ResourceVersion: "0"}

func services(ctx context.Context, t *target) (names []string, err error) {
	all, err := t.Mesh.MeshV1alpha1().GlobalServices(metav1.NamespaceAll).List(ctx, fromCache)
	if err != nil {
		return nil, err
	}
	for i := range all.Items {
		names = append(names, all.Items[i].Namespace+"/"+all.Items[i].Name)
	}
	return names, nil
}

func clusters(ctx context.Context, t *target) (names []string, err error) {
	all, err := t.Mesh.MeshV1alpha1().MeshClusters().List(ctx, fromCache)
	if err != nil {
		return nil, err
	}
	for i := range all.Items {
		names = append(names, all.Items[i].Name)
	}
	return names, nil
}

func peers(ctx context.Context, t *target) (names []string, err error) {
	all, err := t.Mesh.MeshV1alpha1().MeshClusters().List(ctx, fromCache)
	if err != nil {
		return nil, err
	}
	for i := range all.Items {
		if all.Items[i].Spec.KubeconfigSecretRef != nil {
			names = append(names, all.Items[i].Name)
		}
	}
	return names, nil
}

func nodes(ctx context.Context, t *target) (names []string, err error) {
	all, err := t.Kube.CoreV1().Nodes().List(ctx, fromCache)
	if err != nil {
		return nil, err
	}
	for i := range all.Items {
		names = append(names, all.Items[i].Name)
	}
	return names, nil
}

// clusterNodes are nodes with the name that their cluster has in the mesh.
func clusterNodes(ctx context.Context, t *target) ([]string, error) {
	cluster, err := t.ownName(ctx)
	if err != nil {
		cluster = t.Context
	}
	names, err := nodes(ctx, t)
	for i := range names {
		names[i] = cluster + "/" + names[i]
	}
	return names, err
}

func namespaces(ctx context.Context, t *target) (names []string, err error) {
	all, err := t.Kube.CoreV1().Namespaces().List(ctx, fromCache)
	if err != nil {
		return nil, err
	}
	for i := range all.Items {
		names = append(names, all.Items[i].Name)
	}
	return names, nil
}
