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
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// benchmarks are those of pkg/agent/datapath that make a figure: their names there, the
// figure's name, the unit that is printed there, what it is divided by, and the target.
var benchmarks = []struct {
	name, unit string
	figure     string
	in         string
	divide     float64
	target     string
}{
	{"PublishOne", "ns/op", "publish_us, one of 4 endpoints of one of 10,000 services", "µs", 1e3, "≤ 10"},
	{"RebuildOne", "ns/op", "publish_us, all shares of a service of 4", "µs", 1e3, "≤ 10"},
	{"EditService10k", "ns/op", "publish_us, one endpoint of a service of 10,000", "µs", 1e3, ""},
	{"RebuildService10k", "ns/op", "publish_us, all shares of a service of 10,000", "µs", 1e3, "≤ 1000"},
	{"FullLoad10kx4", "ns/op", "full_load_ms, 10,000 services of 4 into empty maps", "ms", 1e6, "≤ 100"},
	{"Restart10kx4", "ns/op", "takeover_ms, maps of 10,000 services of 4", "ms", 1e6, ""},
}

// datapath runs the benchmarks of the data path, whose peers are in them where there are any.
func (r *runner) datapath() ([]Result, error) {
	var names []string
	for _, b := range benchmarks {
		names = append(names, b.name)
	}
	out, err := r.command("env", "MESH_REQUIRE_ROOT=1", r.bin("datapath.test"), "-test.run", "^$", "-test.count", "3",
		"-test.bench", "^Benchmark("+strings.Join(append(names, "Hook", "Counting"), "|")+")$")
	if err != nil {
		return nil, err
	}
	values := parseBenchmarks(out)
	median := func(name, unit string) (float64, error) {
		if len(values[name][unit]) == 0 {
			return 0, fmt.Errorf("%s has not printed %s of Benchmark%s", filepath.Base(r.bin("datapath.test")), unit, name)
		}
		return Percentile(values[name][unit], 50), nil
	}
	var results []Result
	for _, b := range benchmarks {
		value, err := median(b.name, b.unit)
		if err != nil {
			return results, err
		}
		results = append(results, Result{Name: b.figure, Value: value / b.divide, Unit: b.in, Target: b.target, Note: "median of 3 runs of Benchmark" + b.name})
	}
	const hook, counting, empty, unit = "Hook/", "Counting/vip", "Hook/empty", "hook-ns"
	floor, err := median(empty, unit)
	if err != nil {
		return results, err
	}
	for _, name := range inOrder(out) {
		what := strings.TrimPrefix(name, hook)
		switch {
		case name == counting:
			what = "sock_ops, each of a connection's calls"
		case what == name, name == empty:
			continue
		}
		value, err := median(name, unit)
		if err != nil {
			return results, err
		}
		results = append(results, Result{
			Name: "hook_ns, " + what, Value: value, Unit: "ns", Peers: map[string]float64{"an empty program": floor},
			Note: "by the kernel's own statistics, which are in it",
		})
	}
	return results, nil
}

var benchmarkLine = regexp.MustCompile(`(?m)^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)

// parseBenchmarks reads what Go's benchmarks print: values by benchmark and unit.
func parseBenchmarks(out string) map[string]map[string][]float64 {
	values := map[string]map[string][]float64{}
	for _, line := range benchmarkLine.FindAllStringSubmatch(out, -1) {
		fields := strings.Fields(line[2])
		for i := 0; i+1 < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				continue
			}
			if values[line[1]] == nil {
				values[line[1]] = map[string][]float64{}
			}
			values[line[1]][fields[i+1]] = append(values[line[1]][fields[i+1]], value)
		}
	}
	return values
}

// inOrder is the benchmarks' names in the order in which they ran first.
func inOrder(out string) (names []string) {
	seen := map[string]bool{}
	for _, line := range benchmarkLine.FindAllStringSubmatch(out, -1) {
		if !seen[line[1]] {
			seen[line[1]] = true
			names = append(names, line[1])
		}
	}
	return names
}
