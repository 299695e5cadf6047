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

package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/agent/dump"
	"mesh.io/clustermesh/pkg/cli/explain"
	"mesh.io/clustermesh/pkg/layout"
)

// The kernel's table of a node, with the reason for each backend that is not used.
type (
	nodeTable struct {
		Context  string        `json:"context"`
		Cluster  string        `json:"cluster"`
		Node     string        `json:"node"`
		Services []nodeService `json:"services"`
		// LeftToKubeProxy are global services that the table does not have, or not whole.
		LeftToKubeProxy []dump.Left `json:"leftToKubeProxy"`
		// HeartbeatAgeSeconds is how long ago an agent was last alive; absent if never.
		HeartbeatAgeSeconds *float64    `json:"heartbeatAgeSeconds,omitempty"`
		Agent               *dump.Agent `json:"agent,omitempty"`
		// Problem says why reasons are missing.
		Problem string `json:"problem,omitempty"`
	}
	nodeService struct {
		ID        uint32        `json:"id"`
		Frontend  string        `json:"frontend"`
		Namespace string        `json:"namespace"`
		Name      string        `json:"name"`
		PortName  string        `json:"portName,omitempty"`
		Type      string        `json:"type,omitempty"`
		Backends  []nodeBackend `json:"backends"`
	}
	nodeBackend struct {
		Address string `json:"address"`
		Cluster string `json:"cluster"`
		State   string `json:"state"`
		// Programmed is set if the kernel's table has the backend, Preferred if new
		// connections may go to it.
		Programmed bool `json:"programmed"`
		Preferred  bool `json:"preferred"`
		// Slots is its share of new connections, over the sum of the frontend's.
		Slots  uint32 `json:"slots"`
		Reason string `json:"reason,omitempty"`
	}
)

// The reasons that only the difference between the API and the kernel gives.
const (
	reasonLate  = "the node has not taken this change up yet"
	reasonFar   = "the node prefers, or must use, endpoints that are nearer to it"
	reasonExtra = "the API lists it no more, and the agent keeps it until it is known to be gone"
)

func listNode(ctx context.Context, o *options, t *target, namespace, node string, as output) error {
	pod, err := t.agentOf(ctx, node)
	if err != nil {
		return err
	}
	document, err := t.dump(ctx, pod, "")
	if err != nil {
		return err
	}
	facts, problem := t.allFacts(ctx, namespace)
	table := newNodeTable(t.Context, node, document, facts, namespace)
	if problem != nil {
		table.Problem = "reasons are missing: " + problem.Error()
	}
	return as.print(o.Out, table, func(w io.Writer) error { return writeNodeTable(w, layout.Width(w), table) })
}

func getNode(ctx context.Context, o *options, t *target, name serviceName, node string, as output) error {
	pod, err := t.agentOf(ctx, node)
	if err != nil {
		return err
	}
	document, err := t.dump(ctx, pod, name.String())
	if err != nil {
		return err
	}
	c := t.facts(ctx, name.Namespace, name.Name)
	table := newNodeTable(t.Context, node, document, map[string]*explain.Cluster{name.String(): c}, name.Namespace)
	if problem := cmp.Or(c.Problem, c.MeshProblem); problem != "" {
		table.Problem = "reasons are missing or wrong: " + problem
	}
	if err := as.print(o.Out, table, func(w io.Writer) error { return writeNodeTable(w, layout.Width(w), table) }); err != nil {
		return err
	}
	if len(table.Services) == 0 {
		return unmet("the kernel of node %s has no frontend of %s: meshctl service explain %s --from %s/%s says why", node, name, name, t.Context, node)
	}
	return nil
}

// newNodeTable puts the kernel's table and what the API's objects say together.
func newNodeTable(context, node string, document *dump.Document, facts map[string]*explain.Cluster, namespace string) nodeTable {
	table := nodeTable{
		Context: context, Cluster: context, Node: node, Services: []nodeService{}, LeftToKubeProxy: []dump.Left{},
		HeartbeatAgeSeconds: document.HeartbeatAgeSeconds, Agent: document.Agent,
	}
	for _, c := range facts {
		table.Cluster = c.Name
		break
	}
	in := func(service string) bool { return namespace == "" || strings.HasPrefix(service, namespace+"/") }
	for _, left := range document.LeftToKubeProxy {
		if in(left.Service) {
			table.LeftToKubeProxy = append(table.LeftToKubeProxy, left)
		}
	}
	type key struct{ frontend, service string }
	explained := map[key]*desired.Explained{}
	for i := range document.Services {
		s := &document.Services[i]
		name := s.Namespace + "/" + s.Name
		if !in(name) {
			continue
		}
		row := nodeService{
			ID: s.ID, Namespace: s.Namespace, Name: s.Name, PortName: s.PortName,
			Frontend: net.JoinHostPort(s.Address, strconv.Itoa(int(s.Port))) + "/" + s.Protocol,
			Backends: []nodeBackend{},
		}
		c := facts[name]
		k := key{row.Frontend, name}
		if c != nil && c.Service != nil {
			row.Type = string(c.Service.Spec.Type)
			if explained[k] == nil {
				mesh, input := c.Objects().Input()
				// Whether they are frontends, the kernel's table says.
				mesh.LoadBalancerIPs = true
				all, _ := mesh.Explain(desired.Name{Namespace: s.Namespace, Name: s.Name}, input)
				for i := range all {
					explained[key{all[i].Frontend.String(), name}] = &all[i]
				}
			}
		}
		row.Backends = backendsOf(s, explained[k], c != nil && c.Problem == "" && c.MeshProblem == "")
		table.Services = append(table.Services, row)
	}
	return table
}

// backendsOf lists what the kernel has of a frontend, and after it what it has not.
func backendsOf(s *dump.Service, explained *desired.Explained, complete bool) []nodeBackend {
	type key struct {
		address string
		cluster string
	}
	verdicts := map[key]desired.Verdict{}
	if explained != nil {
		for _, v := range explained.Verdicts {
			verdicts[key{v.Addr.String(), v.Cluster}] = v
		}
	}
	backends := []nodeBackend{}
	for _, b := range s.Backends {
		row := nodeBackend{
			Address: net.JoinHostPort(b.Address, strconv.Itoa(int(b.Port))), State: b.State, Programmed: true, Preferred: b.Preferred, Slots: b.Slots,
			Cluster: cmp.Or(b.Cluster, fmt.Sprintf("cluster-id:%d", b.ClusterID)),
		}
		k := key{row.Address, row.Cluster}
		v, known := verdicts[k]
		delete(verdicts, k)
		switch {
		case b.Preferred:
		case known && v.Slots > 0 && v.ByNode:
			row.Reason = reasonFar
		case known && v.Slots > 0:
			row.Reason = reasonLate
		case known:
			row.Reason = v.Reason
			if b.State == desired.Quarantined.String() {
				row.Reason = "quarantined: connections to it fail"
			}
		case complete && explained != nil:
			row.Reason = reasonExtra
		}
		backends = append(backends, row)
	}
	var missing []nodeBackend
	for k, v := range verdicts {
		row := nodeBackend{Address: k.address, Cluster: k.cluster, State: v.State.String(), Reason: v.Reason}
		if v.Listed {
			row.Reason = reasonLate
		}
		missing = append(missing, row)
	}
	slices.SortFunc(missing, func(a, b nodeBackend) int {
		return cmp.Or(strings.Compare(a.Cluster, b.Cluster), strings.Compare(a.Address, b.Address))
	})
	return append(backends, missing...)
}

// line is a backend as `cilium service list --clustermesh-affinity` prints it, with
// its cluster; after it the reason, if it needs one.
func (b *nodeBackend) line(n int) (line, reason string) {
	number := noValue
	if b.Programmed {
		number = strconv.Itoa(n)
	}
	line = fmt.Sprintf("%s => %s %s (%s)", number, b.Address, b.Cluster, b.State)
	if b.Preferred {
		line += " (preferred)"
	}
	if !b.Programmed {
		line += " (not programmed)"
	}
	if b.Reason != b.State {
		reason = b.Reason
	}
	return line, reason
}

func (s *nodeService) title() string {
	title := s.Namespace + "/" + s.Name
	if s.PortName != "" {
		title += ":" + s.PortName
	}
	return title
}

func writeNodeTable(w io.Writer, width int, table nodeTable) error {
	var rows, narrow [][]string
	for i := range table.Services {
		s := &table.Services[i]
		head := []string{strconv.FormatUint(uint64(s.ID), 10), s.Frontend, s.title(), cmp.Or(s.Type, noValue)}
		narrow = append(narrow, head)
		for n := range s.Backends {
			line, reason := s.Backends[n].line(n + 1)
			if reason != "" {
				line += ": " + reason
			}
			rows = append(rows, append(slices.Clone(head), line))
			head = []string{"", "", "", ""}
		}
		if len(s.Backends) == 0 {
			rows = append(rows, append(slices.Clone(head), noValue))
		}
	}
	if len(rows) > 0 {
		text, fits := layout.Columns(width, []string{"ID", "Frontend", "Service", "Type", "Backend"}, rows)
		if fits {
			fmt.Fprint(w, text)
		} else {
			// The backends below their service, and where its name is too long, that, too.
			headers := []string{"ID", "Frontend", "Service", "Type"}
			text, fits := layout.Columns(width, headers, narrow)
			if !fits {
				for i, head := range narrow {
					narrow[i] = []string{head[0], head[1], head[3]}
				}
				headers = []string{"ID", "Frontend", "Type"}
				text, _ = layout.Columns(width, headers, narrow)
			}
			lines := strings.SplitAfter(text, "\n")
			fmt.Fprint(w, lines[0])
			for i := range table.Services {
				s := &table.Services[i]
				fmt.Fprint(w, lines[i+1])
				if !fits {
					layout.Hanging(w, width, 5, s.title())
				}
				for n := range s.Backends {
					line, reason := s.Backends[n].line(n + 1)
					layout.Hanging(w, width, 5, line)
					if reason != "" {
						layout.Hanging(w, width, 10, reason)
					}
				}
			}
		}
	}
	for _, left := range table.LeftToKubeProxy {
		layout.Hanging(w, width, 0, fmt.Sprintf("Left to kube-proxy: %s: %s", left.Service, left.Reason))
	}
	switch {
	case table.HeartbeatAgeSeconds == nil:
		layout.Hanging(w, width, 0, fmt.Sprintf("No agent has been alive on %s yet.", table.Node))
	case *table.HeartbeatAgeSeconds > 60:
		layout.Hanging(w, width, 0, fmt.Sprintf("The agent of %s was last alive %s ago.", table.Node, explain.Age(time.Duration(*table.HeartbeatAgeSeconds*float64(time.Second)))))
	}
	if table.Agent != nil {
		for _, check := range table.Agent.Checks {
			if !check.OK {
				layout.Hanging(w, width, 0, fmt.Sprintf("The agent is not ready: %s: %s", check.Name, check.Message))
			}
		}
	}
	if table.Problem != "" {
		layout.Hanging(w, width, 0, "Warning: "+table.Problem)
	}
	return nil
}
