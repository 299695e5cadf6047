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

package connectivity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/cli/probe"
	"mesh.io/clustermesh/pkg/cli/remote"
	"mesh.io/clustermesh/pkg/generated/clientset/versioned"
	"mesh.io/clustermesh/pkg/policy"
)

const (
	// parallelChecks bounds what is asked at once.
	parallelChecks = 8
	// tryFor is how long one connection may take.
	tryFor = 2 * time.Second
	// probeFor bounds one run of the client.
	probeFor = 30 * time.Second
	// settleAfterFailure is how long a node has once it has failed a scenario: what is
	// broken does not get better by waiting for it each time.
	settleAfterFailure = 3 * time.Second
	// cleanupFor bounds the removal, also after Ctrl-C.
	cleanupFor = 60 * time.Second
	// leftoversFor bounds the removal of what an earlier run left.
	leftoversFor = 90 * time.Second
	poll         = 250 * time.Millisecond
)

// Side is one of the two clusters.
type Side struct {
	*remote.Cluster
	// Name is the cluster's in the mesh.
	Name    string
	Imports bool

	leftOut int
	clients []Client
}

// run is one test under way.
type run struct {
	Options
	sides  []*Side
	say    func(format string, args ...any)
	report Report
	failed map[Place]bool // the nodes that failed a scenario
	mu     sync.Mutex
}

func (r *run) side(name string) *Side {
	for _, s := range r.sides {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Run tests two clusters of a mesh. It prints with say as it goes. The error is of a
// test that could not be made; what failed is in the report. Whatever happens, the
// test's objects are removed.
func Run(ctx context.Context, a, b *remote.Cluster, o Options, say func(format string, args ...any)) (report *Report, err error) {
	if problems := validation.IsDNS1123Label(o.Namespace); len(problems) > 0 {
		return nil, fmt.Errorf("the namespace %q is not valid: %s", o.Namespace, problems[0])
	}
	if reserved := policy.Reserved(o.Namespace, echo, a.Namespace); reserved != "" || o.Namespace == metav1.NamespaceDefault {
		return nil, fmt.Errorf("the namespace %q cannot be the test's, which makes it and removes it: name another one", o.Namespace)
	}
	r := &run{Options: o, say: say, failed: map[Place]bool{}}
	began := time.Now()
	for _, c := range []*remote.Cluster{a, b} {
		side, err := identify(ctx, c)
		if err != nil {
			return nil, err
		}
		r.sides = append(r.sides, side)
	}
	if r.sides[0].Name == r.sides[1].Name {
		return nil, fmt.Errorf("contexts %q and %q are the same cluster, or two of the same name (%s)", a.Context, b.Context, r.sides[0].Name)
	}
	if err := r.connections(ctx); err != nil {
		return nil, err
	}
	if err := r.removeLeftovers(ctx); err != nil {
		return nil, err
	}
	defer func() {
		r.cleanup(ctx)
		r.report.Seconds = time.Since(began).Seconds()
		report = &r.report
	}()
	if err := r.deploy(ctx); err != nil {
		return nil, err
	}
	return nil, r.scenarios(ctx)
}

// identify learns which cluster a context is.
func identify(ctx context.Context, c *remote.Cluster) (*Side, error) {
	config, err := c.Kube.CoreV1().ConfigMaps(c.Namespace).Get(ctx, "mesh-config", metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("the mesh is not installed in %q: there is no ConfigMap mesh-config in namespace %s; install it with meshctl install", c.Context, c.Namespace)
	case err != nil:
		return nil, fmt.Errorf("reading which cluster %q is: %w", c.Context, err)
	case config.Data["cluster-name"] == "":
		return nil, fmt.Errorf("reading which cluster %q is: ConfigMap mesh-config in namespace %s has no cluster-name", c.Context, c.Namespace)
	}
	// The server's warnings are for people who write a spec: the test's own is meant so.
	quiet := rest.CopyConfig(c.REST)
	quiet.WarningHandler = rest.NoWarnings{}
	own := *c
	if own.Mesh, err = versioned.NewForConfig(quiet); err != nil {
		return nil, fmt.Errorf("preparing to connect to %q: %w", c.Context, err)
	}
	return &Side{Cluster: &own, Name: config.Data["cluster-name"]}, nil
}

// connections finds out who imports whom. A cluster whose mesh API does not answer
// counts as one that does: then the checks fail and say why.
func (r *run) connections(ctx context.Context) error {
	for i, s := range r.sides {
		other := r.sides[1-i]
		_, err := s.Mesh.MeshV1alpha1().MeshClusters().Get(ctx, other.Name, metav1.GetOptions{})
		s.Imports = err == nil || !ours(err)
		switch {
		case err == nil:
			r.say("%s (context %s) imports %s", s.Name, s.Context, other.Name)
		case ours(err):
			r.say("%s (context %s) does not import %s: its clients should reach their own cluster's backends only", s.Name, s.Context, other.Name)
		default:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.say("The mesh API of %s (context %s) does not answer: %v", s.Name, s.Context, err)
		}
	}
	if !r.sides[0].Imports && !r.sides[1].Imports {
		return fmt.Errorf("%s and %s are not connected: neither has a MeshCluster of the other; connect them with meshctl connect", r.sides[0].Name, r.sides[1].Name)
	}
	return nil
}

// each does something in both clusters at once.
func (r *run) each(do func(s *Side) error) error {
	errs := make([]error, len(r.sides))
	var group sync.WaitGroup
	for i, s := range r.sides {
		group.Go(func() { errs[i] = do(s) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// until repeats something until it is done, fails for good, or the time is over. What
// is said last is why it is not done yet.
func until(ctx context.Context, what string, within time.Duration, try func(context.Context) (done bool, why string, err error)) error {
	limited, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	why := ""
	for {
		done, text, err := try(limited)
		if done || err != nil && limited.Err() == nil {
			return err
		}
		if text != "" {
			why = ": " + text
		}
		select {
		case <-limited.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("not within %s: %s%s", within, what, why)
		case <-time.After(poll):
		}
	}
}

func (r *run) removeLeftovers(ctx context.Context) error {
	return r.each(func(s *Side) error {
		namespaces := s.Kube.CoreV1().Namespaces()
		found, err := namespaces.Get(ctx, r.Namespace, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return fmt.Errorf("looking for what an earlier test left in %q: %w", s.Context, err)
		case found.Labels[LabelTest] != testValue:
			return fmt.Errorf("namespace %s of %q is not one of a connectivity test (it has no label %s): name another one with --namespace", r.Namespace, s.Context, LabelTest)
		}
		r.say("Removing what an earlier test left in %s", s.Name)
		return r.remove(ctx, s, found.UID, leftoversFor)
	})
}

// remove deletes the test's namespace, if it is still the same one, and waits until it
// is gone.
func (r *run) remove(ctx context.Context, s *Side, uid types.UID, within time.Duration) error {
	namespaces := s.Kube.CoreV1().Namespaces()
	options := metav1.DeleteOptions{}
	if uid != "" {
		options.Preconditions = metav1.NewUIDPreconditions(string(uid))
	}
	if err := namespaces.Delete(ctx, r.Namespace, options); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("removing namespace %s of %q: %w", r.Namespace, s.Context, err)
	}
	return until(ctx, fmt.Sprintf("namespace %s of %q is gone", r.Namespace, s.Context), within, func(ctx context.Context) (bool, string, error) {
		found, err := namespaces.Get(ctx, r.Namespace, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return true, "", nil
		case err != nil:
			return false, err.Error(), nil
		}
		why := ""
		for _, c := range found.Status.Conditions {
			if c.Status == corev1.ConditionTrue {
				why = c.Message
			}
		}
		return false, why, nil
	})
}

// cleanup removes the test's objects. It does not end with ctx, and has a bound.
func (r *run) cleanup(ctx context.Context) {
	if r.Keep {
		r.say("The test's objects stay: %s", r.hint())
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupFor)
	defer cancel()
	r.say("Removing the test's namespaces")
	_ = r.each(func(s *Side) error {
		// A little less than the whole time, so that the reason is known.
		if err := r.remove(ctx, s, "", cleanupFor-5*time.Second); err != nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.report.Leftovers = append(r.report.Leftovers, fmt.Sprintf("Namespace %s of %s was not removed to the end: %v. The next test removes it first.", r.Namespace, s.Name, err))
		}
		return nil
	})
}

func (r *run) hint() string {
	var commands []string
	for _, s := range r.sides {
		commands = append(commands, fmt.Sprintf("kubectl --context %s delete namespace %s", s.Context, r.Namespace))
	}
	return strings.Join(commands, "; ")
}

func (r *run) deploy(ctx context.Context) error {
	r.say("Deploying the test's pods in namespace %s of both clusters", r.Namespace)
	err := r.each(func(s *Side) error {
		create := func(what string, err error) error {
			if err != nil {
				return fmt.Errorf("making %s in %q: %w", what, s.Context, err)
			}
			return nil
		}
		options := metav1.CreateOptions{}
		_, err := s.Kube.CoreV1().Namespaces().Create(ctx, namespace(r.Namespace), options)
		if err := create("namespace "+r.Namespace, err); err != nil {
			return err
		}
		for _, service := range services(r.Options, s == r.sides[1]) {
			_, err := s.Kube.CoreV1().Services(r.Namespace).Create(ctx, service, options)
			if err := create("Service "+service.Name, err); err != nil {
				return err
			}
		}
		_, err = s.Kube.AppsV1().DaemonSets(r.Namespace).Create(ctx, daemonSet(s.Name, r.Options), options)
		if err := create("DaemonSet "+client, err); err != nil {
			return err
		}
		_, err = s.Kube.AppsV1().Deployments(r.Namespace).Create(ctx, deployment(s.Name, r.Options), options)
		return create("Deployment "+echo, err)
	})
	if err != nil {
		return err
	}
	return r.each(func(s *Side) error { return r.waitForPods(ctx, s) })
}

// waitForPods waits for a client on every node and for the servers, and keeps those
// clients that take part. A node whose client does not come is a failed check.
func (r *run) waitForPods(ctx context.Context, s *Side) error {
	var (
		pods []corev1.Pod
		want int
	)
	err := until(ctx, fmt.Sprintf("the test's pods of %s are ready", s.Name), time.Minute, func(ctx context.Context) (bool, string, error) {
		list, err := s.Kube.CoreV1().Pods(r.Namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err.Error(), nil
		}
		set, err := s.Kube.AppsV1().DaemonSets(r.Namespace).Get(ctx, client, metav1.GetOptions{})
		if err != nil {
			return false, err.Error(), nil
		}
		pods, want = list.Items, int(set.Status.DesiredNumberScheduled)
		if set.Status.ObservedGeneration == 0 || want == 0 {
			return false, "the DaemonSet has no pod yet", nil
		}
		clients, servers, why := 0, 0, ""
		for i := range pods {
			p := &pods[i]
			switch {
			case !podReady(p):
				why = fmt.Sprintf("pod %s on %s: %s", p.Name, orUnknown(p.Spec.NodeName), whyNotReady(p))
			case p.Labels[labelApp] == client:
				clients++
			default:
				servers++
			}
		}
		return clients >= want && servers >= replicas, why, nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	servers := 0
	for i := range pods {
		p := &pods[i]
		switch {
		case !podReady(p):
		case p.Labels[labelApp] == client:
			s.clients = append(s.clients, Client{Node: p.Spec.NodeName, Pod: p.Name, Address: p.Status.PodIP})
		default:
			servers++
		}
	}
	if len(s.clients) == 0 || servers == 0 {
		return err // nothing to test with
	}
	slices.SortFunc(s.clients, func(a, b Client) int { return strings.Compare(a.Node, b.Node) })
	if err != nil {
		r.mu.Lock()
		for i := range pods {
			if p := &pods[i]; !podReady(p) {
				r.add(Result{
					Scenario: "The test's pods", From: Place{s.Name, p.Spec.NodeName}, Milliseconds: time.Minute.Milliseconds(),
					Reasons: []string{fmt.Sprintf("pod %s/%s on node %s is not ready: %s", r.Namespace, p.Name, orUnknown(p.Spec.NodeName), whyNotReady(p))},
				})
			}
		}
		r.mu.Unlock()
	}
	if len(s.clients) > r.MaxNodes {
		s.leftOut = len(s.clients) - r.MaxNodes
		s.clients = s.clients[:r.MaxNodes]
	}
	return nil
}

func orUnknown(node string) string {
	if node == "" {
		return "no node"
	}
	return node
}

func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil && p.Status.PodIP != ""
		}
	}
	return false
}

// whyNotReady is what Kubernetes says, the nearest cause first.
func whyNotReady(p *corev1.Pod) string {
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil {
			return strings.TrimSpace(w.Reason + " " + w.Message)
		}
		if t := c.State.Terminated; t != nil {
			return fmt.Sprintf("%s (exit code %d) %s", t.Reason, t.ExitCode, t.Message)
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Status == corev1.ConditionFalse && c.Message != "" {
			return c.Message
		}
	}
	return string(p.Status.Phase)
}

func (r *run) scenarios(ctx context.Context) error {
	var parties []Party
	for _, s := range r.sides {
		parties = append(parties, Party{Name: s.Name, Imports: s.Imports, Clients: s.clients})
		r.report.Clusters = append(r.report.Clusters, ReportCluster{Name: s.Name, Context: s.Context, Imports: s.Imports, Nodes: len(s.clients), LeftOut: s.leftOut})
		if s.leftOut > 0 {
			r.say("%d of %d nodes of %s take part (--max-nodes)", len(s.clients), len(s.clients)+s.leftOut, s.Name)
		}
	}
	matrix := Matrix(parties[0], parties[1], r.Namespace)
	for i := range matrix {
		if ctx.Err() == nil {
			r.scenario(ctx, &matrix[i])
			continue
		}
		r.report.NotRun += len(matrix[i].Checks)
	}
	return ctx.Err()
}

// add counts a result and prints it. The caller holds the lock if there are others.
func (r *run) add(result Result) {
	r.report.Results = append(r.report.Results, result)
	if result.OK {
		r.report.Passed++
	} else {
		r.report.Failed++
		r.failed[result.From] = true
	}
	r.say("%s", strings.TrimSuffix(result.Text(r.Width), "\n"))
}

func (r *run) scenario(ctx context.Context, s *Scenario) {
	r.say("%s", s.Title)
	if err := r.change(ctx, s.Change); err != nil {
		if ctx.Err() != nil {
			r.report.NotRun += len(s.Checks)
			return
		}
		for _, c := range s.Checks {
			r.add(Result{Scenario: s.Title, From: c.From, Network: c.Network, To: c.To, Want: c.Want, Reasons: []string{err.Error()}})
		}
		return
	}
	slow := map[Place]bool{}
	for place := range r.failed {
		slow[place] = true
	}
	results := make([]chan *Result, len(s.Checks))
	slots := make(chan struct{}, parallelChecks)
	for i := range s.Checks {
		results[i] = make(chan *Result, 1)
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			c := &s.Checks[i]
			settle := r.Settle
			if slow[c.From] {
				settle = min(settle, settleAfterFailure)
			}
			results[i] <- r.check(ctx, s.Title, c, settle)
		}()
	}
	// In order, each as soon as those before it are there.
	for _, result := range results {
		if got := <-result; got != nil {
			r.add(*got)
		} else {
			r.report.NotRun++
		}
	}
}

// check asks until the answers are as they should be, or says why they are not; nil
// says that the test was stopped.
func (r *run) check(ctx context.Context, title string, c *Check, settle time.Duration) *Result {
	began := time.Now()
	result := &Result{Scenario: title, From: c.From, Network: c.Network, To: c.To, Want: c.Want}
	side := r.side(c.From.Cluster)
	var (
		got     *probe.Result
		verdict Verdict
		problem error
	)
	for {
		got, problem = r.ask(ctx, side, c)
		if ctx.Err() != nil {
			return nil
		}
		result.Milliseconds = time.Since(began).Milliseconds()
		if problem == nil {
			result.Answers, result.MedianMicroseconds = got.Answers, got.MedianMicroseconds
			if verdict = Judge(c, got); verdict.OK() {
				result.OK = true
				return result
			}
		}
		if time.Since(began) > settle {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(poll):
		}
	}
	switch {
	case problem != nil:
		result.Reasons = []string{fmt.Sprintf("client: %v", problem)}
	case c.service == "":
		result.Reasons = []string{PodToPod(c, verdict)}
	default:
		result.Reasons = r.why(ctx, c, verdict)
	}
	if ctx.Err() != nil {
		return nil
	}
	return result
}

// why says where the chain is broken of a check that asked a Service.
func (r *run) why(ctx context.Context, c *Check, v Verdict) []string {
	service := r.Namespace + "/" + c.service
	var reasons []string
	for _, cluster := range v.Missing {
		reasons = append(reasons, Missing(r.facts(ctx, service, c.From, cluster), c.Network, v.Errors))
	}
	for _, cluster := range v.Unexpected {
		if len(v.Missing) > 0 {
			break // it stands in for the one that is missing
		}
		reasons = append(reasons, Unexpected(r.facts(ctx, service, c.From, cluster), c.Network, cluster))
	}
	if len(reasons) == 0 {
		// The right ones answered, and some tries failed.
		reasons = append(reasons, "connection: "+strings.Join(v.Errors, "; "))
	}
	return reasons
}

// ask runs the client in its pod.
func (r *run) ask(ctx context.Context, s *Side, c *Check) (*probe.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, probeFor)
	defer cancel()
	out, err := s.Exec(ctx, r.Namespace, c.pod, client, "meshctl", "connectivity", "probe",
		"--network="+c.Network, "--address="+c.address, fmt.Sprintf("--count=%d", c.count), "--try-timeout="+tryFor.String())
	if err != nil {
		return nil, err
	}
	result := &probe.Result{}
	if err := json.Unmarshal(out, result); err != nil {
		return nil, fmt.Errorf("reading what the client in pod %s says: %w", c.pod, err)
	}
	return result, nil
}

// change brings the clusters into the state of a scenario.
func (r *run) change(ctx context.Context, c Change) error {
	if c.Scale != nil {
		s := r.side(c.ScaleIn)
		patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, *c.Scale)
		if _, err := s.Kube.AppsV1().Deployments(r.Namespace).Patch(ctx, echo, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("scaling the test's pods of %s to %d: %w", s.Name, *c.Scale, err)
		}
	}
	if c.Drain == nil {
		return nil
	}
	return r.each(func(s *Side) error {
		if !s.Imports {
			return nil
		}
		var clusters any
		if *c.Drain {
			other := r.sides[0]
			if other == s {
				other = r.sides[1]
			}
			clusters = []v1alpha1.ClusterPolicy{{Name: other.Name, Weight: new(int32)}}
		}
		patch, err := json.Marshal(map[string]any{"spec": map[string]any{"clusters": clusters}})
		if err != nil {
			return err
		}
		return until(ctx, fmt.Sprintf("GlobalService %s/%s of %s takes a weight", r.Namespace, echo, s.Name), r.Settle, func(ctx context.Context) (bool, string, error) {
			_, err := s.Mesh.MeshV1alpha1().GlobalServices(r.Namespace).Patch(ctx, echo, types.MergePatchType, patch, metav1.PatchOptions{})
			switch {
			case err == nil:
				return true, "", nil
			case apierrors.IsForbidden(err):
				return false, "", fmt.Errorf("setting the weight of GlobalService %s/%s in %s: %w", r.Namespace, echo, s.Name, err)
			}
			return false, err.Error(), nil
		})
	})
}
