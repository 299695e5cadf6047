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

package status

import (
	"fmt"
	"io"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"

	"mesh.io/clustermesh/pkg/layout"
)

// Write prints a report for people whose terminal has so many columns; 0 is none.
func Write(w io.Writer, width int, now time.Time, report *Report) error {
	p := &printer{w: w, width: width, now: now}
	if len(report.Clusters) > 1 {
		p.overview(report)
	}
	for i := range report.Clusters {
		if i > 0 || len(report.Clusters) > 1 {
			p.line("")
		}
		p.cluster(&report.Clusters[i])
	}
	if s := report.Exported; s != nil {
		p.line("")
		p.line("Exported by each of %d clusters: %d / %.1f / %d services (min / avg / max)", s.Clusters, s.Min, s.Average, s.Max)
	}
	return p.err
}

type printer struct {
	w     io.Writer
	width int
	now   time.Time
	err   error
}

func (p *printer) text(text string) {
	if p.err == nil {
		_, p.err = io.WriteString(p.w, text)
	}
}

func (p *printer) line(format string, args ...any) {
	p.text(layout.Text(p.width, "", "  ", fmt.Sprintf(format, args...)))
}

func (p *printer) overview(report *Report) {
	rows := [][]string{{"CLUSTER", "ID", "CONTEXT", "STATE", "NODES", "PEERS", "GLOBAL SERVICES"}}
	for i := range report.Clusters {
		c := &report.Clusters[i]
		row := []string{orDash(c.Name), "-", c.Context, c.State, "-", "-", "-"}
		if c.ID != 0 {
			row[1] = fmt.Sprint(c.ID)
		}
		if c.Nodes != nil {
			row[4] = fmt.Sprintf("%d/%d", c.Nodes.Programmed, c.Nodes.Desired)
		}
		if c.Exports != nil {
			good := 0
			for _, peer := range c.Peers {
				if peer.Connected.Status && peer.Synced.Status && !peer.Conflict && peer.Doubt == "" {
					good++
				}
			}
			row[5] = fmt.Sprintf("%d/%d", good, len(c.Peers))
		}
		if c.GlobalServices != nil {
			row[6] = fmt.Sprint(*c.GlobalServices)
		}
		rows = append(rows, row)
	}
	p.text(layout.Table(p.width, rows[0], rows[1:]))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (p *printer) cluster(c *Cluster) {
	here := p.now
	p.now = here.Add(c.clockAhead)
	defer func() { p.now = here }()
	name := "Cluster " + c.Name
	switch {
	case c.Name == "":
		name = "Context " + c.Context
	case c.ID != 0:
		name += fmt.Sprintf(" (ID %d, context %s)", c.ID, c.Context)
	}
	p.line("%s: %s", name, c.State)
	if len(c.Components) > 0 {
		p.line("")
		rows := [][]string{{"COMPONENT", "READY", "VERSION", "AGE"}}
		for _, component := range c.Components {
			rows = append(rows, []string{component.Name, fmt.Sprintf("%d/%d", component.Ready, component.Desired), orDash(component.Version), p.since(component.Since.Time)})
		}
		p.text(layout.Table(p.width, rows[0], rows[1:]))
		p.line("")
		p.facts(c)
	}
	if len(c.Peers) > 0 {
		p.line("")
		rows := [][]string{{"PEER", "CONNECTED", "SYNCED", "REACHED", "LAG", "SERVICES", "ENDPOINTS", "REFUSED"}}
		for _, peer := range c.Peers {
			reached := "never"
			if !peer.LastContact.IsZero() {
				reached = p.since(peer.LastContact.Time) + " ago"
			}
			rows = append(rows, []string{
				peer.Name, p.connected(peer), p.condition(peer.Synced), reached, lag(peer.LagMilliseconds),
				fmt.Sprint(peer.Services), fmt.Sprint(peer.Endpoints), fmt.Sprint(peer.Refused),
			})
		}
		p.text(layout.Table(p.width, rows[0], rows[1:]))
	}
	for _, w := range c.Warnings {
		mark := "! "
		if w.Problem {
			mark = "✘ "
		}
		p.line("")
		p.text(layout.Text(p.width, mark, "  ", w.Message))
		p.text(layout.Text(p.width, "  → ", "    ", w.Do))
	}
}

// facts are the lines between the components and the peers.
func (p *printer) facts(c *Cluster) {
	var rows [][]string
	add := func(name, format string, args ...any) {
		rows = append(rows, []string{name, fmt.Sprintf(format, args...)})
	}
	if c.API != nil {
		if c.API.Available {
			add("Mesh API", "available through Kubernetes")
		} else {
			add("Mesh API", "not available")
		}
	}
	if c.Store != nil {
		switch {
		case c.Store.Healthy == nil:
			add("Store", "%s etcd, not asked", c.Store.Kind)
		case *c.Store.Healthy:
			add("Store", "%s etcd, healthy", c.Store.Kind)
		default:
			add("Store", "%s etcd, not healthy", c.Store.Kind)
		}
	}
	if c.Nodes != nil {
		add("Nodes", "%d of %d programmed", c.Nodes.Programmed, c.Nodes.Desired)
	}
	if c.Exports != nil {
		state := "complete"
		if !c.Exports.Synced {
			state = "not complete"
		}
		alive := "never alive"
		if !c.Exports.Heartbeat.IsZero() {
			alive = "alive " + p.since(c.Exports.Heartbeat.Time) + " ago"
		}
		add("Exports", "%s, %s, %s; controller %s", count(int64(c.Exports.Services), "service"), count(int64(c.Exports.Endpoints), "endpoint"), state, alive)
	}
	if c.GlobalServices != nil {
		add("Global services", "%d", *c.GlobalServices)
	}
	if c.Exports != nil && len(c.Peers) == 0 {
		add("Peers", "none")
	}
	p.text(layout.Table(p.width, nil, rows))
}

func count(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (p *printer) condition(c Condition) string {
	word := "no"
	if c.Status {
		word = "yes"
	}
	if c.Since.IsZero() {
		return word
	}
	return word + " " + p.since(c.Since.Time)
}

// connected is how long a peer is connected, unless that is in doubt.
func (p *printer) connected(peer Peer) string {
	if peer.Doubt != "" {
		return "in doubt"
	}
	return p.condition(peer.Connected)
}

func (p *printer) since(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return ago(p.now.Sub(t))
}

// ago is a duration as kubectl shows it. Clocks differ: what is still to come is now.
func ago(d time.Duration) string { return duration.HumanDuration(max(d, 0)) }

func lag(milliseconds int64) string {
	switch {
	case milliseconds == 0:
		return "-"
	case milliseconds < 10_000:
		return fmt.Sprintf("%dms", milliseconds)
	}
	return ago(time.Duration(milliseconds) * time.Millisecond)
}
