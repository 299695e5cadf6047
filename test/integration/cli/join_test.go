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
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/test/integration/controlplane"
	"mesh.io/clustermesh/test/integration/member"
)

func TestJoin(t *testing.T) {
	one, two := startCluster(t, "cluster1", 1), startCluster(t, "cluster2", 2)
	// Neither of the two administrators can reach the other's cluster.
	inviter := member.Meshctl{Kubeconfig: member.Contexts(t, map[string]*rest.Config{"one": one.Plane.Kube})}
	joiner := member.Meshctl{Kubeconfig: member.Contexts(t, map[string]*rest.Config{"two": two.Plane.Kube})}
	clean := [2]map[string]string{one.objects(t), two.objects(t)}
	invite := func(t *testing.T, more ...string) string {
		t.Helper()
		r := inviter.Run(t, append([]string{"invite", "--context=one", "--cluster-name=cluster2"}, more...)...)
		r.Want(t, 0, "This line is a secret")
		line := strings.TrimSpace(r.Out)
		if strings.Contains(line, "\n") || len(line) > 4000 || strings.Contains(r.Errs, line[20:60]) {
			t.Fatalf("want one line that a terminal takes, on the output only: %d characters", len(line))
		}
		return line
	}
	join := func(t *testing.T, line string, more ...string) member.Result {
		t.Helper()
		with := joiner
		with.Input = line + "\n"
		return with.Run(t, append([]string{"join", "--context=two", "--allow-local", "-"}, more...)...)
	}
	withdraw := func(t *testing.T) {
		t.Helper()
		inviter.Run(t, "invite", "--context=one", "--cluster-name=cluster2", "--withdraw").Want(t, 0)
	}
	part := func(t *testing.T) {
		t.Helper()
		inviter.Run(t, "disconnect", "--context=one", "--peer=cluster2").Want(t, 0)
		joiner.Run(t, "disconnect", "--context=two", "--peer=cluster1").Want(t, 0)
		one.same(t, clean[0])
		two.same(t, clean[1])
	}

	t.Run("joined and not twice", func(t *testing.T) {
		line := invite(t)
		joined := join(t, line)
		joined.Want(t, 0, "cluster2 is importing from cluster1", "cluster1 is importing from cluster2")
		one.secretless(t, joined)
		two.secretless(t, joined)
		one.export(t, "10.1.0.1")
		two.imports(t, "cluster1", "10.1.0.1")

		connected := two.objects(t)
		join(t, line).Want(t, 1, "cluster1")
		two.same(t, connected)
		part(t)
	})

	t.Run("joined one way by an argument", func(t *testing.T) {
		joiner.Run(t, "join", "--context=two", "--allow-local", "--one-way", invite(t)).Want(t, 0, "cluster2 is importing from cluster1")
		if _, there := one.objects(t)["MeshCluster/cluster2"]; there {
			t.Error("cluster1 imports, too")
		}
		part(t)
	})

	t.Run("refused before anything is made", func(t *testing.T) {
		join(t, "mesh-invite-1.abc").Want(t, 2, "damaged")
		join(t, "hello").Want(t, 2, "no invitation")
		line := invite(t)
		join(t, line[:len(line)/2]+line[len(line)/2+3:]).Want(t, 2, "damaged")
		bare := joiner
		bare.Input = line
		bare.Run(t, "join", "--context=two", "-").Want(t, 1, "127.0.0.1 is a loopback address", "--allow-local")
		wrong := inviter.Run(t, "invite", "--context=one", "--cluster-name=cluster3")
		wrong.Want(t, 0)
		join(t, wrong.Out).Want(t, 1, `is for a cluster called "cluster3"`)
		inviter.Run(t, "invite", "--context=one", "--cluster-name=cluster3", "--withdraw").Want(t, 0, "taken back")
		inviter.Run(t, "invite", "--context=one", "--cluster-name=cluster1").Want(t, 1, "the cluster that invites")
		two.same(t, clean[1])
		withdraw(t)
		one.same(t, clean[0])
	})

	t.Run("withdrawn", func(t *testing.T) {
		line := invite(t)
		withdraw(t)
		one.same(t, clean[0])
		join(t, line).Want(t, 1, "cluster1")
		two.same(t, clean[1])
	})

	t.Run("another invitation takes the place of the first", func(t *testing.T) {
		first, second := invite(t), invite(t)
		join(t, first).Want(t, 1)
		two.same(t, clean[1])
		join(t, second).Want(t, 0)
		part(t)
	})

	t.Run("expired", func(t *testing.T) {
		line := invite(t, "--ttl=1s")
		time.Sleep(2 * time.Second)
		join(t, line).Want(t, 1, "expired")
		two.same(t, clean[1])
		withdraw(t)

		// The inviting cluster's word counts, not that of the line.
		line = invite(t)
		secret, err := one.Kube.CoreV1().Secrets(controlplane.Namespace).Get(t.Context(), "mesh-invite-cluster2", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		secret.Data[v1alpha1.InvitationExpires] = []byte(time.Now().Add(-time.Second).UTC().Format(time.RFC3339))
		if _, err := one.Kube.CoreV1().Secrets(controlplane.Namespace).Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		join(t, line).Want(t, 1, "has expired")
		two.same(t, clean[1])
		withdraw(t)
		one.same(t, clean[0])
	})
}
