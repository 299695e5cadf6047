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
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/test/integration/controlplane"
)

// envScale asks for TestScale, by the number of global Services.
const envScale = "MESH_TEST_SCALE"

// TestScale measures an agent with many Services of one local and ten remote
// endpoints each: its memory, how long it takes to start, and a change.
func TestScale(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv(envScale))
	if err != nil {
		t.Skipf("set %s to a number of Services, such as 10000", envScale)
	}
	requireNode(t)
	c := newCluster(t)
	must[*corev1.Namespace](c)(c.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: "song", Annotations: map[string]string{"mesh.io/global": "true"},
	}}, metav1.CreateOptions{}))
	c.member("cluster1", true)
	c.member("cluster2", true)

	// Each worker stops at its first error.
	begin := time.Now()
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			for i := worker; i < n; i += 8 {
				if err := c.makeOne(i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
	t.Logf("made %d Services in %s", n, time.Since(begin).Round(time.Second))

	frontends := func() int {
		output, err := exec.Command(c.binary, "dump", "-o", "json", "--bpffs="+bpffsDir(), "--state-dir="+c.folder).Output()
		var d table
		if err != nil || json.Unmarshal(output, &d) != nil {
			return 0
		}
		full := 0
		for _, s := range d.Services {
			if len(s.Backends) == 11 {
				full++
			}
		}
		return full
	}
	for _, start := range []string{"first start", "restart"} {
		begin = time.Now()
		c.agent = controlplane.Run(t, c.plane.Dir, c.binary,
			"--cluster-name=cluster1", "--kubeconfig="+c.access, "--mesh-server="+c.plane.Mesh.Host,
			"--bpffs="+bpffsDir(), "--state-dir="+c.folder, "--cgroup-root="+os.Getenv(envCgroup), "--metrics-bind-address="+c.metrics,
			fmt.Sprintf("--max-backends=%d", 12*n+1000))
		c.ready("200\n", "[+]mesh-api ok\n")
		t.Logf("%s: ready after %s", start, time.Since(begin).Round(10*time.Millisecond))
		for deadline := time.Now().Add(time.Minute); frontends() != n; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d of %d Services are programmed", frontends(), n)
			}
		}
		t.Logf("%s: all programmed after at most %s", start, time.Since(begin).Round(10*time.Millisecond))
		for range 2 {
			for _, line := range strings.Split(string(must[[]byte](c)(os.ReadFile(fmt.Sprintf("/proc/%d/status", c.agent.PID())))), "\n") {
				if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "VmHWM") || strings.HasPrefix(line, "RssAnon") {
					t.Logf("%s: %s", start, line)
				}
			}
			time.Sleep(5 * time.Second)
		}
		t.Logf("%s: build %s; apply %s", start, c.quantiles("mesh_agent_build_seconds"), c.quantiles("mesh_agent_apply_seconds"))
		if start == "first start" {
			if err := c.agent.Stop(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 100 {
		slice := c.scaleSlice(i)
		slice.Spec.Endpoints = slice.Spec.Endpoints[1:]
		old := must[*v1alpha1.ImportedEndpointSlice](c)(c.mesh.MeshV1alpha1().ImportedEndpointSlices("song").Get(t.Context(), slice.Name, metav1.GetOptions{}))
		slice.ResourceVersion, slice.Spec.ChangedAt = old.ResourceVersion, metav1.NowMicro()
		must[*v1alpha1.ImportedEndpointSlice](c)(c.mesh.MeshV1alpha1().ImportedEndpointSlices("song").Update(t.Context(), slice, metav1.UpdateOptions{}))
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(time.Second)
	for _, metric := range []string{"mesh_agent_propagation_seconds", "mesh_agent_sync_seconds", "mesh_agent_apply_seconds"} {
		t.Logf("%s: %s", metric, c.quantiles(metric))
	}
}

func (c *cluster) scaleSlice(i int) *v1alpha1.ImportedEndpointSlice {
	name := fmt.Sprintf("s%d", i)
	slice := importedSlice("cluster2")
	slice.Name, slice.Spec.Service, slice.Labels[v1alpha1.LabelServiceName] = "cluster2."+name+"-x", name, name
	for j := range 10 {
		slice.Spec.Endpoints = append(slice.Spec.Endpoints, v1alpha1.Endpoint{Address: fmt.Sprintf("10.%d.%d.%d", 128+j, i>>8, i&255), Ready: true, Serving: true})
	}
	return slice
}

func (c *cluster) makeOne(i int) error {
	name := fmt.Sprintf("s%d", i)
	ctx := c.Context()
	_, err := c.kube.CoreV1().Services("song").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = c.kube.DiscoveryV1().EndpointSlices("song").Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("dns"), Protocol: ptr.To(corev1.ProtocolUDP), Port: ptr.To[int32](5353)}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{fmt.Sprintf("10.1.%d.%d", i>>8, i&255)}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = c.mesh.MeshV1alpha1().ImportedEndpointSlices("song").Create(ctx, c.scaleSlice(i), metav1.CreateOptions{})
	return err
}
