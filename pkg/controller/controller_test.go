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
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

func TestValidate(t *testing.T) {
	valid := func() *Options {
		o := NewOptions()
		o.ClusterName, o.ClusterID = "cluster1", 1
		o.Complete()
		return o
	}
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	if got := valid().MeshServer; got != "https://mesh-apiserver.mesh-system.svc" {
		t.Errorf("the mesh API is at %s", got)
	}
	for want, change := range map[string]func(*Options){
		"--cluster-name":       func(o *Options) { o.ClusterName = "default" },
		"at most 32":           func(o *Options) { o.ClusterName = strings.Repeat("a", 33) },
		"required":             func(o *Options) { o.ClusterName = "" },
		"lowercase":            func(o *Options) { o.ClusterName = "UPPER" },
		"--cluster-id":         func(o *Options) { o.ClusterID = 65536 },
		"--namespace":          func(o *Options) { o.Namespace = "" },
		"--cilium-annotations": func(o *Options) { o.CiliumAnnotations = "maybe" },
		"--workers":            func(o *Options) { o.Workers = 0 },
		"--leader-elect":       func(o *Options) { o.LeaseDuration = 0 },
	} {
		o := valid()
		change(o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate() = %v, want an error with %q", err, want)
		}
	}
}

func TestContradiction(t *testing.T) {
	member := func(name string, id int32, peer bool) *v1alpha1.MeshCluster {
		c := &v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MeshClusterSpec{ID: id}}
		if peer {
			c.Spec.KubeconfigSecretRef = &v1alpha1.SecretReference{Name: name}
		}
		return c
	}
	tests := map[string]struct {
		member *v1alpha1.MeshCluster
		want   string
	}{
		"itself":               {member("cluster1", 1, false), ""},
		"a peer":               {member("cluster2", 2, true), ""},
		"itself, another ID":   {member("cluster1", 7, false), "has the ID 7"},
		"itself as a peer":     {member("cluster1", 1, true), "is a peer"},
		"itself, another name": {member("cluster9", 1, false), `called "cluster9"`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := Contradiction(test.member, "cluster1", 1)
			if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
				t.Errorf("Contradiction() = %q, want %q in it", got, test.want)
			}
		})
	}
}

func TestCiliumAnnotations(t *testing.T) {
	mesh := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: policy.CiliumMesh.Namespace, Name: policy.CiliumMesh.Name}}
	for name, test := range map[string]struct {
		mode    string
		objects []runtime.Object
		want    bool
	}{
		"auto without Cilium's mesh": {"auto", nil, true},
		"auto with it":               {"auto", []runtime.Object{mesh}, false},
		"on with it":                 {"on", []runtime.Object{mesh}, true},
		"off without it":             {"off", nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ciliumAnnotations(t.Context(), test.mode, fake.NewClientset(test.objects...))
			if err != nil || got != test.want {
				t.Errorf("got %v (%v), want %v", got, err, test.want)
			}
		})
	}
}

func TestChangeHasToLast(t *testing.T) {
	began := time.Unix(1_000_000, 0)
	c := change{lasts: ciliumFor}
	for _, step := range []struct {
		after   time.Duration
		changed bool
		want    bool
	}{
		{0, false, false},
		{time.Minute, true, false}, // an upgrade begins
		{2 * time.Minute, true, false},
		{3 * time.Minute, false, false}, // and is over
		{4 * time.Minute, true, false},
		{8 * time.Minute, true, false},
		{9 * time.Minute, true, true},
	} {
		if got := c.seen(began.Add(step.after), step.changed); got != step.want {
			t.Errorf("after %v: %v, want %v", step.after, got, step.want)
		}
	}
}

func TestTrustFollowsTheAuthority(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	defer server.Close()
	right := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})

	trust := &trust{base: &rest.Config{Host: server.URL}, known: make(chan struct{})}
	client := &http.Client{Transport: trust}
	get := func() error {
		request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Do(request)
		if err == nil {
			_ = answer.Body.Close()
		}
		return err
	}
	if err := get(); err == nil || !strings.Contains(err.Error(), "not known yet") {
		t.Errorf("without an authority: %v", err)
	}
	trust.set(klog.Background(), nil)
	trust.set(klog.Background(), selfSigned(t))
	select {
	case <-trust.known:
	default:
		t.Error("the first authority is not reported")
	}
	if err := get(); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("with another authority: %v", err)
	}
	trust.set(klog.Background(), right)
	if err := get(); err != nil {
		t.Errorf("with the right authority: %v", err)
	}
	trust.set(klog.Background(), []byte("nonsense"))
	if err := get(); err != nil {
		t.Errorf("after an authority that cannot be read: %v", err)
	}
}

// selfSigned is the certificate of an authority that signed nothing here.
func selfSigned(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
