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

// Package desired decides what this node's load-balancing table should hold. It
// performs no I/O: sources feed it, the data path applies what it returns.
package desired

import (
	"fmt"
	"net/netip"
)

// Protocol is an IP protocol number, as in the packet (RFC 1700).
type Protocol uint8

// The protocols that are balanced. SCTP is left to kube-proxy.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// String returns the name that Kubernetes uses for the protocol.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	}
	return fmt.Sprintf("Protocol(%d)", uint8(p))
}

// Frontend is an address that clients connect to: one port of one virtual IP of
// a Service. Addr is unmapped; the data path keeps it in its 16-byte form.
type Frontend struct {
	Addr     netip.Addr
	Port     uint16
	Protocol Protocol
}

// String formats the frontend as address:port/protocol.
func (f Frontend) String() string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(f.Addr, f.Port), f.Protocol)
}

// ServicePort names one port of one Service.
type ServicePort struct {
	Namespace string
	Name      string
	Port      string // the port's name; empty for an unnamed single port
}

// String formats the service port as namespace/name, with :port where it is named.
func (s ServicePort) String() string {
	if s.Port == "" {
		return s.Namespace + "/" + s.Name
	}
	return s.Namespace + "/" + s.Name + ":" + s.Port
}

// State says whether a backend can serve, whatever the policy makes of it.
type State uint8

// The states of a backend. The numbers are kept in the kernel's maps and are
// never reused for another meaning.
const (
	Active      State = 0 // ready
	Terminating State = 1 // serving and terminating: used when nothing ready is left (KEP-1669)
	NotReady    State = 2 // present, but not serving
	Quarantined State = 3 // ready by its cluster's word, dead by this node's traffic
)

// String returns the lower-case word that people read.
func (s State) String() string {
	switch s {
	case Active:
		return "active"
	case Terminating:
		return "terminating"
	case NotReady:
		return "not ready"
	case Quarantined:
		return "quarantined"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Backend is one endpoint behind one service port, in one cluster. Two clusters
// may offer the same address; the cluster ID tells them apart.
type Backend struct {
	Addr      netip.AddrPort
	ClusterID uint16
	State     State
	// Slots is how many of the service's slots the backend takes: its share of
	// new connections is Slots over the sum. 0 means listed but not picked.
	Slots uint32
}

// Service is what the kernel holds for one frontend.
type Service struct {
	Frontend Frontend
	Port     ServicePort
	// Backends holds every known backend, picked or not, sorted by cluster ID and
	// address, each once.
	Backends []Backend
	// LocalReady is set when a backend of this cluster is ready: if the agent dies
	// for long, such a service is handed back to kube-proxy.
	LocalReady bool
	// AffinitySeconds is how long a client keeps the backend that it last connected to,
	// as long as that has slots; 0 for services without session affinity.
	AffinitySeconds uint32
}

// Table is the desired content of this node's maps. A frontend that is absent is
// left alone, so kube-proxy serves it.
type Table struct {
	Services map[Frontend]Service
	// Clusters names the cluster IDs that occur, for people who read the kernel's table.
	Clusters map[uint16]string
}
