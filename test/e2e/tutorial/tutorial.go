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

// Package tutorial walks docs/tutorial.md on the lab as a person would: it takes the
// commands of each section as they are written, prints each with what it answers, and checks
// each outcome, and more than the text asks for. The demo and the end-to-end test are this
// one walk.
package tutorial

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"mesh.io/clustermesh/test/e2e/trace"
)

// Config is where the walk takes place: on the bare clusters of a lab.
type Config struct {
	Root       string    // the checkout, for the tutorial and the example manifests
	BinDir     string    // where kubectl, meshctl and lab are
	Kubeconfig string    // with the contexts cluster1 and cluster2
	Out        io.Writer // what a person reads
	Faults     bool      // also what can go wrong between clusters, which the tutorial leaves out
}

// Run walks the tutorial. It returns the first outcome that is not as it should be.
func Run(ctx context.Context, config Config) error {
	text, err := os.ReadFile(filepath.Join(config.Root, "docs", "tutorial.md"))
	if err != nil {
		return fmt.Errorf("reading the tutorial: %w", err)
	}
	w := &walk{Config: config, ctx: ctx, sections: parse(string(text)), before: map[string]trace.Picture{}}
	steps := []step{
		{title: "Two bare clusters", run: w.bare},
		{section: 1, run: w.asWritten},
		{section: 2, run: w.asWritten},
		{section: 3, run: w.connected},
		{section: 4, run: w.oneService},
		{section: 5, run: w.scale},
		{section: 6, run: w.affinity},
		{section: 7, run: w.shared},
		{section: 8, run: w.drain},
		{title: "kill -9 of every mesh program in cluster2", run: w.kill},
	}
	if config.Faults {
		steps = append(steps,
			step{title: "TCP and UDP, several pods and ports", run: w.echo},
			step{title: "A peer is cut off: nothing is removed, and this cluster goes on by itself", run: w.cut},
			step{title: "A peer's store is emptied: nothing is removed", run: w.emptied},
		)
	}
	return w.run(append(steps, step{section: 9, run: w.diagnose}, step{section: 10, run: w.leave}))
}

// step is a section of the tutorial, or something that the walk does besides.
type step struct {
	section int
	title   string // of what is no section
	run     func() error
}

func (w *walk) run(steps []step) error {
	start := time.Now()
	for i, step := range steps {
		began := time.Now()
		if step.section > 0 {
			w.here = w.sections[step.section]
			if step.title = w.here.title; len(w.here.blocks) == 0 {
				return fmt.Errorf("the tutorial has no commands in its section %d", step.section)
			}
		}
		w.printf("\n\033[1m== %d. %s\033[0m\n", i+1, step.title)
		if err := step.run(); err != nil {
			w.printf("\n✗ %d. %s: %v\n", i+1, step.title, err)
			return fmt.Errorf("step %d (%s): %w", i+1, step.title, err)
		}
		w.summary = append(w.summary, fmt.Sprintf("✓ %2d. %-76s %5.1f s", i+1, step.title, time.Since(began).Seconds()))
	}
	w.printf("\n\033[1m== Summary\033[0m\n%s\nFrom two bare clusters to a connected mesh in four commands: %.0f s.\nAll %d steps and %d checks passed in %.0f s.\n",
		strings.Join(w.summary, "\n"), w.four.Seconds(), len(steps), w.checks, time.Since(start).Seconds())
	return nil
}

type walk struct {
	Config
	ctx      context.Context
	sections map[int]section
	here     section                  // of the tutorial, where the walk is
	before   map[string]trace.Picture // of each cluster, before anything of ours was there
	began    time.Time                // of the first of the four commands
	four     time.Duration            // what the four commands took
	summary  []string
	checks   int
}

var clusters = []string{"cluster1", "cluster2"}

const requests = "for i in $(seq 20); do curl -sS -m 5 userlist-svc.song.svc:80/users/1; echo; done"

// patience is how long an outcome may take: far longer than it does, so that only
// a fault runs into it.
const patience = 30 * time.Second

func (w *walk) printf(format string, args ...any) { fmt.Fprintf(w.Out, format, args...) }

// quietly runs a command line in a shell, as the walk's person has it.
func (w *walk) quietly(command string) (string, error) {
	cmd := exec.CommandContext(w.ctx, "bash", "-c", command)
	cmd.Dir = w.Root
	cmd.Env = append(os.Environ(), "KUBECONFIG="+w.Kubeconfig, "PATH="+w.BinDir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (w *walk) show(command, output string) {
	w.printf("\n$ %s\n%s", command, output)
	if output != "" && !strings.HasSuffix(output, "\n") {
		w.printf("\n")
	}
}

// sh runs a command line and shows it with what it answers.
func (w *walk) sh(command string) (string, error) {
	out, err := w.quietly(command)
	w.show(command, out)
	if err != nil {
		return out, fmt.Errorf("%q: %w", command, err)
	}
	return out, nil
}

// must runs command lines that only have to succeed.
func (w *walk) must(commands ...string) error {
	for _, command := range commands {
		if _, err := w.sh(command); err != nil {
			return err
		}
	}
	return nil
}

// expect repeats a command until its answer is as it should be, and shows the last one.
func (w *walk) expect(command, outcome string, ok func(out string) bool) error {
	w.checks++
	began := time.Now()
	for {
		out, err := w.quietly(command)
		if err == nil && ok(out) {
			w.show(command, out)
			w.printf("✓ %s (after %.1f s)\n", outcome, time.Since(began).Seconds())
			return nil
		}
		if time.Since(began) > patience || w.ctx.Err() != nil {
			w.show(command, out)
			return fmt.Errorf("not so within %v: %s", patience, outcome)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func contains(parts ...string) func(string) bool {
	return func(out string) bool {
		for _, part := range parts {
			if !strings.Contains(out, part) {
				return false
			}
		}
		return true
	}
}

// answer is what the sample server says.
type answer struct {
	Pod     string `json:"pod"`
	Cluster string `json:"cluster"`
}

// tally counts the answers by cluster; failed counts lines that are no answer.
func tally(out string) (byCluster map[string]int, failed int) {
	byCluster = map[string]int{}
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		var a answer
		if err := json.Unmarshal([]byte(line), &a); err != nil || a.Cluster == "" {
			failed++
			continue
		}
		byCluster[a.Cluster]++
	}
	return byCluster, failed
}

func describe(byCluster map[string]int) string {
	var parts []string
	for cluster, n := range byCluster {
		parts = append(parts, fmt.Sprintf("%s %d×", cluster, n))
	}
	sort.Strings(parts)
	return strings.Join(parts, ", ")
}

// whoAnswers makes twenty requests from a cluster until the answers come from just
// the clusters wanted, each at least twice, and shows one answer and the tally.
func (w *walk) whoAnswers(from string, want ...string) error {
	w.checks++
	command := fmt.Sprintf("kubectl --context %s -n song exec deploy/curltest -- sh -c '%s'", from, requests)
	began := time.Now()
	for {
		out, err := w.quietly(command)
		byCluster, failed := tally(out)
		ok := err == nil && failed == 0 && len(byCluster) == len(want)
		for _, cluster := range want {
			ok = ok && byCluster[cluster] >= 2
		}
		if ok {
			first, _, _ := strings.Cut(out, "\n")
			w.show(command, first+"\n...\n")
			w.printf("✓ %s's client reaches %s: %s (after %.1f s)\n", from, strings.Join(want, " and "), describe(byCluster), time.Since(began).Seconds())
			return nil
		}
		if time.Since(began) > patience || w.ctx.Err() != nil {
			w.show(command, out)
			return fmt.Errorf("%s's client should reach %s only, but: %s, %d failed", from, strings.Join(want, " and "), describe(byCluster), failed)
		}
	}
}

// kernelTable shows what a node's kernel holds, once it says so.
func (w *walk) kernelTable(cluster, outcome string, ok func(rows []string) bool) error {
	return w.expect(fmt.Sprintf("kubectl --context %s -n mesh-system exec ds/mesh-agent -- mesh-agent dump", cluster), outcome, func(out string) bool {
		var rows []string
		for line := range strings.Lines(out) {
			if strings.Contains(line, "=>") {
				rows = append(rows, line)
			}
		}
		return ok(rows)
	})
}

// preferred says whether just the backends of the given clusters are preferred.
func preferred(want ...string) func(rows []string) bool {
	return func(rows []string) bool {
		got := map[string]bool{}
		for _, row := range rows {
			for _, cluster := range clusters {
				if strings.Contains(row, " "+cluster+" ") && strings.Contains(row, "(preferred)") {
					got[cluster] = true
				}
			}
		}
		if len(got) != len(want) {
			return false
		}
		for _, cluster := range want {
			if !got[cluster] {
				return false
			}
		}
		return true
	}
}

// load makes requests from a cluster without a pause until it is stopped.
type load struct {
	from string
	cmd  *exec.Cmd
	out  record
}

// record keeps what is written, to be read at any time.
type record struct {
	mu   sync.Mutex
	text []byte
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.text = append(r.text, p...)
	return len(p), nil
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return string(r.text)
}

// leastAnswers is how many a load must have got to prove anything.
const leastAnswers = 5

func (w *walk) load(from string) (*load, error) {
	l := &load{from: from}
	// A file ends the loop: killing kubectl would leave it running in the pod.
	script := "rm -f /tmp/stop; n=0; while [ ! -e /tmp/stop ] && [ $n -lt 20000 ]; do curl -sS -m 5 userlist-svc.song.svc:80/users/1; echo; n=$((n+1)); sleep 0.01; done"
	l.cmd = exec.CommandContext(w.ctx, filepath.Join(w.BinDir, "kubectl"), "--kubeconfig", w.Kubeconfig, "--context", from, "-n", "song",
		"exec", "deploy/curltest", "--", "sh", "-c", script)
	l.cmd.Stdout, l.cmd.Stderr = &l.out, &l.out
	if err := l.cmd.Start(); err != nil {
		return nil, err
	}
	// What is done next must meet a load that is under way.
	for began := time.Now(); !strings.Contains(l.out.String(), "}"); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > patience || w.ctx.Err() != nil {
			return nil, fmt.Errorf("the requests from %s have no answer: %s", from, l.out.String())
		}
	}
	return l, nil
}

// underLoad does something while clients in both clusters make requests, and checks
// that not one of them failed.
func (w *walk) underLoad(do func() error) error { return w.underLoadFrom(clusters, do) }

func (w *walk) underLoadFrom(from []string, do func() error) error {
	w.checks++
	var loads []*load
	for _, cluster := range from {
		l, err := w.load(cluster)
		if err != nil {
			return err
		}
		loads = append(loads, l)
	}
	err := do()
	for _, l := range loads {
		if _, stopErr := w.quietly("kubectl --context " + l.from + " -n song exec deploy/curltest -- touch /tmp/stop"); stopErr != nil && err == nil {
			err = fmt.Errorf("stopping the requests from %s: %w", l.from, stopErr)
		}
	}
	for _, l := range loads {
		waitErr := l.cmd.Wait()
		byCluster, failed := tally(l.out.String())
		if err != nil {
			continue
		}
		answers := 0
		for _, n := range byCluster {
			answers += n
		}
		if waitErr != nil || failed > 0 || answers < leastAnswers {
			err = fmt.Errorf("of the requests from %s meanwhile %d failed (%s)\n%s", l.from, failed, describe(byCluster), failures(l.out.String()))
			if waitErr != nil {
				err = errors.Join(err, waitErr)
			}
			continue
		}
		w.printf("✓ no request failed meanwhile from %s: %s\n", l.from, describe(byCluster))
	}
	return err
}

func failures(out string) string {
	var bad []string
	for line := range strings.Lines(out) {
		if t := strings.TrimSpace(line); t != "" && !strings.HasPrefix(t, "{") {
			bad = append(bad, t)
		}
	}
	if len(bad) > 5 {
		bad = bad[:5]
	}
	return strings.Join(bad, "\n")
}
