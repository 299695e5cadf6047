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
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	aggregator "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/permission"
	"mesh.io/clustermesh/pkg/cli/preflight"
	"mesh.io/clustermesh/pkg/cli/release"
	"mesh.io/clustermesh/pkg/cli/removal"
	"mesh.io/clustermesh/pkg/cli/workload"
	"mesh.io/clustermesh/pkg/version"
)

// uninstallOptions are the flags of uninstall.
type uninstallOptions struct {
	*options
	yes        bool
	purge      bool
	skipNodes  bool
	dryRun     bool
	agentImage string
	timeout    time.Duration
}

func newUninstall(o *options) *cobra.Command {
	u := &uninstallOptions{options: o}
	command := &cobra.Command{
		Use:     "uninstall",
		GroupID: groupSetup,
		Short:   "Remove the mesh from a cluster, and from its nodes' kernels",
		Long: `Removes everything of the mesh from a cluster: its programs and roles, the API mesh.io, what
"meshctl connect" made, and on each node the programs, maps, pins and state of the agent.
Services are left as they are: their clients get the cluster's own backends, by kube-proxy.

It works with the mesh API broken and the peers dead, and can be run again after it was
stopped, or when nodes come back that it has missed. The store's volume or folder is kept
without --purge-data. The namespace goes if "meshctl install" made it and nothing is in it
that is not the mesh's.`,
		Example: `  meshctl uninstall --context cluster1
  meshctl uninstall --context cluster1 --yes --purge-data
  meshctl uninstall --context cluster1 --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error { return u.run(command.Context()) },
	}
	flags := command.Flags()
	flags.BoolVar(&u.yes, "yes", false, "Do not ask.")
	flags.BoolVar(&u.purge, "purge-data", false, "Remove the store's volume or folder, too.")
	flags.BoolVar(&u.skipNodes, "skip-nodes", false, "Leave the nodes' kernels as they are, where no pod can be run any more.")
	flags.BoolVar(&u.dryRun, "dry-run", false, "Say what would be removed, and remove nothing.")
	flags.StringVar(&u.agentImage, "agent-image", "", "The image of mesh-agent that cleans the nodes up; by default the one that is installed.")
	flags.DurationVar(&u.timeout, "timeout", 5*time.Minute, "How long to wait in all.")
	return command
}

// remover removes the mesh from one cluster.
type remover struct {
	*target
	p       *progress
	store   *release.Store
	dynamic dynamic.Interface
	found   *found
}

// cleaned says that an earlier run has cleaned the nodes up: the record of the release,
// which goes after that, is gone, and so is all else.
func (f *found) cleaned() bool { return f.release == nil && f.agent == nil && len(f.objects) == 0 }

// found is what there is of the mesh in a cluster.
type found struct {
	objects []removal.Object
	// registered says that the API mesh.io is registered, and ours.
	registered bool
	namespace  *corev1.Namespace
	ours       bool     // install made the namespace
	foreign    []string // what is in the namespace and is not the mesh's
	claims     []string
	agent      *corev1.PodTemplateSpec
	folder     string // of the store, on a node
	peers      []string
	release    *release.Release
}

func (u *uninstallOptions) run(ctx context.Context) error {
	t, err := u.target()
	if err != nil {
		return err
	}
	p := newProgress(u.Err)
	r := &remover{target: t, p: p}
	if r.store, err = release.Open(t.REST, t.Config, t.Namespace); err != nil {
		return err
	}
	if r.dynamic, err = dynamic.NewForConfig(t.REST); err != nil {
		return fmt.Errorf("preparing to connect to %q: %w", t.Context, err)
	}
	err = p.step("Looking for the mesh in "+t.Context, func(func(string, ...any)) error {
		if err := r.permitted(ctx, lookPlan(t.Namespace)); err != nil {
			return err
		}
		if r.found, err = r.find(ctx); err != nil {
			return err
		}
		return r.permitted(ctx, r.removePlan(u))
	})
	if err != nil {
		return err
	}
	f := r.found
	if len(f.objects) == 0 && f.release == nil && !f.registered && !r.removesNamespace(u) && (!u.purge || len(f.claims) == 0) {
		p.say("There is nothing of the mesh in %s%s.", t.Context, kept(f.claims))
		return nil
	}
	u.announce(r)
	if u.dryRun {
		p.say("This was a dry run: nothing was removed.")
		return nil
	}
	if !u.yes && !u.confirmed(ctx, t.Context) {
		return errors.New("it was not confirmed: nothing was removed (--yes does not ask)")
	}
	within, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	missed, err := r.remove(within, u)
	if err != nil {
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("stopped: to remove the rest, run it again: %s", u.again(t))
		case within.Err() != nil:
			return codeError{fmt.Errorf("not done within %s: %w; to remove the rest, run it again: %s", u.timeout, err, u.again(t)), ExitTimeout}
		}
		return fmt.Errorf("%w; once the cause is gone, run it again: %s", err, u.again(t))
	}
	p.say("")
	if len(missed) > 0 {
		text := fmt.Sprintf("these nodes were not cleaned up: %s.\n", strings.Join(missed, "; "))
		if f.release == nil {
			return errors.New(text + "On each that comes back, run \"mesh-agent cleanup\"")
		}
		return fmt.Errorf("%sAll else is removed. Once they are back or no longer in the cluster, run it again: %s\n"+
			"It knows by what it has kept in namespace %s; to give the nodes up, add --skip-nodes", text, u.again(t), t.Namespace)
	}
	p.say("Removed the mesh from %s%s.", t.Context, kept(r.keptClaims(u)))
	if f.folder != "" && !u.purge {
		p.say("The store's folder %s is kept on its node: a new install with the same name and ID goes on with it.", f.folder)
	}
	if len(f.peers) > 0 {
		p.say("These clusters may still import from it; end that there with \"meshctl disconnect\": %s.", strings.Join(f.peers, ", "))
	}
	return nil
}

// again is the command line that goes on with what was stopped.
func (u *uninstallOptions) again(t *target) string {
	line := t.line("uninstall")
	if u.purge {
		line += " --purge-data"
	}
	return line
}

// permitted fails if the cluster does not let the person do what is planned.
func (r *remover) permitted(ctx context.Context, plan *permission.Plan) error {
	lacking, err := r.lacking(ctx, plan)
	if err != nil {
		return err
	}
	if lacking != "" {
		return forbidden(lacking)
	}
	return nil
}

func kept(claims []string) string {
	if len(claims) == 0 {
		return ""
	}
	return "; kept: the store's volume " + strings.Join(claims, ", ") + ", and the namespace with it (--purge-data removes them)"
}

func (r *remover) keptClaims(u *uninstallOptions) []string {
	if u.purge {
		return nil
	}
	return r.found.claims
}

// removesNamespace says whether the namespace goes, too.
func (r *remover) removesNamespace(u *uninstallOptions) bool {
	return r.found.ours && len(r.found.foreign) == 0 && len(r.keptClaims(u)) == 0
}

func (u *uninstallOptions) announce(r *remover) {
	f, p := r.found, r.p
	p.say("")
	p.say("In %s this will remove:", r.Context)
	var items, kept []string
	if f.registered {
		items = append(items, "the API mesh.io and everything in it; clients of global Services get this cluster's own backends")
	}
	if !u.skipNodes && !f.cleaned() {
		items = append(items, "what the agents programmed on the nodes")
	}
	counts := map[string]int{}
	for _, o := range f.objects {
		counts[o.Resource.Resource]++
	}
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		kinds = append(kinds, counted(counts[kind], kind))
	}
	if len(kinds) > 0 {
		items = append(items, counted(len(f.objects), "objects")+": "+strings.Join(kinds, ", "))
	}
	data := "volume " + strings.Join(f.claims, ", ")
	if f.folder != "" {
		data = "folder " + f.folder + " on its node"
	}
	switch {
	case f.folder == "" && len(f.claims) == 0:
	case u.purge:
		items = append(items, "the store's "+data+", with all data")
	case len(f.claims) > 0 && f.ours:
		kept = append(kept, "It keeps the store's "+data+", and the namespace with it; --purge-data removes them.")
	default:
		kept = append(kept, "It keeps the store's "+data+"; --purge-data removes it.")
	}
	switch {
	case !f.ours && f.namespace != nil:
		kept = append(kept, fmt.Sprintf("It keeps namespace %s, which install did not make.", r.Namespace))
	case len(f.foreign) > 0:
		kept = append(kept, fmt.Sprintf("It keeps namespace %s, where there is more than the mesh: %s.", r.Namespace, preflight.Listed(f.foreign)))
	case r.removesNamespace(u):
		items = append(items, "namespace "+r.Namespace)
	}
	for i, item := range items {
		end := ";"
		if i == len(items)-1 {
			end = "."
		}
		p.say("  - %s%s", item, end)
	}
	for _, line := range kept {
		p.say("%s", line)
	}
	p.say("")
}

// counted is a number of what the plural names.
func counted(n int, plural string) string {
	if n == 1 {
		if stem, ok := strings.CutSuffix(plural, "ies"); ok {
			plural = stem + "y"
		} else {
			plural = strings.TrimSuffix(plural, "s")
		}
	}
	return fmt.Sprintf("%d %s", n, plural)
}

// confirmed asks the person. An answer that never comes does not keep Ctrl-C from ending it.
func (u *uninstallOptions) confirmed(ctx context.Context, context string) bool {
	fmt.Fprintf(u.Err, "Remove the mesh from %s? [y/N] ", context)
	answers := make(chan string, 1)
	go func() {
		answer, _ := bufio.NewReader(u.In).ReadString('\n')
		answers <- strings.ToLower(strings.TrimSpace(answer))
	}()
	select {
	case answer := <-answers:
		return answer == "y" || answer == "yes"
	case <-ctx.Done():
		fmt.Fprintln(u.Err)
		return false
	}
}

// find reads what there is of the mesh. It asks the mesh API nothing that it needs.
func (r *remover) find(ctx context.Context) (*found, error) {
	f := &found{}
	var err error
	ns, err := r.Kube.CoreV1().Namespaces().Get(ctx, r.Namespace, metav1.GetOptions{})
	switch {
	case err == nil:
		f.namespace, f.ours = ns, ns.Labels[managedByLabel] == managedByValue
	case !apierrors.IsNotFound(err):
		return nil, fmt.Errorf("reading namespace %s: %w", r.Namespace, err)
	}
	if f.release, err = r.store.Last(); err != nil {
		return nil, err
	}
	if f.registered, err = r.findRegistration(ctx); err != nil {
		return nil, err
	}
	for _, kind := range removal.Kinds {
		for _, namespace := range kind.Where(r.Namespace) {
			client := dynamic.ResourceInterface(r.dynamic.Resource(kind.GroupVersionResource))
			if namespace != metav1.NamespaceNone {
				client = r.dynamic.Resource(kind.GroupVersionResource).Namespace(namespace)
			}
			list, err := client.List(ctx, metav1.ListOptions{})
			if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) && kind.Optional {
				continue // the cluster has no such kind
			}
			if err != nil {
				return nil, fmt.Errorf("looking for %s: %w", kind.Resource, err)
			}
			for i := range list.Items {
				if o := &list.Items[i]; removal.Ours(kind.Resource, o, r.Namespace) {
					f.objects = append(f.objects, removal.Object{Resource: kind.GroupVersionResource, Namespace: o.GetNamespace(), Name: o.GetName()})
				}
			}
		}
	}
	if f.ours {
		if f.foreign, err = r.findForeign(ctx); err != nil {
			return nil, err
		}
	}
	return f, r.findData(ctx, f)
}

// findForeign looks for what else is in the namespace, of whatever kind: it would go with
// the namespace.
func (r *remover) findForeign(ctx context.Context) ([]string, error) {
	config := rest.CopyConfig(r.REST)
	config.QPS = -1                           // one question for each kind, and nothing more
	config.WarningHandler = rest.NoWarnings{} // of kinds that are deprecated
	client, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("preparing to connect to %q: %w", r.Context, err)
	}
	// A group whose API is down is left out: what it has cannot be seen, and would be
	// waited for by Kubernetes itself.
	kinds, err := r.Kube.Discovery().ServerPreferredNamespacedResources()
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		return nil, fmt.Errorf("asking %q for its kinds of objects: %w", r.Context, err)
	}
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		foreign []string
		turns   = make(chan struct{}, askAtOnce)
	)
	say := func(text string) {
		mu.Lock()
		defer mu.Unlock()
		foreign = append(foreign, text)
	}
	for _, list := range discovery.FilteredBy(discovery.SupportsAllVerbs{Verbs: []string{"list", "delete"}}, kinds) {
		group, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil || group.Group == v1alpha1.SchemeGroupVersion.Group {
			continue
		}
		for _, kind := range list.APIResources {
			turns <- struct{}{}
			wg.Go(func() {
				defer func() { <-turns }()
				resource := group.WithResource(kind.Name)
				found, err := client.Resource(resource).Namespace(r.Namespace).List(ctx, metav1.ListOptions{})
				switch {
				case apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err):
					return
				case err != nil:
					// Nothing is removed on doubt.
					say(kind.Name + " that cannot be listed")
					return
				}
				for i := range found.Items {
					if o := &found.Items[i]; removal.Foreign(resource, o, r.Namespace) {
						say(strings.ToLower(kind.Kind) + " " + o.Name)
					}
				}
			})
		}
	}
	wg.Wait()
	slices.Sort(foreign)
	return slices.Compact(foreign), ctx.Err()
}

// findData looks for the store's data, the agent's pods and the peers.
func (r *remover) findData(ctx context.Context, f *found) error {
	claims, err := r.Kube.CoreV1().PersistentVolumeClaims(r.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("looking for the store's volume: %w", err)
	}
	for i := range claims.Items {
		if name := claims.Items[i].Name; strings.HasPrefix(name, "data-"+workload.APIServer+"-") {
			f.claims = append(f.claims, name)
		} else {
			f.foreign = append(f.foreign, "persistentvolumeclaim "+name)
		}
	}
	if f.release != nil {
		if release.At(f.release.Config, "persistence", "type") == "hostPath" {
			f.folder = "/var/lib/" + workload.APIServer
			if folder, ok := release.At(f.release.Config, "persistence", "hostPath", "path").(string); ok && folder != "" {
				f.folder = path.Clean(folder)
			}
		}
	}
	var agent *appsv1.DaemonSet
	agent, err = r.Kube.AppsV1().DaemonSets(r.Namespace).Get(ctx, workload.Agent, metav1.GetOptions{})
	switch {
	case err == nil:
		f.agent = &agent.Spec.Template
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("reading the DaemonSet %s: %w", workload.Agent, err)
	case f.release != nil:
		f.agent = removal.AgentOf(f.release.Manifest)
	}
	// Whom to tell that they are left. It is no matter if it cannot be read.
	brief, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if members, err := r.Mesh.MeshV1alpha1().MeshClusters().List(brief, metav1.ListOptions{}); err == nil {
		for i := range members.Items {
			if members.Items[i].Spec.KubeconfigSecretRef != nil {
				f.peers = append(f.peers, members.Items[i].Name)
			}
		}
	}
	return nil
}

// remove removes it all, in the order that leaves nothing stuck: first the registration
// of the API, without which a namespace could not go while the API is down; then what
// the agents did; then the rest; at last the record of the release and the namespace.
func (r *remover) remove(ctx context.Context, u *uninstallOptions) (missed []string, err error) {
	f := r.found
	if f.release != nil {
		if err := r.store.Leave(f.release); err != nil {
			return nil, err
		}
	}
	if f.registered {
		err = r.p.step("Removing the API mesh.io", func(func(string, ...any)) error { return r.removeRegistration(ctx) })
		if err != nil {
			return nil, err
		}
	}
	err = r.p.step("Stopping the mesh's programs", func(note func(string, ...any)) error {
		for _, o := range f.objects {
			if removal.Runs(o) {
				if err := r.delete(ctx, o); err != nil {
					return err
				}
			}
		}
		r.hurry(ctx)
		return r.awaitStopped(ctx, note)
	})
	if err != nil {
		return nil, err
	}
	if !u.skipNodes && !f.cleaned() {
		err = r.p.step("Cleaning up the nodes", func(note func(string, ...any)) error {
			missed, err = r.cleanNodes(ctx, u, note)
			return err
		})
		if err != nil {
			return missed, err
		}
	}
	err = r.p.step("Removing the mesh's objects", func(func(string, ...any)) error {
		for _, o := range f.objects {
			if err := r.delete(ctx, o); err != nil {
				return err
			}
		}
		if u.purge {
			for _, name := range f.claims {
				if err := r.delete(ctx, removal.Object{Resource: removal.Claims, Namespace: r.Namespace, Name: name}); err != nil {
					return err
				}
			}
		}
		if len(missed) > 0 {
			// The record says how to clean up the nodes that were missed.
			return nil
		}
		return r.store.Forget()
	})
	if err != nil || len(missed) > 0 || !r.removesNamespace(u) {
		return missed, err
	}
	return missed, r.p.step("Removing namespace "+r.Namespace, func(note func(string, ...any)) error {
		namespaces := r.Kube.CoreV1().Namespaces()
		if err := namespaces.Delete(ctx, r.Namespace, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("removing namespace %s: %w", r.Namespace, err)
		}
		return every(ctx, stepEvery, func() (bool, error) {
			ns, err := namespaces.Get(ctx, r.Namespace, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return true, nil
			}
			if err == nil {
				for _, c := range ns.Status.Conditions {
					if c.Status == corev1.ConditionTrue {
						note("%s", c.Message)
					}
				}
			}
			return false, nil
		})
	})
}

// findRegistration looks for the registration of the mesh API, and whether it is ours.
func (r *remover) findRegistration(ctx context.Context) (ours bool, err error) {
	client, err := aggregator.NewForConfig(r.REST)
	if err != nil {
		return false, fmt.Errorf("preparing to connect to %q: %w", r.Context, err)
	}
	s, err := client.ApiregistrationV1().APIServices().Get(ctx, meshAPIService, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("reading APIService %s: %w", meshAPIService, err)
	case s.Spec.Service == nil || s.Spec.Service.Namespace != r.Namespace || s.Spec.Service.Name != workload.APIServer:
		r.p.say("    APIService %s is somebody else's: it is kept.", meshAPIService)
		return false, nil
	}
	return true, nil
}

// removeRegistration removes the registration of the mesh API, if it is ours.
func (r *remover) removeRegistration(ctx context.Context) error {
	if ours, err := r.findRegistration(ctx); err != nil || !ours {
		return err
	}
	return r.delete(ctx, removal.Object{Resource: removal.Registrations, Name: meshAPIService})
}

func (r *remover) delete(ctx context.Context, o removal.Object) error {
	client := dynamic.ResourceInterface(r.dynamic.Resource(o.Resource))
	if o.Namespace != "" {
		client = r.dynamic.Resource(o.Resource).Namespace(o.Namespace)
	}
	background := metav1.DeletePropagationBackground
	if err := client.Delete(ctx, o.Name, metav1.DeleteOptions{PropagationPolicy: &background}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("removing %s %s: %w", o.Resource.Resource, o.Name, err)
	}
	return nil
}

// hurry gives the pods that are to go less time than they would take to pass their
// clients on: there is nothing left to pass them on to. What the store has answered for
// is on its disk whatever happens.
func (r *remover) hurry(ctx context.Context) {
	grace := int64(5)
	selector := workload.NameLabel + " in (" + workload.APIServer + "," + workload.Controller + ")"
	_ = r.Kube.CoreV1().Pods(r.Namespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &grace}, metav1.ListOptions{LabelSelector: selector})
}

// awaitStopped waits until no program of the mesh runs on a node that answers. Pods of
// nodes that don't are forced out: nothing else would ever end them.
func (r *remover) awaitStopped(ctx context.Context, note func(string, ...any)) error {
	return every(ctx, stepEvery, func() (bool, error) {
		pods, err := r.Kube.CoreV1().Pods(r.Namespace).List(ctx, metav1.ListOptions{LabelSelector: partOf})
		if err != nil {
			return false, nil
		}
		nodes, err := r.nodes(ctx)
		if err != nil {
			return false, nil
		}
		left := 0
		for i := range pods.Items {
			pod := &pods.Items[i]
			if pod.Labels[workload.NameLabel] == removal.CleanupName {
				continue
			}
			if node, ok := nodes[pod.Spec.NodeName]; pod.Spec.NodeName != "" && (!ok || removal.NodeTrouble(&node) != "") {
				now := int64(0)
				_ = r.Kube.CoreV1().Pods(r.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
				continue
			}
			left++
		}
		note("%d pods are still there", left)
		return left == 0, nil
	})
}

func (r *remover) nodes(ctx context.Context) (map[string]corev1.Node, error) {
	list, err := r.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the nodes: %w", err)
	}
	nodes := map[string]corev1.Node{}
	for _, n := range list.Items {
		nodes[n.Name] = n
	}
	return nodes, nil
}

// cleanNodes runs "mesh-agent cleanup" once on each node, and says which it missed.
func (r *remover) cleanNodes(ctx context.Context, u *uninstallOptions, note func(string, ...any)) ([]string, error) {
	nodes, err := r.nodes(ctx)
	if err != nil || r.found.namespace == nil || r.found.namespace.DeletionTimestamp != nil {
		return nil, err
	}
	template := r.found.agent
	if u.agentImage != "" || template == nil {
		image := u.agentImage
		if image == "" {
			image = "mesh.io/mesh-agent:" + version.String()
		}
		template = removal.PlainAgent(image)
	}
	folder := ""
	if u.purge {
		folder = r.found.folder
	}
	pods := r.Kube.CoreV1().Pods(r.Namespace)
	waiting := map[string]string{} // node by pod
	var missed []string
	for _, node := range nodes {
		if trouble := removal.NodeTrouble(&node); trouble != "" {
			if trouble != removal.NotLinux {
				missed = append(missed, node.Name+" ("+trouble+")")
			}
			continue
		}
		pod := removal.CleanupPod(template, r.Namespace, &node, folder)
		now := int64(0)
		_ = pods.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
		err := every(ctx, stepEvery, func() (bool, error) {
			_, err := pods.Create(ctx, pod, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				return false, nil // an earlier run's is going
			}
			return err == nil, err
		})
		if err != nil {
			return missed, fmt.Errorf("starting the cleanup of node %s: %w", node.Name, err)
		}
		waiting[pod.Name] = node.Name
	}
	total := len(waiting)
	limit, cancel := context.WithTimeout(ctx, removal.NodeTimeout)
	defer cancel()
	last := map[string]string{}
	err = every(limit, stepEvery, func() (bool, error) {
		list, err := pods.List(limit, metav1.ListOptions{LabelSelector: workload.NameLabel + "=" + removal.CleanupName})
		if err != nil {
			return false, nil
		}
		for i := range list.Items {
			pod := &list.Items[i]
			node, ok := waiting[pod.Name]
			if !ok {
				continue
			}
			switch done, why := removal.Outcome(pod); {
			case done && why == "":
				delete(waiting, pod.Name)
			case done:
				missed = append(missed, node+" ("+why+r.lastLine(ctx, pod.Name)+")")
				delete(waiting, pod.Name)
			default:
				last[pod.Name] = why
			}
		}
		note("%d of %d nodes", total-len(waiting), total)
		return len(waiting) == 0, nil
	})
	if ctx.Err() != nil {
		return missed, ctx.Err()
	}
	if err != nil {
		for pod, node := range waiting {
			missed = append(missed, fmt.Sprintf("%s (not within %s: %s)", node, removal.NodeTimeout, last[pod]))
		}
	}
	slices.Sort(missed)
	now := int64(0)
	list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: workload.NameLabel + "=" + removal.CleanupName})
	if err != nil {
		return missed, fmt.Errorf("removing what cleaned up the nodes: %w", err)
	}
	for i := range list.Items {
		if err := pods.Delete(ctx, list.Items[i].Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil && !apierrors.IsNotFound(err) {
			return missed, fmt.Errorf("removing what cleaned up the nodes: %w", err)
		}
	}
	return missed, nil
}

// lastLine is the last line that a pod printed, after a colon, or "".
func (r *remover) lastLine(ctx context.Context, pod string) string {
	content, err := r.Kube.CoreV1().Pods(r.Namespace).GetLogs(pod, &corev1.PodLogOptions{}).DoRaw(ctx)
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	if err != nil || lines[len(lines)-1] == "" {
		return ""
	}
	return ": " + lines[len(lines)-1]
}

// every asks again and again until it is so, or the time is over.
func every(ctx context.Context, period time.Duration, ask func() (bool, error)) error {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		if done, err := ask(); err != nil || done {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}
