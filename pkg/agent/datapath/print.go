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
	"strings"
	"text/tabwriter"
)

// WriteTable prints the services for people, one backend a line, in the columns of
// `cilium service list --clustermesh-affinity` with the cluster added. A backend is
// preferred if new connections may go to it.
func WriteTable(out io.Writer, s *Snapshot) error {
	w := tabwriter.NewWriter(out, 5, 0, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tFrontend\tService\tBackend")
	for i := range s.Services {
		svc := &s.Services[i]
		fmt.Fprintf(w, "%d\t%s\t%s", svc.ID, svc.Frontend, svc.Port)
		for n := range svc.Backends {
			if n > 0 {
				fmt.Fprint(w, "\t\t")
			}
			fmt.Fprintf(w, "\t%s\n", s.backendLine(n+1, &svc.Backends[n]))
		}
		if len(svc.Backends) == 0 {
			fmt.Fprintln(w)
		}
	}
	return w.Flush()
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
