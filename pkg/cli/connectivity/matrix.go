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

package connectivity

import (
	"fmt"
	"net"
	"strconv"

	"mesh.io/clustermesh/pkg/cli/probe"
)

// Party is one of the two clusters, as far as the matrix is concerned.
type Party struct {
	Name string
	// Imports says whether this cluster imports the other.
	Imports bool
	Clients []Client
}

// Client is the test's pod on a node.
type Client struct {
	Node    string
	Pod     string
	Address string
}

// Place is a node of a cluster.
type Place struct {
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
}

func (p Place) String() string {
	if p.Node == "" {
		return p.Cluster
	}
	return p.Cluster + "/" + p.Node
}

// Check is one question and what should come of it.
type Check struct {
	From    Place
	pod     string
	Network string
	// To is what a person reads: a service, or a node.
	To      string
	address string
	count   int
	// Want are the clusters that should answer, and no other.
	Want []string
	// toNode is the node that should answer, of a check from pod to pod.
	toNode string
	// service is the Service that is asked, if it is one.
	service string
}

// Scenario is the checks that are made in one state of the two clusters.
type Scenario struct {
	Title  string
	Change Change
	Checks []Check
}

// Change is what is done before a scenario.
type Change struct {
	// Drain sets (or takes back) weight 0 for the other cluster, in each that imports.
	Drain *bool
	// Scale is the number of the servers' pods in the cluster ScaleIn.
	Scale   *int32
	ScaleIn string
}

var networks = []string{"tcp", "udp"}

// tries is how often a Service is asked. That one of two equal clusters does not answer
// by chance comes about twice in a million times, and is then asked again.
const tries = 20

// Matrix is the whole test of two clusters, in the order in which it is made.
func Matrix(a, b Party, namespace string) []Scenario {
	parties := []Party{a, b}
	other := func(i int) Party { return parties[1-i] }
	// ask makes the checks of one service from every node. want says who answers the
	// clients of a party; nil leaves them out.
	ask := func(service string, networks []string, want func(i int) []string) []Check {
		var checks []Check
		for i, party := range parties {
			clusters := want(i)
			if clusters == nil {
				continue
			}
			for _, from := range party.Clients {
				for _, network := range networks {
					checks = append(checks, Check{
						From: Place{party.Name, from.Node}, pod: from.Pod, Network: network, To: service,
						address: net.JoinHostPort(service+"."+namespace+".svc", strconv.Itoa(servicePort)),
						count:   tries, Want: clusters, service: service,
					})
				}
			}
		}
		return checks
	}
	own := func(i int) []string { return []string{parties[i].Name} }
	all := func(i int) []string {
		if parties[i].Imports {
			return []string{parties[i].Name, other(i).Name}
		}
		return own(i)
	}
	tcp := networks[:1]

	scenarios := []Scenario{
		{Title: "Pod to pod of the other cluster, by address", Checks: podToPod(parties)},
		{Title: "Global service: the backends of all clusters", Checks: ask(echo, networks, all)},
		{Title: "Affinity local: the own cluster's backends", Checks: ask(echoLocal, networks, own)},
		{Title: "Affinity remote: the other cluster's backends", Checks: ask(echoRemote, networks, func(i int) []string {
			if parties[i].Imports {
				return []string{other(i).Name}
			}
			return own(i)
		})},
		{Title: fmt.Sprintf("shared=false in %s: its backends are for itself", b.Name), Checks: ask(echoPrivate, tcp, func(i int) []string {
			if i == 0 {
				return own(i)
			}
			return all(i)
		})},
	}
	yes, no := true, false
	scenarios = append(scenarios,
		Scenario{Title: "Drained: weight 0 for the other cluster", Change: Change{Drain: &yes}, Checks: ask(echo, tcp, own)},
		Scenario{Title: "No longer drained", Change: Change{Drain: &no}, Checks: ask(echo, tcp, all)},
	)
	for _, down := range []int{1, 0} {
		zero, back := int32(0), int32(replicas)
		name := parties[down].Name
		scenarios = append(scenarios,
			Scenario{Title: fmt.Sprintf("Failover: no pod in %s", name), Change: Change{Scale: &zero, ScaleIn: name}, Checks: ask(echo, networks, func(i int) []string {
				switch {
				case i != down:
					return own(i)
				case parties[i].Imports:
					return []string{other(i).Name}
				}
				return nil // nobody is left to answer
			})},
			Scenario{Title: fmt.Sprintf("The pods of %s are back", name), Change: Change{Scale: &back, ScaleIn: name}, Checks: ask(echo, tcp, all)},
		)
	}
	return scenarios
}

func podToPod(parties []Party) []Check {
	var checks []Check
	for i, party := range parties {
		other := parties[1-i]
		for _, from := range party.Clients {
			for _, to := range other.Clients {
				for _, network := range networks {
					checks = append(checks, Check{
						From: Place{party.Name, from.Node}, pod: from.Pod, Network: network, To: Place{other.Name, to.Node}.String(),
						address: net.JoinHostPort(to.Address, strconv.Itoa(probe.Port)), count: 3, Want: []string{other.Name}, toNode: to.Node,
					})
				}
			}
		}
	}
	return checks
}
