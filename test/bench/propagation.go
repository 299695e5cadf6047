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

package bench

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	meshclient "mesh.io/clustermesh/pkg/generated/clientset/versioned"
)

const (
	// Namespace is where the benchmarks work, in every cluster.
	Namespace = "bench"
	// PropagationService is the global service whose endpoints change. It has no
	// selector: only the benchmark writes its slice.
	PropagationService = "propagation"
	propagationSlice   = "propagation-bench"
	exportManual       = "mesh.io/export-manual"
)

// Propagation is how long endpoint changes took from the answer to their write in
// one cluster to the map of an agent in another, in milliseconds.
type Propagation struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	// Exported, Imported and Programmed are the medians of each hop: to the event of
	// the exported slice, from there to the imported one's, from there to the map.
	Exported   float64 `json:"exported"`
	Imported   float64 `json:"imported"`
	Programmed float64 `json:"programmed"`
	Changes    int     `json:"changes"`
	Chained    Chained `json:"chained"`
}

// Chained is how long three bare API writes took, each made on the watch event of
// the one before, in milliseconds: the floor.
type Chained struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// Backends counts the backends that the kernel has in use for the service.
type Backends func() (int, error)

// MeasurePropagation changes the endpoints of the service in cluster `from` and
// watches them arrive in the map of this node, in cluster `to`. Changes and chained
// writes take turns, so that both see the same machine.
func MeasurePropagation(ctx context.Context, from, to *rest.Config, backends Backends, changes int, pause time.Duration) (Propagation, error) {
	source, err := kubernetes.NewForConfig(from)
	if err != nil {
		return Propagation{}, err
	}
	target, err := kubernetes.NewForConfig(to)
	if err != nil {
		return Propagation{}, err
	}
	exported, err := arrivals(ctx, from, func(c meshclient.Interface) (watch.Interface, error) {
		return c.MeshV1alpha1().ExportedEndpointSlices(Namespace).Watch(ctx, metav1.ListOptions{})
	})
	if err != nil {
		return Propagation{}, fmt.Errorf("watching the exported slices: %w", err)
	}
	imported, err := arrivals(ctx, to, func(c meshclient.Interface) (watch.Interface, error) {
		return c.MeshV1alpha1().ImportedEndpointSlices(Namespace).Watch(ctx, metav1.ListOptions{})
	})
	if err != nil {
		return Propagation{}, fmt.Errorf("watching the imported slices: %w", err)
	}
	chain, err := newChain(ctx, source, target)
	if err != nil {
		return Propagation{}, fmt.Errorf("preparing the chained writes: %w", err)
	}

	slice := endpointSlice(1)
	if _, err := source.DiscoveryV1().EndpointSlices(Namespace).Create(ctx, slice, metav1.CreateOptions{}); err != nil {
		return Propagation{}, fmt.Errorf("making the slice: %w", err)
	}
	if _, err := await(ctx, backends, 1); err != nil {
		return Propagation{}, fmt.Errorf("waiting for the first endpoint: %w", err)
	}

	var total, exportHop, importHop, programHop, chained []float64
	const warmup = 5
	for i := range changes + warmup {
		time.Sleep(pause)
		drain(exported)
		drain(imported)
		// One endpoint and two, in turn: the map shows each change by their number.
		want := 2 - i%2
		_, err := source.DiscoveryV1().EndpointSlices(Namespace).Update(ctx, endpointSlice(want), metav1.UpdateOptions{})
		answered := time.Now()
		if err != nil {
			return Propagation{}, fmt.Errorf("changing the slice: %w", err)
		}
		programmed, err := await(ctx, backends, want)
		if err != nil {
			return Propagation{}, fmt.Errorf("change %d: %w", i, err)
		}
		exportedAt, importedAt := received(exported), received(imported)

		time.Sleep(pause)
		took, err := chain.once(ctx)
		if err != nil {
			return Propagation{}, fmt.Errorf("chained writes %d: %w", i, err)
		}
		if i < warmup {
			continue
		}
		total = append(total, milliseconds(programmed.Sub(answered)))
		exportHop = append(exportHop, milliseconds(exportedAt.Sub(answered)))
		importHop = append(importHop, milliseconds(importedAt.Sub(exportedAt)))
		programHop = append(programHop, milliseconds(programmed.Sub(importedAt)))
		chained = append(chained, milliseconds(took))
	}
	return Propagation{
		P50: Percentile(total, 50), P99: Percentile(total, 99),
		Exported: Percentile(exportHop, 50), Imported: Percentile(importHop, 50), Programmed: Percentile(programHop, 50),
		Changes: changes,
		Chained: Chained{P50: Percentile(chained, 50), P99: Percentile(chained, 99)},
	}, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// await polls the map until the kernel uses so many backends.
func await(ctx context.Context, backends Backends, want int) (time.Time, error) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		got, err := backends()
		now := time.Now()
		if err == nil && got == want {
			return now, nil
		}
		if now.After(deadline) || ctx.Err() != nil {
			return now, fmt.Errorf("the map shows %d backends, not %d, after 10 s: %w", got, want, err)
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// arrivals starts a watch and sends the time at which each event arrives.
func arrivals(ctx context.Context, config *rest.Config, start func(meshclient.Interface) (watch.Interface, error)) (<-chan time.Time, error) {
	client, err := meshclient.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	events, err := start(client)
	if err != nil {
		return nil, err
	}
	times := make(chan time.Time, 1024)
	go func() {
		defer events.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case event, ok := <-events.ResultChan():
				if !ok {
					return
				}
				if event.Type == watch.Modified {
					times <- time.Now()
				}
			}
		}
	}()
	return times, nil
}

func drain(times <-chan time.Time) {
	for {
		select {
		case <-times:
		default:
			return
		}
	}
}

// received returns when the first event since the last drain came. The map may be
// written before our own watch tells: then it waits a little.
func received(times <-chan time.Time) time.Time {
	select {
	case at := <-times:
		return at
	case <-time.After(time.Second):
		return time.Now()
	}
}

func endpointSlice(endpoints int) *discoveryv1.EndpointSlice {
	name, protocol, port := "", corev1.ProtocolTCP, int32(8181)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: propagationSlice, Namespace: Namespace,
			Labels: map[string]string{discoveryv1.LabelServiceName: PropagationService},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
	}
	for i := range endpoints {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			// Nothing listens there, and nobody connects: the map is all that is looked at.
			Addresses: []string{fmt.Sprintf("10.1.250.%d", i+1)},
		})
	}
	return slice
}

// PropagationServiceObject is the Service that both clusters need for the measurement.
func PropagationServiceObject() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: PropagationService, Namespace: Namespace,
			Annotations: map[string]string{"mesh.io/global": "true", exportManual: "true"},
		},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}},
	}
}

// chain makes three writes: in the source cluster, there again on the first one's
// event, and in the target cluster on the second one's.
type chain struct {
	write  [3]func(context.Context, int) error
	events [3]<-chan time.Time
	round  int
}

func newChain(ctx context.Context, source, target kubernetes.Interface) (*chain, error) {
	c := &chain{}
	for i, client := range []kubernetes.Interface{source, source, target} {
		name := fmt.Sprintf("chain-%d", i+1)
		maps := client.CoreV1().ConfigMaps(Namespace)
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: Namespace}}
		if _, err := maps.Create(ctx, object, metav1.CreateOptions{}); err != nil {
			return nil, err
		}
		events, err := maps.Watch(ctx, metav1.SingleObject(metav1.ObjectMeta{Name: name}))
		if err != nil {
			return nil, err
		}
		times := make(chan time.Time, 1024)
		go func() {
			for event := range events.ResultChan() {
				if event.Type == watch.Modified {
					times <- time.Now()
				}
			}
		}()
		c.events[i] = times
		c.write[i] = func(ctx context.Context, round int) error {
			object.Data = map[string]string{"round": fmt.Sprint(round)}
			_, err := maps.Update(ctx, object, metav1.UpdateOptions{})
			return err
		}
	}
	return c, nil
}

func (c *chain) once(ctx context.Context) (time.Duration, error) {
	c.round++
	began := time.Now()
	answers := make(chan error, len(c.write))
	for i := range c.write {
		// The next write follows the event, not the answer, which may come later.
		go func() { answers <- c.write[i](ctx, c.round) }()
		select {
		case <-c.events[i]:
		case <-time.After(10 * time.Second):
			return 0, fmt.Errorf("write %d had no event within 10 s", i+1)
		}
	}
	took := time.Since(began)
	for range c.write {
		if err := <-answers; err != nil {
			return 0, err
		}
	}
	return took, nil
}
