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
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/layout"
)

// WriteTable prints the services for people, one backend a line, in the columns of
// `cilium service list --clustermesh-affinity` with the cluster added. A backend is
// preferred if new connections may go to it. In a terminal that has not so many columns
// (0 is no terminal) the backends are below their service. Wide, what connections to a
// backend met follows it.
func WriteTable(out io.Writer, width int, s *Snapshot, wide bool) error {
	headers := []string{"ID", "Frontend", "Service", "Backend"}
	if wide {
		headers = append(headers, "Attempts", "Established", "Refused", "Timed out", "Aborted", "Active", "RTT")
	}
	var rows [][]string
	for i := range s.Services {
		svc := &s.Services[i]
		head := []string{strconv.FormatUint(uint64(svc.ID), 10), svc.Frontend.String(), svc.Port.String()}
		rows = append(rows, append(slices.Clone(head), ""))
		for n := range svc.Backends {
			if n > 0 {
				rows = append(rows, []string{"", "", "", ""})
			}
			last := len(rows) - 1
			rows[last][3] = s.backendLine(n+1, &svc.Backends[n])
			if wide {
				rows[last] = append(rows[last], trafficCells(svc.Frontend.Protocol, svc.Backends[n].Traffic)...)
			}
		}
	}
	text, fits := layout.Columns(width, headers, rows)
	if !fits {
		text = s.narrow(width, wide)
	}
	_, err := io.WriteString(out, text)
	return err
}

// narrow has the backends below their services and, where they are too long, the names
// of the services on lines of their own.
func (s *Snapshot) narrow(width int, wide bool) string {
	headers := []string{"ID", "Frontend", "Service"}
	var heads [][]string
	for i := range s.Services {
		svc := &s.Services[i]
		heads = append(heads, []string{strconv.FormatUint(uint64(svc.ID), 10), svc.Frontend.String(), svc.Port.String()})
	}
	text, fits := layout.Columns(width, headers, heads)
	if !fits {
		for i := range heads {
			heads[i] = heads[i][:2]
		}
		text, _ = layout.Columns(width, headers[:2], heads)
	}
	lines := strings.SplitAfter(text, "\n")
	var out strings.Builder
	out.WriteString(lines[0])
	for i := range s.Services {
		svc := &s.Services[i]
		out.WriteString(lines[i+1])
		if !fits {
			layout.Hanging(&out, width, 5, svc.Port.String())
		}
		for n := range svc.Backends {
			layout.Hanging(&out, width, 5, s.backendLine(n+1, &svc.Backends[n]))
			if wide {
				layout.Hanging(&out, width, 7, trafficLine(svc.Frontend.Protocol, svc.Backends[n].Traffic))
			}
		}
	}
	return out.String()
}

// trafficCells are what connections met, in columns; "-" is what is not known.
func trafficCells(protocol desired.Protocol, t *Traffic) []string {
	cells := []string{"-", "-", "-", "-", "-", "-", "-"}
	if t == nil {
		return cells
	}
	for i, n := range []uint64{t.Attempts, t.Established, t.Refused, t.TimedOut, t.Aborted, t.Active} {
		cells[i] = strconv.FormatUint(n, 10)
		if protocol == desired.UDP {
			break
		}
	}
	if t.Measured > 0 {
		cells[6] = t.MeanRTT().String()
	}
	return cells
}

// trafficLine is the same in words.
func trafficLine(protocol desired.Protocol, t *Traffic) string {
	switch {
	case t == nil:
		return "not counted"
	case protocol == desired.UDP:
		return fmt.Sprintf("%d attempts", t.Attempts)
	}
	line := fmt.Sprintf("%d attempts: %d established, %d refused, %d timed out, %d aborted; %d active",
		t.Attempts, t.Established, t.Refused, t.TimedOut, t.Aborted, t.Active)
	if t.Measured > 0 {
		line += ", RTT " + t.MeanRTT().String()
	}
	return line
}

// clusterLabel is a cluster's name, or, where it has none, a number that stands for it.
func clusterLabel(names map[uint16]string, id uint16) string {
	if name, named := names[id]; named {
		return name
	}
	return fmt.Sprintf("cluster-id:%d", id)
}

func (s *Snapshot) backendLine(n int, b *Backend) string {
	var line strings.Builder
	fmt.Fprintf(&line, "%d => %s %s (%s)", n, b.Addr, clusterLabel(s.Clusters, b.ClusterID), b.State)
	if b.Slots > 0 {
		line.WriteString(" (preferred)")
	}
	return line.String()
}
