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
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/layout/golden"
)

func TestWriteTable(t *testing.T) {
	entry := func(addr string, cluster uint16, state desired.State, slots uint32) Backend {
		return Backend{Backend: desired.Backend{
			Addr: netip.MustParseAddrPort(addr), ClusterID: cluster, State: state, Slots: slots,
		}}
	}
	snapshot := &Snapshot{
		Clusters: map[uint16]string{1: "cluster1", 2: "cluster2"},
		Services: []Service{
			{
				ID: 1, Frontend: vip("10.96.0.12:80/TCP"),
				Port: desired.ServicePort{Namespace: "song", Name: "userlist-svc"},
				Backends: []Backend{
					entry("10.0.0.165:8181", 1, desired.Active, 1),
					entry("10.0.1.20:8181", 2, desired.Active, 0),
					entry("10.0.1.21:8181", 2, desired.Quarantined, 0),
					entry("10.0.1.22:8181", 7, desired.NotReady, 0),
				},
			},
			{
				ID: 12, Frontend: vip("[fd00:96::1]:53/UDP"),
				Port:     desired.ServicePort{Namespace: "song", Name: "names", Port: "dns"},
				Backends: []Backend{entry("[fd00:1::1]:53", 2, desired.Terminating, 3)},
			},
			{ID: 345, Frontend: vip("10.96.200.200:65535/TCP"), Port: desired.ServicePort{Namespace: "song", Name: "empty"}},
		},
	}
	snapshot.Services[0].Backends[0].Traffic = &Traffic{
		Attempts: 1234567, Established: 1234000, Refused: 500, TimedOut: 60, Aborted: 5, Active: 42, Measured: 1000, RTT: 1234567 * time.Microsecond,
	}
	snapshot.Services[0].Backends[1].Traffic = &Traffic{Attempts: 3, Refused: 3}
	snapshot.Services[1].Backends[0].Traffic = &Traffic{Attempts: 17}
	long := &Snapshot{Clusters: map[uint16]string{2: strings.Repeat("c", 32)}, Services: []Service{
		{
			ID: 1, Frontend: vip("[fd00:1234:5678:9abc:def0:1234:5678:9abc]:65535/TCP"),
			Port:     desired.ServicePort{Namespace: strings.Repeat("n", 63), Name: strings.Repeat("s", 63), Port: strings.Repeat("p", 15)},
			Backends: []Backend{entry("[fd00:1234:5678:9abc:def0:1234:5678:9abc]:65535", 2, desired.Quarantined, 7)},
		},
		snapshot.Services[2],
	}}
	for name, snapshot := range map[string]*Snapshot{"services": snapshot, "none": {}, "long": long} {
		t.Run(name, func(t *testing.T) {
			golden.Print(t, name, func(w io.Writer, width int) error { return WriteTable(w, width, snapshot, false) })
			golden.Print(t, name+"-wide", func(w io.Writer, width int) error { return WriteTable(w, width, snapshot, true) })
		})
	}
}
