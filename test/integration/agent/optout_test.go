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
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"mesh.io/clustermesh/test/integration/controlplane"
)

// TestPodOptOut shows that pods are left alone by their annotation or their Namespace's,
// whatever their cgroups are called, from their first connection on.
func TestPodOptOut(t *testing.T) {
	requireNode(t)
	c := newCluster(t)
	home := filepath.Join(os.Getenv(envCgroup), "kubepods")
	move := func(cgroup string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		move(home)
		_ = c.agent.Stop()
		if output, err := c.run("cleanup"); err != nil {
			t.Errorf("cleanup: %v: %s", err, output)
		}
		removeCgroups(filepath.Join(os.Getenv(envCgroup), "kubepods.slice"))
	}()
	namespaces := c.kube.CoreV1().Namespaces()
	must[*corev1.Namespace](c)(namespaces.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "song"}}, metav1.CreateOptions{}))
	if _, err := c.kube.CoreV1().ServiceAccounts("song").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	for _, name := range []string{"cluster1", "cluster2"} {
		c.member(name, true)
	}
	c.makeService(map[string]string{"mesh.io/global": "true"})
	c.local("10.1.0.1")
	c.imported("cluster2", "10.2.0.1")
	// As the kubelet makes it when it starts.
	if err := os.MkdirAll(filepath.Join(os.Getenv(envCgroup), "kubepods.slice", "kubepods-burstable.slice"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.start()
	const all = "10.1.0.1 10.2.0.1"
	c.reach("connections", all)

	// pod makes a pod, as somebody does who binds it to a node himself.
	pod := func(name, node, value string) types.UID {
		t.Helper()
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
			NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "c"}},
		}}
		if value != "" {
			p.Annotations = map[string]string{"mesh.io/socket-lb": value}
		}
		return must[*corev1.Pod](c)(c.kube.CoreV1().Pods("song").Create(t.Context(), p, metav1.CreateOptions{})).UID
	}
	// cgroup makes the pod's cgroup as systemd does for the kubelet, and, in it, the
	// container's.
	cgroup := func(uid types.UID) string {
		t.Helper()
		dir := filepath.Join(os.Getenv(envCgroup), "kubepods.slice", "kubepods-burstable.slice",
			"kubepods-burstable-pod"+strings.ReplaceAll(string(uid), "-", "_")+".slice", "cri-containerd-0123.scope")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	expect := func(what, cgroup, want string) {
		t.Helper()
		move(cgroup)
		defer move(home)
		c.reach(what, want)
	}
	left := func(n string) {
		t.Helper()
		controlplane.Eventually(t, timeout, "the pods that are left alone", func(context.Context) error {
			if got := c.metric(`mesh_agent_pods_opted_out{state="left"}`); got != n {
				return fmt.Errorf("%s pods are left alone, want %s", got, n)
			}
			return nil
		})
	}

	// A pod begins: the API has it, then the kubelet makes its cgroup, and later its
	// first program connects. How much later it has to be:
	first := pod("first", "node1", "false")
	c.ready("[+]pod-opt-out ok: without a cgroup, as they have not begun or have ended: song/first\n")
	began := time.Now()
	out := cgroup(first)
	move(out)
	for {
		got, err := reaches(t)
		if err == nil && got == vip {
			break
		}
		if time.Since(began) > timeout {
			t.Fatalf("the pod's connections go to %q, %v", got, err)
		}
	}
	t.Logf("it is left alone within %s after its cgroup was made", time.Since(began))
	move(home)
	c.ready("[+]pod-opt-out ok\n")
	plain := cgroup(pod("plain", "node1", ""))
	elsewhere := cgroup(pod("elsewhere", "node2", "false"))
	wrong := pod("wrong", "node1", "off")
	cgroup(wrong)
	left("1")
	expect("a pod without an annotation", plain, all)
	expect("a pod of another node", elsewhere, all)
	expect("programs that are no pod's", home, all)
	controlplane.Eventually(t, timeout, "an Event of the annotation that means nothing", func(ctx context.Context) error {
		events, err := c.kube.CoreV1().Events("song").List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=wrong"})
		if err != nil || len(events.Items) != 1 {
			return fmt.Errorf("%d Events, %w", len(events.Items), err)
		}
		e := events.Items[0]
		const want = `annotation mesh.io/socket-lb has the value "off", which means nothing: use "true" or "false"; until then the default holds`
		if e.Type != corev1.EventTypeWarning || e.Reason != "InvalidAnnotation" || e.Message != want || e.InvolvedObject.UID != wrong {
			t.Errorf("the Event is %+v", e)
		}
		return nil
	})

	// It stays so without an agent, and with the next one.
	c.agent.Kill()
	expect("the pod, without an agent", out, vip)
	c.start()
	c.ready("200\n", "[+]pod-opt-out ok\n")
	expect("the pod, with the next agent", out, vip)

	// The whole Namespace, and a pod that wants to be balanced all the same.
	wants := cgroup(pod("wants", "node1", "true"))
	annotate := func(value string) {
		t.Helper()
		patch := fmt.Sprintf(`{"metadata":{"annotations":{"mesh.io/socket-lb":%s}}}`, value)
		must[*corev1.Namespace](c)(namespaces.Patch(t.Context(), "song", types.MergePatchType, []byte(patch), metav1.PatchOptions{}))
	}
	annotate(`"false"`)
	left("3")
	expect("a pod of the Namespace", plain, vip)
	expect("a pod that wants to be balanced", wants, all)
	annotate(`"nope"`)
	controlplane.Eventually(t, timeout, "an Event of the Namespace's annotation", func(ctx context.Context) error {
		events, err := c.kube.CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.kind=Namespace,involvedObject.name=song,reason=InvalidAnnotation"})
		if err == nil && len(events.Items) == 0 {
			err = fmt.Errorf("there is none")
		}
		return err
	})
	annotate("null")
	expect("a pod of the Namespace without its annotation", plain, all)
	expect("the pod that has one itself", out, vip)

	// Its annotation goes, and so does the pod.
	must[*corev1.Pod](c)(c.kube.CoreV1().Pods("song").Patch(t.Context(), "first", types.MergePatchType, []byte(`{"metadata":{"annotations":null}}`), metav1.PatchOptions{}))
	expect("the pod without its annotation", out, all)

	// Somebody takes the right to watch pods away: everybody else is balanced.
	c.plane.MustKubectl(t, "patch", "clusterrole", "mesh-agent", "--type=json", `-p=[{"op":"replace","path":"/rules/0/resources","value":["services","namespaces","nodes"]}]`)
	c.agent.Kill()
	c.start()
	c.ready("200\n", "[+]pod-opt-out ok: annotations of pods do not count, as kube-apiserver refuses to tell pods")
	expect("programs that are no pod's", home, all)
}
