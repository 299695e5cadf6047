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
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	discoveryv1 "k8s.io/api/discovery/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/test/integration/controlplane"
)

// BenchmarkPropagation measures, from the answer to the write of an EndpointSlice in
// one cluster, how long it takes until the change can be watched in the other: one at
// a time on idle clusters, and a burst of one change to each of 1000 Services.
func BenchmarkPropagation(b *testing.B) {
	controlplane.Binary(b, "kube-apiserver")
	one := startCluster(b, "cluster1", 1)
	two := startCluster(b, "cluster2", 2)
	one.start(b)
	two.start(b)
	two.SetSecret(b, "cluster1", one.Kubeconfig(b, "peer"))
	two.Join(b, "cluster1", 1)
	two.AwaitCondition(b, "cluster1", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "")
	one.MakeNamespace(b, "bench", nil)
	two.MakeNamespace(b, "bench", nil)

	const services = 1000
	made := make([]*discoveryv1.EndpointSlice, services)
	for i := range services {
		name := fmt.Sprintf("s%d", i)
		one.MakeService(b, "bench", name, global)
		two.MakeService(b, "bench", name, global)
		made[i] = one.MakeSlice(b, "bench", name, name, "10.1.0.1")
	}
	exported, err := one.Mesh.MeshV1alpha1().ExportedEndpointSlices("bench").Watch(b.Context(), metav1.ListOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer exported.Stop()
	imported, err := two.Mesh.MeshV1alpha1().ImportedEndpointSlices("bench").Watch(b.Context(), metav1.ListOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer imported.Stop()
	// When each slice was seen with each address.
	type sight struct{ name, address string }
	type sighting struct {
		sight
		at time.Time
	}
	see := func(events <-chan watch.Event) <-chan sighting {
		seen := make(chan sighting, 10*services)
		go func() {
			for event := range events {
				at := time.Now()
				switch obj := event.Object.(type) {
				case *v1alpha1.ExportedEndpointSlice:
					seen <- sighting{sight{obj.Name, obj.Spec.Endpoints[0].Address}, at}
				case *v1alpha1.ImportedEndpointSlice:
					seen <- sighting{sight{obj.Name, obj.Spec.Endpoints[0].Address}, at}
				}
			}
		}()
		return seen
	}
	atExport, atImport := see(exported.ResultChan()), see(imported.ResultChan())
	await := func(seen <-chan sighting, want map[sight]bool) (last time.Time) {
		for len(want) > 0 {
			select {
			case s := <-seen:
				if want[s.sight] {
					delete(want, s.sight)
					last = s.at
				}
			case <-time.After(60 * time.Second):
				b.Fatalf("%d changes did not arrive", len(want))
			}
		}
		return last
	}
	all := map[sight]bool{}
	for i := range services {
		all[sight{"cluster1." + made[i].Name, "10.1.0.1"}] = true
	}
	await(atImport, all)
	time.Sleep(3 * time.Second) // until the clusters are idle

	change := func(i int, address string) time.Time {
		made[i].Endpoints[0].Addresses = []string{address}
		updated, err := one.Kube.DiscoveryV1().EndpointSlices("bench").Update(b.Context(), made[i], metav1.UpdateOptions{})
		if err != nil {
			b.Fatal(err)
		}
		made[i] = updated
		return time.Now()
	}
	var first, whole []time.Duration
	for i := range 200 {
		address := fmt.Sprintf("10.1.1.%d", i)
		name := made[i].Name
		answered := change(i, address)
		first = append(first, await(atExport, map[sight]bool{{name, address}: true}).Sub(answered))
		whole = append(whole, await(atImport, map[sight]bool{{"cluster1." + name, address}: true}).Sub(answered))
		time.Sleep(20 * time.Millisecond)
	}
	milliseconds := func(d []time.Duration, quantile float64) float64 {
		slices.Sort(d)
		return float64(d[int(quantile*float64(len(d)-1))].Microseconds()) / 1000
	}
	b.ReportMetric(milliseconds(first, 0.5), "export-p50-ms")
	b.ReportMetric(milliseconds(first, 0.99), "export-p99-ms")
	b.ReportMetric(milliseconds(whole, 0.5), "import-p50-ms")
	b.ReportMetric(milliseconds(whole, 0.99), "import-p99-ms")

	burst := map[sight]bool{}
	for i := range services {
		burst[sight{"cluster1." + made[i].Name, "10.1.2.2"}] = true
	}
	began := time.Now()
	written := make(chan time.Time)
	go func() {
		for i := range services {
			change(i, "10.1.2.2")
		}
		written <- time.Now()
	}()
	answered := <-written
	last := await(atImport, burst)
	b.ReportMetric(answered.Sub(began).Seconds(), "burst-writing-s")
	b.ReportMetric(last.Sub(began).Seconds(), "burst-whole-s")
}
