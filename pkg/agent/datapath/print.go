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

	"mesh.io/clustermesh/pkg/layout"
)

// WriteTable prints the services for people, one backend a line, in the columns of
// `cilium service list --clustermesh-affinity` with the cluster added. A backend is
// preferred if new connections may go to it. In a terminal that has not so many columns
// (0 is no terminal) the backends are below their service.
func WriteTable(out io.Writer, width int, s *Snapshot) error {
	headers := []string{"ID", "Frontend", "Service", "Backend"}
	var rows [][]string
	for i := range s.Services {
		svc := &s.Services[i]
		head := []string{strconv.FormatUint(uint64(svc.ID), 10), svc.Frontend.String(), svc.Port.String()}
		rows = append(rows, append(slices.Clone(head), ""))
		for n := range svc.Backends {
			if n > 0 {
				rows = append(rows, []string{"", "", "", ""})
			}
			rows[len(rows)-1][3] = s.backendLine(n+1, &svc.Backends[n])
		}
	}
	text, fits := layout.Columns(width, headers, rows)
	if !fits {
		text = s.narrow(width)
	}
	_, err := io.WriteString(out, text)
	return err
}

// narrow has the backends below their services and, where they are too long, the names
// of the services on lines of their own.
func (s *Snapshot) narrow(width int) string {
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
		}
	}
	return out.String()
}

func (s *Snapshot) backendLine(n int, b *Backend) string {
	cluster, named := s.Clusters[b.ClusterID]
	if !named {
		cluster = fmt.Sprintf("cluster-id:%d", b.ClusterID)
	}
	var line strings.Builder
	fmt.Fprintf(&line, "%d => %s %s (%s)", n, b.Addr, cluster, b.State)
	if b.Slots > 0 {
		line.WriteString(" (preferred)")
	}
	return line.String()
}
