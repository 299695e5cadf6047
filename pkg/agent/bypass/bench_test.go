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

package bypass

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkConnect measures connect() to a pod's address, from the node, beside so many
// rules as kube-proxy has for as many Services, in rounds with and without the bypass.
func BenchmarkConnect(b *testing.B) {
	for _, variant := range []string{"legacy", "nft"} {
		for _, services := range []int{0, 1000, 10_000} {
			b.Run(fmt.Sprintf("%s/services=%d", variant, services), func(b *testing.B) { benchmark(b, variant, services) })
		}
	}
}

func benchmark(b *testing.B, variant string, services int) {
	n := newNetwork(b, variant, false)
	lines := []string{"*nat"}
	for i := range services {
		lines = append(lines, fmt.Sprintf("-A KUBE-SERVICES -d 10.%d.%d.%d/32 -p tcp -m comment --comment \"ns/service%d:http cluster IP\" -m tcp --dport 80 -j KUBE-SVC-A", 96+i>>16, byte(i>>8), byte(i), i))
	}
	load := exec.Command("iptables-"+variant+"-restore", "--noflush")
	load.Stdin = strings.NewReader(strings.Join(append(lines, "COMMIT\n"), "\n"))
	if output, err := load.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, output)
	}
	to := &unix.SockaddrInet4{Port: port, Addr: n.farAddr.As4()}
	round := func() (times []time.Duration) {
		if err := in(b, n.node, func() error {
			for range max(b.N, 500) {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
					return err
				}
				start := time.Now()
				err = unix.Connect(fd, to)
				times = append(times, time.Since(start))
				unix.Close(fd)
				if err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
		return times
	}
	median := func(list []time.Duration) float64 {
		slices.Sort(list)
		return float64(list[len(list)/2]) / 1e3
	}
	past := New()
	var with, without []time.Duration
	for range 5 {
		if got := n.of(past.Keep([]netip.Addr{n.farAddr}, true)); got.State != Active {
			b.Fatalf("%+v", got)
		}
		with = append(with, time.Duration(1e3*median(round())))
		if err := Remove(); err != nil {
			b.Fatal(err)
		}
		past = New()
		without = append(without, time.Duration(1e3*median(round())))
	}
	b.ReportMetric(median(with), "µs-with/op")
	b.ReportMetric(median(without), "µs-without/op")
	b.ReportMetric(0, "ns/op")
}
