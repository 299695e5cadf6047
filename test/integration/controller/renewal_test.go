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

package controller

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/peer"
	"mesh.io/clustermesh/test/integration/controlplane"
)

// agedToken is a token of an account that the cluster made a while ago.
func (c *cluster) agedToken(t *testing.T, account *corev1.ServiceAccount, issued, expires time.Time) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(c.Plane.Dir, "service-accounts.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(content)
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	const issuer = "https://kubernetes.default.svc"
	claims, err := json.Marshal(map[string]any{
		"iss": issuer, "aud": []string{issuer}, "sub": "system:serviceaccount:" + account.Namespace + ":" + account.Name,
		"iat": issued.Unix(), "nbf": issued.Unix(), "exp": expires.Unix(), "jti": "aged",
		"kubernetes.io": map[string]any{
			"namespace":      account.Namespace,
			"serviceaccount": map[string]any{"name": account.Name, "uid": string(account.UID)},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"alg":"ES256"}`)) + "." + encode(claims)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + encode(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// grant lets an account of the mesh's own do something with one object.
func (c *cluster) grant(t *testing.T, name, account, resource, object, verb string) {
	t.Helper()
	rules := []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{resource}, ResourceNames: []string{object}, Verbs: []string{verb}}}
	if _, err := c.Kube.RbacV1().Roles(controlplane.Namespace).Create(t.Context(), &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := c.Kube.RbacV1().RoleBindings(controlplane.Namespace).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: controlplane.Namespace, Name: account}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRenewal has a token that is almost over renewed by the peer that made it.
func TestRenewal(t *testing.T) {
	controlplane.Binary(t, "kube-apiserver") // skips before anything is built
	one := startClusterOn(t, "cluster1", 1, controlplane.Options{})
	two := startClusterOn(t, "cluster2", 2, controlplane.Options{})
	one.start(t)
	two.start(t)

	const name = "mesh-peer-cluster1"
	account, err := two.Kube.CoreV1().ServiceAccounts(controlplane.Namespace).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = two.Kube.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "mesh-peer"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: controlplane.Namespace, Name: name}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	two.grant(t, name, "mesh-apiserver", "serviceaccounts/token", name, "create")

	now := time.Now()
	old := two.agedToken(t, account, now.Add(-25*time.Hour), now.Add(time.Hour))
	_, config := two.Plane.User(t, "peer")
	one.SetSecret(t, "cluster2", inlineToken(t, config, old))
	one.Join(t, "cluster2", 2)
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "Synced")

	held := func(ctx context.Context) (string, error) {
		secret, err := one.Kube.CoreV1().Secrets(controlplane.Namespace).Get(ctx, "cluster2", metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		found, err := clientcmd.Load(secret.Data["kubeconfig"])
		if err != nil {
			return "", err
		}
		return found.AuthInfos["x"].Token, nil
	}
	// It has no right to write the Secret: the token stays, and who can help is told.
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterCredentialsExpiring, metav1.ConditionTrue, "RenewalFailed")
	one.event(t, "MeshCluster", "", "cluster2", "RenewalFailed", "Role mesh-renew-cluster2")
	if token, err := held(t.Context()); err != nil || token != old {
		t.Fatalf("the Secret has changed: %v", err)
	}
	// And none is asked for that could not be kept.
	requests, err := two.Mesh.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil || !strings.Contains(string(requests), `resource="meshclusters"`) || strings.Contains(string(requests), `resource="peertokens"`) {
		t.Errorf("the peer was asked for tokens (%v)", err)
	}

	one.grant(t, "mesh-renew-cluster2", "mesh-controller", "secrets", "cluster2", "update")
	controlplane.Eventually(t, time.Minute, "another token", func(ctx context.Context) error {
		token, err := held(ctx)
		if err != nil {
			return err
		}
		read, err := peer.ReadToken(token)
		if err != nil || token == old || time.Until(read.Expires) < 29*24*time.Hour {
			return fmt.Errorf("it is good until %s: %w", read.Expires, err)
		}
		return nil
	})
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterCredentialsExpiring, metav1.ConditionFalse, "Renewed")
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterConnected, metav1.ConditionTrue, "")
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "Synced")

	// What cannot be renewed stays, whatever the peer answers.
	forged := old[:len(old)-4] + "AAAA"
	one.SetSecret(t, "cluster2", inlineToken(t, config, forged))
	one.AwaitCondition(t, "cluster2", v1alpha1.MeshClusterCredentialsExpiring, metav1.ConditionTrue, "RenewalFailed")
	if token, err := held(t.Context()); err != nil || token != forged {
		t.Errorf("a token that the peer refuses was replaced: %v", err)
	}
}
