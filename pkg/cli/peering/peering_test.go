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

package peering

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

func node(name string, isReady bool, addresses ...corev1.NodeAddress) corev1.Node {
	status := corev1.ConditionFalse
	if isReady {
		status = corev1.ConditionTrue
	}
	return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
		Addresses: addresses, Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}},
	}}
}

func internal(ip string) corev1.NodeAddress {
	return corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip}
}

func external(ip string) corev1.NodeAddress {
	return corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: ip}
}

func TestDiscover(t *testing.T) {
	service := func(kind corev1.ServiceType, ingress ...corev1.LoadBalancerIngress) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}}
		s.Spec.Type, s.Spec.Ports = kind, []corev1.ServicePort{{Port: 443, NodePort: 32443}}
		s.Status.LoadBalancer.Ingress = ingress
		return s
	}
	two := []corev1.Node{node("a", false, internal("10.0.0.1"), external("1.1.1.1")), node("b", true, internal("10.0.0.2"))}
	of := func(s *corev1.Service, families ...corev1.IPFamily) *corev1.Service {
		s.Spec.IPFamilies = families
		return s
	}
	dual := []corev1.Node{node("a", true, internal("10.0.0.1"), internal("fd00::1"), internal("name"))}
	tests := map[string]struct {
		service *corev1.Service
		nodes   []corev1.Node
		prefer  corev1.NodeAddressType
		want    []string
		err     string
	}{
		"nodes, the ready ones first":       {service(corev1.ServiceTypeNodePort), two, corev1.NodeInternalIP, []string{"10.0.0.2:32443", "10.0.0.1:32443"}, ""},
		"their external addresses":          {service(corev1.ServiceTypeNodePort), two, corev1.NodeExternalIP, []string{"1.1.1.1:32443"}, ""},
		"the others where none is internal": {service(corev1.ServiceTypeNodePort), []corev1.Node{node("a", true, external("2001:db8::1"))}, corev1.NodeInternalIP, []string{"[2001:db8::1]:32443"}, ""},
		"those of its IP family":            {of(service(corev1.ServiceTypeNodePort), corev1.IPv4Protocol), dual, corev1.NodeInternalIP, []string{"10.0.0.1:32443", "name:32443"}, ""},
		"those of both":                     {of(service(corev1.ServiceTypeNodePort), corev1.IPv6Protocol, corev1.IPv4Protocol), dual, corev1.NodeInternalIP, []string{"10.0.0.1:32443", "[fd00::1]:32443", "name:32443"}, ""},
		"none of its IP family":             {of(service(corev1.ServiceTypeNodePort), corev1.IPv6Protocol), two, corev1.NodeInternalIP, nil, "no node has an address of an IP family of service s"},
		"no nodes":                          {service(corev1.ServiceTypeNodePort), nil, corev1.NodeInternalIP, nil, "no node has an address"},
		"a load balancer":                   {service(corev1.ServiceTypeLoadBalancer, corev1.LoadBalancerIngress{IP: "1.2.3.4"}, corev1.LoadBalancerIngress{Hostname: "lb.example"}), two, corev1.NodeInternalIP, []string{"1.2.3.4:443", "lb.example:443"}, ""},
		"one without an address":            {service(corev1.ServiceTypeLoadBalancer), two, corev1.NodeInternalIP, nil, "no address yet"},
		"inside only":                       {service(corev1.ServiceTypeClusterIP), two, corev1.NodeInternalIP, nil, "cannot reach"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Discover(test.service, test.nodes, test.prefer)
			if test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) || test.err == "" && err != nil {
				t.Fatalf("error = %v, want %q", err, test.err)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
	var many []corev1.Node
	for i := range 1000 {
		many = append(many, node(fmt.Sprintf("n%03d", i), true, internal(fmt.Sprintf("10.1.%d.%d", i/250, i%250))))
	}
	if got, err := Discover(service(corev1.ServiceTypeNodePort), many, corev1.NodeInternalIP); err != nil || len(got) != maxEndpoints {
		t.Errorf("of a thousand nodes there are %d addresses: %v", len(got), err)
	}
}

func TestParseEndpoint(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.1": "10.0.0.1:443", "10.0.0.1:32443": "10.0.0.1:32443", "https://api.example:8443/": "api.example:8443",
		"2001:db8::1": "[2001:db8::1]:443", "[2001:db8::1]:6443": "[2001:db8::1]:6443",
		"": "", "a b": "", "http://a": "", "a:0": "", "a:70000": "", "https://u@a": "", "https://a/path": "", "a:b:c": "",
	} {
		if got, err := ParseEndpoint(text); got != want || (err == nil) != (want != "") {
			t.Errorf("ParseEndpoint(%q) = %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestCheck(t *testing.T) {
	a := func(change ...func(*Cluster)) Cluster {
		c := Cluster{Context: "one", Name: "cluster1", ID: 1, UID: "u1", Version: "v1.2.0", PodCIDRs: []string{"10.1.0.0/16"}}
		for _, f := range change {
			f(&c)
		}
		return c
	}
	b := Cluster{Context: "two", Name: "cluster2", ID: 2, UID: "u2", Version: "v1.3.1"}
	peer := func(name string, id int32, uid string) func(*Cluster) {
		return func(c *Cluster) {
			c.Peers = append(c.Peers, v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MeshClusterSpec{ID: id}, Status: v1alpha1.MeshClusterStatus{UID: uid}})
		}
	}
	tests := map[string]struct {
		a    Cluster
		want string
	}{
		"nothing against it":         {a(), ""},
		"connected already":          {a(peer("cluster2", 2, "u2")), ""},
		"the same cluster":           {a(func(c *Cluster) { c.UID = "u2" }), "are the same cluster"},
		"the same name":              {a(func(c *Cluster) { c.Name = "cluster2" }), `both clusters are called "cluster2"`},
		"the same ID":                {a(func(c *Cluster) { c.ID = 2 }), "both have the ID 2"},
		"known with another ID":      {a(peer("cluster2", 3, "")), "with the ID 3"},
		"known with another UID":     {a(peer("cluster2", 2, "u9")), "another cluster as its peer"},
		"known by another name":      {a(peer("old", 9, "u2")), `by the name "old"`},
		"the ID is taken":            {a(peer("cluster9", 2, "u9")), "the ID 2 of"},
		"two minor releases":         {a(func(c *Cluster) { c.Version = "v1.1.9" }), "within one minor release"},
		"another major release":      {a(func(c *Cluster) { c.Version = "v2.3.0" }), "within one minor release"},
		"a build that is no release": {a(func(c *Cluster) { c.Version = "devel-0792420abcde" }), ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for _, pair := range [][2]Cluster{{test.a, b}, {b, test.a}} {
				problems, _ := Check(pair[0], pair[1])
				if got := strings.Join(problems, "\n"); (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
					t.Errorf("problems = %q, want %q", got, test.want)
				}
			}
		})
	}
	overlapping := b
	overlapping.PodCIDRs = []string{"10.1.128.0/17"}
	if _, warnings := Check(a(), overlapping); len(warnings) != 1 {
		t.Errorf("warnings = %v, want one of the pod CIDRs", warnings)
	}
}

func authority(t *testing.T) []byte {
	t.Helper()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}

func token(accountUID string, expires time.Time) string {
	claims := fmt.Sprintf(`{"jti":"id","exp":%d,"kubernetes.io":{"serviceaccount":{"uid":%q}}}`, expires.Unix(), accountUID)
	return "h." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".signature"
}

func TestPlan(t *testing.T) {
	now := time.Unix(1000000, 0)
	want := Access{Endpoints: []string{"10.0.0.1:1", "10.0.0.2:1"}, ServerName: "s", CA: authority(t)}
	link := Link{Importer: Cluster{Name: "i", Context: "i"}, Exporter: Cluster{Name: "e", ID: 2}, Namespace: "ns", Access: want}
	credentials := func(change func(*Access)) *corev1.Secret {
		access := want
		access.Token = token("uid", now.Add(time.Hour))
		change(&access)
		kubeconfig, err := Kubeconfig(access)
		if err != nil {
			t.Fatal(err)
		}
		return Secret("e", "ns", kubeconfig)
	}
	complete := func() Existing {
		account := Account(PeerName("i"), "ns")
		account.UID = types.UID("uid")
		return Existing{
			Account: account, Binding: Binding(PeerName("i"), "ns"), TokenRole: TokenRole("i", "ns"), TokenBinding: TokenBinding("i", "ns"),
			Secret: credentials(func(*Access) {}), RenewRole: RenewRole("e", "ns"), RenewBinding: RenewBinding("e", "ns"), Member: Member(link.Exporter),
		}
	}
	all := []Action{MakeAccount, MakeBinding, MakeTokenRole, MakeTokenBinding, WriteCredentials, MakeRenewRole, MakeRenewBinding, MakeMember}
	rewrite := []Action{WriteCredentials}
	tests := map[string]struct {
		change func(*Existing)
		renew  bool
		want   []Action
		err    string
		note   string
	}{
		"everything":                   {change: func(e *Existing) { *e = Existing{} }, want: all},
		"nothing":                      {change: func(*Existing) {}},
		"only what is missing":         {change: func(e *Existing) { e.Binding, e.Member = nil, nil }, want: []Action{MakeBinding, MakeMember}},
		"renewed":                      {change: func(*Existing) {}, renew: true, want: rewrite},
		"the account was made anew":    {change: func(e *Existing) { e.Account.UID = "new" }, want: rewrite, note: "account that is gone"},
		"the account is gone":          {change: func(e *Existing) { e.Account = nil }, want: []Action{MakeAccount, WriteCredentials}, note: "account that is gone"},
		"expired":                      {change: func(e *Existing) { e.Secret = credentials(func(a *Access) { a.Token = token("uid", now) }) }, want: rewrite, note: "expired"},
		"another authority":            {change: func(e *Existing) { e.Secret = credentials(func(a *Access) { a.CA = []byte("other") }) }, want: rewrite, note: "authority"},
		"no address in common":         {change: func(e *Existing) { e.Secret = credentials(func(a *Access) { a.Endpoints = []string{"x:1"} }) }, want: rewrite, note: "other addresses"},
		"one address in common":        {change: func(e *Existing) { e.Secret = credentials(func(a *Access) { a.Endpoints = a.Endpoints[:1] }) }, note: "--renew"},
		"no kubeconfig":                {change: func(e *Existing) { e.Secret.Data = nil }, want: rewrite, note: "no contexts"},
		"a binding of something else":  {change: func(e *Existing) { e.Binding.RoleRef.Name = "cluster-admin" }, err: "binds something else"},
		"a MeshCluster on its way out": {change: func(e *Existing) { e.Member.DeletionTimestamp = &metav1.Time{Time: now} }, err: "being deleted"},
		"a MeshCluster of somebody":    {change: func(e *Existing) { e.Member.Spec.KubeconfigSecretRef.Name = "own" }, err: "did not make"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			existing := complete()
			test.change(&existing)
			got, notes, err := Plan(link, existing, test.renew, now)
			if test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) || test.err == "" && err != nil {
				t.Fatalf("error = %v, want %q", err, test.err)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("actions = %v, want %v", got, test.want)
			}
			if told := strings.Join(notes, "\n"); (told == "") != (test.note == "") || !strings.Contains(told, test.note) {
				t.Errorf("notes = %q, want %q", told, test.note)
			}
		})
	}
}

func TestInvitation(t *testing.T) {
	now := time.Unix(1000000, 0).UTC()
	invitation := Invitation{
		Invited: "b", Expires: now.Add(time.Minute), Name: "a", ID: 1, UID: "u",
		Endpoints: []string{"10.0.0.1:32443"}, ServerName: "s", CA: authority(t), Token: token("uid", now),
	}
	line, err := invitation.Line()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"as it is": line, "wrapped": line[:80] + "\r\n  " + line[80:] + "\n", "quoted": "'" + line + "'"} {
		if got, err := ParseLine(text); err != nil || got.Token != invitation.Token || !got.Expires.Equal(invitation.Expires) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range len(line) {
		changed := line[:i] + "~" + line[i+1:]
		if _, err := ParseLine(changed); err == nil {
			t.Fatalf("damage at %d is not noticed", i)
		}
		if _, err := ParseLine(line[:i]); err == nil {
			t.Fatalf("a line of %d characters is taken", i)
		}
	}
	if _, err := ParseLine(strings.Replace(line, "-1.", "-2.", 1)); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("another version: %v", err)
	}
	// Whoever hands out a line writes what it says, its sum included.
	for name, change := range map[string]func(*Invitation){
		"a name with a sequence for terminals": func(i *Invitation) { i.Name = "a\x1b[2J" },
		"a name that is none":                  func(i *Invitation) { i.Invited = "b/../c" },
		"a long name":                          func(i *Invitation) { i.Name = strings.Repeat("a", 33) },
		"no ID":                                func(i *Invitation) { i.ID = 0 },
		"an ID that is none":                   func(i *Invitation) { i.ID = 65536 },
		"a UID of two lines":                   func(i *Invitation) { i.UID = "u\nError: run this" },
		"a long version":                       func(i *Invitation) { i.Version = strings.Repeat("v", 254) },
		"a prefix that is none":                func(i *Invitation) { i.PodCIDRs = []string{"10.0.0.0/99"} },
		"a server's name that is none":         func(i *Invitation) { i.ServerName = "*" },
		"an address with a user":               func(i *Invitation) { i.Endpoints = []string{"root@10.0.0.1:1"} },
		"an address with a path":               func(i *Invitation) { i.Endpoints = []string{"10.0.0.1/x"} },
		"a token that is none":                 func(i *Invitation) { i.Token = "t" },
		"a long token":                         func(i *Invitation) { i.Token += strings.Repeat("x", 16<<10) },
	} {
		bad := invitation
		change(&bad)
		line, err := bad.Line()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseLine(line); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	for name, test := range map[string]struct {
		who  string
		when time.Time
		want string
	}{"in time": {"b", now, ""}, "late": {"b", now.Add(time.Minute), "expired"}, "somebody else": {"c", now, "is for a cluster"}, "itself": {"a", now, "unique"}} {
		if got := invitation.Refuse(test.who, test.when); (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}
