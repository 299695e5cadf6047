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

package joinrequest

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/apis/mesh"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/registry/account"
)

func member(name string, id int32, uid, secret string) v1alpha1.MeshCluster {
	cluster := v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: name}}
	cluster.Spec.ID, cluster.Status.UID = id, uid
	if secret != "" {
		cluster.Spec.KubeconfigSecretRef = &v1alpha1.SecretReference{Name: secret, Key: "kubeconfig"}
	}
	return cluster
}

func TestDecide(t *testing.T) {
	local := member("cluster1", 1, "uid-1", "")
	two := member("cluster2", 2, "uid-2", "mesh-peer-cluster2")
	unknown := member("cluster2", 2, "", "mesh-peer-cluster2")
	own := member("cluster2", 2, "uid-2", "hand-made")
	leaving := member("cluster2", 2, "uid-2", "mesh-peer-cluster2")
	leaving.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	for name, test := range map[string]struct {
		joining mesh.JoinRequestSpec
		members []v1alpha1.MeshCluster
		again   bool
		want    string
	}{
		"the first":                       {mesh.JoinRequestSpec{Name: "cluster2", ID: 2, UID: "uid-2"}, []v1alpha1.MeshCluster{local}, false, ""},
		"again":                           {mesh.JoinRequestSpec{Name: "cluster2", ID: 2, UID: "uid-2"}, []v1alpha1.MeshCluster{local, two}, true, ""},
		"again, before it was ever seen":  {mesh.JoinRequestSpec{Name: "cluster2", ID: 2, UID: "uid-2"}, []v1alpha1.MeshCluster{local, unknown}, true, ""},
		"a cluster that is not ready":     {mesh.JoinRequestSpec{Name: "cluster2", ID: 2, UID: "uid-2"}, []v1alpha1.MeshCluster{member("cluster1", 1, "", "")}, false, "not introduced"},
		"another by a known name":         {mesh.JoinRequestSpec{Name: "cluster2", ID: 2, UID: "uid-9"}, []v1alpha1.MeshCluster{local, two}, false, "is another cluster"},
		"a member's ID":                   {mesh.JoinRequestSpec{Name: "cluster3", ID: 2, UID: "uid-3"}, []v1alpha1.MeshCluster{local, two}, false, `the ID 2 is that of member "cluster2"`},
		"a member's UID":                  {mesh.JoinRequestSpec{Name: "cluster3", ID: 3, UID: "uid-2"}, []v1alpha1.MeshCluster{local, two}, false, "has one name"},
		"the ID of one that leaves":       {mesh.JoinRequestSpec{Name: "cluster3", ID: 2, UID: "uid-3"}, []v1alpha1.MeshCluster{local, leaving}, false, ""},
		"the name of one that leaves":     {mesh.JoinRequestSpec{Name: "cluster2", ID: 2, UID: "uid-2"}, []v1alpha1.MeshCluster{local, leaving}, false, "being removed"},
		"the cluster's own name":          {mesh.JoinRequestSpec{Name: "cluster1", ID: 2, UID: "uid-2"}, []v1alpha1.MeshCluster{local}, false, "names are unique"},
		"the cluster itself":              {mesh.JoinRequestSpec{Name: "cluster2", ID: 2, UID: "uid-1"}, []v1alpha1.MeshCluster{local}, false, `this cluster, "cluster1", itself`},
		"one with a Secret of somebody's": {mesh.JoinRequestSpec{Name: "cluster2", ID: 2, UID: "uid-2", Kubeconfig: []byte("x")}, []v1alpha1.MeshCluster{local, own}, false, `Secret "hand-made"`},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := decide(test.joining, test.members)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("decide() = %v, want %q", err, test.want)
				}
				return
			}
			if err != nil || d.local.Name != "cluster1" || (d.known != nil) != test.again {
				t.Errorf("decide() = %+v, %v", d, err)
			}
		})
	}
}

func TestAdmits(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for name, test := range map[string]struct{ expires, id, used, want string }{
		"good":               {now.Add(time.Second).Format(time.RFC3339), "a", "", ""},
		"at its end":         {now.Format(time.RFC3339), "a", "", "expired"},
		"of another token":   {now.Add(time.Minute).Format(time.RFC3339), "b", "", "used or withdrawn"},
		"of no token yet":    {now.Add(time.Minute).Format(time.RFC3339), "", "", "not complete"},
		"without an end":     {"", "a", "", "not complete"},
		"with a strange end": {"soon", "a", "", "not complete"},
		"used":               {now.Add(time.Minute).Format(time.RFC3339), "a", now.Format(time.RFC3339), "used or withdrawn"},
	} {
		secret := &corev1.Secret{Data: map[string][]byte{"expires": []byte(test.expires), "token-id": []byte(test.id), "used": []byte(test.used)}}
		if err := admits(secret, account.Caller{TokenID: "a"}, now); test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
