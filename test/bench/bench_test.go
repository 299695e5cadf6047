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
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDialCountsAnswersAndLosses(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.CopyN(conn, conn, 1)
			}()
		}
	}()
	to := netip.MustParseAddrPort(listener.Addr().String())
	if err := question(to); err != nil {
		t.Errorf("a server that answers: %v", err)
	}
	dialed := func() Dialed {
		stop := make(chan struct{})
		time.AfterFunc(50*time.Millisecond, func() { close(stop) })
		return Dial(to, stop)
	}
	if d := dialed(); d.Answered == 0 || d.Lost != 0 {
		t.Errorf("a server that answers: %+v", d)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if d := dialed(); d.Answered != 0 || d.Lost == 0 || d.Errors["connect: connection refused"] != d.Lost {
		t.Errorf("a server that is gone: %+v", d)
	}
}

func TestParseBenchmarks(t *testing.T) {
	out := `goos: linux
BenchmarkHook/connect4/hot-2  	     147	   2614175 ns/op	       879.4 hook-ns
BenchmarkPublishOne           	 3395223	       346.6 ns/op	     161 B/op	       4 allocs/op
BenchmarkPublishOne-16        	 3395223	       400 ns/op	     161 B/op	       4 allocs/op
PASS
`
	want := map[string]map[string][]float64{
		"Hook/connect4/hot": {"ns/op": {2614175}, "hook-ns": {879.4}},
		"PublishOne":        {"ns/op": {346.6, 400}, "B/op": {161, 161}, "allocs/op": {4, 4}},
	}
	if diff := cmp.Diff(want, parseBenchmarks(out)); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"Hook/connect4/hot", "PublishOne"}, inOrder(out)); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func TestTrimmedMeanLeavesTheSlowestTenthOut(t *testing.T) {
	if mean := trimmedMean([]float64{5000, 1, 2, 3, 1, 2, 3, 1, 2, 3}); mean != 2 {
		t.Errorf("got %v, want 2", mean)
	}
	if mean := trimmedMean([]float64{7}); mean != 7 {
		t.Errorf("of one value: got %v, want 7", mean)
	}
}

func TestMediansAreOfEachFigure(t *testing.T) {
	round := func(p50, p99, diff float64) Outcome {
		return Outcome{Ways: map[string]Figures{ThroughMesh: {P50: p50, P99: p99}}, Diffs: map[string]float64{ThroughMesh: diff}}
	}
	got := medians([]Outcome{round(1, 30, 9), round(2, 10, 8), round(3, 20, 7)})
	if diff := cmp.Diff(round(2, 20, 8), got); diff != "" {
		t.Errorf("medians (-want +got):\n%s", diff)
	}
}

func TestNumberedVIPsAreAddressesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{}
	for try := range 2 {
		for n := range 12_000 {
			vip := numberedVIP(n, try)
			if _, err := netip.ParseAddr(vip); err != nil || seen[vip] {
				t.Fatalf("%s for service %d, try %d: %v, given before: %v", vip, n, try, err, seen[vip])
			}
			seen[vip] = true
		}
	}
}
