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
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/test/integration/controlplane"
)

// TestSkipServiceChains shows which addresses are led past kube-proxy's chains, and that
// the table goes when it is not asked for any more. That packets take another way with it
// is shown beside the code.
func TestSkipServiceChains(t *testing.T) {
	requireNode(t)
	if _, err := exec.LookPath("iptables-nft"); err != nil {
		t.Skip("kube-proxy's chains are made with iptables-nft")
	}
	c := newCluster(t)
	run := func(program string, args ...string) string {
		t.Helper()
		output, err := exec.Command(program, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v: %s", program, args, err, output)
		}
		return string(output)
	}
	iptables := func(line string) {
		t.Helper()
		run("iptables-nft", strings.Fields("-w -t nat "+line)...)
	}
	table := func(what string, with, without []string) {
		t.Helper()
		controlplane.Eventually(t, timeout, what, func(context.Context) error {
			output, err := exec.Command("nft", "list", "table", "ip", "clustermesh").CombinedOutput()
			if with == nil {
				if err == nil {
					return fmt.Errorf("the table is there: %s", output)
				}
				return nil
			}
			for _, part := range with {
				if !strings.Contains(string(output), part) {
					return fmt.Errorf("the table lacks %s: %s", part, output)
				}
			}
			for _, part := range without {
				if strings.Contains(string(output), part) {
					return fmt.Errorf("the table has %s: %s", part, output)
				}
			}
			return nil
		})
	}
	iptables("-N KUBE-SERVICES")
	iptables("-A PREROUTING -j KUBE-SERVICES")
	iptables("-A OUTPUT -j KUBE-SERVICES")
	defer func() {
		_ = c.agent.Stop()
		for _, line := range []string{"-F", "-X"} {
			iptables(line)
		}
		if output, err := c.run("cleanup"); err != nil {
			t.Errorf("cleanup: %v: %s", err, output)
		}
		table("after the cleanup", nil, nil)
	}()

	must[*corev1.Namespace](c)(c.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "song"}}, metav1.CreateOptions{}))
	for _, name := range []string{"cluster1", "cluster2"} {
		c.member(name, true)
	}
	c.makeService(map[string]string{"mesh.io/global": "true"})
	c.local("10.1.0.1")
	c.imported("cluster2", "10.2.0.1", "10.2.0.2")
	must[*corev1.Service](c)(c.kube.CoreV1().Services("song").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "other"},
		Spec:       corev1.ServiceSpec{ExternalIPs: []string{"10.2.0.2"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{}))

	c.start("--skip-service-chains=remote")
	c.ready("200\n", "[+]skip-service-chains ok: IPv4 active for 1 addresses; IPv6 unneeded\n")
	table("the other cluster's backends", []string{"10.2.0.1"}, []string{"10.1.0.1", "10.2.0.2"})
	if n := c.metric(`mesh_agent_service_chains_skipped{family="IPv4"}`); n != "1" {
		t.Errorf("the metric is %q", n)
	}
	c.imported("cluster2", "10.2.0.1", "10.2.0.3")
	table("a new backend", []string{"10.2.0.1", "10.2.0.3"}, nil)
	c.agent.Kill()
	table("the agent is killed", []string{"10.2.0.1", "10.2.0.3"}, nil)

	iptables("-N SOMEONES")
	iptables("-I OUTPUT -j SOMEONES")
	c.start("--skip-service-chains=remote")
	c.ready("200\n", "[+]skip-service-chains ok: IPv4 refused (other programs' nat chains may be for connections to backends: SOMEONES); IPv6 unneeded\n")
	table("someone else's chain", nil, nil)
	if n := c.metric(`mesh_agent_service_chains_skipped{family="IPv4"}`); n != "0" {
		t.Errorf("the metric is %q", n)
	}
	iptables("-D OUTPUT -j SOMEONES")
	_ = c.agent.Stop()

	c.start("--skip-service-chains=all")
	table("all backends", []string{"10.1.0.1", "10.2.0.1"}, []string{"10.2.0.2"})
	_ = c.agent.Stop()
	c.start()
	table("it is not asked for any more", nil, nil)
	_ = c.agent.Stop()
	c.start("--skip-service-chains=remote")
	table("it is asked for again", []string{"10.2.0.1"}, []string{"10.1.0.1"})
}
