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

package install

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/apitesting/roundtrip"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	"k8s.io/apimachinery/pkg/runtime"

	meshfuzzer "mesh.io/clustermesh/pkg/apis/mesh/fuzzer"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

// TestRoundTrip proves that no field is lost between the hub and the wire, in JSON,
// YAML, CBOR and protobuf.
func TestRoundTrip(t *testing.T) {
	scheme := runtime.NewScheme()
	Install(scheme)
	roundtrip.RoundTripTestForScheme(t, scheme, fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, meshfuzzer.Funcs))
	roundtrip.RoundTripProtobufTestForScheme(t, scheme, fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, meshfuzzer.Funcs))
}

func TestDefaults(t *testing.T) {
	scheme := runtime.NewScheme()
	Install(scheme)
	tests := []struct {
		name       string
		have, want runtime.Object
	}{{
		"a GlobalService is left as it is: what is absent is decided elsewhere",
		&v1alpha1.GlobalService{Spec: v1alpha1.GlobalServiceSpec{Clusters: []v1alpha1.ClusterPolicy{{Name: "a"}}}},
		&v1alpha1.GlobalService{Spec: v1alpha1.GlobalServiceSpec{Clusters: []v1alpha1.ClusterPolicy{{Name: "a"}}}},
	}, {
		"a peer's kubeconfig has its usual entry",
		&v1alpha1.MeshCluster{Spec: v1alpha1.MeshClusterSpec{KubeconfigSecretRef: &v1alpha1.SecretReference{Name: "a"}}},
		&v1alpha1.MeshCluster{Spec: v1alpha1.MeshClusterSpec{KubeconfigSecretRef: &v1alpha1.SecretReference{Name: "a", Key: "kubeconfig"}}},
	}, {
		"a Service is what Kubernetes assumes",
		&v1alpha1.ExportedService{Spec: v1alpha1.ServiceRecord{Ports: []v1alpha1.ServicePort{{Port: 80}}}},
		&v1alpha1.ExportedService{Spec: v1alpha1.ServiceRecord{
			Type: v1alpha1.ServiceTypeClusterIP, SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []v1alpha1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
		}},
	}, {
		"what is set stays",
		&v1alpha1.ImportedEndpointSlice{Spec: v1alpha1.SliceRecord{Ports: []v1alpha1.EndpointPort{{Port: 53, Protocol: corev1.ProtocolUDP}, {Port: 53}}}},
		&v1alpha1.ImportedEndpointSlice{Spec: v1alpha1.SliceRecord{Ports: []v1alpha1.EndpointPort{{Port: 53, Protocol: corev1.ProtocolUDP}, {Port: 53, Protocol: corev1.ProtocolTCP}}}},
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			scheme.Default(test.have)
			if diff := cmp.Diff(test.want, test.have); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
