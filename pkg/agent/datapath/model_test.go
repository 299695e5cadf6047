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

package datapath

import (
	order "cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

// TestModel runs the sequences of a few fixed seeds and one of its own; these set others.
const (
	envModelSeed  = "MESH_MODEL_SEED"  // that one alone
	envModelSeeds = "MESH_MODEL_SEEDS" // so many, chosen by chance
	envModelSteps = "MESH_MODEL_STEPS" // of each
)

// modelMesh is a mesh of three clusters, as plain as it can be written down.
type modelMesh struct {
	members  [3]*v1alpha1.MeshClusterSpec // by cluster, this one first; nil where it is no member
	services [6]*modelService
}

type modelService struct {
	ip        int // its number; a dual-stack one has an address of each family
	dual      bool
	global    bool
	affinity  string // the annotation
	spec      *v1alpha1.GlobalServiceSpec
	endpoints [3]map[int]modelEndpoint // by cluster and number
}

// modelEndpoint is what up to two slices say of an address.
type modelEndpoint []desired.Endpoint

func modelCluster(i int) string { return "cluster" + strconv.Itoa(i+1) }

var modelPorts = []struct {
	local  desired.LocalPort
	target desired.SlicePort
}{
	{desired.LocalPort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}, desired.SlicePort{Name: "dns", Protocol: desired.UDP, Port: 5353}},
	{desired.LocalPort{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80}, desired.SlicePort{Name: "web", Protocol: desired.TCP, Port: 8080}},
}

func modelIPs(s *modelService) []netip.Addr {
	ips := []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 2, byte(s.ip)})}
	if s.dual {
		ips = append(ips, netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x96, 14: 2, 15: byte(s.ip)}))
	}
	return ips
}

func modelAddrs(service, cluster, number int) [2]netip.Addr {
	return [2]netip.Addr{
		netip.AddrFrom4([4]byte{10, 1, byte(10*service + cluster), byte(number + 1)}),
		netip.AddrFrom16([16]byte{0: 0xfd, 3: 1, 13: byte(10*service + cluster), 15: byte(number + 1)}),
	}
}

// input returns what the agent would build the service's table from.
func (w *modelMesh) input(i int) (in desired.ServiceInput) {
	s := w.services[i]
	if s == nil {
		return in
	}
	name := desired.Name{Namespace: "song", Name: fmt.Sprint("service", i)}
	in.Spec = s.spec
	in.Service = &desired.LocalService{ClusterIPs: modelIPs(s), Annotations: map[string]string{
		policy.AnnotationGlobal: strconv.FormatBool(s.global), policy.AnnotationAffinity: s.affinity,
	}}
	var targets []desired.SlicePort
	for _, p := range modelPorts {
		in.Service.Ports = append(in.Service.Ports, p.local)
		targets = append(targets, p.target)
	}
	for cluster, endpoints := range s.endpoints {
		for _, family := range []int{0, 1} {
			for part := range 2 {
				slice := &desired.Slice{Service: name, Object: fmt.Sprint(cluster, family, part), Ports: targets}
				if cluster > 0 {
					slice.Cluster = modelCluster(cluster)
				}
				for _, number := range slices.Sorted(maps.Keys(endpoints)) {
					if says := endpoints[number]; part < len(says) {
						e := says[part]
						e.Addr = modelAddrs(i, cluster, number)[family]
						slice.Endpoints = append(slice.Endpoints, e)
					}
				}
				if cluster > 0 {
					in.Remote = append(in.Remote, slice)
				} else {
					in.Local = append(in.Local, slice)
				}
			}
		}
	}
	return in
}

// table returns what the agent's code wants of the whole mesh.
func (w *modelMesh) table() (table desired.Table, unheld map[desired.ServicePort]bool) {
	mesh := desired.Mesh{Cluster: modelCluster(0), LocalID: 1, Members: map[string]desired.Member{}}
	for i, spec := range w.members {
		if spec != nil {
			name := modelCluster(i)
			mesh.Members[name] = desired.Member{Name: name, ID: uint16(i + 1), Spec: *spec}
		}
	}
	table = desired.Table{Services: map[desired.Frontend]desired.Service{}, Clusters: mesh.Clusters()}
	unheld = map[desired.ServicePort]bool{}
	for i := range w.services {
		result := mesh.Service(desired.Name{Namespace: "song", Name: fmt.Sprint("service", i)}, w.input(i))
		for _, svc := range result.Services {
			table.Services[svc.Frontend] = svc
		}
		for _, port := range result.Unheld {
			unheld[port] = true
		}
	}
	return table, unheld
}

// modelBackend is a backend that the kernel must know, and its share of the new
// connections, which together make 1.
type modelBackend struct {
	Addr    netip.AddrPort
	Cluster uint16
	State   desired.State
	share   float64
}

type modelFrontend struct {
	port       desired.ServicePort
	localReady bool
	backends   []modelBackend // sorted
}

// expect says what the kernel must hold, by the words of the documentation and without
// a look at how the agent gets there.
func (w *modelMesh) expect() map[desired.Frontend]modelFrontend {
	all := map[desired.Frontend]modelFrontend{}
	for i, s := range w.services {
		if s == nil || !s.global {
			continue
		}
		for _, p := range modelPorts {
			for family, ip := range modelIPs(s) {
				f := modelFrontend{port: desired.ServicePort{Namespace: "song", Name: fmt.Sprint("service", i), Port: p.local.Name}}
				for cluster, endpoints := range s.endpoints {
					if cluster > 0 && w.members[cluster] == nil {
						continue
					}
					for number, says := range endpoints {
						state := slices.MinFunc(says, func(a, b desired.Endpoint) int { return order.Compare(a.State, b.State) }).State
						f.backends = append(f.backends, modelBackend{
							Addr:    netip.AddrPortFrom(modelAddrs(i, cluster, number)[family], p.target.Port),
							Cluster: uint16(cluster + 1),
							State:   state,
						})
						f.localReady = f.localReady || cluster == 0 && state == desired.Active
					}
				}
				slices.SortFunc(f.backends, func(a, b modelBackend) int {
					return order.Or(order.Compare(a.Cluster, b.Cluster), a.Addr.Compare(b.Addr))
				})
				w.share(s, f.backends)
				all[desired.Frontend{Addr: ip, Port: p.local.Port, Protocol: p.target.Protocol}] = f
			}
		}
	}
	return all
}

// share sets the shares of a service's backends.
func (w *modelMesh) share(s *modelService, backends []modelBackend) {
	affinity := v1alpha1.AffinityNone
	switch s.affinity {
	case "local":
		affinity = v1alpha1.AffinityLocal
	case "remote":
		affinity = v1alpha1.AffinityRemote
	}
	if s.spec != nil && s.spec.Affinity != "" {
		affinity = s.spec.Affinity
	}
	weights, priorities := [3]float64{100, 100, 100}, [3]int32{}
	for i, member := range w.members {
		override := func(weight, priority *int32) {
			if weight != nil {
				weights[i] = float64(*weight)
			}
			if priority != nil {
				priorities[i] = *priority
			}
		}
		if member != nil {
			override(member.Weight, member.Priority)
		}
		if s.spec != nil {
			for _, c := range s.spec.Clusters {
				if c.Name == modelCluster(i) {
					override(c.Weight, c.Priority)
				}
			}
		}
		if member != nil && member.Drained {
			weights[i] = 0
		}
	}
	weight := func(b *modelBackend) float64 { return weights[b.Cluster-1] }
	// The smaller, the better.
	tier := func(b *modelBackend) int32 {
		local := b.Cluster == 1
		if affinity == v1alpha1.AffinityLocal && !local || affinity == v1alpha1.AffinityRemote && local {
			return 10_000 + priorities[b.Cluster-1]
		}
		return priorities[b.Cluster-1]
	}
	best := func(state desired.State, of func(*modelBackend) bool) (picked []*modelBackend) {
		for i := range backends {
			b := &backends[i]
			if b.State != state || weight(b) == 0 || !of(b) {
				continue
			}
			if len(picked) > 0 && tier(b) < tier(picked[0]) {
				picked = nil
			}
			if len(picked) == 0 || tier(b) == tier(picked[0]) {
				picked = append(picked, b)
			}
		}
		return picked
	}
	divide := func(picked []*modelBackend, total float64) {
		sum := 0.0
		for _, b := range picked {
			sum += weight(b)
		}
		for _, b := range picked {
			b.share = total * weight(b) / sum
		}
	}
	anyone := func(*modelBackend) bool { return true }
	picked := best(desired.Active, anyone)
	if len(picked) == 0 {
		divide(best(desired.Terminating, anyone), 1)
		return
	}
	divide(picked, 1)
	if affinity != v1alpha1.AffinityLocal || picked[0].Cluster != 1 || s.spec == nil || s.spec.LocalMinReady == nil {
		return
	}
	ready, want := len(picked), 0
	for _, says := range s.endpoints[0] {
		if !slices.MinFunc(says, compareEndpoints).Leaving {
			want++
		}
	}
	others := best(desired.Active, func(b *modelBackend) bool { return b.Cluster != 1 })
	if len(others) > 0 && 100*ready < int(*s.spec.LocalMinReady)*want {
		divide(picked, float64(ready)/float64(want))
		divide(others, 1-float64(ready)/float64(want))
	}
}

// compareEndpoints puts first what counts of an address in two slices.
func compareEndpoints(a, b desired.Endpoint) int {
	leaving := func(e desired.Endpoint) int {
		if e.Leaving {
			return 1
		}
		return 0
	}
	return order.Or(order.Compare(a.State, b.State), order.Compare(leaving(a), leaving(b)))
}

// step changes something in the mesh, and says what.
func (w *modelMesh) step(random *rand.Rand) string {
	i, cluster := random.IntN(len(w.services)), random.IntN(3)
	chance := func(values ...int32) *int32 { return ptr.To(values[random.IntN(len(values))]) }
	maybe := func(p *int32) *int32 {
		if random.IntN(3) == 0 {
			return nil
		}
		return p
	}
	someWeight := func() *int32 { return maybe(chance(0, 1, 50, 99, 100, 150, 300, 1000)) }
	somePriority := func() *int32 { return maybe(chance(0, 0, 1, 2)) }
	free := func() int {
		for {
			ip := random.IntN(2 * len(w.services))
			if !slices.ContainsFunc(w.services[:], func(s *modelService) bool { return s != nil && s.ip == ip }) {
				return ip
			}
		}
	}
	s := w.services[i]
	if s == nil {
		s = &modelService{ip: free(), dual: random.IntN(2) == 0, global: random.IntN(5) > 0, affinity: "none"}
		for c := range s.endpoints {
			s.endpoints[c] = map[int]modelEndpoint{}
			for n := range random.IntN(5) {
				s.endpoints[c][n] = modelSays(random)
			}
		}
		w.services[i] = s
		return fmt.Sprintf("service %d comes", i)
	}
	switch kind := random.IntN(30); {
	case kind == 0:
		w.services[i] = nil
		return fmt.Sprintf("service %d goes", i)
	case kind == 1:
		s.ip = free()
		return fmt.Sprintf("service %d gets another address", i)
	case kind == 2:
		s.global = !s.global
		return fmt.Sprintf("service %d is global: %t", i, s.global)
	case kind < 6:
		s.affinity = []string{"none", "local", "remote"}[random.IntN(3)]
		return fmt.Sprintf("service %d has affinity %s", i, s.affinity)
	case kind < 10:
		s.spec = &v1alpha1.GlobalServiceSpec{}
		if random.IntN(3) == 0 {
			s.spec.Affinity = v1alpha1.AffinityLocal
			s.spec.LocalMinReady = chance(1, 50, 80, 100)
		}
		for c := range 3 {
			if random.IntN(2) == 0 {
				s.spec.Clusters = append(s.spec.Clusters, v1alpha1.ClusterPolicy{Name: modelCluster(c), Weight: someWeight(), Priority: somePriority()})
			}
		}
		return fmt.Sprintf("service %d has another spec", i)
	case kind == 10:
		s.spec = nil
		return fmt.Sprintf("service %d has no spec", i)
	case kind < 13:
		w.members[cluster] = &v1alpha1.MeshClusterSpec{ID: int32(cluster + 1), Drained: random.IntN(4) == 0, Weight: someWeight(), Priority: somePriority()}
		return fmt.Sprintf("member %d is another", cluster+1)
	case kind == 13:
		w.members[cluster] = nil
		return fmt.Sprintf("member %d goes", cluster+1)
	case kind < 16:
		clear(s.endpoints[cluster])
		return fmt.Sprintf("service %d loses its endpoints in cluster %d", i, cluster+1)
	case kind < 18:
		for n := range random.IntN(8) {
			s.endpoints[cluster][n] = modelSays(random)
		}
		return fmt.Sprintf("service %d is rolled out in cluster %d", i, cluster+1)
	case kind < 22:
		delete(s.endpoints[cluster], random.IntN(8))
		return fmt.Sprintf("service %d loses an endpoint in cluster %d", i, cluster+1)
	default:
		s.endpoints[cluster][random.IntN(8)] = modelSays(random)
		return fmt.Sprintf("service %d has another endpoint in cluster %d", i, cluster+1)
	}
}

// modelSays returns an endpoint, most often ready and in one slice.
func modelSays(random *rand.Rand) (says modelEndpoint) {
	for {
		e := desired.Endpoint{}
		switch random.IntN(6) {
		case 0:
			e.State, e.Leaving = desired.Terminating, true
		case 1:
			e.State, e.Leaving = desired.NotReady, random.IntN(2) == 0
		}
		if says = append(says, e); len(says) == 2 || random.IntN(5) > 0 {
			return says
		}
	}
}

// Random changes of services, policies, members, backends and their states, and now and
// then a restart: after each, the maps hold what a simple model says, no number means
// two things, and connects go where the model says, in its proportions.
func TestModel(t *testing.T) {
	requireRoot(t)
	steps := 120
	seeds := []uint64{1, 2, uint64(time.Now().UnixNano())}
	number := func(env string) uint64 {
		n, err := strconv.ParseUint(os.Getenv(env), 10, 64)
		must(t, err)
		return n
	}
	if os.Getenv(envModelSteps) != "" {
		steps = int(number(envModelSteps))
	}
	if os.Getenv(envModelSeeds) != "" {
		for i := range number(envModelSeeds) {
			seeds = append(seeds, seeds[2]+i+1)
		}
	}
	if os.Getenv(envModelSeed) != "" {
		seeds = []uint64{number(envModelSeed)}
	}
	for _, seed := range seeds {
		if !t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { runModel(t, seed, steps) }) {
			t.Fatalf("to see it again: %s=%d %s=%d", envModelSeed, seed, envModelSteps, steps)
		}
	}
}

func runModel(t *testing.T, seed uint64, steps int) {
	random := rand.New(rand.NewPCG(seed, 6))
	n := newNode(t)
	n.Sizes = Sizes{Frontends: 40, Backends: 900, Slots: 1 << 20}
	d := n.open(t)
	dial := n.dialAndAskTheSocket(t)
	mesh := &modelMesh{}
	var last desired.Table
	var before *Snapshot
	meanings := map[[2]uint32]string{}
	connects, sampled := 0, 0
	for step := range steps {
		var what []string
		for range 1 + random.IntN(3) {
			what = append(what, mesh.step(random))
		}
		table, unheld := mesh.table()
		var err error
		var report Report
		switch random.IntN(10) {
		case 0: // a restart, then all at once
			must(t, d.Close())
			d = n.open(t)
			if before != nil {
				if diff := cmp.Diff(before.Services, read(t, n).Services, compareAddrs, compareAddrPorts, ignoreTraffic); diff != "" {
					t.Errorf("a restart alone (-before +after):\n%s", diff)
				}
			}
			fallthrough
		case 1:
			report, err = d.Apply(context.Background(), table)
		default: // what differs
			var changed []desired.Service
			var removed []desired.Frontend
			for frontend, svc := range table.Services {
				if old, ok := last.Services[frontend]; !ok || !sameService(&old, &svc) || random.IntN(4) == 0 {
					changed = append(changed, svc)
				}
			}
			for frontend := range last.Services {
				if _, ok := table.Services[frontend]; !ok {
					removed = append(removed, frontend)
				}
			}
			slices.SortFunc(changed, func(a, b desired.Service) int { return compareFrontends(a.Frontend, b.Frontend) })
			report, err = d.ApplyServices(context.Background(), changed, removed, table.Clusters)
		}
		if err != nil || len(report.Failed) > 0 || report.Names != nil {
			t.Fatalf("step %d, %q: %v, %v, %v", step, what, err, report.Failed, report.Names)
		}
		last = table

		want, got := mesh.expect(), read(t, n)
		compareModel(t, want, got, unheld)
		compareNumbers(t, before, got, meanings)
		before = got
		if step%4 == 0 {
			// A few of the addresses, whether they are in the table or not.
			for range 3 {
				to := desired.Frontend{Addr: netip.AddrFrom4([4]byte{10, 96, 2, byte(random.IntN(len(mesh.services) * 2))}), Port: 53, Protocol: desired.UDP}
				if random.IntN(3) == 0 {
					to.Addr = netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x96, 14: 2, 15: to.Addr.As4()[3]})
				}
				connects += sampleModel(t, to, want[to], dial)
				sampled++
			}
		}
		if t.Failed() {
			t.Fatalf("in step %d: %q", step, what)
		}
	}
	mustApply(t, d)
	audit(t, n, d)
	t.Logf("%d steps, %d connects to %d addresses", steps, connects, sampled)
}

// compareModel compares the maps with the model.
func compareModel(t *testing.T, want map[desired.Frontend]modelFrontend, got *Snapshot, unheld map[desired.ServicePort]bool) {
	t.Helper()
	seen := 0
	for _, svc := range got.Services {
		model, ok := want[svc.Frontend]
		if !ok {
			t.Errorf("%s is in the maps", svc.Frontend)
			continue
		}
		seen++
		if svc.Port != model.port || svc.LocalReady != model.localReady {
			t.Errorf("%s is %s (local backends ready: %t), want %s (%t)", svc.Frontend, svc.Port, svc.LocalReady, model.port, model.localReady)
		}
		held := make([]modelBackend, len(svc.Backends))
		for i, b := range svc.Backends {
			held[i] = modelBackend{Addr: b.Addr, Cluster: b.ClusterID, State: b.State}
		}
		if diff := cmp.Diff(model.backends, held, compareAddrPorts, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(modelBackend{}, "share")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", svc.Frontend, diff)
			continue
		}
		// Any two are in the ratio that was asked for, to 2 %.
		low, high := math.Inf(1), 0.0
		for i, b := range svc.Backends {
			share := model.backends[i].share
			if (share > 0) != (b.Slots > 0) {
				t.Errorf("%s: %s of cluster %d has %d slots, want a share of %.4f", svc.Frontend, b.Addr, b.ClusterID, b.Slots, share)
			} else if share > 0 {
				low, high = min(low, float64(b.Slots)/share), max(high, float64(b.Slots)/share)
			}
		}
		if high/low > 1.02+1e-9 && !unheld[svc.Port] {
			t.Errorf("%s: the slots are off by %.4f", svc.Frontend, high/low)
		}
	}
	if seen != len(want) {
		t.Errorf("%d frontends are in the maps, want %d", seen, len(want))
	}
}

// compareNumbers proves that what stays keeps its numbers, and that a number with its
// generation never means two things.
func compareNumbers(t *testing.T, before, now *Snapshot, meanings map[[2]uint32]string) {
	t.Helper()
	type key struct {
		frontend desired.Frontend
		cluster  uint16
		addr     netip.AddrPort
	}
	old := map[key][2]uint32{}
	if before != nil {
		for _, svc := range before.Services {
			for _, b := range svc.Backends {
				old[key{svc.Frontend, b.ClusterID, b.Addr}] = [2]uint32{b.ID, b.Generation}
			}
		}
	}
	for _, svc := range now.Services {
		for _, b := range svc.Backends {
			number := [2]uint32{b.ID, b.Generation}
			if was, ok := old[key{svc.Frontend, b.ClusterID, b.Addr}]; ok && was != number {
				t.Errorf("%s: %s was %v and is %v", svc.Frontend, b.Addr, was, number)
			}
			meaning := fmt.Sprint(svc.Frontend, b.ClusterID, b.Addr)
			if other, ok := meanings[number]; ok && other != meaning {
				t.Errorf("%v means %s, and meant %s", number, meaning, other)
			}
			meanings[number] = meaning
		}
	}
}

// sampleModel connects to an address and compares where that leads with the model. It
// returns how often it did.
func sampleModel(t *testing.T, to desired.Frontend, model modelFrontend, dial dialer) int {
	t.Helper()
	shares := map[netip.AddrPort]float64{}
	for _, b := range model.backends {
		if b.share > 0 {
			shares[b.Addr] += b.share
		}
	}
	frontend := netip.AddrPortFrom(to.Addr, to.Port)
	times := 3000
	if len(shares) == 0 {
		shares[frontend], times = 1, 10
	} else if len(shares) == 1 {
		times = 50
	}
	got := map[netip.AddrPort]int{}
	for i := range times {
		family := unix.AF_INET6 // IPv4-mapped, too
		if to.Addr.Is4() && i%2 == 0 {
			family = unix.AF_INET
		}
		peer, err := dial(family, frontend)
		if err != nil {
			t.Errorf("connect to %s: %v", to, err)
			return i
		}
		if shares[peer] == 0 {
			t.Errorf("connect to %s leads to %s, want one of %v", to, peer, shares)
			return i
		}
		got[peer]++
	}
	if statistic, freedom := statistic(shares, got, times); freedom > 0 && statistic > chiSquare(freedom, 1e-6) {
		t.Errorf("connects to %s: χ² is %.1f with %d degrees of freedom: got %v of %d, want the shares %v", to, statistic, freedom, got, times, shares)
	}
	return times
}

// statistic returns χ² of the counts, and its degrees of freedom.
func statistic(shares map[netip.AddrPort]float64, got map[netip.AddrPort]int, times int) (chi2 float64, freedom int) {
	// Cells of which less than 5 are expected count together.
	cells, rare, rareGot := 0, 0.0, 0
	add := func(want float64, got int) {
		cells++
		chi2 += (float64(got) - want) * (float64(got) - want) / want
	}
	for peer, share := range shares {
		if want := share * float64(times); want >= 5 {
			add(want, got[peer])
		} else {
			rare, rareGot = rare+want, rareGot+got[peer]
		}
	}
	if rare >= 5 {
		add(rare, rareGot)
	}
	return chi2, cells - 1
}
