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

package desired

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

func TestAddresses(t *testing.T) {
	ip := netip.MustParseAddr
	then := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	balanced := func(s *LocalService) { s.LoadBalancerIPs = []LoadBalancerIP{{Addr: ip("192.0.2.7")}} }
	rival := func(change func(*Claim)) []Claim {
		c := Claim{
			Service: Name{"other", "web"}, Created: then.Add(-time.Second), Addr: ip("192.0.2.7"),
			Ports: []LocalPort{{Name: "w", Protocol: corev1.ProtocolTCP, Port: 80}},
		}
		change(&c)
		return []Claim{c}
	}
	for name, test := range map[string]struct {
		change func(*LocalService)
		off    bool // load balancers' addresses don't count
		claims []Claim
		bound  map[netip.Addr]string
		want   []string
		left   []string
	}{
		"a load balancer's address is a frontend": {change: balanced, want: []string{"10.96.0.10:80/TCP", "192.0.2.7:80/TCP"}},
		"not by default": {change: balanced, off: true, want: []string{"10.96.0.10:80/TCP"}},
		"each of several, once": {
			change: func(s *LocalService) {
				s.ClusterIPs = append(s.ClusterIPs, ip("fd00::10"))
				s.LoadBalancerIPs = []LoadBalancerIP{{Addr: ip("192.0.2.7")}, {Addr: ip("2001:db8::7")}, {Addr: ip("192.0.2.7")}}
			},
			want: []string{"10.96.0.10:80/TCP", "192.0.2.7:80/TCP", "[2001:db8::7]:80/TCP", "[fd00::10]:80/TCP"},
		},
		"external IPs never are (CVE-2020-8554)": {
			change: func(s *LocalService) { s.ExternalIPs = []netip.Addr{ip("192.0.2.9")} }, want: []string{"10.96.0.10:80/TCP"},
		},
		"one that must stay is left, with the reason": {
			change: func(s *LocalService) {
				s.LoadBalancerIPs = []LoadBalancerIP{{ip("192.0.2.7"), ReasonLBRanges}, {ip("192.0.2.8"), ""}}
			},
			want: []string{"10.96.0.10:80/TCP", "192.0.2.8:80/TCP"},
			left: []string{"song/userlist: its load balancer is for certain sources only: 192.0.2.7"},
		},
		"nobody is told of it where it does not count": {
			change: func(s *LocalService) { s.LoadBalancerIPs = []LoadBalancerIP{{ip("192.0.2.7"), ReasonLBRanges}} }, off: true,
			want: []string{"10.96.0.10:80/TCP"},
		},
		"its own cluster IP is that": {
			change: func(s *LocalService) { s.LoadBalancerIPs = []LoadBalancerIP{{ip("10.96.0.10"), ReasonLBType}} }, want: []string{"10.96.0.10:80/TCP"},
		},
		"another's cluster IP is that one's, at every port": {
			change: balanced, claims: rival(func(c *Claim) { c.ClusterIP, c.Ports, c.Created = true, nil, then.Add(time.Hour) }),
			want: []string{"10.96.0.10:80/TCP"},
			left: []string{"song/userlist: the address of its load balancer is a cluster IP of another Service: 192.0.2.7 of other/web"},
		},
		"an older Service has more right": {
			change: balanced, claims: rival(func(*Claim) {}), want: []string{"10.96.0.10:80/TCP"},
			left: []string{"song/userlist:http: an older Service has the address and port of its load balancer, too: other/web, 192.0.2.7:80"},
		},
		"the oldest is named": {
			change: balanced, claims: append(rival(func(*Claim) {}), rival(func(c *Claim) { c.Service.Name, c.Created = "first", then.Add(-time.Hour) })...),
			want: []string{"10.96.0.10:80/TCP"},
			left: []string{"song/userlist:http: an older Service has the address and port of its load balancer, too: other/first, 192.0.2.7:80"},
		},
		"of two of one second the first by name": {
			change: balanced, claims: rival(func(c *Claim) { c.Created = then }), want: []string{"10.96.0.10:80/TCP"},
			left: []string{"song/userlist:http: an older Service has the address and port of its load balancer, too: other/web, 192.0.2.7:80"},
		},
		"of two of one second the last by name has none": {
			change: balanced, claims: rival(func(c *Claim) { c.Created, c.Service.Namespace = then, "z" }),
			want: []string{"10.96.0.10:80/TCP", "192.0.2.7:80/TCP"},
		},
		"a younger one has none": {
			change: balanced, claims: rival(func(c *Claim) { c.Created = then.Add(time.Second) }), want: []string{"10.96.0.10:80/TCP", "192.0.2.7:80/TCP"},
		},
		"an older one at other ports shares the address": {
			change: balanced, claims: rival(func(c *Claim) { c.Ports[0].Port = 81 }), want: []string{"10.96.0.10:80/TCP", "192.0.2.7:80/TCP"},
		},
		"so does one with another protocol": {
			change: balanced, claims: rival(func(c *Claim) { c.Ports[0].Protocol = corev1.ProtocolUDP }), want: []string{"10.96.0.10:80/TCP", "192.0.2.7:80/TCP"},
		},
		"what the node itself has is left, cluster IPs too": {
			change: balanced, bound: map[netip.Addr]string{ip("10.96.0.10"): "nodelocaldns", ip("192.0.2.7"): "eth0", ip("192.0.2.9"): "eth0"},
			left: []string{"song/userlist: the node itself has its address: 10.96.0.10 on nodelocaldns", "song/userlist: the node itself has its address: 192.0.2.7 on eth0"},
		},
		"the other addresses stay": {
			change: balanced, bound: map[netip.Addr]string{ip("192.0.2.7"): "eth0"}, want: []string{"10.96.0.10:80/TCP"},
			left: []string{"song/userlist: the node itself has its address: 192.0.2.7 on eth0"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := mesh()
			m.LoadBalancerIPs, m.Bound = !test.off, test.bound
			in := ServiceInput{Service: globalService(), Local: []*Slice{slice("", "l", "10.1.0.1")}, Claims: test.claims}
			in.Service.Created = then
			test.change(in.Service)
			result := m.Service(song, in)
			var got, left []string
			for _, s := range result.Services {
				got = append(got, s.Frontend.String())
			}
			slices.Sort(got)
			for _, l := range result.Left {
				left = append(left, l.Service.String()+": "+l.Text())
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("frontends (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.left, left); diff != "" {
				t.Errorf("left to kube-proxy (-want +got):\n%s", diff)
			}
		})
	}
}

// internalTrafficPolicy is about cluster IPs; an address of a load balancer has a policy
// of its own, which is Cluster wherever it is a frontend.
func TestInternalTrafficPolicyIsNotOfLoadBalancers(t *testing.T) {
	m := mesh()
	m.Node, m.LoadBalancerIPs = "node1", true
	local := slice("", "l", "10.1.0.1 10.1.0.2")
	local.Near = []Near{{Node: Names("node1")}, {Node: Names("node2")}}
	in := ServiceInput{Service: globalService(), Local: []*Slice{local}, Remote: []*Slice{slice("cluster2", "r", "10.2.0.1")}}
	in.Service.InternalLocal = true
	in.Service.LoadBalancerIPs = []LoadBalancerIP{{Addr: netip.MustParseAddr("192.0.2.7")}}
	want := map[string]string{
		"10.96.0.10:80/TCP": "1/10.1.0.1* 1/10.1.0.2 2/10.2.0.1",
		"192.0.2.7:80/TCP":  "1/10.1.0.1* 1/10.1.0.2* 2/10.2.0.1*",
	}
	got := map[string]string{}
	for _, s := range m.Service(song, in).Services {
		got[s.Frontend.String()] = backends(s)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	explained, _ := m.Explain(song, in)
	for _, e := range explained {
		var used []string
		for _, v := range e.Verdicts {
			if v.Slots > 0 {
				used = append(used, v.Addr.Addr().String())
			}
		}
		if picked := strings.Count(want[e.Frontend.String()], "*"); len(used) != picked {
			t.Errorf("%s: %v are said to be used, %d are", e.Frontend, used, picked)
		}
	}
	if !in.Service.InternalLocal {
		t.Error("the Service was changed")
	}
}
