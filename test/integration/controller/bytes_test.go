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

package controller

import (
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	mesh "mesh.io/clustermesh/pkg/generated/clientset/versioned"
	"mesh.io/clustermesh/pkg/generated/clientset/versioned/scheme"
)

// meter counts what an agent's watches of the mesh API bring to it, but for bookmarks.
func (c *cluster) meter(t *testing.T) *atomic.Int64 {
	t.Helper()
	_, config := c.Plane.ServiceAccount(t, "mesh-agent")
	client := mesh.NewForConfigOrDie(config).MeshV1alpha1().RESTClient()
	var bytes atomic.Int64
	for _, resource := range []string{"servicepolicies", "meshmembers", "importedendpointslices"} {
		list, err := client.Get().Resource(resource).Do(t.Context()).Get()
		if err != nil {
			t.Fatal(err)
		}
		stream, err := client.Get().Resource(resource).SetHeader("Accept", "application/vnd.kubernetes.protobuf;stream=watch").VersionedParams(&metav1.ListOptions{
			Watch: true, ResourceVersion: list.(metav1.ListInterface).GetResourceVersion(),
		}, scheme.ParameterCodec).Stream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = stream.Close() })
		go func() {
			buffer := make([]byte, 64<<10)
			for {
				n, err := stream.Read(buffer)
				bytes.Add(int64(n))
				if err == io.EOF || err != nil {
					return
				}
			}
		}()
	}
	return &bytes
}

// testBytes changes one endpoint of a service with 10,000 backends, and counts what
// each agent of the other cluster is sent for that.
func testBytes(t *testing.T, one, two *cluster) {
	const slices, endpoints = 100, 100
	for _, c := range []*cluster{one, two} {
		c.MakeNamespace(t, "song", nil)
		c.MakeService(t, "song", "huge", global)
	}
	for i := range slices {
		addresses := make([]string, endpoints)
		for j := range addresses {
			addresses[j] = fmt.Sprintf("10.2.%d.%d", 100+i, j+1)
		}
		two.MakeSlice(t, "song", "huge", fmt.Sprintf("huge-%d", i), addresses...)
	}
	ready := func(want int32) *v1alpha1.GlobalService {
		return one.globalService(t, "song", "huge", func(g *v1alpha1.GlobalService) error {
			for _, cluster := range g.Status.Clusters {
				if cluster.Name == "cluster2" && cluster.Endpoints.Ready == want {
					return nil
				}
			}
			return fmt.Errorf("counts")
		})
	}
	ready(slices * endpoints)
	heartbeat := func() time.Time {
		member, err := one.Mesh.MeshV1alpha1().MeshClusters().Get(t.Context(), "cluster2", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return member.Status.LastContactTime.Time
	}

	bytes := one.meter(t)
	before := heartbeat()
	slice, err := two.Kube.DiscoveryV1().EndpointSlices("song").Get(t.Context(), "huge-7", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	slice.Endpoints[3].Conditions.Ready = ptr.To(false)
	if _, err := two.Kube.DiscoveryV1().EndpointSlices("song").Update(t.Context(), slice, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	ready(slices*endpoints - 1) // it has arrived, and the count was written
	for end := time.Now().Add(timeout); !heartbeat().After(before); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no heartbeat")
		}
	}
	time.Sleep(time.Second) // what else there is would be on its way
	got := bytes.Load()
	t.Logf("one endpoint of %d: %d bytes to each agent", slices*endpoints, got)
	if got == 0 || got > 5<<10 {
		t.Errorf("an agent was sent %d bytes, want at most 5 KiB", got)
	}

	// Counts and freshness alone cost an agent nothing.
	quiet := bytes.Load()
	before = heartbeat()
	for end := time.Now().Add(2 * timeout); !heartbeat().After(before); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no heartbeat")
		}
	}
	time.Sleep(time.Second)
	if got := bytes.Load() - quiet; got != 0 {
		t.Errorf("an agent was sent %d bytes while only heartbeats were written", got)
	}
	for _, c := range []*cluster{one, two} {
		if err := c.Kube.CoreV1().Services("song").Delete(t.Context(), "huge", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	one.imports(t, "song", "huge", "cluster2")
}
