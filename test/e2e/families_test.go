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

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"mesh.io/clustermesh/test/lab/ask"
)

// Families of Services, as a manifest has them.
const (
	four = "SingleStack\n  ipFamilies: [IPv4]"
	six  = "SingleStack\n  ipFamilies: [IPv6]"
	dual = "RequireDualStack\n  ipFamilies: [IPv4, IPv6]"
)

// familyServices are the Services of the test, with their families in cluster1, which
// has the clients, and in cluster2, which has all the pods.
var familyServices = []struct{ name, here, there, pods, ports string }{
	{"echo", dual, dual, "echo", echoPorts},
	{"six", six, six, "echo", echoPorts},
	{"four", four, dual, "echo", echoPorts},
	{"half", dual, four, "echo", echoPorts},
	{"apart", six, four, "echo", echoPorts},
	{"names", dual, dual, "names", "[{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]"},
}

const echoPorts = "[{name: udp, port: 7, targetPort: 7777, protocol: UDP}, {name: tcp, port: 7, targetPort: 7777}]"

// familyPods are what is behind them: servers of both families, and a real DNS server
// that knows the names of its own cluster.
const familyPods = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo, namespace: families}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 5
      containers: [{name: echo, image: "mesh.io/lab/echo:v1"}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: names, namespace: families}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: families-names}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "lab:coredns"}
subjects: [{kind: ServiceAccount, name: names, namespace: families}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: names, namespace: families}
data:
  Corefile: |
    .:53 {
        errors
        ready
        kubernetes cluster.local
    }
---
apiVersion: v1
kind: Pod
metadata: {name: names, namespace: families, labels: {app: names}}
spec:
  serviceAccountName: names
  dnsPolicy: Default
  terminationGracePeriodSeconds: 1
  containers:
  - name: names
    image: registry.k8s.io/coredns/coredns:v1.14.0
    args: [-conf, /etc/coredns/Corefile]
    readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 1}
    volumeMounts: [{name: config, mountPath: /etc/coredns}]
  volumes: [{name: config, configMap: {name: names}}]
`

// familyClient asks as its libc does, too: the servers in its resolv.conf are %s.
const familyClient = `
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: families}
spec:
  terminationGracePeriodSeconds: 1
  dnsPolicy: None
  dnsConfig: {nameservers: [%s]}
  containers: [{name: client, image: busybox, command: [sleep, "3600"]}]
`

// families is two clusters with Services of every family.
type families struct {
	*meshLab
	// vips are the addresses of the Services in cluster1, those of the pods' Services in
	// cluster2 theirs, by Service, IPv4 first.
	vips, theirs map[string][]netip.Addr
	// client is the client's own addresses.
	client []netip.Addr
}

// TestFamilies in a mesh of two clusters: sockets of every kind reach pods of the other
// cluster by Services of every IP family, and see the Service's address as their peer.
func (l *meshLab) families(t *testing.T) {
	f := &families{meshLab: l}
	f.deploy(t)
	defer func() {
		for _, cluster := range []string{"cluster1", "cluster2"} {
			l.kubectl(t, cluster, "delete", "namespace", "families", "--wait=false").want(t, 0)
		}
		l.kubectl(t, "cluster2", "delete", "clusterrolebinding", "families-names").want(t, 0)
	}()
	for _, part := range []struct {
		name string
		test func(*testing.T)
	}{
		{"sockets", f.sockets},
		{"DNS", f.names},
		{"what people see", f.shown},
		{"declared networks", f.declared},
		{"a family comes and goes", f.another},
		{"pods come and go", f.changes},
		{"a cut", f.cut},
	} {
		t.Run(part.name, part.test)
	}
}

func (f *families) apply(t *testing.T, cluster, manifest string) {
	t.Helper()
	f.run(t, manifest, "kubectl", "--context", cluster, "apply", "-f", "-").want(t, 0)
}

func (f *families) deploy(t *testing.T) {
	t.Helper()
	f.vips, f.theirs = map[string][]netip.Addr{}, map[string][]netip.Addr{}
	for _, cluster := range []string{"cluster1", "cluster2"} {
		f.kubectl(t, cluster, "create", "namespace", "families").want(t, 0)
		var all strings.Builder
		for _, s := range familyServices {
			of := s.here
			if cluster == "cluster2" {
				of = s.there
			}
			fmt.Fprintf(&all, `---
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: families, annotations: {mesh.io/global: "true"}}
spec:
  ipFamilyPolicy: %s
  selector: {app: %s}
  ports: %s
`, s.name, of, s.pods, s.ports)
		}
		f.apply(t, cluster, all.String())
		var list struct {
			Items []struct {
				Metadata struct{ Name string }
				Spec     struct{ ClusterIPs []netip.Addr }
			}
		}
		out := f.kubectl(t, cluster, "-n", "families", "get", "services", "-o", "json").want(t, 0).out
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		addresses := f.vips
		if cluster == "cluster2" {
			addresses = f.theirs
		}
		for _, item := range list.Items {
			addresses[item.Metadata.Name] = item.Spec.ClusterIPs
		}
	}
	f.apply(t, "cluster2", familyPods)
	names := f.vips["names"]
	// Six first: that is where a resolver goes first.
	f.apply(t, "cluster1", fmt.Sprintf(familyClient, fmt.Sprintf(`"%s", "%s"`, names[1], names[0])))
	f.kubectl(t, "cluster2", "-n", "families", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s").want(t, 0)
	f.kubectl(t, "cluster1", "-n", "families", "wait", "--for=condition=Ready", "pod/client", "--timeout=60s").want(t, 0)
	var pod struct {
		Status struct{ PodIPs []struct{ IP netip.Addr } }
	}
	out := f.kubectl(t, "cluster1", "-n", "families", "get", "pod", "client", "-o", "json").want(t, 0).out
	if err := json.Unmarshal([]byte(out), &pod); err != nil {
		t.Fatal(err)
	}
	for _, ip := range pod.Status.PodIPs {
		f.client = append(f.client, ip.IP)
	}
	if len(f.client) != 2 || !f.client[0].Is4() || !f.client[1].Is6() {
		t.Fatalf("the client has the addresses %v, and not one of each family", f.client)
	}
}

// ask asks from the client's pod.
func (f *families) ask(t *testing.T, questions ...ask.Question) []ask.Answer {
	t.Helper()
	input, err := json.Marshal(questions)
	if err != nil {
		t.Fatal(err)
	}
	o := f.run(t, string(input), "kubectl", "--context", "cluster1", "-n", "families", "exec", "-i", "client", "--", "/opt/lab/bin/lab-shim", "ask").want(t, 0)
	var answers []ask.Answer
	if err := json.Unmarshal([]byte(o.out), &answers); err != nil || len(answers) != len(questions) {
		t.Fatalf("%s: %v\n%s", o.line, err, o.out)
	}
	return answers
}

// kinds are the kinds of sockets that can ask an address.
func kinds(to netip.AddrPort, texts ...[]byte) []ask.Question {
	var all []ask.Question
	for _, socket := range []ask.Socket{ask.Four, ask.Six} {
		if socket == ask.Four && to.Addr().Is6() {
			continue
		}
		for _, way := range []ask.Way{ask.TCP, ask.Connected, ask.Unconnected} {
			all = append(all, ask.Question{Socket: socket, Way: way, To: []netip.AddrPort{to}, Texts: texts})
		}
	}
	return all
}

// shownAs is how a socket shows an address.
func shownAs(socket ask.Socket, to netip.AddrPort) netip.AddrPort {
	if socket == ask.Six {
		return netip.AddrPortFrom(netip.AddrFrom16(to.Addr().As16()), to.Port())
	}
	return to
}

// sawVIP checks that a socket has seen as its peer what it asked, and returns why it
// has not seen everything. A service that is not there yet is no reason to see another.
func sawVIP(t *testing.T, q ask.Question, a ask.Answer) error {
	t.Helper()
	if want := shownAs(q.Socket, q.To[0]); a.Peer.IsValid() && a.Peer != want {
		t.Errorf("socket %s, %s: getpeername says %v, not %v", q.Socket, q.Way, a.Peer, want)
	}
	for _, heard := range a.Heard {
		if q.Way != ask.TCP && !slices.ContainsFunc(q.To, func(to netip.AddrPort) bool { return heard.From == shownAs(q.Socket, to) }) {
			t.Errorf("socket %s, %s: recvfrom says %v, which was not asked: %v were", q.Socket, q.Way, heard.From, q.To)
		}
	}
	if a.Error != "" {
		return fmt.Errorf("socket %s, %s, to %v: %s", q.Socket, q.Way, q.To, a.Error)
	}
	return nil
}

// echoes asks for echoes, and returns the pods that have answered.
func (f *families) echoes(t *testing.T, questions []ask.Question) (map[string]bool, error) {
	t.Helper()
	pods := map[string]bool{}
	var errs []error
	for i, a := range f.ask(t, questions...) {
		q := questions[i]
		errs = append(errs, sawVIP(t, q, a))
		for _, heard := range a.Heard {
			var echo struct {
				Pod, Cluster, Said string
				Client             netip.AddrPort
			}
			if err := json.Unmarshal(heard.Text, &echo); err != nil {
				t.Fatalf("%s: %v", heard.Text, err)
			}
			// A pod sees a client of the family by which it was asked.
			from := f.client[0]
			if q.To[0].Addr().Is6() {
				from = f.client[1]
			}
			if echo.Cluster != "cluster2" || echo.Said != string(q.Texts[0]) || echo.Client.Addr() != from {
				t.Errorf("socket %s, %s, to %v: the answer to %v is %s", q.Socket, q.Way, q.To, from, heard.Text)
			}
			pods[echo.Pod] = true
		}
	}
	return pods, errors.Join(errs...)
}

func (f *families) sockets(t *testing.T) {
	var questions []ask.Question
	for _, s := range familyServices {
		for _, vip := range f.vips[s.name] {
			if s.pods == "echo" && (s.there != four || vip.Is4()) {
				questions = append(questions, kinds(netip.AddrPortFrom(vip, 7), []byte("to "+s.name))...)
			}
		}
	}
	// echo, four and half by IPv4 and as IPv4-mapped; echo and six by IPv6.
	if want := 3*2*3 + 2*3; len(questions) != want {
		t.Fatalf("there are %d questions, not %d", len(questions), want)
	}
	until(t, "answers to every kind of socket", func() error {
		pods, err := f.echoes(t, questions)
		if err == nil && len(pods) != 2 {
			err = fmt.Errorf("only %v have answered", pods)
		}
		return err
	})
	// Nothing leads from an address of a family to pods without it: kube-proxy has the
	// word, and knows of none.
	var nowhere []netip.Addr
	for _, name := range []string{"half", "apart"} {
		nowhere = append(nowhere, f.vips[name][len(f.vips[name])-1])
	}
	f.refused(t, nowhere...)
}

// refused waits until addresses refuse connections, and nobody answers a datagram.
func (f *families) refused(t *testing.T, vips ...netip.Addr) {
	t.Helper()
	var questions []ask.Question
	for _, vip := range vips {
		// One connection each: the kernel refuses no more than a few in a second.
		for _, way := range []ask.Way{ask.TCP, ask.Unconnected} {
			questions = append(questions, ask.Question{Socket: ask.Six, Way: way, To: []netip.AddrPort{netip.AddrPortFrom(vip, 7)}, Texts: [][]byte{[]byte("nobody")}})
		}
	}
	until(t, "refusals", func() error {
		for i, a := range f.ask(t, questions...) {
			if a.Error == "" || questions[i].Way == ask.TCP && !strings.Contains(a.Error, "connection refused") {
				return fmt.Errorf("%s to %v: %+v", questions[i].Way, questions[i].To, a)
			}
		}
		return nil
	})
}

// query is one for the records of a name, as a resolver sends it.
func query(t *testing.T, id uint16, name string, kind dnsmessage.Type) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: kind, Class: dnsmessage.ClassINET}},
	}
	packed, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// address is what a server has answered to a query, and which.
func address(text []byte) (id uint16, address netip.Addr, err error) {
	var m dnsmessage.Message
	if err := m.Unpack(text); err != nil {
		return 0, netip.Addr{}, err
	}
	if !m.Response || len(m.Answers) != 1 {
		return 0, netip.Addr{}, fmt.Errorf("it is no answer with one record: %+v", m)
	}
	switch body := m.Answers[0].Body.(type) {
	case *dnsmessage.AResource:
		return m.ID, netip.AddrFrom4(body.A), nil
	case *dnsmessage.AAAAResource:
		return m.ID, netip.AddrFrom16(body.AAAA), nil
	}
	return 0, netip.Addr{}, fmt.Errorf("it is of another type: %+v", m)
}

// names asks the DNS server of cluster2 for a name that cluster1 knows too, by other
// addresses.
func (f *families) names(t *testing.T) {
	const name = "echo.families.svc.cluster.local"
	want := f.theirs["echo"]
	if slices.Equal(want, f.vips["echo"]) {
		t.Fatal("the name has the same addresses in both clusters, so this proves nothing")
	}
	var servers []netip.AddrPort
	for _, vip := range f.vips["names"] {
		servers = append(servers, netip.AddrPortFrom(vip, 53))
	}
	// Both types at once on one socket, told apart by their IDs.
	texts := [][]byte{query(t, 4711, name, dnsmessage.TypeA), query(t, 4712, name, dnsmessage.TypeAAAA)}
	var questions, resolvers []ask.Question
	for _, server := range servers {
		for _, q := range kinds(server, texts...) {
			if q.Way != ask.TCP {
				questions = append(questions, q)
			}
		}
		for _, way := range []ask.Way{ask.Resolver, ask.ResolverTCP} {
			resolvers = append(resolvers, ask.Question{Way: way, To: []netip.AddrPort{server}, Texts: [][]byte{[]byte(name)}})
		}
	}
	// As musl does it: to all servers from one socket, which is of IPv6 once one of them is.
	questions = append(questions, ask.Question{Socket: ask.Six, Way: ask.Unconnected, To: servers, Texts: texts})
	until(t, "answers to a strict client", func() error {
		var errs []error
		for i, a := range f.ask(t, questions...) {
			q := questions[i]
			err := sawVIP(t, q, a)
			// Each server owes an answer to each query.
			owed := map[string]bool{}
			for _, to := range q.To {
				for n := range texts {
					owed[fmt.Sprint(shownAs(q.Socket, to), 4711+n, want[n])] = true
				}
			}
			for _, heard := range a.Heard {
				id, address, wrong := address(heard.Text)
				if got := fmt.Sprint(heard.From, id, address); wrong != nil || !owed[got] {
					t.Errorf("socket %s, %s, to %v: got %s (%v), while it waits for %v", q.Socket, q.Way, q.To, got, wrong, owed)
				} else {
					delete(owed, got)
				}
			}
			if err != nil || len(owed) > 0 {
				errs = append(errs, fmt.Errorf("%v is missing: %w", owed, err))
			}
		}
		return errors.Join(errs...)
	})
	until(t, "answers to Go's resolver", func() error {
		for i, a := range f.ask(t, resolvers...) {
			var got []string
			for _, heard := range a.Heard {
				got = append(got, string(heard.Text))
			}
			if !slices.Contains(got, want[0].String()) || !slices.Contains(got, want[1].String()) || len(got) != 2 {
				return fmt.Errorf("%s with %v: %v, %s", resolvers[i].Way, resolvers[i].To, got, a.Error)
			}
		}
		return nil
	})
	until(t, "answers to libc's resolver", func() error {
		return f.kubectl(t, "cluster1", "-n", "families", "exec", "client", "--", "getent", "ahosts", name).check(0, want[0].String()+" ", want[1].String()+" ")
	})
}

// shown is what commands say of all this.
func (f *families) shown(t *testing.T) {
	until(t, "the counts of kubectl", func() error {
		return f.kubectl(t, "cluster1", "-n", "families", "get", "globalservices").check(0,
			"echo 1/2 2/2 0/0 2/2", "six 1/2 2/2 0/0 2/2", "four 1/2 2/2 0/0 2/2", "names 1/2 1/1 0/0 1/1")
	})
	f.kubectl(t, "cluster1", "-n", "families", "get", "globalservice", "half", "-o", "wide").want(t, 0, "half 1/2 2/2 0/0 2/2", "ClustersDiffer")
	f.kubectl(t, "cluster1", "-n", "families", "get", "globalservice", "apart", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")]}`).want(t, 0, "NoCommonIPFamily")
	f.meshctl(t, "status", "--contexts=cluster1,cluster2").want(t, 0, "cluster1 1 cluster1 healthy 1/1 1/1", "cluster2 2 cluster2 healthy 1/1 1/1")

	explain := func(name string, code int, texts ...string) {
		t.Helper()
		until(t, "the explanation of "+name, func() error {
			return f.meshctl(t, "service", "explain", "families/"+name, "--from", "cluster1/cluster1-node1", "--contexts=cluster1,cluster2").check(code, texts...)
		})
	}
	explain("echo", 0, fmt.Sprintf("ClusterIP %s, %s,", f.vips["echo"][0], f.vips["echo"][1]), "cluster2 2/2 endpoints ready, in 2 slices",
		"cluster2 has 2/2 endpoints ready in the GlobalService", "8 of 8 backends of cluster2 preferred, behind 4 frontends", "No link is broken.")
	explain("six", 0, "cluster2 2/2 endpoints ready, in 1 slice", "4 of 4 backends of cluster2 preferred, behind 2 frontends")
	explain("four", 0, "cluster2 2/2 endpoints ready, in 2 slices", "4 of 4 backends of cluster2 preferred, behind 2 frontends")
	explain("half", 0, "IP family IPv6 is missing", "4 of 4 backends of cluster2 preferred, behind 4 frontends")
	explain("apart", 3, "First broken: merge of cluster2 in cluster1: the Service is of IPv6 here, and of IPv4 in cluster2")

	agent := f.kubectl(t, "cluster1", "-n", "mesh-system", "get", "pod", "-l", "app.kubernetes.io/name=mesh-agent", "-o", "name").want(t, 0).out
	for what, table := range map[string]outcome{
		"dump": f.kubectl(t, "cluster1", "-n", "mesh-system", "exec", strings.TrimSpace(agent), "--", "mesh-agent", "dump"),
		"list": f.meshctl(t, "service", "list", "-n", "families", "--context", "cluster1", "--node", "cluster1-node1"),
	} {
		table.want(t, 0)
		head, rows, _ := strings.Cut(table.out, "\n")
		columns := []int{strings.Index(head, "Frontend"), strings.Index(head, "Service"), strings.Index(head, "Backend")}
		for _, vip := range f.vips["echo"] {
			frontend, pods := fmt.Sprintf("%s:7/UDP", vip), "10.2.1."
			if vip.Is6() {
				frontend, pods = fmt.Sprintf("[%s]:7/UDP", vip), "[fd00:10:2:1::"
			}
			found := false
			for row := range strings.Lines(rows) {
				if len(row) > columns[2] && strings.HasPrefix(row[columns[0]:], frontend+" ") {
					found = strings.HasPrefix(row[columns[1]:], "families/echo:udp ") && strings.HasPrefix(row[columns[2]:], "1 => "+pods) &&
						strings.Contains(row, ":7777 cluster2 (active) (preferred)")
				}
			}
			if !found {
				t.Errorf("%s does not show %s, with pods in %s, below its headers:\n%s", what, frontend, pods, table.out)
			}
		}
	}
}

// declared checks the peer's addresses of each family against its declared networks.
func (f *families) declared(t *testing.T) {
	declare := func(networks string) {
		t.Helper()
		f.kubectl(t, "cluster1", "patch", "meshcluster", "cluster2", "--type", "merge", "-p", `{"spec":{"podCIDRs":`+networks+`}}`).want(t, 0)
	}
	explained := func(code int, texts ...string) {
		t.Helper()
		until(t, "the explanation of echo", func() error {
			return f.meshctl(t, "service", "explain", "families/echo", "--from", "cluster1/cluster1-node1", "--contexts=cluster1,cluster2").check(code, texts...)
		})
	}
	declare(`["10.2.0.0/16"]`)
	explained(3, "First broken: import of cluster2 in cluster1: 2/2 endpoints ready, in 2 slices; 2 that are exported are not here",
		`endpoint "fd00:10:2:1::`, "is outside the pod CIDRs of its cluster")
	f.refused(t, f.vips["echo"][1])
	if _, err := f.echoes(t, kinds(netip.AddrPortFrom(f.vips["echo"][0], 7), []byte("inside"))); err != nil {
		t.Error(err)
	}
	declare(`["10.2.0.0/16", "fd00:10:2::/48"]`)
	explained(0, "No link is broken.")
	if _, err := f.echoes(t, kinds(netip.AddrPortFrom(f.vips["echo"][1], 7), []byte("inside"))); err != nil {
		t.Error(err)
	}
	declare("null")
}

// another family is given to a Service of cluster2, and taken from it.
func (f *families) another(t *testing.T) {
	v6 := f.vips["half"][1]
	change := func(spec string) {
		t.Helper()
		f.kubectl(t, "cluster2", "-n", "families", "patch", "service", "half", "--type", "merge", "-p", `{"spec":`+spec+`}`).want(t, 0)
	}
	conflict := func(status string) {
		t.Helper()
		f.kubectl(t, "cluster1", "-n", "families", "wait", "globalservice/half", "--for=condition=Conflict="+status, "--timeout=30s").want(t, 0)
	}
	change(`{"ipFamilyPolicy":"RequireDualStack","ipFamilies":["IPv4","IPv6"]}`)
	conflict("False")
	until(t, "answers by the new family", func() error {
		_, err := f.echoes(t, kinds(netip.AddrPortFrom(v6, 7), []byte("new")))
		return err
	})
	change(fmt.Sprintf(`{"ipFamilyPolicy":"SingleStack","ipFamilies":["IPv4"],"clusterIPs":[%q]}`, f.theirs["half"][0]))
	conflict("True")
	f.refused(t, v6)
}

// changes follow the pods of cluster2, by both families.
func (f *families) changes(t *testing.T) {
	var questions []ask.Question
	for _, vip := range f.vips["echo"] {
		for range 4 {
			questions = append(questions, kinds(netip.AddrPortFrom(vip, 7), []byte("again"))...)
		}
	}
	scale := func(replicas int) {
		t.Helper()
		f.kubectl(t, "cluster2", "-n", "families", "scale", "deployment/echo", fmt.Sprintf("--replicas=%d", replicas)).want(t, 0)
	}
	scale(1)
	until(t, "answers of the pod that is left", func() error {
		left := strings.Fields(f.kubectl(t, "cluster2", "-n", "families", "get", "pods", "-l", "app=echo", "-o", "jsonpath={.items[*].metadata.name}").want(t, 0).out)
		if len(left) != 1 {
			return fmt.Errorf("the pods are %v", left)
		}
		pods, err := f.echoes(t, questions)
		if err == nil && (len(pods) != 1 || !pods[left[0]]) {
			err = fmt.Errorf("%v have answered, while %v is left", pods, left)
		}
		return err
	})
	scale(0)
	f.refused(t, f.vips["echo"]...)
	scale(2)
	until(t, "answers of both pods", func() error {
		pods, err := f.echoes(t, questions)
		if err == nil && len(pods) != 2 {
			err = fmt.Errorf("only %v have answered", pods)
		}
		return err
	})
}

// cut loses the packets of both families, and only for a time.
func (f *families) cut(t *testing.T) {
	var questions []ask.Question
	for _, vip := range f.vips["echo"] {
		questions = append(questions, ask.Question{Socket: ask.Six, Way: ask.TCP, To: []netip.AddrPort{netip.AddrPortFrom(vip, 7)}, Texts: [][]byte{[]byte("there?")}})
	}
	f.lab(t, "", "cut", "cluster2").want(t, 0)
	for i, a := range f.ask(t, questions...) {
		if a.Error == "" || len(a.Heard) > 0 {
			t.Errorf("to %v, through the cut: %+v", questions[i].To, a)
		}
	}
	f.lab(t, "", "mend", "cluster2").want(t, 0)
	if _, err := f.echoes(t, questions); err != nil {
		t.Error(err)
	}
}
