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
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/agent/optout"
	"mesh.io/clustermesh/pkg/agent/source"
)

// How often pods' cgroups are looked for. The kubelet makes that of a pod when it
// begins with the pod, and its first container after volumes, network and images: the
// first look in vain comes tens of milliseconds or more before that.
const (
	lookSoon  = 10 * time.Millisecond // while a pod waits that came a short time ago
	lookLater = time.Second           // while one waits for longer
	lookIdle  = 10 * time.Second      // to see what was made anew
	soon      = 2 * time.Minute
)

// podOptOut makes the kernel leave the pods of this node alone that want it.
type podOptOut struct {
	kernel Kernel
	kube   kubernetes.Interface
	node   string
	state  *source.State
	watch  *source.Watches
	finder optout.Finder
	wake   chan struct{}

	// Of its own loop alone.
	told map[optout.Bad]bool

	mu      sync.Mutex
	pods    map[types.NamespacedName]optout.Pod
	changed time.Time // when a pod came, changed or went
	left    int
	waiting []string // pods without a cgroup
	err     error
}

func newPodOptOut(config *Config) *podOptOut {
	p := &podOptOut{
		kernel: config.Kernel, kube: config.Kube, node: config.Node, state: config.State,
		finder: optout.Finder{Root: config.CgroupRoot},
		wake:   make(chan struct{}, 1),
		told:   map[optout.Bad]bool{},
		pods:   map[types.NamespacedName]optout.Pod{},
	}
	p.watch = source.NewPods(config.Meta, config.Node, p.put, p.drop)
	return p
}

func (p *podOptOut) put(pod optout.Pod) {
	name := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	p.mu.Lock()
	defer p.mu.Unlock()
	// Most changes of a pod are of its status.
	if old, ok := p.pods[name]; ok && old.CgroupUID == pod.CgroupUID && ptr.Equal(old.Value, pod.Value) {
		return
	}
	p.pods[name] = pod
	p.touch()
}

func (p *podOptOut) drop(namespace, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pods, types.NamespacedName{Namespace: namespace, Name: name})
	p.touch()
}

func (p *podOptOut) touch() {
	p.changed = time.Now()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run keeps the kernel as the annotations want it until ctx ends. Until all pods and
// Namespaces are known it stays as the last agent left it.
func (p *podOptOut) run(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { p.watch.Run(ctx) })
	var last []string
	var lastAt time.Time
	for ctx.Err() == nil {
		wait := lookLater
		namespaces, synced := p.state.SocketLB()
		if contact := p.watch.Contacts()[0]; synced && contact.Synced {
			p.mu.Lock()
			pods := make([]optout.Pod, 0, len(p.pods))
			for _, pod := range p.pods {
				pods = append(pods, pod)
			}
			fresh := time.Since(p.changed) < soon
			p.mu.Unlock()
			out, bad := optout.Decide(pods, namespaces)
			paths, waiting := p.find(out)
			if !slices.Equal(paths, last) || time.Since(lastAt) >= lookIdle {
				err := p.kernel.OptOut(paths)
				if err != nil {
					klog.FromContext(ctx).Error(err, "Cannot leave pods alone that want it; this will be tried again")
					last = nil
				} else {
					last, lastAt = paths, time.Now()
				}
				p.set(len(paths), waiting, err)
			} else {
				p.set(len(paths), waiting, nil)
			}
			p.tell(ctx, bad)
			if len(waiting) > 0 && fresh {
				wait = lookSoon
			}
		} else {
			wait = 100 * time.Millisecond
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// find returns the cgroups of pods, sorted, and the names of those that have none.
func (p *podOptOut) find(pods []optout.Pod) (paths, waiting []string) {
	if len(pods) == 0 {
		return nil, nil
	}
	uids := make([]string, len(pods))
	for i, pod := range pods {
		uids[i] = pod.CgroupUID
	}
	found := p.finder.Find(uids)
	for _, pod := range pods {
		if path, ok := found[pod.CgroupUID]; ok {
			paths = append(paths, path)
		} else {
			waiting = append(waiting, pod.Namespace+"/"+pod.Name)
		}
	}
	slices.Sort(paths)
	return paths, waiting
}

func (p *podOptOut) set(left int, waiting []string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left, p.waiting, p.err = left, waiting, err
}

func (p *podOptOut) count() (left, waiting int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left, len(p.waiting)
}

// check is a line of /readyz. That pods may not be watched is for people: everybody
// else is balanced all the same.
func (p *podOptOut) check() check {
	c := check{name: "pod-opt-out"}
	contact := p.watch.Contacts()[0]
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case contact.Refused():
		c.note = "annotations of pods do not count, as kube-apiserver refuses to tell pods" + because(contact.Err)
	case !contact.Synced:
		c.problem = "pods are not in sync yet" + because(contact.Err)
	case p.err != nil:
		c.problem = p.err.Error()
	case len(p.waiting) > 0:
		c.note = "without a cgroup, as they have not begun or have ended: " + firstOf(p.waiting, func(name string) string { return name })
	}
	return c
}

// tell makes a Warning Event for each annotation that means nothing, once. Agents of
// other nodes would tell the same of a Namespace: they make the same Event.
func (p *podOptOut) tell(ctx context.Context, bad []optout.Bad) {
	for _, b := range bad {
		if p.told[b] {
			continue
		}
		event := eventOf(b, p.node)
		_, err := p.kube.CoreV1().Events(event.Namespace).Create(ctx, event, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			if ctx.Err() == nil {
				klog.FromContext(ctx).Error(err, "Cannot make an Event of an annotation that means nothing", "object", klog.KRef(b.Namespace, b.Name), "problem", b.Problem.String())
			}
			if !apierrors.IsForbidden(err) && !apierrors.IsNotFound(err) {
				continue // it is tried again
			}
		}
		p.told[b] = true
	}
	if len(bad) == 0 {
		clear(p.told)
	}
}

func eventOf(b optout.Bad, node string) *corev1.Event {
	hash := fnv.New64a()
	fmt.Fprint(hash, b.Kind, b.UID, b.Problem.Value)
	namespace := b.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where Events of what has no namespace are
	}
	now := metav1.Now()
	name := b.Name[:min(len(b.Name), 200)]
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s.socket-lb.%x", name, hash.Sum64())},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: b.Kind, Namespace: b.Namespace, Name: b.Name, UID: types.UID(b.UID)},
		Type:           corev1.EventTypeWarning, Reason: "InvalidAnnotation", Message: b.Problem.String(),
		Source:         corev1.EventSource{Component: "mesh-agent", Host: node},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}
}
