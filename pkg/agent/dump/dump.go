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

// Package dump is the document that `mesh-agent dump -o json` prints: what the kernel
// of a node holds, and what its agent says about itself.
package dump

import "strings"

// Document is the whole.
type Document struct {
	Services []Service `json:"services"`
	// HeartbeatAgeSeconds is how long ago an agent was last alive; absent if never.
	HeartbeatAgeSeconds *float64          `json:"heartbeatAgeSeconds,omitempty"`
	Events              map[string]uint64 `json:"events"`
	LeftToKubeProxy     []Left            `json:"leftToKubeProxy"`
	// Agent is what the agent that runs now says; absent where none could be asked.
	Agent *Agent `json:"agent,omitempty"`
	// AgentProblem says why it could not.
	AgentProblem string `json:"agentProblem,omitempty"`
}

// Service is one frontend in the kernel's table.
type Service struct {
	ID         uint32 `json:"id"`
	Address    string `json:"address"`
	Port       uint16 `json:"port"`
	Protocol   string `json:"protocol"`
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	PortName   string `json:"portName,omitempty"`
	LocalReady bool   `json:"localReady"`
	// AffinitySeconds is the timeout of its session affinity, if it has any.
	AffinitySeconds uint32    `json:"affinitySeconds,omitempty"`
	Backends        []Backend `json:"backends"`
}

// Backend is one backend of a frontend. It is preferred if new connections may go to it.
type Backend struct {
	ID        uint32 `json:"id"`
	Address   string `json:"address"`
	Port      uint16 `json:"port"`
	Cluster   string `json:"cluster,omitempty"`
	ClusterID uint16 `json:"clusterID"`
	State     string `json:"state"`
	Slots     uint32 `json:"slots"`
	Preferred bool   `json:"preferred"`
	// Traffic is what connections to it met since it came; absent where the kernel's table
	// is of an agent that did not count them.
	Traffic *Traffic `json:"traffic,omitempty"`
}

// Traffic is what became of the connections of this node to a backend.
type Traffic struct {
	// Attempts are the connections for which a SYN was sent; of UDP, the sockets that were
	// led to the backend, by connect() or, once, by their datagrams.
	Attempts uint64 `json:"attempts"`
	// TCP is absent where the protocol is UDP: whether a datagram meets anybody is not known.
	TCP *TCPTraffic `json:"tcp,omitempty"`
}

// TCPTraffic says what became of the attempts. Those that are in none of Established,
// Refused, TimedOut and Aborted are on their way.
type TCPTraffic struct {
	Established uint64 `json:"established"`
	// Refused were ended by the other side, with a RST.
	Refused uint64 `json:"refused"`
	// TimedOut got no answer, and were given up, by the kernel or the application, after the
	// SYN had been repeated: a second or more.
	TimedOut uint64 `json:"timedOut"`
	// Aborted ended before that, by the application or by an ICMP error.
	Aborted uint64 `json:"aborted"`
	// Active are established now; no side has closed them.
	Active uint64 `json:"active"`
	// RTTSeconds are the round trips of the handshakes.
	RTTSeconds RoundTrips `json:"rttSeconds"`
}

// RoundTrips are some times that were measured: their mean is the sum by the count.
type RoundTrips struct {
	Sum   float64 `json:"sum"`
	Count uint64  `json:"count"`
}

// Left is a service that is not, or not as it should be, in the kernel's table.
type Left struct {
	Service string `json:"service"`
	Reason  string `json:"reason"`
}

// Agent is what an agent says about itself.
type Agent struct {
	// Ready is set while nothing is wrong.
	Ready  bool    `json:"ready"`
	Checks []Check `json:"checks"`
}

// Check is one thing that the agent looks at.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Message is what is wrong, or what people should know.
	Message string `json:"message,omitempty"`
}

// ParseReadyz reads what the agent answers to /readyz?verbose.
func ParseReadyz(text string) Agent {
	agent := Agent{Ready: true, Checks: []Check{}}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "[+]"); ok {
			name, message, _ := strings.Cut(rest, ": ")
			agent.Checks = append(agent.Checks, Check{Name: strings.TrimSuffix(name, " ok"), OK: true, Message: message})
		} else if rest, ok := strings.CutPrefix(line, "[-]"); ok {
			name, message, _ := strings.Cut(rest, ": ")
			agent.Checks = append(agent.Checks, Check{Name: name, Message: message})
			agent.Ready = false
		}
	}
	return agent
}
