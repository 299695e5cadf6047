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

package snapshot_test

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"

	"mesh.io/clustermesh/pkg/agent"
	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/agent/snapshot"
	"mesh.io/clustermesh/pkg/agent/source"
	meshfake "mesh.io/clustermesh/pkg/generated/clientset/versioned/fake"
)

// TestAnAgentWritesALargeSnapshotSeldom changes the state of an agent with more than
// 4 MiB of it.
func TestAnAgentWritesALargeSnapshotSeldom(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	state := source.NewState(source.Config{Cluster: "cluster1"})
	kube, mesh := fake.NewClientset(), meshfake.NewClientset()
	a := agent.New(agent.Config{
		Cluster: "cluster1", StateDir: folder, Kernel: agent.NewFakeKernel(), State: state,
		Local: source.NewLocal(state, kube, metadatafake.NewSimpleMetadataClient(scheme), "mesh-system", func() {}),
		Mesh:  source.NewMesh(state, mesh), MeshClient: mesh,
		Timing: agent.Timing{Save: time.Millisecond},
	})
	large := &desired.Slice{Cluster: "cluster2", Service: desired.Name{Namespace: "song", Name: "userlist"}, Object: "cluster2.large"}
	addr := netip.MustParseAddr("fd00:1234:5678:9abc:def0:1234:5678:9abc")
	for range 100_000 {
		large.Endpoints = append(large.Endpoints, desired.Endpoint{Addr: addr})
		addr = addr.Next()
	}
	state.SetImported(large)

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.Run(ctx)
	}()
	defer cancel()
	read := func() []byte {
		data, _ := os.ReadFile(filepath.Join(folder, snapshot.FileName))
		return data
	}
	var before []byte
	for deadline := time.Now().Add(20 * time.Second); len(before) == 0; time.Sleep(time.Millisecond) {
		if before = read(); time.Now().After(deadline) {
			t.Fatal("there is no snapshot")
		}
	}
	if len(before) <= 4<<20 {
		t.Fatalf("it has %d bytes: too few for this test", len(before))
	}

	small := &desired.Slice{Cluster: "cluster2", Service: large.Service, Object: "cluster2.small"}
	state.SetImported(small)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if !bytes.Equal(read(), before) {
			t.Fatal("it was written again for one small change")
		}
	}
	cancel()
	<-done
	if !bytes.Contains(read(), []byte(small.Object)) {
		t.Error("what has changed since was lost when the agent stopped")
	}
}
