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
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	aggregator "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"

	"mesh.io/clustermesh/pkg/cli/status"
	"mesh.io/clustermesh/pkg/cli/workload"
	"mesh.io/clustermesh/pkg/layout"
)

const (
	// meshAPIService is the registration of the mesh API.
	meshAPIService = "v1alpha1.mesh.io"
	// meshConfig is the ConfigMap that says who a cluster is.
	meshConfig = "mesh-config"
	// partOf is on everything that belongs to the mesh.
	partOf = "app.kubernetes.io/part-of=clustermesh"

	// lookTimeout bounds each question to a cluster, as one that is gone may never answer.
	lookTimeout = 10 * time.Second
	// lookEvery is how often is looked for what is waited for.
	lookEvery = time.Second
)

func newStatus(o *options) *cobra.Command {
	var (
		as      output
		wait    bool
		timeout time.Duration
	)
	command := &cobra.Command{
		Use:     "status",
		GroupID: groupLook,
		Short:   "Show the state of the mesh in one cluster, or in several side by side",
		Long: `Shows the state of the mesh: its programs, the mesh API and its store, the nodes
that are programmed, the peers, the global services, and warnings with what to do about
each. Several contexts are shown side by side as one mesh.

The exit code is 3 while a cluster is not healthy, and 4 when it has not become so within
--timeout.`,
		Example: `  meshctl status
  meshctl status --context cluster1
  meshctl status --contexts cluster1,cluster2 --wait
  meshctl status --contexts cluster1,cluster2 -o json`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			targets, err := o.targets()
			if err != nil {
				return err
			}
			report := lookAt(command.Context(), targets)
			var late error
			if wait && !report.Healthy {
				report, late = o.awaitHealth(command.Context(), targets, timeout)
			}
			if err := command.Context().Err(); err != nil {
				return err
			}
			if err := as.print(o.Out, report, func(w io.Writer) error { return status.Write(w, layout.Width(w), time.Now(), report) }); err != nil {
				return err
			}
			switch {
			case late != nil:
				return late
			case !report.Healthy:
				return unmet("the mesh is not healthy")
			}
			return nil
		},
	}
	command.Flags().BoolVar(&wait, "wait", false, "Wait until everything is healthy.")
	command.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "How long to wait, with --wait.")
	o.addContexts(command)
	addOutput(command, &as)
	return command
}

// awaitHealth waits until all clusters are healthy. It tells what is missing when that
// changes.
func (o *options) awaitHealth(ctx context.Context, targets []*target, timeout time.Duration) (*status.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var report *status.Report
	err := newProgress(o.Err).step("Waiting for the mesh to be healthy", func(note func(string, ...any)) error {
		ticker := time.NewTicker(lookEvery)
		defer ticker.Stop()
		for {
			if now := lookAt(ctx, targets); ctx.Err() == nil || report == nil {
				report = now
			}
			if report.Healthy {
				return nil
			}
			note("%s", report.Missing())
			select {
			case <-ctx.Done():
				return codeError{fmt.Errorf("the mesh has not become healthy within %s: %s", timeout, report.Missing()), ExitTimeout}
			case <-ticker.C:
			}
		}
	})
	return report, err
}

// lookAt judges clusters, all at the same time.
func lookAt(ctx context.Context, targets []*target) *status.Report {
	observed := make([]status.Observed, len(targets))
	var wg sync.WaitGroup
	for i, t := range targets {
		wg.Go(func() { observed[i] = t.observe(ctx) })
	}
	wg.Wait()
	return status.Build(time.Now(), observed)
}

// observe reads what the state of a cluster is judged by.
func (t *target) observe(ctx context.Context) status.Observed {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	o := status.Observed{Context: t.Context, Namespace: t.Namespace, GlobalServices: -1}
	// The first question shows whether anybody answers.
	config, err := t.Kube.CoreV1().ConfigMaps(t.Namespace).Get(ctx, meshConfig, metav1.GetOptions{})
	switch {
	case err == nil:
		o.Config = config.Data
	case !apierrors.IsNotFound(err):
		o.Unreachable = err.Error()
		return o
	}
	o.ClockAhead = t.clockAhead(ctx)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	ask := func(f func() error) {
		wg.Go(func() {
			if err := f(); err != nil && !apierrors.IsNotFound(err) {
				mu.Lock()
				failed = append(failed, err)
				mu.Unlock()
			}
		})
	}
	add := func(s workload.State) {
		mu.Lock()
		o.Workloads = append(o.Workloads, s)
		mu.Unlock()
	}
	ask(func() error { return t.observeServer(ctx, &o, add) })
	ask(func() error {
		d, err := t.Kube.AppsV1().Deployments(t.Namespace).Get(ctx, workload.Controller, metav1.GetOptions{})
		if err == nil {
			add(workload.OfDeployment(d))
		}
		return err
	})
	ask(func() error {
		d, err := t.Kube.AppsV1().DaemonSets(t.Namespace).Get(ctx, workload.Agent, metav1.GetOptions{})
		if err == nil {
			add(workload.OfDaemonSet(d))
		}
		return err
	})
	ask(func() error {
		client, err := aggregator.NewForConfig(t.REST)
		if err != nil {
			return err
		}
		s, err := client.ApiregistrationV1().APIServices().Get(ctx, meshAPIService, metav1.GetOptions{})
		if err == nil {
			o.APIService = s
		}
		return err
	})
	ask(func() error {
		list, err := t.Kube.CoreV1().Pods(t.Namespace).List(ctx, metav1.ListOptions{LabelSelector: partOf})
		if err == nil {
			o.Pods = list.Items
			t.observeReadiness(ctx, &o)
		}
		return err
	})
	ask(func() error { t.observeMembers(ctx, &o); return nil })
	wg.Wait()
	for _, err := range failed {
		o.Unread = append(o.Unread, err.Error())
	}
	slices.Sort(o.Unread)
	return o
}

// observeServer reads the workload of the mesh API server, whichever kind it is.
func (t *target) observeServer(ctx context.Context, o *status.Observed, add func(workload.State)) error {
	set, err := t.Kube.AppsV1().StatefulSets(t.Namespace).Get(ctx, workload.APIServer, metav1.GetOptions{})
	if err == nil {
		o.External = externalStore(&set.Spec.Template)
		add(workload.OfStatefulSet(set))
		return nil
	}
	if !apierrors.IsNotFound(err) {
		return err
	}
	d, err := t.Kube.AppsV1().Deployments(t.Namespace).Get(ctx, workload.APIServer, metav1.GetOptions{})
	if err == nil {
		o.External = externalStore(&d.Spec.Template)
		add(workload.OfDeployment(d))
	}
	return err
}

// externalStore says whether a mesh API server is told to use an etcd of somebody else.
func externalStore(template *corev1.PodTemplateSpec) bool {
	for _, c := range template.Spec.Containers {
		for _, arg := range c.Args {
			if strings.HasPrefix(arg, "--etcd-servers") {
				return true
			}
		}
	}
	return false
}

// observeReadiness asks each mesh API server how it is. The question goes to the pod, as
// Kubernetes passes only questions about the API on to a server behind it.
func (t *target) observeReadiness(ctx context.Context, o *status.Observed) {
	for i := range o.Pods {
		pod := &o.Pods[i]
		if pod.Labels[workload.NameLabel] != workload.APIServer || pod.Status.Phase != corev1.PodRunning {
			continue
		}
		// A server that is not ready answers 500, with what is wrong in the body.
		result := t.Kube.CoreV1().RESTClient().Get().Namespace(t.Namespace).Resource("pods").SubResource("proxy").
			Name("https:"+pod.Name+":6443").Suffix("readyz").Param("verbose", "").Do(ctx)
		var code int
		body, err := result.StatusCode(&code).Raw()
		if err != nil && code != http.StatusInternalServerError {
			o.ReadinessError = err.Error()
			continue
		}
		if o.Readiness == nil {
			o.Readiness = map[string]string{}
		}
		o.Readiness[pod.Name] = string(body)
	}
}

func (t *target) observeMembers(ctx context.Context, o *status.Observed) {
	members, err := t.Mesh.MeshV1alpha1().MeshClusters().List(ctx, metav1.ListOptions{})
	if err != nil {
		o.MembersError = err.Error()
		return
	}
	o.Members = members.Items
	// One object and how many remain is enough to count them.
	services, err := t.Mesh.MeshV1alpha1().GlobalServices(metav1.NamespaceAll).List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return
	}
	o.GlobalServices = int64(len(services.Items))
	if services.RemainingItemCount != nil {
		o.GlobalServices += *services.RemainingItemCount
	}
}
