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

// Package agent is the program of each node: it keeps the kernel's load-balancing
// table as this cluster's Services, the peers' endpoints and people's policy want it.
//
// Sources mark what changed and wake one loop. The loop, the only one that touches the
// kernel, builds the marked services anew and applies the difference. What it promises:
//
//   - Until all of kube-apiserver's objects have arrived the kernel's table stays as
//     the last agent left it. Then the whole is applied once, and changes after it.
//   - Remote backends come from the mesh API, else from the snapshot, else from what
//     the kernel held. What removes them is evidence, never doubt; package source says
//     what is which.
//   - The heartbeat goes on only while kube-apiserver lets us know what it lets
//     kube-proxy know. Without it the kernel hands services with ready local backends
//     back.
//   - A service that cannot be programmed does not keep others out, is left to
//     kube-proxy, tried again and named in /readyz?verbose, metrics and `dump`.
//   - What others do to the programs, their links, pins and cgroups is found and
//     repaired within half a minute, a new first-level cgroup served at once, and
//     connections of the agent's own show that all of it works.
package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/agent/datapath"
	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/agent/snapshot"
	"mesh.io/clustermesh/pkg/agent/source"
	"mesh.io/clustermesh/pkg/generated/clientset/versioned"
)

// Timing is how often the loop does what. The zero value means the defaults.
type Timing struct {
	// Pace is the least time between two rounds: changes that come faster share one.
	Pace time.Duration
	// Heartbeat is the time between two, well below the age at which the kernel hands
	// services back.
	Heartbeat time.Duration
	// Retry is the wait after the first failure; it doubles up to MostRetry.
	Retry, MostRetry time.Duration
	// Scan is the time between two looks for new cgroups, where the kernel does not
	// tell of them, Repair that between two checks of the attached ones.
	Scan, Repair time.Duration
	// Save is the least time between two writes of the snapshot.
	Save time.Duration
	// Witness is the time between two readings of the MeshClusters while in doubt.
	Witness time.Duration
}

func (t Timing) withDefaults() Timing {
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&t.Pace, 1500 * time.Microsecond},
		{&t.Heartbeat, 10 * time.Second},
		{&t.Retry, 100 * time.Millisecond},
		{&t.MostRetry, 30 * time.Second},
		{&t.Scan, time.Second},
		{&t.Repair, 15 * time.Second},
		{&t.Save, time.Second},
		{&t.Witness, 5 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.fallback
		}
	}
	return t
}

// Config is what an agent is made of.
type Config struct {
	// Cluster is this cluster's name.
	Cluster string
	// StateDir is the folder for what outlives the agent.
	StateDir string
	// CgroupRoot is the tree whose programs are served; empty leaves the kernel's
	// attachment as it is.
	CgroupRoot string
	Kernel     Kernel
	State      *source.State
	// StartupTaint is the key of the taint that is taken from the node once its table
	// is complete, Node the node's name, and Kube the way to it. Without a key the
	// node's taints are left alone.
	StartupTaint string
	Node         string
	Kube         kubernetes.Interface
	// Events are made of what was found wrong with the data path, about the node; nil
	// for none.
	Events record.EventRecorder
	// PodOptOut makes the annotation policy.AnnotationSocketLB of the node's pods, and
	// of their Namespaces, count. Meta is the way to them.
	PodOptOut bool
	Meta      metadata.Interface
	// SkipServiceChains leads connections past kube-proxy's chains of iptables; empty and
	// SkipOff leave the node's nftables alone.
	SkipServiceChains SkipServiceChains
	// ServiceSeries is how many pairs of a Service and a cluster have metrics of their own;
	// PerBackendMetrics gives them to every backend that is connected to, too.
	ServiceSeries     int
	PerBackendMetrics bool
	// Health is where metrics and health are served; empty for nowhere.
	Health string
	// Local and Mesh fill the State; CA supplies the mesh API's, if it is watched.
	Local, Mesh, CA *source.Watches
	// MeshClient reads what the mesh API says about itself.
	MeshClient versioned.Interface
	Timing     Timing
}

// Agent is the loop and what it knows about its own work.
type Agent struct {
	config  Config
	state   *source.State
	kernel  Kernel
	metrics *metrics
	attach  attachment
	taint   *startupTaint  // nil if there is none
	optOut  *podOptOut     // nil if it does not count
	skip    *serviceChains // nil if none are skipped
	ledger  *ledger

	// Of the loop alone.
	table   desired.Table
	changes []source.Change // applied by the next round that works
	since   time.Time
	retry   time.Duration // the next wait after a failure; 0 after a success
	whole   bool          // the next round must apply the whole table
	size    size          // of the table
	remote  bool          // the table has what is remote

	mu     sync.Mutex // guards what follows, for readers
	built  map[desired.Name]desired.Result
	failed map[desired.Frontend]*datapath.ServiceError
	counts map[uint16]*count
	builds uint64 // counts the changes of built
	// clusterNames names the IDs in counts.
	clusterNames map[uint16]string
	status       status
}

// size is how much of each of the kernel's maps a table takes, roughly.
type size struct{ frontends, backends, slots int }

// gives says whether the other table leaves more room.
func (s size) gives(other size) bool {
	return other.frontends < s.frontends || other.backends < s.backends || other.slots < s.slots
}

// count counts backends of one cluster.
type count struct{ known, picked int }

// New returns an agent that has not begun.
func New(config Config) *Agent {
	config.Timing = config.Timing.withDefaults()
	a := &Agent{
		config:  config,
		state:   config.State,
		kernel:  config.Kernel,
		metrics: newMetrics(),
		attach:  attachment{root: config.CgroupRoot, kernel: config.Kernel},
		table:   desired.Table{Services: map[desired.Frontend]desired.Service{}},
		built:   map[desired.Name]desired.Result{},
		failed:  map[desired.Frontend]*datapath.ServiceError{},
		counts:  map[uint16]*count{},
		ledger:  newLedger(config.ServiceSeries),
	}
	_ = a.ledger.begin(config.Kernel) // it fails once the table is closed only
	if config.StartupTaint != "" {
		a.taint = newStartupTaint(config.Kube, config.Node, config.StartupTaint)
	}
	if config.PodOptOut && config.CgroupRoot != "" {
		a.optOut = newPodOptOut(&config)
	}
	if config.SkipServiceChains == SkipRemote || config.SkipServiceChains == SkipAll {
		a.skip = &serviceChains{agent: a, which: config.SkipServiceChains}
	}
	if config.CgroupRoot != "" {
		canary := desired.Canary()
		a.table.Services[canary.Frontend] = canary
	}
	a.status.tick, a.status.canary.skipped = time.Now(), canaryAbsent
	a.metrics.registry.MustRegister(collector{a})
	return a
}

// Run works until ctx ends. It leaves the kernel's table as it is.
func (a *Agent) Run(ctx context.Context) {
	a.remember(ctx)
	var group sync.WaitGroup
	for _, run := range []func(context.Context){
		a.config.Local.Run,
		a.config.Mesh.Run,
		func(ctx context.Context) {
			a.config.Mesh.RunWitness(ctx, a.state, a.config.MeshClient, a.config.Timing.Witness)
		},
		a.save,
	} {
		group.Go(func() { run(ctx) })
	}
	if a.config.CA != nil {
		group.Go(func() { a.config.CA.Run(ctx) })
	}
	if a.taint != nil {
		group.Go(func() { a.taint.run(ctx, a.missing) })
	}
	if a.optOut != nil {
		group.Go(func() { a.optOut.run(ctx) })
	}
	if a.skip != nil {
		group.Go(func() { a.skip.run(ctx) })
	}
	a.loop(ctx)
	group.Wait()
}

// remember takes up what the last agent knew: the snapshot, and the kernel's table.
func (a *Agent) remember(ctx context.Context) {
	logger := klog.FromContext(ctx)
	content, err := snapshot.Read(a.config.StateDir)
	switch {
	case errors.Is(err, snapshot.ErrNone):
		logger.Info("There is no snapshot of the mesh; this is a node's first start, or its state folder was emptied", "folder", a.config.StateDir)
	case err != nil:
		a.metrics.snapshotErrors.WithLabelValues("read").Inc()
		logger.Error(err, "Ignored the snapshot of the mesh")
	case content.Cluster != a.config.Cluster:
		a.metrics.snapshotErrors.WithLabelValues("read").Inc()
		logger.Info("Ignored the snapshot of the mesh, which is of another cluster", "cluster", a.config.Cluster, "of", content.Cluster)
	default:
		a.state.Load(content.Remote)
		a.mu.Lock()
		a.status.saved = content.Written
		a.mu.Unlock()
		logger.V(2).Info("Loaded the snapshot of the mesh", "written", content.Written, "slices", len(content.Remote.Slices), "clusters", len(content.Remote.Members))
	}
	held, err := a.kernel.Held()
	if err != nil {
		logger.Error(err, "Cannot read what the kernel's table holds")
		return
	}
	a.state.Remember(held)
	logger.V(2).Info("Took over the kernel's table", "frontends", len(held.Services))
}

// loop is the only goroutine that touches the kernel.
func (a *Agent) loop(ctx context.Context) {
	timing := a.config.Timing
	beat, scan, repair := time.NewTicker(timing.Heartbeat), time.NewTicker(timing.Scan), time.NewTicker(timing.Repair)
	defer beat.Stop()
	defer scan.Stop()
	defer repair.Stop()
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	cgroups := make(chan struct{}, 1)
	if a.config.CgroupRoot != "" {
		var group sync.WaitGroup
		defer group.Wait()
		group.Go(func() { a.watchCgroups(ctx, cgroups) })
	}
	a.keepAttached(ctx, true)
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.state.Wake():
			// While the kernel takes nothing, what changes waits for the next try.
			if !a.whole || a.retry == 0 {
				a.round(ctx)
				a.heartbeat(ctx)
			}
		case <-retry.C:
			if a.retry != 0 {
				a.again(ctx)
				a.heartbeat(ctx)
				a.retry = min(2*a.retry, timing.MostRetry)
				retry.Reset(a.retry)
			}
		case <-beat.C:
			a.heartbeat(ctx)
		case <-cgroups:
			a.keepAttached(ctx, true)
		case <-scan.C:
			a.keepAttached(ctx, false)
		case <-repair.C:
			a.keepAttached(ctx, true)
			a.tryCanary(ctx)
		}
		a.mu.Lock()
		a.status.tick = time.Now()
		failing := a.whole || len(a.failed) > 0
		untried := !a.status.applied.IsZero() && a.status.canary.skipped == canaryAbsent
		a.mu.Unlock()
		if untried {
			a.tryCanary(ctx)
		}
		if !failing {
			a.retry = 0
		} else if a.retry == 0 {
			a.retry = timing.Retry
			retry.Reset(a.retry)
		}
		// The first change goes at once; those that follow share the next round.
		pause(ctx, timing.Pace)
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// mostChanges bounds the changes whose way is measured at once.
const mostChanges = 10_000

// round builds what changed and applies it.
func (a *Agent) round(ctx context.Context) {
	batch, ok := a.state.Take()
	if !ok {
		return
	}
	start := time.Now()
	if a.since.IsZero() {
		a.since = batch.Since
	}
	// They are for measuring only; while the kernel takes nothing they would pile up.
	if len(a.changes) < mostChanges {
		a.changes = append(a.changes, batch.Changes...)
	}
	before := a.size
	changed, removed := a.build(ctx, batch)
	if before.gives(a.size) {
		changed = append(changed, a.refused(changed)...)
	}
	a.metrics.build.Observe(seconds(time.Since(start)))
	if batch.All {
		a.whole = true
	}
	a.remote = a.remote || batch.Remote
	if a.whole {
		a.apply(ctx, nil, nil)
	} else if len(changed) > 0 || len(removed) > 0 {
		a.apply(ctx, changed, removed)
	} else {
		a.since, a.changes = time.Time{}, nil
		a.mu.Lock()
		a.status.remote = a.remote && !a.status.applied.IsZero()
		a.mu.Unlock()
	}
}

// again tries again what has failed.
func (a *Agent) again(ctx context.Context) {
	if a.whole {
		a.round(ctx) // takes up what changed meanwhile
		if a.whole {
			a.apply(ctx, nil, nil)
		}
		return
	}
	if services := a.refused(nil); len(services) > 0 {
		a.apply(ctx, services, nil)
	}
}

// refused returns the services that the kernel did not take as they should be, without
// those in the list.
func (a *Agent) refused(without []desired.Service) (services []desired.Service) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for frontend := range a.failed {
		service, ok := a.table.Services[frontend]
		switch {
		case !ok:
			delete(a.failed, frontend)
		case !slices.ContainsFunc(without, func(s desired.Service) bool { return s.Frontend == frontend }):
			services = append(services, service)
		}
	}
	return services
}

// build builds the services of a batch into the table, and returns what that changes.
func (a *Agent) build(ctx context.Context, batch source.Batch) (changed []desired.Service, removed []desired.Frontend) {
	a.table.Clusters = batch.Mesh.Clusters()
	results := make(map[desired.Name]desired.Result, len(batch.Services))
	for name, in := range batch.Services {
		results[name] = batch.Mesh.Service(name, in)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clusterNames = a.table.Clusters
	a.builds++
	if batch.All {
		for name := range a.built {
			if _, ok := results[name]; !ok {
				results[name] = desired.Result{}
			}
		}
	}
	// What goes goes first: an address may have passed from one Service to another.
	for name := range results {
		for i := range a.built[name].Services {
			old := &a.built[name].Services[i]
			a.account(old, -1)
			if a.table.Services[old.Frontend].Port == old.Port {
				delete(a.table.Services, old.Frontend)
				removed = append(removed, old.Frontend)
			}
		}
	}
	for name, result := range results {
		a.report(ctx, name, result)
		for _, service := range result.Services {
			a.account(&service, +1)
			a.table.Services[service.Frontend] = service
			changed = append(changed, service)
		}
		if len(result.Services) == 0 && len(result.Left) == 0 {
			delete(a.built, name)
		} else {
			a.built[name] = result
		}
	}
	gone := removed[:0]
	for _, frontend := range removed {
		if _, stays := a.table.Services[frontend]; !stays {
			gone = append(gone, frontend)
			delete(a.failed, frontend)
		}
	}
	return changed, gone
}

// account counts a service and its backends in or out.
func (a *Agent) account(service *desired.Service, n int) {
	a.size.frontends += n
	a.size.backends += n * len(service.Backends)
	for i := range service.Backends {
		a.size.slots += n * int(service.Backends[i].Slots)
		c := a.counts[service.Backends[i].ClusterID]
		if c == nil {
			c = &count{}
			a.counts[service.Backends[i].ClusterID] = c
		}
		c.known += n
		if service.Backends[i].Slots > 0 {
			c.picked += n
		}
	}
}

// report logs what is new about a service that stays with kube-proxy or whose weights
// cannot be held.
func (a *Agent) report(ctx context.Context, name desired.Name, result desired.Result) {
	logger := klog.FromContext(ctx)
	old := a.built[name]
	for _, left := range result.Left {
		if !slices.Contains(old.Left, left) {
			logger.Info("Left a global service to kube-proxy", "service", left.Service, "reason", left.Text())
			a.status.reports++
		}
	}
	for _, port := range result.Unheld {
		if !slices.Contains(old.Unheld, port) {
			logger.Info("The weights of a service need more slots than it may have; the nearest shares hold", "service", port)
			a.status.reports++
		}
	}
	if slices.ContainsFunc(old.Left, func(l desired.Left) bool { return !slices.Contains(result.Left, l) }) || len(old.Unheld) > len(result.Unheld) {
		a.status.reports++
	}
}

// apply writes the changes into the kernel, or the whole table where that is due.
func (a *Agent) apply(ctx context.Context, changed []desired.Service, removed []desired.Frontend) {
	logger := klog.FromContext(ctx)
	start := time.Now()
	var report datapath.Report
	var err error
	whole := a.whole
	if whole {
		report, err = a.kernel.Apply(ctx, a.table)
	} else {
		report, err = a.kernel.ApplyServices(ctx, changed, removed, a.table.Clusters)
	}
	end := time.Now()
	a.metrics.apply.Observe(seconds(end.Sub(start)))

	a.mu.Lock()
	defer a.mu.Unlock()
	a.status.applyErr = err
	if err != nil {
		if ctx.Err() == nil {
			a.metrics.applyErrors.Inc()
			logger.Error(err, "The kernel did not take a change; it will be tried again")
		}
		a.whole = true
		return
	}
	a.whole = false
	a.status.applied, a.status.remote = end, a.remote
	if report.Names != nil {
		logger.Error(report.Names, "People may see numbers in the place of names; traffic is as it should be")
	}
	known := maps.Clone(a.failed)
	if whole {
		clear(a.failed)
	}
	for i := range changed {
		delete(a.failed, changed[i].Frontend)
	}
	for _, failure := range report.Failed {
		a.metrics.serviceFailures.Inc()
		a.failed[failure.Frontend] = failure
		if last := known[failure.Frontend]; last == nil || last.Error() != failure.Error() {
			logger.Error(failure, "A service was not programmed as it should be; kube-proxy serves it, and it will be tried again")
			a.status.reports++
		}
	}
	if len(a.failed) != len(known) {
		a.status.reports++
	}

	if !a.since.IsZero() {
		a.metrics.sync.Observe(seconds(end.Sub(a.since)))
	}
	for _, change := range a.changes {
		if a.programmed(change.Service) && !change.ChangedAt.IsZero() {
			a.metrics.propagation.WithLabelValues(change.Cluster).Observe(seconds(end.Sub(change.ChangedAt)))
		}
	}
	a.since, a.changes = time.Time{}, nil
	logger.V(4).Info("Programmed", "whole", whole, "added", report.Added, "changed", report.Changed,
		"removed", report.Removed, "unchanged", report.Unchanged, "failed", len(report.Failed), "took", end.Sub(start))
}

// programmed says whether any port of a service is in the table.
func (a *Agent) programmed(name desired.Name) bool {
	for i := range a.built[name].Services {
		if a.failed[a.built[name].Services[i].Frontend] == nil {
			return true
		}
	}
	return false
}

// heartbeat says to the kernel that its table is kept fresh, if it is.
func (a *Agent) heartbeat(ctx context.Context) {
	a.mu.Lock()
	// What the kernel did not take is not fresh in it.
	applied := !a.status.applied.IsZero() && a.status.applyErr == nil
	a.mu.Unlock()
	if !applied || a.localProblem() != "" {
		return
	}
	if err := a.kernel.Heartbeat(); err != nil {
		klog.FromContext(ctx).Error(err, "Cannot write the heartbeat")
	}
}

// localProblem says why this node's picture of its own cluster may be older than
// kube-proxy's, or returns "". A kube-apiserver that does not answer is no such reason:
// kube-proxy knows no more than we do then, and handing services back would only take
// the other clusters' backends away from them.
func (a *Agent) localProblem() string {
	for _, contact := range a.config.Local.Contacts() {
		if !contact.Synced {
			return contact.Resource + " are not in sync yet" + because(contact.Err)
		}
		if contact.Refused() {
			return "kube-apiserver refuses to tell " + contact.Resource + because(contact.Err)
		}
	}
	return ""
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// watchCgroups sends to the channel when first-level cgroups come or go.
func (a *Agent) watchCgroups(ctx context.Context, changed chan<- struct{}) {
	err := watchFolder(ctx, a.config.CgroupRoot, func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "The kernel does not tell of new cgroups; they are looked for", "every", a.config.Timing.Scan)
	}
}

// keepAttached attaches to cgroups that are new; with force it repairs too what has
// changed in others.
func (a *Agent) keepAttached(ctx context.Context, force bool) {
	logger := klog.FromContext(ctx)
	drifts, looked, err := a.attach.keep(force)
	if !looked {
		return
	}
	a.mu.Lock()
	fresh := err != nil && a.status.attachErr == nil
	known := a.status.drifts
	a.status.attachErr = err
	a.status.drifts = slices.DeleteFunc(slices.Clone(drifts), func(d datapath.Drift) bool { return d.Repaired || !d.Foreign() })
	a.mu.Unlock()
	for _, drift := range drifts {
		// What stays as it is is counted and told once.
		if slices.Contains(known, drift) {
			continue
		}
		a.metrics.drifts.WithLabelValues(string(drift.Kind)).Inc()
		switch {
		case drift.Repaired:
			logger.Info("Repaired what was found changed", "found", drift.String())
			// Cgroups come and go.
			if drift.Kind != datapath.CgroupNew && drift.Kind != datapath.CgroupGone {
				a.event("DataPathRepaired", "repaired: "+drift.String())
			}
		case drift.Foreign():
			a.event("ForeignProgram", drift.String()+" can keep connections from being balanced")
			logger.Info("A program of someone else runs before ours and can keep connections from being balanced", "found", drift.String())
		}
	}
	if err != nil {
		a.metrics.attachErrors.Inc()
		if fresh {
			logger.Error(err, "Not every program on this node is served; this will be tried again")
			a.event("DataPathNotAttached", "not every program on this node is served: "+err.Error())
		}
	}
}

// event makes a Warning Event about the node.
func (a *Agent) event(reason, message string) {
	if a.config.Events == nil || a.config.Node == "" {
		return
	}
	// By its name in the place of its UID, as the kubelet does it and kubectl finds it.
	node := &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: a.config.Node, UID: types.UID(a.config.Node)}
	const most = 1024 // bytes that an Event's message may have
	a.config.Events.Event(node, corev1.EventTypeWarning, reason, message[:min(len(message), most)])
}

// tryCanary connects to the canary, once the kernel has it.
func (a *Agent) tryCanary(ctx context.Context) {
	canary := desired.Canary().Frontend
	a.mu.Lock()
	_, wanted := a.table.Services[canary]
	held := wanted && !a.status.applied.IsZero() && a.failed[canary] == nil
	before := a.status.canary
	a.mu.Unlock()
	now := canaryResult{}
	if !held {
		now.skipped = canaryAbsent
	} else if served, why := a.attach.serves(); !served {
		now.skipped = why
	} else {
		now.err = connectCanary()
	}
	a.mu.Lock()
	a.status.canary = now
	a.mu.Unlock()
	logger := klog.FromContext(ctx)
	switch {
	case now.err != nil:
		a.metrics.canaryErrors.Inc()
		if before.err == nil {
			logger.Error(now.err, "Connections may not be balanced on this node")
			a.event("ConnectionsNotBalanced", now.err.Error())
		}
	case before.err != nil:
		logger.Info("The agent's own connections are balanced again")
	}
}

// save keeps the snapshot on disk as the state is: at most once in Timing.Save, and
// less often the larger it is and the longer that takes. What has changed since is
// written at the end.
func (a *Agent) save(ctx context.Context) {
	var written, reported uint64
	var next time.Time
	first := true
	saveNow := func() {
		start := time.Now()
		if !first && a.state.Version() == written {
			return
		}
		remote, version, whole := a.state.Remote()
		if !whole {
			return
		}
		size, err := snapshot.Write(a.config.StateDir, snapshot.Content{Written: start, Cluster: a.config.Cluster, Remote: remote})
		next = time.Now().Add(snapshot.Pause(a.config.Timing.Save, size, time.Since(start)))
		if err != nil {
			a.metrics.snapshotErrors.WithLabelValues("write").Inc()
			klog.FromContext(ctx).Error(err, "Cannot keep the snapshot of the mesh")
			return
		}
		written, first = version, false
		a.mu.Lock()
		a.status.saved = start
		a.mu.Unlock()
	}
	for ctx.Err() == nil {
		a.saveReports(ctx, &reported)
		if !time.Now().Before(next) {
			saveNow()
		}
		pause(ctx, a.config.Timing.Save)
	}
	a.saveReports(ctx, &reported)
	saveNow()
}
