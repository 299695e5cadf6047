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
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	aggregator "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	meshclient "mesh.io/clustermesh/pkg/generated/clientset/versioned"
	"mesh.io/clustermesh/test/integration/controlplane"
)

const encryption = `
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources: [globalservices.mesh.io]
    providers:
      - secretbox: {keys: [{name: key1, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}
      - identity: {}
`

const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
rules: [{level: Metadata, verbs: [create]}]
`

// TestLifecycle starts, stops and disturbs one server with an embedded etcd.
func TestLifecycle(t *testing.T) {
	files := t.TempDir()
	for name, content := range map[string]string{"encryption.yaml": encryption, "audit.yaml": auditPolicy} {
		must(t, os.WriteFile(filepath.Join(files, name), []byte(content), 0o600))
	}
	plane := controlplane.Start(t, controlplane.Options{MeshArgs: []string{
		"--shutdown-delay-duration=3s",
		"--encryption-provider-config=" + filepath.Join(files, "encryption.yaml"),
		"--audit-policy-file=" + filepath.Join(files, "audit.yaml"),
		"--audit-log-path=" + filepath.Join(files, "audit.log"),
	}})
	f := &fixture{
		ControlPlane: plane,
		core:         kubernetes.NewForConfigOrDie(plane.Kube),
		people:       meshclient.NewForConfigOrDie(plane.Kube).MeshV1alpha1(),
		direct:       meshclient.NewForConfigOrDie(plane.Mesh).MeshV1alpha1(),
	}
	t.Run("audit and encryption", func(t *testing.T) { testAuditAndEncryption(t, f, filepath.Join(files, "audit.log")) })
	t.Run("the authority is published and kept so", func(t *testing.T) { testPublication(t, f) })
	t.Run("the authority is replaced", func(t *testing.T) { testRotation(t, f) })
	t.Run("the server stops gracefully and starts with its data", func(t *testing.T) { testRestart(t, f) })
}

func testAuditAndEncryption(t *testing.T, f *fixture, auditLog string) {
	namespace := f.namespace(t, "secretive")
	_, err := f.direct.GlobalServices(namespace).Create(t.Context(), globalService("hidden"), metav1.CreateOptions{})
	must(t, err)
	content, err := os.ReadFile(auditLog)
	must(t, err)
	if !bytes.Contains(content, []byte(`"resource":"globalservices","namespace":"secretive"`)) {
		t.Errorf("the audit log is %s", content)
	}
	store, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + f.MeshDataDir + "/client.sock"}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	must(t, err)
	defer store.Close()
	got, err := store.Get(t.Context(), "/registry/mesh.io/globalservices/secretive/hidden")
	must(t, err)
	if len(got.Kvs) != 1 || !bytes.HasPrefix(got.Kvs[0].Value, []byte("k8s:enc:secretbox:")) {
		t.Errorf("stored is %q", got.Kvs)
	}
}

func (f *fixture) bundle(ctx context.Context) ([]byte, error) {
	service, err := aggregator.NewForConfigOrDie(f.Kube).ApiregistrationV1().APIServices().Get(ctx, controlplane.APIService, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if service.Spec.InsecureSkipTLSVerify {
		return nil, errors.New("verification is skipped")
	}
	return service.Spec.CABundle, nil
}

func testPublication(t *testing.T, f *fixture) {
	want := f.MeshCA()
	published := func(ctx context.Context) error {
		got, err := f.bundle(ctx)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) || !bytes.Equal(f.MeshCA(), want) {
			return fmt.Errorf("APIService has %q, ConfigMap has %q, want %q", got, f.MeshCA(), want)
		}
		return nil
	}
	must(t, published(t.Context()))
	f.MustKubectl(t, "patch", "apiservice", controlplane.APIService, "--type=merge", `--patch={"spec":{"caBundle":null,"insecureSkipTLSVerify":true}}`)
	controlplane.Eventually(t, 10*time.Second, "the APIService to be restored", published)
	f.MustKubectl(t, "patch", "configmap", "mesh-ca", "--namespace="+controlplane.Namespace, "--type=merge", `--patch={"data":{"ca.crt":"nothing"}}`)
	controlplane.Eventually(t, 10*time.Second, "the ConfigMap to be restored", published)
	f.MustKubectl(t, "delete", "configmap", "mesh-ca", "--namespace="+controlplane.Namespace)
	controlplane.Eventually(t, 10*time.Second, "the ConfigMap to be made again", published)

	// Somebody who takes the label away and sets a bundle wants it so.
	f.MustKubectl(t, "patch", "apiservice", controlplane.APIService, "--type=merge",
		`--patch={"metadata":{"labels":{"mesh.io/managed-by":null}},"spec":{"caBundle":"`+foreignBundle(t)+`"}}`)
	controlplane.Eventually(t, 20*time.Second, "an Event about the foreign bundle", func(ctx context.Context) error {
		events, err := f.core.CoreV1().Events("").List(ctx, metav1.ListOptions{FieldSelector: "reason=CABundleNotPublished"})
		if err == nil && len(events.Items) == 0 {
			return errors.New("there is none")
		}
		return err
	})
	if got, _ := f.bundle(t.Context()); bytes.Equal(got, want) {
		t.Error("a foreign bundle was overwritten")
	}
	f.MustKubectl(t, "label", "apiservice", controlplane.APIService, "mesh.io/managed-by=mesh-apiserver")
	controlplane.Eventually(t, 10*time.Second, "the APIService to be restored", published)
	f.WaitAvailable(t)
}

func foreignBundle(t *testing.T) string {
	t.Helper()
	certPEM, _ := newAuthority(t, time.Now(), time.Now().Add(time.Hour))
	// The API wants the bytes of the bundle in base64.
	return base64.StdEncoding.EncodeToString(certPEM)
}

func newAuthority(t *testing.T, notBefore, notAfter time.Time) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "by hand"},
		NotBefore: notBefore, NotAfter: notAfter, KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}

// served is the certificate that the server shows.
func (f *fixture) served(t *testing.T) *x509.Certificate {
	t.Helper()
	connection, err := tls.Dial("tcp", strings.TrimPrefix(f.Mesh.Host, "https://"), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the test looks at it itself
	must(t, err)
	defer connection.Close()
	return connection.ConnectionState().PeerCertificates[0]
}

func verifies(cert *x509.Certificate, bundle []byte) bool {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: controlplane.MeshServerName})
	return err == nil
}

func testRotation(t *testing.T, f *fixture) {
	// People's and the controllers' clients go on as if nothing happened: those
	// through the aggregator, and those that read the ConfigMap.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var requests, failures atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			requests.Add(1)
			if _, err := f.people.MeshClusters().List(ctx, metav1.ListOptions{ResourceVersion: "0"}); err != nil && ctx.Err() == nil {
				failures.Add(1)
				t.Logf("through the aggregator: %v", err)
			}
			if !verifies(f.served(t), f.MeshCA()) && ctx.Err() == nil {
				failures.Add(1)
				t.Log("the ConfigMap does not vouch for what is served")
			}
			time.Sleep(100 * time.Millisecond)
		}
	}()

	secrets := f.core.CoreV1().Secrets(controlplane.Namespace)
	first, firstBundle := f.served(t), f.MeshCA()
	settled := func(ctx context.Context) error {
		got, err := f.bundle(ctx)
		switch {
		case err != nil:
			return err
		case verifies(f.served(t), firstBundle):
			return errors.New("the certificate is still of the first authority")
		case !bytes.Equal(got, f.MeshCA()):
			return errors.New("APIService and ConfigMap differ")
		case bytes.Contains(got, bytes.TrimSpace(firstBundle)):
			return errors.New("the first authority is still trusted")
		}
		return nil
	}
	must(t, secrets.Delete(t.Context(), "mesh-apiserver-ca", metav1.DeleteOptions{}))
	controlplane.Eventually(t, 10*time.Second, "old and new to be trusted", func(context.Context) error {
		bundle := f.MeshCA()
		if !bytes.Contains(bundle, bytes.TrimSpace(firstBundle)) || bytes.Count(bundle, []byte("BEGIN")) != 2 {
			return fmt.Errorf("trusted is %s", bundle)
		}
		return nil
	})
	if again := f.served(t); !again.Equal(first) {
		t.Error("the new certificate is shown before clients could learn of its authority")
	}
	controlplane.Eventually(t, 30*time.Second, "the new authority alone to be trusted", settled)

	// One that is about to expire is replaced and goes on being trusted.
	old, oldKey := newAuthority(t, time.Now().Add(-9*365*24*time.Hour), time.Now().Add(time.Hour))
	secret, err := secrets.Get(t.Context(), "mesh-apiserver-ca", metav1.GetOptions{})
	must(t, err)
	secret.Data = map[string][]byte{corev1.TLSCertKey: old, corev1.TLSPrivateKeyKey: oldKey}
	_, err = secrets.Update(t.Context(), secret, metav1.UpdateOptions{})
	must(t, err)
	controlplane.Eventually(t, 30*time.Second, "a successor of the authority that expires", func(ctx context.Context) error {
		secret, err := secrets.Get(ctx, "mesh-apiserver-ca", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !bytes.Equal(bytes.TrimSpace(secret.Data["previous.crt"]), bytes.TrimSpace(old)) {
			return errors.New("the Secret holds no successor")
		}
		if !verifies(f.served(t), secret.Data[corev1.TLSCertKey]) || !bytes.Contains(f.MeshCA(), bytes.TrimSpace(old)) {
			return errors.New("not served yet, or the old one is not trusted")
		}
		return nil
	})
	cancel()
	<-done
	if failures.Load() > 0 {
		t.Errorf("%d of %d requests failed", failures.Load(), requests.Load())
	}
	if log := f.MeshAPIServer.Log(); strings.Contains(log, "Could not keep certificates current") {
		t.Error("the server complained of its certificates")
	}
}

func testRestart(t *testing.T, f *fixture) {
	namespace := f.namespace(t, "restart")
	// The authority may be a new one; so is the client.
	f.refreshClients(t)
	_, err := f.direct.GlobalServices(namespace).Create(t.Context(), globalService("kept"), metav1.CreateOptions{})
	must(t, err)
	local, err := f.direct.MeshClusters().Create(t.Context(), &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: "cluster1"}, Spec: v1alpha1.MeshClusterSpec{ID: 1},
	}, metav1.CreateOptions{})
	must(t, err)
	heartbeat := func() string {
		t.Helper()
		found, err := f.direct.MeshClusters().Get(t.Context(), "cluster1", metav1.GetOptions{})
		must(t, err)
		found.Status.ControllerRun += "x"
		found, err = f.direct.MeshClusters().UpdateStatus(t.Context(), found, metav1.UpdateOptions{})
		must(t, err)
		return found.Status.StoreEpoch
	}

	watcher, err := f.direct.GlobalServices(namespace).Watch(t.Context(), metav1.ListOptions{})
	must(t, err)
	defer watcher.Stop()
	begin := time.Now()
	must(t, f.MeshAPIServer.Signal(syscall.SIGTERM))
	controlplane.Eventually(t, 2*time.Second, "the server not to be ready", func(ctx context.Context) error {
		if err := f.direct.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err == nil {
			return errors.New("it is")
		}
		return nil
	})
	if _, err := f.direct.GlobalServices(namespace).Create(t.Context(), globalService("late"), metav1.CreateOptions{}); err != nil {
		t.Errorf("a write in the time of the delay: %v", err)
	}
	expectEvent(t, watcher, watch.Added, "kept")
	expectEvent(t, watcher, watch.Added, "late")
	if event, open := <-watcher.ResultChan(); open {
		t.Errorf("the watch goes on with %v", event)
	}
	select {
	case <-f.MeshAPIServer.Exited():
	case <-time.After(20 * time.Second):
		t.Fatal("the server does not stop")
	}
	t.Logf("stopped in %s, with a delay of 3s", time.Since(begin).Round(10*time.Millisecond))
	if err := f.MeshAPIServer.Stop(); err != nil || strings.Contains(f.MeshAPIServer.Log(), "panic") {
		t.Errorf("it ended with %v", err)
	}

	for _, how := range []string{"after SIGTERM", "after SIGKILL"} {
		begin = time.Now()
		f.StartMesh(t)
		t.Logf("ready %s in %s", how, time.Since(begin).Round(10*time.Millisecond))
		f.refreshClients(t)
		for _, name := range []string{"kept", "late"} {
			if _, err := f.direct.GlobalServices(namespace).Get(t.Context(), name, metav1.GetOptions{}); err != nil {
				t.Errorf("%s: %v", how, err)
			}
		}
		if epoch := heartbeat(); epoch != local.Status.StoreEpoch {
			t.Errorf("%s the epoch is %q, was %q", how, epoch, local.Status.StoreEpoch)
		}
		f.MeshAPIServer.Kill()
	}

	must(t, os.RemoveAll(f.MeshDataDir))
	f.StartMesh(t)
	f.refreshClients(t)
	anew, err := f.direct.MeshClusters().Create(t.Context(), &v1alpha1.MeshCluster{
		ObjectMeta: metav1.ObjectMeta{Name: "cluster1"}, Spec: v1alpha1.MeshClusterSpec{ID: 1},
	}, metav1.CreateOptions{})
	must(t, err)
	if anew.Status.StoreEpoch == local.Status.StoreEpoch {
		t.Error("a new store has the epoch of the old one")
	}
}

func (f *fixture) refreshClients(t *testing.T) {
	t.Helper()
	_, f.Mesh = f.User(t, "admin", "system:masters")
	f.direct = meshclient.NewForConfigOrDie(f.Mesh).MeshV1alpha1()
}
