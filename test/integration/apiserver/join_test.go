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

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	meshclient "mesh.io/clustermesh/pkg/generated/clientset/versioned"
	typed "mesh.io/clustermesh/pkg/generated/clientset/versioned/typed/mesh/v1alpha1"
	credentials "mesh.io/clustermesh/pkg/peer"
	"mesh.io/clustermesh/test/integration/controlplane"
)

// exists lets through what a test has made already.
func exists[T any](t *testing.T) func(T, error) {
	return func(_ T, err error) {
		t.Helper()
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
}

// account makes a ServiceAccount of the mesh, bound to a ClusterRole.
func (f *fixture) account(t *testing.T, name, role string) {
	t.Helper()
	ctx := t.Context()
	exists[*corev1.ServiceAccount](t)(f.core.CoreV1().ServiceAccounts(controlplane.Namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))
	exists[*rbacv1.ClusterRoleBinding](t)(f.core.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: controlplane.Namespace, Name: name}},
	}, metav1.CreateOptions{}))
}

// role makes a Role of the mesh's namespace that mesh-apiserver has.
func (f *fixture) role(t *testing.T, name string, rules ...rbacv1.PolicyRule) {
	t.Helper()
	ctx := t.Context()
	exists[*rbacv1.Role](t)(f.core.RbacV1().Roles(controlplane.Namespace).Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}, metav1.CreateOptions{}))
	exists[*rbacv1.RoleBinding](t)(f.core.RbacV1().RoleBindings(controlplane.Namespace).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: controlplane.Namespace, Name: "mesh-apiserver"}},
	}, metav1.CreateOptions{}))
}

// peerAccount makes what a peer is given.
func (f *fixture) peerAccount(t *testing.T, cluster string) {
	t.Helper()
	name := v1alpha1.PeerPrefix + cluster
	f.account(t, name, "mesh-peer")
	f.role(t, name, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, ResourceNames: []string{name}, Verbs: []string{"create"}})
}

// token makes a token of an account of the mesh, as an administrator does.
func (f *fixture) token(t *testing.T, account string, change func(*authenticationv1.TokenRequestSpec)) string {
	t.Helper()
	request := tokenRequest()
	if change != nil {
		change(&request.Spec)
	}
	made, err := f.core.CoreV1().ServiceAccounts(controlplane.Namespace).CreateToken(t.Context(), account, request, metav1.CreateOptions{})
	must(t, err)
	return made.Status.Token
}

// with is the mesh API for who has a token.
func (f *fixture) with(token string) typed.MeshV1alpha1Interface {
	config := rest.AnonymousClientConfig(f.Mesh)
	config.BearerToken = token
	return meshclient.NewForConfigOrDie(config).MeshV1alpha1()
}

// allowed waits until an account's roles are known to the server.
func (f *fixture) allowed(t *testing.T, try func(context.Context) error) {
	t.Helper()
	controlplane.Eventually(t, 20*time.Second, "the account's access", func(ctx context.Context) error {
		err := try(ctx)
		if err != nil && (strings.Contains(err.Error(), "User ") || strings.Contains(err.Error(), "must let")) {
			return err
		}
		return nil
	})
}

// invite makes an invitation, as "meshctl invite" does, and returns its token.
func (f *fixture) invite(t *testing.T, cluster string, expires time.Time) string {
	t.Helper()
	name := v1alpha1.InvitePrefix + cluster
	f.peerAccount(t, cluster)
	exists[*corev1.ServiceAccount](t)(f.core.CoreV1().ServiceAccounts(controlplane.Namespace).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))
	f.role(t, name,
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{name}, Verbs: []string{"get", "update", "delete"}},
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{v1alpha1.PeerPrefix + cluster}, Verbs: []string{"get", "update"}})
	secrets := f.core.CoreV1().Secrets(controlplane.Namespace)
	if err := secrets.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	secret, err := secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	must(t, err)
	token := f.token(t, name, func(spec *authenticationv1.TokenRequestSpec) {
		spec.ExpirationSeconds = ptr.To[int64](900)
		spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Secret", Name: name, UID: secret.UID}
	})
	read, err := credentials.ReadToken(token)
	must(t, err)
	secret.Data = map[string][]byte{
		v1alpha1.InvitationExpires: []byte(expires.Format(time.RFC3339)), v1alpha1.InvitationTokenID: []byte(read.ID),
	}
	_, err = secrets.Update(t.Context(), secret, metav1.UpdateOptions{})
	must(t, err)
	// Roles reach an authorizer a moment later: a name that joins nothing shows when.
	f.allowed(t, func(ctx context.Context) error {
		bad := joinRequest(cluster, 65535, "?")
		bad.Spec.Kubeconfig = []byte("}{")
		_, err := f.with(token).JoinRequests().Create(ctx, bad, metav1.CreateOptions{})
		return err
	})
	f.allowed(t, func(ctx context.Context) error {
		_, err := f.with(token).JoinRequests().Create(ctx, joinRequest(cluster, 65535, "?"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	})
	return token
}

func joinRequest(name string, id int32, uid string) *v1alpha1.JoinRequest {
	return &v1alpha1.JoinRequest{Spec: v1alpha1.JoinRequestSpec{Name: name, ID: id, UID: uid}}
}

// pinned is a kubeconfig as one who joins sends it.
func (f *fixture) pinned(t *testing.T, change func(*clientcmdapi.Config)) []byte {
	t.Helper()
	config := clientcmdapi.NewConfig()
	config.Clusters["a"] = &clientcmdapi.Cluster{Server: "https://192.0.2.1:32443", CertificateAuthorityData: f.MeshCA(), TLSServerName: controlplane.MeshServerName}
	config.AuthInfos["peer"] = &clientcmdapi.AuthInfo{Token: "theirs"}
	config.Contexts["a"] = &clientcmdapi.Context{Cluster: "a", AuthInfo: "peer"}
	config.CurrentContext = "a"
	if change != nil {
		change(config)
	}
	content, err := clientcmd.Write(*config)
	must(t, err)
	return content
}

func refused(t *testing.T, what string, err error, is func(error) bool, text string) {
	t.Helper()
	if !is(err) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: answered with %v, want %q", what, err, text)
	}
}

func startJoin(t *testing.T, args ...string) *fixture {
	t.Helper()
	plane := controlplane.Start(t, controlplane.Options{MeshArgs: args})
	f := &fixture{
		ControlPlane: plane, core: kubernetes.NewForConfigOrDie(plane.Kube),
		people: meshclient.NewForConfigOrDie(plane.Kube).MeshV1alpha1(), direct: meshclient.NewForConfigOrDie(plane.Mesh).MeshV1alpha1(),
	}
	local, err := f.direct.MeshClusters().Create(t.Context(), &v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: "cluster1"}, Spec: v1alpha1.MeshClusterSpec{ID: 1}}, metav1.CreateOptions{})
	must(t, err)
	local.Status.UID = "uid-1"
	_, err = f.direct.MeshClusters().UpdateStatus(t.Context(), local, metav1.UpdateOptions{})
	must(t, err)
	return f
}

func TestCredentials(t *testing.T) {
	files := t.TempDir()
	policy, log := filepath.Join(files, "audit.yaml"), filepath.Join(files, "audit.log")
	must(t, os.WriteFile(policy, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: RequestResponse}]\n"), 0o600))
	f := startJoin(t, "--audit-policy-file="+policy, "--audit-log-path="+log)
	var secrets []string
	keep := func(token string) string {
		secrets = append(secrets, token)
		return token
	}
	t.Run("a peer renews its own token", func(t *testing.T) { testPeerToken(t, f, keep) })
	t.Run("a cluster joins by invitation", func(t *testing.T) { testJoin(t, f, keep) })
	t.Run("what is taken is refused", func(t *testing.T) { testJoinTaken(t, f) })
	t.Run("an invitation is good once", func(t *testing.T) { testInvitation(t, f) })
	t.Run("a kubeconfig is data", func(t *testing.T) { testJoinKubeconfig(t, f) })
	t.Run("what fails after it is put right by another invitation", func(t *testing.T) { testJoinBroken(t, f) })

	content, err := os.ReadFile(log)
	must(t, err)
	if !strings.Contains(string(content), `"resource":"peertokens"`) || !strings.Contains(string(content), `"resource":"joinrequests"`) {
		t.Error("the audit log does not tell of requests")
	}
	for _, secret := range append(secrets, "theirs") {
		if strings.Contains(string(content), secret) || strings.Contains(f.MeshAPIServer.Log(), secret) {
			t.Error("a token is in the audit log, or in the log")
		}
	}
}

// TestCredentialsAreQuietAndPrompt has the server log as much as it can, and asks for
// much at once.
func TestCredentialsAreQuietAndPrompt(t *testing.T) {
	f := startJoin(t, "-v=9")
	f.peerAccount(t, "cluster7")
	client := f.with(f.token(t, "mesh-peer-cluster7", nil))
	f.allowed(t, func(ctx context.Context) error {
		_, err := client.PeerTokens().Create(ctx, &v1alpha1.PeerToken{}, metav1.CreateOptions{})
		return err
	})
	// None of these is used, as whose a token is that is used, a server asks with it.
	var secrets []string
	began := time.Now()
	for range 60 {
		answer, err := client.PeerTokens().Create(t.Context(), &v1alpha1.PeerToken{}, metav1.CreateOptions{})
		must(t, err)
		secrets = append(secrets, answer.Status.Token)
	}
	if took := time.Since(began); took > 6*time.Second {
		t.Errorf("60 tokens take %v", took)
	}
	const theirs = "the-token-of-the-cluster-that-joins"
	for range 2 { // the second replaces what the first has written
		request := joinRequest("cluster2", 2, "uid-2")
		request.Spec.Kubeconfig = f.pinned(t, func(config *clientcmdapi.Config) {
			for _, user := range config.AuthInfos {
				user.Token = theirs
			}
		})
		answer, err := f.join(t, f.invite(t, "cluster2", time.Now().Add(time.Minute)), request)
		must(t, err)
		secrets = append(secrets, answer.Status.Token)
	}
	log := f.MeshAPIServer.Log()
	if !strings.Contains(log, "Response Body") {
		t.Error("the server does not log what it could, so this proves nothing")
	}
	// What is binary, and that is most, stands in the log as a dump of 16 bytes in a line.
	var dumped strings.Builder
	for _, line := range regexp.MustCompile(`\|(.{1,16})\|`).FindAllStringSubmatch(log, -1) {
		dumped.WriteString(line[1])
	}
	for _, secret := range append(secrets, theirs) {
		part := secret[max(0, len(secret)-30):]
		if strings.Contains(log, part) || strings.Contains(dumped.String(), part) {
			t.Fatal("credentials are in the log")
		}
	}
}

func testPeerToken(t *testing.T, f *fixture, keep func(string) string) {
	f.peerAccount(t, "cluster7")
	old := keep(f.token(t, "mesh-peer-cluster7", nil))
	ask := func(token string, seconds *int64) (*v1alpha1.PeerToken, error) {
		return f.with(token).PeerTokens().Create(t.Context(), &v1alpha1.PeerToken{
			ObjectMeta: metav1.ObjectMeta{Name: "mesh-peer-another"}, Spec: v1alpha1.PeerTokenSpec{ExpirationSeconds: seconds},
		}, metav1.CreateOptions{})
	}
	f.allowed(t, func(context.Context) error { _, err := ask(old, nil); return err })
	answer, err := ask(old, nil)
	must(t, err)
	fresh := keep(answer.Status.Token)
	read, err := credentials.ReadToken(fresh)
	must(t, err)
	if want := "system:serviceaccount:mesh-system:mesh-peer-cluster7"; read.Subject != want || answer.Name != "mesh-peer-cluster7" {
		t.Errorf("the token is for %q, of object %q", read.Subject, answer.Name)
	}
	if life := time.Until(answer.Status.ExpirationTimestamp.Time).Round(time.Hour); life != 30*24*time.Hour {
		t.Errorf("it is good for %s", life)
	}
	if _, err := f.with(fresh).MeshClusters().List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("the new token is answered with %v", err)
	}
	if answer, err = ask(fresh, ptr.To[int64](600)); err != nil || time.Until(answer.Status.ExpirationTimestamp.Time) > 10*time.Minute {
		t.Errorf("a short one: %v, %v", answer, err)
	}
	for _, seconds := range []int64{0, 599, 7776001} {
		_, err := ask(old, ptr.To(seconds))
		refused(t, fmt.Sprint(seconds, " seconds"), err, apierrors.IsInvalid, "expirationSeconds")
	}
	if answer, err := f.with(old).PeerTokens().Create(t.Context(), &v1alpha1.PeerToken{}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil || answer.Status.Token != "" {
		t.Errorf("a dry run: %v %v", answer, err)
	}

	// Whoever else may create peertokens gets none.
	_, err = f.people.PeerTokens().Create(t.Context(), &v1alpha1.PeerToken{}, metav1.CreateOptions{})
	refused(t, "an administrator", err, apierrors.IsForbidden, "only the ServiceAccount mesh-peer-<cluster>")
	impersonating := rest.CopyConfig(f.Mesh)
	impersonating.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:mesh-system:mesh-peer-cluster7"}
	_, err = meshclient.NewForConfigOrDie(impersonating).MeshV1alpha1().PeerTokens().Create(t.Context(), &v1alpha1.PeerToken{}, metav1.CreateOptions{})
	refused(t, "one who acts as the peer", err, apierrors.IsForbidden, "with a token of its own")
	f.account(t, "robot", "mesh-peer")
	robot := f.token(t, "robot", nil)
	f.allowed(t, func(context.Context) error {
		_, err := ask(robot, nil)
		if err != nil && strings.Contains(err.Error(), "only the ServiceAccount") {
			return nil
		}
		return err
	})
	_, err = ask(robot, nil)
	refused(t, "another account", err, apierrors.IsForbidden, "only the ServiceAccount")
	_, err = ask("forged", nil)
	refused(t, "a forged token", err, apierrors.IsUnauthorized, "")

	// An account that is made anew is another account, though the token is still remembered.
	must(t, f.core.CoreV1().ServiceAccounts(controlplane.Namespace).Delete(t.Context(), "mesh-peer-cluster7", metav1.DeleteOptions{}))
	if _, err = ask(old, nil); !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) {
		t.Errorf("a deleted account: %v", err)
	}
	f.account(t, "mesh-peer-cluster7", "mesh-peer")
	if _, err = ask(old, nil); !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) {
		t.Errorf("the token of a deleted account whose name is used again: %v", err)
	}

	// Without the Role, what is missing is named.
	f.account(t, "mesh-peer-cluster8", "mesh-peer")
	controlplane.Eventually(t, 20*time.Second, "a clear refusal", func(context.Context) error {
		_, err := ask(f.token(t, "mesh-peer-cluster8", nil), nil)
		if apierrors.IsForbidden(err) && strings.Contains(err.Error(), "Role mesh-peer-cluster8") {
			return nil
		}
		return fmt.Errorf("answered with %w", err)
	})
}

func (f *fixture) join(t *testing.T, token string, request *v1alpha1.JoinRequest) (*v1alpha1.JoinRequest, error) {
	t.Helper()
	return f.with(token).JoinRequests().Create(t.Context(), request, metav1.CreateOptions{})
}

func testJoin(t *testing.T, f *fixture, keep func(string) string) {
	request := joinRequest("cluster2", 2, "uid-2")
	request.Spec.Kubeconfig = f.pinned(t, nil)
	token := keep(f.invite(t, "cluster2", time.Now().Add(15*time.Minute)))
	answer, err := f.join(t, token, request)
	must(t, err)
	if s := answer.Status; s.Name != "cluster1" || s.ID != 1 || s.UID != "uid-1" || s.TLSServerName != controlplane.MeshServerName || string(s.CABundle) != string(f.MeshCA()) {
		t.Errorf("the answer is %+v", s)
	}
	if len(answer.Spec.Kubeconfig) > 0 {
		t.Error("the answer repeats the credentials")
	}
	keep(answer.Status.Token)
	if _, err := f.with(answer.Status.Token).ExportedServices("").List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("the token is answered with %v", err)
	}
	if _, err := f.with(answer.Status.Token).PeerTokens().Create(t.Context(), &v1alpha1.PeerToken{}, metav1.CreateOptions{}); err != nil {
		t.Errorf("it cannot be renewed: %v", err)
	}
	f.expectMember(t, request)
	_, err = f.join(t, token, request)
	if !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) {
		t.Errorf("a second use: %v", err)
	}

	// One way: nothing is imported from it.
	answer, err = f.join(t, f.invite(t, "cluster3", time.Now().Add(time.Minute)), joinRequest("cluster3", 3, "uid-3"))
	must(t, err)
	if answer.Status.Token == "" {
		t.Error("no token")
	}
	if _, err := f.direct.MeshClusters().Get(t.Context(), "cluster3", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("MeshCluster cluster3: %v", err)
	}
}

func (f *fixture) expectMember(t *testing.T, request *v1alpha1.JoinRequest) {
	t.Helper()
	cluster, err := f.direct.MeshClusters().Get(t.Context(), request.Spec.Name, metav1.GetOptions{})
	must(t, err)
	if ref := cluster.Spec.KubeconfigSecretRef; cluster.Spec.ID != request.Spec.ID || ref == nil || ref.Name != "mesh-peer-"+request.Spec.Name {
		t.Errorf("the member is %+v", cluster.Spec)
	}
	secret, err := f.core.CoreV1().Secrets(controlplane.Namespace).Get(t.Context(), "mesh-peer-"+request.Spec.Name, metav1.GetOptions{})
	must(t, err)
	if string(secret.Data["kubeconfig"]) != string(request.Spec.Kubeconfig) || secret.Annotations[v1alpha1.AnnotationInvited] == "" {
		t.Error("the Secret does not hold what was sent, or does not say that it was")
	}
}

func testJoinTaken(t *testing.T, f *fixture) {
	token := f.invite(t, "cluster4", time.Now().Add(15*time.Minute))
	for what, test := range map[string]struct {
		name string
		id   int32
		uid  string
		want string
	}{
		"an ID of the cluster itself":   {"cluster4", 1, "uid-4", `the ID 1 is that of this cluster, "cluster1"`},
		"a member's ID":                 {"cluster4", 2, "uid-4", `the ID 2 is that of member "cluster2"`},
		"the UID of the cluster itself": {"cluster4", 4, "uid-1", `"cluster1", itself`},
	} {
		_, err := f.join(t, token, joinRequest(test.name, test.id, test.uid))
		refused(t, what, err, apierrors.IsAlreadyExists, test.want)
	}
	member, err := f.direct.MeshClusters().Get(t.Context(), "cluster2", metav1.GetOptions{})
	must(t, err)
	member.Status.UID = "uid-2"
	_, err = f.direct.MeshClusters().UpdateStatus(t.Context(), member, metav1.UpdateOptions{})
	must(t, err)
	_, err = f.join(t, token, joinRequest("cluster4", 4, "uid-2"))
	refused(t, "a member's UID", err, apierrors.IsAlreadyExists, `member "cluster2"`)
	_, err = f.join(t, token, joinRequest("cluster5", 5, "uid-5"))
	refused(t, "another name", err, apierrors.IsForbidden, `for cluster "cluster4", not for "cluster5"`)
	for what, request := range map[string]*v1alpha1.JoinRequest{"id": joinRequest("cluster4", 0, "u"), "uid": joinRequest("cluster4", 4, "")} {
		_, err := f.join(t, token, request)
		refused(t, "without "+what, err, apierrors.IsInvalid, "spec."+what)
	}
	// All of that used up nothing.
	if _, err := f.join(t, token, joinRequest("cluster4", 4, "uid-4")); err != nil {
		t.Errorf("the join that is right: %v", err)
	}

	token = f.invite(t, "cluster1", time.Now().Add(15*time.Minute))
	_, err = f.join(t, token, joinRequest("cluster1", 9, "uid-9"))
	refused(t, "the name of the cluster itself", err, apierrors.IsAlreadyExists, "install one of the two clusters with another --cluster-name")
	token = f.invite(t, "cluster2", time.Now().Add(15*time.Minute))
	_, err = f.join(t, token, joinRequest("cluster2", 2, "uid-of-another"))
	refused(t, "a member's name, by another cluster", err, apierrors.IsAlreadyExists, "is another cluster (UID uid-2)")
	_, err = f.join(t, token, joinRequest("cluster2", 22, "uid-2"))
	refused(t, "a member with another ID", err, apierrors.IsAlreadyExists, "has the ID 2, not 22")
	again := joinRequest("cluster2", 2, "uid-2")
	again.Spec.Kubeconfig = f.pinned(t, func(c *clientcmdapi.Config) { c.AuthInfos["peer"].Token = "newer" })
	if _, err := f.join(t, token, again); err != nil {
		t.Errorf("joining again: %v", err)
	}
	f.expectMember(t, again)
}

func testInvitation(t *testing.T, f *fixture) {
	request := joinRequest("cluster6", 6, "uid-6")
	secrets := f.core.CoreV1().Secrets(controlplane.Namespace)

	token := f.invite(t, "cluster6", time.Now().Add(15*time.Minute))
	must(t, secrets.Delete(t.Context(), "mesh-invite-cluster6", metav1.DeleteOptions{}))
	_, err := f.join(t, token, request)
	refused(t, "withdrawn, though the token is remembered", err, apierrors.IsForbidden, "used or withdrawn")

	first := f.invite(t, "cluster6", time.Now().Add(15*time.Minute))
	second := f.invite(t, "cluster6", time.Now().Add(15*time.Minute))
	_, err = f.join(t, first, request)
	refused(t, "replaced, though the token is remembered", err, apierrors.IsForbidden, "used or withdrawn")

	expire := func(when string) {
		_, err := secrets.Patch(t.Context(), "mesh-invite-cluster6", types.MergePatchType, []byte(fmt.Sprintf(`{"stringData":{"expires":%q}}`, when)), metav1.PatchOptions{})
		must(t, err)
	}
	expire(time.Now().Add(-time.Second).Format(time.RFC3339))
	_, err = f.join(t, second, request)
	refused(t, "expired", err, apierrors.IsForbidden, "has expired")
	expire("soon")
	_, err = f.join(t, second, request)
	refused(t, "without an end", err, apierrors.IsForbidden, "not complete")
	if _, err := f.with(second).MeshClusters().List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("an invitation lets its holder read: %v", err)
	}
	_, err = f.people.JoinRequests().Create(t.Context(), request, metav1.CreateOptions{})
	refused(t, "an administrator", err, apierrors.IsForbidden, "only the ServiceAccount mesh-invite-<cluster>")

	token = f.invite(t, "cluster6", time.Now().Add(15*time.Minute))
	var wg sync.WaitGroup
	results := make([]error, 8)
	for i := range results {
		wg.Go(func() { _, results[i] = f.join(t, token, request) })
	}
	wg.Wait()
	won := 0
	for _, err := range results {
		if err == nil {
			won++
		} else if !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) {
			t.Errorf("one that came too late: %v", err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d uses at once were let in", won, len(results))
	}
}

func testJoinKubeconfig(t *testing.T, f *fixture) {
	token := f.invite(t, "cluster9", time.Now().Add(15*time.Minute))
	for what, test := range map[string]struct {
		kubeconfig []byte
		want       string
	}{
		"not one":  {[]byte("}{"), "reading the kubeconfig"},
		"too long": {[]byte(strings.Repeat("#", 70000)), "Too long"},
		"a program": {f.pinned(t, func(c *clientcmdapi.Config) {
			c.AuthInfos["peer"].Exec = &clientcmdapi.ExecConfig{Command: "id", APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: "Never"}
		}), "exec runs a program"},
		"a file":       {f.pinned(t, func(c *clientcmdapi.Config) { c.AuthInfos["peer"].TokenFile = "/etc/passwd" }), "tokenFile"},
		"no authority": {f.pinned(t, func(c *clientcmdapi.Config) { c.Clusters["a"].CertificateAuthorityData = nil }), "certificate-authority-data"},
		"a proxy":      {f.pinned(t, func(c *clientcmdapi.Config) { c.Clusters["a"].ProxyURL = "http://192.0.2.9" }), "proxy-url"},
		"plain http":   {f.pinned(t, func(c *clientcmdapi.Config) { c.Clusters["a"].Server = "http://192.0.2.1" }), "https"},
		"a user":       {f.pinned(t, func(c *clientcmdapi.Config) { c.Clusters["a"].Server = "https://theirs@192.0.2.1" }), "no user"},
		"a path":       {f.pinned(t, func(c *clientcmdapi.Config) { c.Clusters["a"].Server = "https://192.0.2.1/x" }), "no more"},
		"the loopback": {f.pinned(t, func(c *clientcmdapi.Config) { c.Clusters["a"].Server = "https://127.0.0.1:6443" }), "loopback"},
		"the metadata": {f.pinned(t, func(c *clientcmdapi.Config) { c.Clusters["a"].Server = "https://169.254.169.254" }), "link-local"},
	} {
		request := joinRequest("cluster9", 9, "uid-9")
		request.Spec.Kubeconfig = test.kubeconfig
		_, err := f.join(t, token, request)
		refused(t, what, err, apierrors.IsInvalid, test.want)
		if err != nil && strings.Contains(err.Error(), "theirs") {
			t.Errorf("%s: the answer quotes the credentials", what)
		}
	}
}

// testJoinBroken has a join fail, and the server die, after the invitation is used up.
func testJoinBroken(t *testing.T, f *fixture) {
	request := joinRequest("cluster10", 10, "uid-10")
	request.Spec.Kubeconfig = f.pinned(t, nil)
	// Somebody's Secret is in the way that cannot be overwritten.
	secrets := f.core.CoreV1().Secrets(controlplane.Namespace)
	_, err := secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "mesh-peer-cluster10"}, Immutable: ptr.To(true)}, metav1.CreateOptions{})
	must(t, err)
	_, err = f.join(t, f.invite(t, "cluster10", time.Now().Add(15*time.Minute)), request)
	refused(t, "a failure", err, apierrors.IsInternalError, "ask for another")
	if _, err := secrets.Get(t.Context(), "mesh-invite-cluster10", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the invitation is still there: %v", err)
	}
	must(t, secrets.Delete(t.Context(), "mesh-peer-cluster10", metav1.DeleteOptions{}))
	_, err = f.join(t, f.invite(t, "cluster10", time.Now().Add(15*time.Minute)), request)
	must(t, err)
	f.expectMember(t, request)

	request = joinRequest("cluster11", 11, "uid-11")
	request.Spec.Kubeconfig = f.pinned(t, nil)
	token := f.invite(t, "cluster11", time.Now().Add(15*time.Minute))
	watcher, err := secrets.Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=mesh-invite-cluster11"})
	must(t, err)
	defer watcher.Stop()
	done := make(chan error, 1)
	go func() {
		_, err := f.with(token).JoinRequests().Create(context.Background(), request, metav1.CreateOptions{})
		done <- err
	}()
	for event := range watcher.ResultChan() {
		if secret, ok := event.Object.(*corev1.Secret); ok && len(secret.Data[v1alpha1.InvitationUsed]) > 0 {
			break
		}
	}
	f.MeshAPIServer.Kill()
	t.Logf("the join that the server died in is answered with %v", errors.Unwrap(<-done))
	f.StartMesh(t)
	_, err = f.join(t, f.invite(t, "cluster11", time.Now().Add(15*time.Minute)), request)
	must(t, err)
	f.expectMember(t, request)
}
