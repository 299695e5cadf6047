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
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/generated/clientset/versioned"
	"mesh.io/clustermesh/test/integration/controlplane"
)

const (
	timeout    = 30 * time.Second
	staleAfter = 3 * time.Second
	vip        = "10.96.7.7"
)

// cluster is cluster1: its control plane, and one node with an agent.
type cluster struct {
	*testing.T
	plane   *controlplane.ControlPlane
	kube    kubernetes.Interface
	mesh    versioned.Interface
	binary  string
	access  string // kubeconfig of the agent's account
	folder  string
	metrics string
	flags   []string // beside the usual ones
	agent   *controlplane.Process
}

func newCluster(t *testing.T) *cluster {
	plane := controlplane.Start(t, controlplane.Options{KubeArgs: []string{"--advertise-address=" + advertised}})
	kube, _ := plane.ServiceAccount(t, "mesh-agent")
	return &cluster{
		T: t, plane: plane,
		kube:    kubernetes.NewForConfigOrDie(plane.Kube),
		mesh:    versioned.NewForConfigOrDie(plane.Mesh),
		binary:  controlplane.Build(t, "mesh-agent"),
		access:  plane.Kubeconfig(t, kube),
		folder:  filepath.Join(plane.Dir, "agent"),
		metrics: fmt.Sprintf("127.0.0.1:%d", controlplane.FreePort(t)),
	}
}

// start starts the agent; flags in more win.
func (c *cluster) start(more ...string) {
	c.agent = controlplane.Run(c, c.plane.Dir, c.binary, append([]string{
		"--cluster-name=cluster1", "--node-name=node1", "--kubeconfig=" + c.access, "--mesh-server=" + c.plane.Mesh.Host,
		"--bpffs=" + bpffsDir(), "--state-dir=" + c.folder, "--cgroup-root=" + os.Getenv(envCgroup),
		"--metrics-bind-address=" + c.metrics, "--stale-after=" + staleAfter.String(), "--max-slots=65536", "-v=4",
	}, append(slices.Clone(c.flags), more...)...)...)
}

// run runs a subcommand of the agent's program.
func (c *cluster) run(args ...string) (string, error) {
	output, err := exec.Command(c.binary, append(args, "--bpffs="+bpffsDir(), "--state-dir="+c.folder)...).CombinedOutput()
	return string(output), err
}

type table struct {
	Services []struct {
		Address  string `json:"address"`
		Name     string `json:"name"`
		Port     uint16 `json:"port"`
		Backends []struct {
			Address   string `json:"address"`
			Cluster   string `json:"cluster"`
			State     string `json:"state"`
			Preferred bool   `json:"preferred"`
		} `json:"backends"`
	} `json:"services"`
	LeftToKubeProxy []struct{ Service, Reason string } `json:"leftToKubeProxy"`
}

// has writes the kernel's table, by `dump`, as "userlist: 10.1.0.1 10.2.0.1(-)".
func (c *cluster) has() (string, error) {
	output, err := c.run("dump", "-o", "json")
	if err != nil {
		return "", fmt.Errorf("dump: %w: %s", err, output)
	}
	var t table
	if err := json.Unmarshal([]byte(output), &t); err != nil {
		return "", fmt.Errorf("dump: %w: %s", err, output)
	}
	var lines []string
	for _, s := range t.Services {
		line := s.Name + ":"
		for _, b := range s.Backends {
			line += " " + b.Address
			if !b.Preferred {
				line += "(-)"
			}
		}
		lines = append(lines, line)
	}
	for _, left := range t.LeftToKubeProxy {
		lines = append(lines, left.Service+" left: "+left.Reason)
	}
	slices.Sort(lines)
	return strings.Join(lines, "; "), nil
}

func (c *cluster) eventually(what, want string) {
	c.Helper()
	controlplane.Eventually(c, timeout, what, func(context.Context) error {
		got, err := c.has()
		if err == nil && got != want {
			err = fmt.Errorf("the table has %q, want %q", got, want)
		}
		return err
	})
}

// stays fails the test if the table changes within the time.
func (c *cluster) stays(what, want string, during time.Duration) {
	c.Helper()
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		got, err := c.has()
		if err != nil || got != want {
			c.Fatalf("%s: the table has %q (%v), want %q all the time", what, got, err, want)
		}
	}
}

func (c *cluster) readyz() (string, error) { return c.get("/readyz?verbose") }

// get asks the agent, and returns the status and what it answers.
func (c *cluster) get(path string) (string, error) {
	answer, err := http.Get("http://" + c.metrics + path)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return fmt.Sprintf("%d\n%s", answer.StatusCode, body), err
}

func (c *cluster) ready(want ...string) {
	c.Helper()
	controlplane.Eventually(c, timeout, "readiness", func(context.Context) error {
		body, err := c.readyz()
		if err != nil {
			return err
		}
		for _, part := range want {
			if !strings.Contains(body, part) {
				return fmt.Errorf("it lacks %q:\n%s", part, body)
			}
		}
		return nil
	})
}

// reaches says which addresses programs on the node reach by the Service's address:
// the true peers of UDP sockets, from /proc, as getpeername is ours too.
func reaches(*testing.T) (string, error) { return reachesBy(vip) }

// reachesBy is the same by another address.
func reachesBy(address string) (string, error) {
	seen := map[string]bool{}
	for range 40 {
		conn, err := net.Dial("udp", net.JoinHostPort(address, "53"))
		if err != nil {
			return "", err
		}
		peer, err := peerOf(conn.LocalAddr().(*net.UDPAddr).Port)
		_ = conn.Close()
		if err != nil {
			return "", err
		}
		seen[peer] = true
	}
	var list []string
	for peer := range seen {
		list = append(list, peer)
	}
	slices.Sort(list)
	return strings.Join(list, " "), nil
}

func peerOf(port int) (string, error) {
	f, err := os.Open("/proc/self/net/udp")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || !strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
			continue
		}
		var a [4]byte
		if _, err := fmt.Sscanf(fields[2], "%02X%02X%02X%02X:", &a[3], &a[2], &a[1], &a[0]); err != nil {
			return "", err
		}
		return net.IP(a[:]).String(), nil
	}
	return "", fmt.Errorf("no UDP socket has port %d", port)
}

func (c *cluster) reach(what, want string) {
	c.Helper()
	controlplane.Eventually(c, timeout, what, func(context.Context) error {
		got, err := reaches(c.T)
		if err == nil && got != want {
			err = fmt.Errorf("connections reach %q, want %q", got, want)
		}
		return err
	})
}

func must[T any](c *cluster) func(T, error) T {
	return func(v T, err error) T {
		c.Helper()
		if err != nil {
			c.Fatal(err)
		}
		return v
	}
}

func (c *cluster) makeService(annotations map[string]string) {
	must[*corev1.Service](c)(c.kube.CoreV1().Services("song").Create(c.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "userlist", Annotations: annotations},
		Spec:       corev1.ServiceSpec{ClusterIP: vip, Ports: []corev1.ServicePort{{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}}},
	}, metav1.CreateOptions{}))
}

// local makes or changes the slice of this cluster.
func (c *cluster) local(addrs ...string) {
	c.Helper()
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "userlist-x", Labels: map[string]string{discoveryv1.LabelServiceName: "userlist"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("dns"), Protocol: ptr.To(corev1.ProtocolUDP), Port: ptr.To[int32](5353)}},
	}
	for _, addr := range addrs {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}})
	}
	client := c.kube.DiscoveryV1().EndpointSlices("song")
	if _, err := client.Update(c.Context(), slice, metav1.UpdateOptions{}); err == nil {
		return
	}
	must[*discoveryv1.EndpointSlice](c)(client.Create(c.Context(), slice, metav1.CreateOptions{}))
}

func importedSlice(cluster string, addrs ...string) *v1alpha1.ImportedEndpointSlice {
	slice := &v1alpha1.ImportedEndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: cluster + ".userlist-x", Namespace: "song",
			Labels: map[string]string{v1alpha1.LabelCluster: cluster, v1alpha1.LabelServiceName: "userlist"},
		},
		Spec: v1alpha1.SliceRecord{
			Cluster: cluster, ClusterID: int32(cluster[len(cluster)-1] - '0'), Service: "userlist",
			AddressType: discoveryv1.AddressTypeIPv4, ChangedAt: metav1.NowMicro(),
			Ports: []v1alpha1.EndpointPort{{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 5353}},
		},
	}
	for _, addr := range addrs {
		slice.Spec.Endpoints = append(slice.Spec.Endpoints, v1alpha1.Endpoint{Address: addr, Ready: true, Serving: true})
	}
	return slice
}

// imported makes or changes the slice that is imported from another cluster.
func (c *cluster) imported(cluster string, addrs ...string) {
	c.Helper()
	client := c.mesh.MeshV1alpha1().ImportedEndpointSlices("song")
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		old, err := client.Get(c.Context(), cluster+".userlist-x", metav1.GetOptions{})
		if err != nil {
			_, err = client.Create(c.Context(), importedSlice(cluster, addrs...), metav1.CreateOptions{})
			return err
		}
		slice := importedSlice(cluster, addrs...)
		slice.ResourceVersion = old.ResourceVersion
		_, err = client.Update(c.Context(), slice, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		c.Fatal(err)
	}
}

// member makes a MeshCluster if there is none, and writes a heartbeat as a controller
// in sync does.
func (c *cluster) member(name string, synced bool) {
	c.Helper()
	client := c.mesh.MeshV1alpha1().MeshClusters()
	controlplane.Eventually(c, timeout, "status of MeshCluster "+name, func(ctx context.Context) error {
		m, err := client.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			m = &v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MeshClusterSpec{ID: int32(name[len(name)-1] - '0')}}
			if name != "cluster1" {
				m.Spec.KubeconfigSecretRef = &v1alpha1.SecretReference{Name: name}
			}
			if m, err = client.Create(ctx, m, metav1.CreateOptions{}); err != nil {
				return err
			}
		}
		m.Status.LastContactTime = metav1.Now()
		condition := metav1.Condition{Type: v1alpha1.MeshClusterSynced, Status: metav1.ConditionFalse, Reason: "Test"}
		if name == "cluster1" {
			condition.Type = v1alpha1.MeshClusterExportsSynced
		}
		if synced {
			condition.Status = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&m.Status.Conditions, condition)
		_, err = client.UpdateStatus(ctx, m, metav1.UpdateOptions{})
		return err
	})
}

// TestNode is the life of one node. Each step goes on where the last one ended.
func TestNode(t *testing.T) {
	requireNode(t)
	c := newCluster(t)
	step := func(name string, f func(c *cluster)) {
		if !t.Run(name, func(t *testing.T) {
			inner := *c
			inner.T = t
			// Processes that a step starts live on in the next.
			f(&inner)
			c.agent = inner.agent
		}) {
			t.FailNow()
		}
	}
	// start makes the agent a process of the whole test.
	start := func(inner *cluster, more ...string) {
		c.start(more...)
		inner.agent = c.agent
	}

	must[*corev1.Namespace](c)(c.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "song"}}, metav1.CreateOptions{}))
	for _, name := range []string{"cluster1", "cluster2", "cluster3"} {
		c.member(name, true)
	}
	c.makeService(map[string]string{"service.cilium.io/global": "true"})
	c.local("10.1.0.1")
	c.imported("cluster2", "10.2.0.1")
	c.imported("cluster3", "10.3.0.1")
	c.imported("cluster4", "10.4.0.1") // that nobody made a member

	step("connections reach the ready backends of all members", func(c *cluster) {
		start(c)
		c.eventually("the agent", "userlist: 10.1.0.1 10.2.0.1 10.3.0.1")
		c.reach("connections", "10.1.0.1 10.2.0.1 10.3.0.1")
		c.ready("200\n", "[+]mesh-api ok\n", "[+]doubt ok\n", "[+]table ok\n")
		output, err := c.run("dump")
		if err != nil || !strings.Contains(output, "2 => 10.2.0.1:5353 cluster2 (active) (preferred)") {
			c.Errorf("dump: %v\n%s", err, output)
		}
		// What the kernel counted is in both, and nobody connects meanwhile.
		for _, cluster := range []string{"cluster1", "cluster2", "cluster3"} {
			flows := c.metric(fmt.Sprintf(`mesh_agent_udp_flows_total{cluster=%q,namespace="song",service="userlist"}`, cluster))
			wide := must[string](c)(c.run("dump", "-o", "wide"))
			line := regexp.MustCompile(cluster + ` \(active\) \(preferred\) +(\d+) +- `).FindStringSubmatch(wide)
			if line == nil || line[1] != flows || flows == "0" {
				c.Errorf("%s UDP flows to %s, and\n%s", flows, cluster, wide)
			}
		}
	})

	step("each change arrives, and how fast", func(c *cluster) {
		const n = 200
		for i := range n {
			if i%2 == 0 {
				c.imported("cluster2", "10.2.0.1", fmt.Sprintf("10.2.1.%d", i+1))
			} else {
				c.imported("cluster2", "10.2.0.1")
			}
			time.Sleep(5 * time.Millisecond)
		}
		c.eventually("the last of them", "userlist: 10.1.0.1 10.2.0.1 10.3.0.1")
		for _, metric := range []string{"mesh_agent_propagation_seconds", "mesh_agent_sync_seconds", "mesh_agent_build_seconds", "mesh_agent_apply_seconds"} {
			c.Logf("%s: %s", metric, c.quantiles(metric))
		}
	})

	step("a person prefers and drains clusters", func(c *cluster) {
		specs := c.mesh.MeshV1alpha1().GlobalServices("song")
		g := must[*v1alpha1.GlobalService](c)(specs.Create(c.Context(), &v1alpha1.GlobalService{
			ObjectMeta: metav1.ObjectMeta{Name: "userlist"},
			Spec:       v1alpha1.GlobalServiceSpec{Clusters: []v1alpha1.ClusterPolicy{{Name: "cluster2", Weight: ptr.To[int32](0)}}},
		}, metav1.CreateOptions{}))
		c.eventually("cluster2 is drained", "userlist: 10.1.0.1 10.2.0.1(-) 10.3.0.1")
		c.reach("connections", "10.1.0.1 10.3.0.1")
		g.Spec = v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityRemote}
		must[*v1alpha1.GlobalService](c)(specs.Update(c.Context(), g, metav1.UpdateOptions{}))
		c.eventually("affinity remote", "userlist: 10.1.0.1(-) 10.2.0.1 10.3.0.1")
		if err := specs.Delete(c.Context(), "userlist", metav1.DeleteOptions{}); err != nil {
			c.Fatal(err)
		}
		c.eventually("neither", "userlist: 10.1.0.1 10.2.0.1 10.3.0.1")
	})

	step("what is nearer comes first, and internalTrafficPolicy Local keeps to the node", func(c *cluster) {
		must[*corev1.Node](c)(c.kube.CoreV1().Nodes().Create(c.Context(), &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "node1", Labels: map[string]string{corev1.LabelTopologyZone: "a"}},
		}, metav1.CreateOptions{}))
		// As the control plane does it for trafficDistribution.
		slices := c.kube.DiscoveryV1().EndpointSlices("song")
		slice := must[*discoveryv1.EndpointSlice](c)(slices.Get(c.Context(), "userlist-x", metav1.GetOptions{}))
		before := slice.Endpoints
		endpoint := func(addr, node, zone string) discoveryv1.Endpoint {
			return discoveryv1.Endpoint{
				Addresses: []string{addr}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}, NodeName: &node, Zone: &zone,
				Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}},
			}
		}
		slice.Endpoints = []discoveryv1.Endpoint{endpoint("10.1.0.1", "node1", "a"), endpoint("10.1.0.2", "node2", "a"), endpoint("10.1.0.3", "node3", "b")}
		slice = must[*discoveryv1.EndpointSlice](c)(slices.Update(c.Context(), slice, metav1.UpdateOptions{}))
		c.eventually("those of the zone", "userlist: 10.1.0.1 10.1.0.2 10.1.0.3(-) 10.2.0.1 10.3.0.1")
		services := c.kube.CoreV1().Services("song")
		s := must[*corev1.Service](c)(services.Get(c.Context(), "userlist", metav1.GetOptions{}))
		s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
		s = must[*corev1.Service](c)(services.Update(c.Context(), s, metav1.UpdateOptions{}))
		c.eventually("those of the node", "userlist: 10.1.0.1 10.1.0.2(-) 10.1.0.3(-) 10.2.0.1(-) 10.3.0.1(-)")
		c.reach("connections", "10.1.0.1")
		slice.Endpoints = slice.Endpoints[1:]
		slice = must[*discoveryv1.EndpointSlice](c)(slices.Update(c.Context(), slice, metav1.UpdateOptions{}))
		c.reach("connections where the node has none", vip)
		s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyCluster)
		must[*corev1.Service](c)(services.Update(c.Context(), s, metav1.UpdateOptions{}))
		slice.Endpoints = before
		must[*discoveryv1.EndpointSlice](c)(slices.Update(c.Context(), slice, metav1.UpdateOptions{}))
		c.eventually("neither", "userlist: 10.1.0.1 10.2.0.1 10.3.0.1")
	})

	step("session affinity is kept", func(c *cluster) {
		s := must[*corev1.Service](c)(c.kube.CoreV1().Services("song").Get(c.Context(), "userlist", metav1.GetOptions{}))
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s = must[*corev1.Service](c)(c.kube.CoreV1().Services("song").Update(c.Context(), s, metav1.UpdateOptions{}))
		controlplane.Eventually(c, timeout, "all connections reach one backend", func(context.Context) error {
			got, err := reaches(c.T)
			if err == nil && (strings.Contains(got, " ") || got == vip) {
				err = fmt.Errorf("connections reach %q", got)
			}
			return err
		})
		s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
		must[*corev1.Service](c)(c.kube.CoreV1().Services("song").Update(c.Context(), s, metav1.UpdateOptions{}))
		c.reach("connections without it", "10.1.0.1 10.2.0.1 10.3.0.1")
	})

	step("a service that must stay with kube-proxy is named", func(c *cluster) {
		s := must[*corev1.Service](c)(c.kube.CoreV1().Services("song").Get(c.Context(), "userlist", metav1.GetOptions{}))
		s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
		s = must[*corev1.Service](c)(c.kube.CoreV1().Services("song").Update(c.Context(), s, metav1.UpdateOptions{}))
		c.eventually("another proxy's", "song/userlist left: its label service.kubernetes.io/service-proxy-name gives it to another proxy")
		c.reach("connections go to the cluster IP", vip)
		s.Labels = nil
		must[*corev1.Service](c)(c.kube.CoreV1().Services("song").Update(c.Context(), s, metav1.UpdateOptions{}))
		c.eventually("without it", "userlist: 10.1.0.1 10.2.0.1 10.3.0.1")
	})

	step("default/kubernetes is never global", func(c *cluster) {
		s, err := c.kube.CoreV1().Services("default").Get(c.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil {
			c.Skip("there is none")
		}
		s.Annotations = map[string]string{"mesh.io/global": "true"}
		must[*corev1.Service](c)(c.kube.CoreV1().Services("default").Update(c.Context(), s, metav1.UpdateOptions{}))
		c.eventually("it is named", "default/kubernetes left: it is how this cluster reaches its own API server; userlist: 10.1.0.1 10.2.0.1 10.3.0.1")
		s = must[*corev1.Service](c)(c.kube.CoreV1().Services("default").Get(c.Context(), "kubernetes", metav1.GetOptions{}))
		s.Annotations = nil
		must[*corev1.Service](c)(c.kube.CoreV1().Services("default").Update(c.Context(), s, metav1.UpdateOptions{}))
		c.eventually("it is not global any more", "userlist: 10.1.0.1 10.2.0.1 10.3.0.1")
	})

	step("a second agent on the node refuses, and leaves the first alone", func(c *cluster) {
		first := c.agent
		for _, more := range [][]string{nil, {"--state-dir=" + c.folder + "-other"}, {"--bpffs=" + bpffsDir() + "/other"}} {
			start(c, more...)
			expectRefusal(c, c.agent)
		}
		select {
		case <-first.Exited():
			c.Error("the first has ended")
		default:
		}
		c.agent = first
		c.local("10.1.0.9")
		c.eventually("the first goes on", "userlist: 10.1.0.9 10.2.0.1 10.3.0.1")
		c.local("10.1.0.1")
		c.eventually("the first goes on", "userlist: 10.1.0.1 10.2.0.1 10.3.0.1")
	})

	step("of two that start at once one refuses, and after the other is killed a third works at once", func(c *cluster) {
		c.agent.Kill()
		start(c)
		one := c.agent
		start(c)
		refused, works := one, c.agent
		select {
		case <-one.Exited():
		case <-c.agent.Exited():
			refused, works = works, refused
		case <-time.After(timeout):
			c.Fatal("both run")
		}
		expectRefusal(c, refused)
		c.local("10.1.0.8")
		c.eventually("the other works", "userlist: 10.1.0.8 10.2.0.1 10.3.0.1")
		works.Kill()
		start(c)
		c.local("10.1.0.1")
		c.eventually("the third works", "userlist: 10.1.0.1 10.2.0.1 10.3.0.1")
		c.reach("connections", "10.1.0.1 10.2.0.1 10.3.0.1")
	})

	step("what others do to the programs is found and repaired", func(c *cluster) {
		const all = "10.1.0.1 10.2.0.1 10.3.0.1"
		c.ready("200\n", "[+]canary ok\n", "[+]foreign-programs ok\n")
		began := time.Now()
		links, err := filepath.Glob(filepath.Join(bpffsDir(), "clustermesh", "*", "links", "connect4-*"))
		if err != nil || len(links) != 1 {
			c.Fatalf("links of connect4: %v, %v", links, err)
		}
		if err := os.Remove(links[0]); err != nil {
			c.Fatal(err)
		}
		c.reach("connections without the link", vip)
		c.reach("connections once it is repaired", all)
		c.Logf("repaired after %s", time.Since(began))
		if n := c.metric(`mesh_agent_drift_total{kind="pin_missing"}`); n != "1" {
			c.Errorf("%s missing pins are counted", n)
		}
		controlplane.Eventually(c, timeout, "an Event about the node", func(ctx context.Context) error {
			events, err := c.kube.CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.kind=Node,involvedObject.name=node1,reason=DataPathRepaired"})
			if err != nil || len(events.Items) != 1 || !strings.Contains(events.Items[0].Message, "pin missing connect4 at ") {
				return fmt.Errorf("%w %v", err, events)
			}
			return nil
		})
		c.ready("200\n", "[+]canary ok\n")
		if n := c.metric("mesh_agent_canary_up"); n != "1" {
			c.Errorf("the canary's metric is %s", n)
		}

		// A new first-level cgroup: what is in it is served at once.
		pods := filepath.Join(os.Getenv(envCgroup), "kubepods")
		slice := filepath.Join(os.Getenv(envCgroup), "new.slice")
		began = time.Now()
		if err := os.Mkdir(slice, 0o755); err != nil {
			c.Fatal(err)
		}
		move := func(cgroup string) {
			if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0); err != nil {
				c.Fatal(err)
			}
		}
		move(slice)
		c.reach("connections from the new cgroup", all)
		c.Logf("a new cgroup is served after %s", time.Since(began))
		move(pods)
		if err := os.Remove(slice); err != nil {
			c.Fatal(err)
		}
		controlplane.Eventually(c, timeout, "the cgroup that has gone", func(context.Context) error {
			if n := c.metric(`mesh_agent_drift_total{kind="cgroup_gone"}`); n != "1" {
				return fmt.Errorf("%s cgroups have gone", n)
			}
			return nil
		})

		if output, err := c.run("dump", "-o", "json"); err != nil || strings.Contains(output, "192.0.0.8") {
			c.Errorf("the canary is shown to people: %v\n%s", err, output)
		}
	})

	step("with the agent killed traffic goes on, and is handed back once it is dead for long", func(c *cluster) {
		c.agent.Kill()
		c.reach("connections at first", "10.1.0.1 10.2.0.1 10.3.0.1")
		c.local("10.1.0.2") // the local pod moves meanwhile
		c.reach("connections once the agent is dead for long", vip)
		start(c)
		c.eventually("the next agent", "userlist: 10.1.0.2 10.2.0.1 10.3.0.1")
		c.reach("connections", "10.1.0.2 10.2.0.1 10.3.0.1")
	})

	step("with the mesh API down at start, the snapshot stands in and local changes count", func(c *cluster) {
		c.ready("200\n", "[+]mesh-api ok\n")
		if err := c.agent.Stop(); err != nil {
			c.Errorf("the agent ended with %v", err)
		}
		if err := c.plane.MeshAPIServer.Stop(); err != nil {
			c.Logf("mesh-apiserver ended with %v", err)
		}
		start(c)
		c.local("10.1.0.3")
		c.eventually("a local change", "userlist: 10.1.0.3 10.2.0.1 10.3.0.1")
		c.ready("200\n", "[+]mesh-api ok: not read since the start, the snapshot stands in")
	})

	step("with neither mesh API nor snapshot, the kernel's own table stands in", func(c *cluster) {
		c.agent.Kill()
		if err := os.WriteFile(filepath.Join(c.folder, "remote.snapshot"), []byte("spoilt"), 0o600); err != nil {
			c.Fatal(err)
		}
		start(c)
		c.local("10.1.0.4")
		c.eventually("a local change", "userlist: 10.1.0.4 10.2.0.1 10.3.0.1")
		c.ready("503\n", "[-]mesh-api: not in sync yet, and there is no snapshot")
		if !strings.Contains(c.agent.Log(), "Ignored the snapshot of the mesh") {
			c.Error("it does not say that the snapshot was spoilt")
		}
		c.plane.StartMesh(t)
		c.ready("200\n", "[+]mesh-api ok\n", "[+]doubt ok\n")
		c.eventually("the mesh API is back", "userlist: 10.1.0.4 10.2.0.1 10.3.0.1")
	})

	step("a slice that was deleted while there was no contact goes, as the store is the same", func(c *cluster) {
		if err := c.agent.Stop(); err != nil {
			c.Errorf("the agent ended with %v", err)
		}
		if err := c.mesh.MeshV1alpha1().ImportedEndpointSlices("song").Delete(c.Context(), "cluster3.userlist-x", metav1.DeleteOptions{}); err != nil {
			c.Fatal(err)
		}
		start(c)
		c.eventually("the next agent", "userlist: 10.1.0.4 10.2.0.1")
		c.imported("cluster3", "10.3.0.1")
		c.eventually("it comes back", "userlist: 10.1.0.4 10.2.0.1 10.3.0.1")
	})

	step("a mesh API whose store was emptied takes nothing away", func(c *cluster) {
		specs := c.mesh.MeshV1alpha1().GlobalServices("song")
		must[*v1alpha1.GlobalService](c)(specs.Create(c.Context(), &v1alpha1.GlobalService{
			ObjectMeta: metav1.ObjectMeta{Name: "userlist"}, Spec: v1alpha1.GlobalServiceSpec{Affinity: v1alpha1.AffinityRemote},
		}, metav1.CreateOptions{}))
		const all = "userlist: 10.1.0.4(-) 10.2.0.1 10.3.0.1"
		c.eventually("a person prefers the remote side", all)
		if err := c.plane.MeshAPIServer.Stop(); err != nil {
			c.Logf("mesh-apiserver ended with %v", err)
		}
		if err := os.RemoveAll(c.plane.MeshDataDir); err != nil {
			c.Fatal(err)
		}
		c.plane.StartMesh(t)
		c.ready("[+]doubt ok: kept although")
		c.stays("an empty store", all, 2*time.Second)
		c.member("cluster1", false)
		// As the controller makes it, which does not know what a person wrote.
		made := must[*v1alpha1.GlobalService](c)(specs.Create(c.Context(), &v1alpha1.GlobalService{
			ObjectMeta: metav1.ObjectMeta{Name: "userlist", Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByController}},
		}, metav1.CreateOptions{}))
		c.stays("with our own MeshCluster, whose controller is not in sync", all, 2*time.Second)
		c.agent.Kill()
		start(c)
		c.ready("[+]doubt ok: kept although")
		c.stays("for the next agent too", all, 2*time.Second)
		c.local("10.1.0.5")
		c.eventually("local changes count", "userlist: 10.1.0.5(-) 10.2.0.1 10.3.0.1")

		// The controller brings cluster2 into it, with another pod; cluster3 is still missing.
		c.member("cluster1", true)
		c.member("cluster2", false)
		c.imported("cluster2", "10.2.0.2")
		c.eventually("a slice of the same name takes the place of the old one", "userlist: 10.1.0.5(-) 10.2.0.2 10.3.0.1")
		// beat goes on as controllers do, until the agent is ready as wanted.
		beat := func(want string, names ...string) {
			c.Helper()
			for deadline := time.Now().Add(timeout); ; time.Sleep(1100 * time.Millisecond) { // heartbeats have seconds
				body, err := c.readyz()
				if err == nil && strings.Contains(body, want) {
					return
				}
				if time.Now().After(deadline) {
					c.Fatalf("readiness lacks %q (%v):\n%s", want, err, body)
				}
				for _, name := range names {
					c.member(name, true)
				}
			}
		}
		const person = "the spec of GlobalService song/userlist"
		beat(": 1 slices of cluster3; "+person+"; MeshCluster cluster3\n", "cluster1", "cluster2")
		c.stays("cluster3 has no MeshCluster in it", "userlist: 10.1.0.5(-) 10.2.0.2 10.3.0.1", time.Second)
		beat(": "+person+"\n", "cluster1", "cluster2", "cluster3")
		c.eventually("cluster3 is in sync, and offers nothing any more", "userlist: 10.1.0.5(-) 10.2.0.2")

		made.Spec.Affinity = v1alpha1.AffinityLocal
		must[*v1alpha1.GlobalService](c)(specs.Update(c.Context(), made, metav1.UpdateOptions{}))
		c.eventually("a person writes the spec again", "userlist: 10.1.0.5 10.2.0.2(-)")
		beat("[+]doubt ok\n", "cluster1", "cluster2", "cluster3")
		if err := specs.Delete(c.Context(), "userlist", metav1.DeleteOptions{}); err != nil {
			c.Fatal(err)
		}
		c.eventually("a person deletes it", "userlist: 10.1.0.5 10.2.0.2")
	})

	step("a MeshCluster that a person deletes does not count at once, though its finalizer keeps it", func(c *cluster) {
		members := c.mesh.MeshV1alpha1().MeshClusters()
		m := must[*v1alpha1.MeshCluster](c)(members.Get(c.Context(), "cluster2", metav1.GetOptions{}))
		m.Finalizers = []string{v1alpha1.FinalizerCluster}
		must[*v1alpha1.MeshCluster](c)(members.Update(c.Context(), m, metav1.UpdateOptions{}))
		if err := members.Delete(c.Context(), "cluster2", metav1.DeleteOptions{}); err != nil {
			c.Fatal(err)
		}
		c.eventually("its backends go", "userlist: 10.1.0.5")
		must[*v1alpha1.ImportedEndpointSlice](c)(c.mesh.MeshV1alpha1().ImportedEndpointSlices("song").Get(c.Context(), "cluster2.userlist-x", metav1.GetOptions{}))
	})

	step("the Service deleted here takes its entry with it", func(c *cluster) {
		if err := c.kube.CoreV1().Services("song").Delete(c.Context(), "userlist", metav1.DeleteOptions{}); err != nil {
			c.Fatal(err)
		}
		c.eventually("the table is empty", "")
		c.reach("connections go to the cluster IP", vip)
	})

	step("cleanup leaves nothing, and not under a running agent", func(c *cluster) {
		if output, err := c.run("cleanup"); err == nil || !strings.Contains(output, "an agent runs on this node") {
			c.Errorf("beside a running agent: %v: %s", err, output)
		}
		if err := c.agent.Stop(); err != nil {
			c.Errorf("the agent ended with %v", err)
		}
		if output, err := c.run("cleanup"); err != nil {
			c.Fatalf("cleanup: %v: %s", err, output)
		}
		for _, dir := range []string{filepath.Join(bpffsDir(), "clustermesh"), c.folder} {
			entries, err := os.ReadDir(dir)
			if err != nil && !errors.Is(err, os.ErrNotExist) || len(entries) > 0 {
				c.Errorf("%s still has %v (%v)", dir, entries, err)
			}
		}
	})

	for what, test := range map[string]struct {
		flag string
		full string
	}{
		// The canary takes one of each.
		"frontends": {"--max-frontends=2", "map is full: frontends"},
		"backends":  {"--max-backends=3", "map is full: backends"},
		"slots":     {"--max-slots=3", "map is full: slots"},
	} {
		step("with a map full of "+what+" what fits works, the rest is named, and gets in once there is room", func(c *cluster) {
			start(c, test.flag)
			c.makeService(map[string]string{"mesh.io/global": "true"}) // the first by its address
			c.local("10.1.0.1", "10.1.0.2")
			c.eventually("the first", "userlist: 10.1.0.1 10.1.0.2")
			other := "10.96.7.8"
			must[*corev1.Service](c)(c.kube.CoreV1().Services("song").Create(c.Context(), &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: "other", Annotations: map[string]string{"mesh.io/global": "true"}},
				Spec:       corev1.ServiceSpec{ClusterIP: other, Ports: []corev1.ServicePort{{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}}},
			}, metav1.CreateOptions{}))
			slice := must[*discoveryv1.EndpointSlice](c)(c.kube.DiscoveryV1().EndpointSlices("song").Get(c.Context(), "userlist-x", metav1.GetOptions{})).DeepCopy()
			slice.ObjectMeta = metav1.ObjectMeta{Name: "other-x", Labels: map[string]string{discoveryv1.LabelServiceName: "other"}}
			slice.Endpoints[0].Addresses, slice.Endpoints = []string{"10.1.0.3"}, slice.Endpoints[:1]
			must[*discoveryv1.EndpointSlice](c)(c.kube.DiscoveryV1().EndpointSlices("song").Create(c.Context(), slice, metav1.CreateOptions{}))
			c.eventually("the second does not fit", "song/other:dns left: "+test.full+"; userlist: 10.1.0.1 10.1.0.2")
			c.ready("200\n", "[+]left-to-kube-proxy ok: song/other:dns ("+test.full+")")
			if metrics, err := c.get("/metrics"); err != nil || !strings.Contains(metrics, "\nmesh_agent_frontends_failed 1\n") {
				c.Errorf("the metric does not count it: %v", err)
			}
			c.reach("connections", "10.1.0.1 10.1.0.2")

			if err := c.kube.CoreV1().Services("song").Delete(c.Context(), "userlist", metav1.DeleteOptions{}); err != nil {
				c.Fatal(err)
			}
			c.eventually("there is room", "other: 10.1.0.3")
			c.ready("200\n", "[+]left-to-kube-proxy ok\n")
			for _, name := range []string{"userlist-x", "other-x"} {
				if err := c.kube.DiscoveryV1().EndpointSlices("song").Delete(c.Context(), name, metav1.DeleteOptions{}); err != nil {
					c.Fatal(err)
				}
			}
			if err := c.kube.CoreV1().Services("song").Delete(c.Context(), "other", metav1.DeleteOptions{}); err != nil {
				c.Fatal(err)
			}
			c.eventually("nothing is left", "")
			if err := c.agent.Stop(); err != nil {
				c.Errorf("the agent ended with %v", err)
			}
			if output, err := c.run("cleanup"); err != nil {
				c.Fatalf("cleanup: %v: %s", err, output)
			}
		})
	}
}

// expectRefusal fails the test unless the agent ends because there is another one, and
// says what to do.
func expectRefusal(c *cluster, agent *controlplane.Process) {
	c.Helper()
	if code := agent.ExitCode(); code != 75 {
		c.Errorf("the second agent ends with %d, want 75", code)
	}
	if log := agent.Log(); !strings.Contains(log, "another mesh-agent runs on this node") || !strings.Contains(log, "stop it first") {
		c.Errorf("it does not say what to do:\n%s", log)
	}
}

// metric reads the value of one of the agent's metrics, with its labels.
func (c *cluster) metric(name string) string {
	answer, err := http.Get("http://" + c.metrics + "/metrics")
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return value
		}
	}
	return "nothing"
}

// quantiles reads a histogram of the agent.
func (c *cluster) quantiles(name string) string {
	answer, err := http.Get("http://" + c.metrics + "/metrics")
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err.Error()
	}
	var bounds []string
	var counts []float64
	for line := range bytes.Lines(body) {
		text := string(line)
		if !strings.HasPrefix(text, name+"_bucket{") {
			continue
		}
		_, rest, _ := strings.Cut(text, `le="`)
		bound, rest, _ := strings.Cut(rest, `"`)
		var n float64
		if _, err := fmt.Sscanf(strings.TrimPrefix(rest, "}"), "%g", &n); err != nil {
			return err.Error()
		}
		bounds, counts = append(bounds, bound), append(counts, n)
	}
	if len(counts) == 0 {
		return "nothing"
	}
	total := counts[len(counts)-1]
	at := func(q float64) string {
		for i, n := range counts {
			if n >= q*total {
				return bounds[i]
			}
		}
		return "?"
	}
	return fmt.Sprintf("%g observed, p50 ≤ %s s, p99 ≤ %s s", total, at(.5), at(.99))
}
