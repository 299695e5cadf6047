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
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/pkg/agent/desired"
)

// benchServices returns n services of m backends each.
func benchServices(n, m int) []desired.Service {
	services := make([]desired.Service, n)
	for i := range services {
		services[i] = serviceAt(fmt.Sprintf("10.96.%d.%d:80/TCP", i/250, i%250), manyBackends(0, m)...)
	}
	return services
}

func benchNode(b *testing.B) *node {
	n := newNode(b)
	n.Sizes = Sizes{}
	return n
}

// One endpoint of a service of 4 comes or goes, among 10,000 services.
func BenchmarkPublishOne(b *testing.B) {
	n := benchNode(b)
	d := n.open(b)
	mustApply(b, d, benchServices(10_000, 4)...)
	with4, with3 := benchServices(1, 4), benchServices(1, 4)
	with3[0].Backends = with3[0].Backends[1:]
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		change := with3
		if i%2 == 1 {
			change = with4
		}
		if _, err := d.ApplyServices(context.Background(), change, nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// All endpoints of a service of 4 change their shares, so that it is rebuilt.
func BenchmarkRebuildOne(b *testing.B) { benchmarkRebuild(b, 4) }

func BenchmarkRebuildService10k(b *testing.B) { benchmarkRebuild(b, 10_000) }

func benchmarkRebuild(b *testing.B, backends int) {
	d := benchNode(b).open(b)
	var versions [2][]desired.Service
	for v := range versions {
		versions[v] = benchServices(1, backends)
		for i := range versions[v][0].Backends {
			versions[v][0].Backends[i].Slots = uint32(1 + (i+v)%2)
		}
	}
	mustApply(b, d, versions[1]...)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		report, err := d.ApplyServices(context.Background(), versions[i%2], nil, nil)
		if err != nil || len(report.Failed) > 0 || report.Rebuilt != 1 {
			b.Fatalf("%+v, %v", report, err)
		}
	}
}

// One endpoint of a service of 10,000 comes or goes.
func BenchmarkEditService10k(b *testing.B) {
	d := benchNode(b).open(b)
	versions := [2][]desired.Service{benchServices(1, 9_999), benchServices(1, 10_000)}
	mustApply(b, d, versions[1]...)
	for i := 0; b.Loop(); i++ {
		if _, err := d.ApplyServices(context.Background(), versions[i%2], nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// 10,000 services of 4 into empty maps.
func BenchmarkFullLoad10kx4(b *testing.B) {
	d := benchNode(b).open(b)
	table := tableOf(benchServices(10_000, 4)...)
	b.ReportAllocs()
	for b.Loop() {
		report, err := d.Apply(context.Background(), table)
		if err != nil || report.Added != 10_000 {
			b.Fatalf("%+v, %v", report, err)
		}
		b.StopTimer()
		mustApply(b, d)
		d.grave.drain()
		b.StartTimer()
	}
}

// The whole table again, with nothing changed.
func BenchmarkApplyUnchanged10kx4(b *testing.B) {
	d := benchNode(b).open(b)
	mustApply(b, d, benchServices(10_000, 4)...)
	table := tableOf(benchServices(10_000, 4)...)
	b.ReportAllocs()
	for b.Loop() {
		report, err := d.Apply(context.Background(), table)
		if err != nil || report.Unchanged != 10_000 {
			b.Fatalf("%+v, %v", report, err)
		}
	}
}

// Taking over maps of 10,000 services of 4.
func BenchmarkRestart10kx4(b *testing.B) {
	n := benchNode(b)
	d := n.open(b)
	mustApply(b, d, benchServices(10_000, 4)...)
	for b.Loop() {
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
		var err error
		if d, err = Open(n.Config); err != nil {
			b.Fatal(err)
		}
	}
	_ = d.Close()
}

// A UDP socket, connected: straight, through the hooks without a frontend (miss), and
// to a frontend, with 1 and with 10,000 services in the maps.
func BenchmarkConnect(b *testing.B) {
	run := func(name, to string) {
		address := sockaddr(unix.AF_INET, netip.MustParseAddrPort(to))
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					b.Fatal(err)
				}
				if err := unix.Connect(fd, address); err != nil {
					b.Fatal(err)
				}
				_ = unix.Close(fd)
			}
		})
	}
	requireRoot(b)
	run("straight", "10.1.0.1:80")
	d := benchNode(b).open(b)
	run("miss", "10.1.0.1:80")
	for _, services := range []int{1, 10_000} {
		table := benchServices(services, 4)
		for i := range table {
			table[i].Frontend.Protocol = desired.UDP
		}
		mustApply(b, d, table...)
		run(fmt.Sprintf("vip-of-%d", services), "10.96.0.0:80")
	}
}

// A datagram and its answer, on sockets that are not connected: straight, through the
// hooks without a frontend (miss), and to a frontend; by one socket, and by a new one each
// time.
func BenchmarkDatagram(b *testing.B) {
	requireRoot(b)
	const backend = "10.1.0.1:8181"
	server := newSocket(b, unix.AF_INET, unix.SOCK_DGRAM)
	must(b, unix.Bind(server, sockaddr(unix.AF_INET, netip.MustParseAddrPort(backend))))
	payload := make([]byte, 16)
	exchange := func(b *testing.B, fd int, to unix.Sockaddr) {
		err := unix.Sendto(fd, payload[:1], 0, to)
		_, from, received := unix.Recvfrom(server, payload, 0)
		if err := errors.Join(err, received); err != nil {
			b.Fatal(err)
		}
		err = unix.Sendto(server, payload[:1], 0, from)
		if _, _, received = unix.Recvfrom(fd, payload, 0); err != nil || received != nil {
			b.Fatal(err, received)
		}
	}
	run := func(name, to string) {
		address := sockaddr(unix.AF_INET, netip.MustParseAddrPort(to))
		b.Run(name+"/one-socket", func(b *testing.B) {
			fd := newSocket(b, unix.AF_INET, unix.SOCK_DGRAM)
			for b.Loop() {
				exchange(b, fd, address)
			}
		})
		b.Run(name+"/new-socket", func(b *testing.B) {
			for b.Loop() {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					b.Fatal(err)
				}
				exchange(b, fd, address)
				_ = unix.Close(fd)
			}
		})
	}
	run("straight", backend)
	d := benchNode(b).open(b)
	run("miss", backend)
	mustApply(b, d, serviceAt("10.96.0.1:80/UDP", backendAt(backend)))
	run("vip", "10.96.0.1:80")
}
