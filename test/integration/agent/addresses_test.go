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

package agent

import (
	"context"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/test/integration/controlplane"
)

// TestAddresses shows that connections to the address of a load balancer are balanced
// where that is asked for, and that none are while the node itself has the address.
func TestAddresses(t *testing.T) {
	requireNode(t)
	const balancer = "10.200.0.7"
	c := newCluster(t)
	for _, name := range []string{"cluster1", "cluster2"} {
		c.member(name, true)
	}
	must[*corev1.Namespace](c)(c.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "song"}}, metav1.CreateOptions{}))
	services := c.kube.CoreV1().Services("song")
	service := func(name, clusterIP string) {
		t.Helper()
		s := must[*corev1.Service](c)(services.Create(t.Context(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"mesh.io/global": "true"}},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, ClusterIP: clusterIP,
				Ports: []corev1.ServicePort{{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}},
			},
		}, metav1.CreateOptions{}))
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: balancer}}
		must[*corev1.Service](c)(services.UpdateStatus(t.Context(), s, metav1.UpdateOptions{}))
	}
	service("userlist", vip)
	c.local("10.1.0.1")
	c.imported("cluster2", "10.2.0.1")
	const all = "10.1.0.1 10.2.0.1"
	reach := func(what, address, want string) {
		t.Helper()
		controlplane.Eventually(t, timeout, what, func(context.Context) error {
			got, err := reachesBy(address)
			if err == nil && got != want {
				err = fmt.Errorf("connections to %s reach %q, want %q", address, got, want)
			}
			return err
		})
	}
	defer func() {
		_ = c.agent.Stop()
		if output, err := c.run("cleanup"); err != nil {
			t.Errorf("cleanup: %v: %s", err, output)
		}
	}()

	c.start()
	c.eventually("by default", "userlist: "+all)
	reach("by default", vip, all)
	reach("by default", balancer, balancer)
	_ = c.agent.Stop()

	c.start("--load-balancer-ips")
	c.eventually("with the flag", "userlist: "+all+"; userlist: "+all)
	reach("with the flag", vip, all)
	reach("with the flag", balancer, all)
	s := must[*corev1.Service](c)(services.Get(t.Context(), "userlist", metav1.GetOptions{}))
	s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24"}
	s = must[*corev1.Service](c)(services.Update(t.Context(), s, metav1.UpdateOptions{}))
	reach("for some sources only", balancer, balancer)
	c.eventually("for some sources only", "song/userlist left: its load balancer is for certain sources only: "+balancer+"; userlist: "+all)
	s.Spec.LoadBalancerSourceRanges = nil
	must[*corev1.Service](c)(services.Update(t.Context(), s, metav1.UpdateOptions{}))
	reach("for all sources", balancer, all)

	// The names order two Services that were made in the same second.
	service("zweite", "10.96.7.8")
	c.eventually("a younger one", "song/zweite:dns left: an older Service has the address and port of its load balancer, too: song/userlist, "+balancer+":53; "+
		"userlist: "+all+"; userlist: "+all+"; zweite:")
	if err := services.Delete(t.Context(), "zweite", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("without it", "userlist: "+all+"; userlist: "+all)

	device := func(name, peer string) netlink.Link {
		t.Helper()
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = netlink.LinkDel(link) })
		return link
	}
	address := func(addr string) *netlink.Addr {
		t.Helper()
		a, err := netlink.ParseAddr(addr + "/32")
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	cache, ipvs := device("nodelocaldns", "cache"), device("kube-ipvs0", "ipvs")
	for _, addr := range []string{vip, balancer} {
		if err := netlink.AddrAdd(ipvs, address(addr)); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.AddrAdd(cache, address(vip)); err != nil {
		t.Fatal(err)
	}
	c.eventually("the node has the cluster IP", "song/userlist left: the node itself has its address: "+vip+" on nodelocaldns; userlist: "+all)
	reach("the node has the cluster IP", vip, vip)
	reach("IPVS has the other", balancer, all)
	_ = c.agent.Stop()
	c.start("--load-balancer-ips")
	c.ready("200\n", "[+]left-to-kube-proxy ok: song/userlist (the node itself has its address: "+vip+" on nodelocaldns)\n")
	c.eventually("the next agent", "song/userlist left: the node itself has its address: "+vip+" on nodelocaldns; userlist: "+all)
	if err := netlink.AddrDel(cache, address(vip)); err != nil {
		t.Fatal(err)
	}
	c.eventually("the node has it no more", "userlist: "+all+"; userlist: "+all)
	reach("IPVS has both", vip, all)
}
