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

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// What holds where a field that may be absent is absent. GlobalService and
// MeshCluster are not filled in with these: an absent field means "not set here",
// and the next source of policy decides.
const (
	// DefaultWeight is the weight of a backend.
	DefaultWeight int32 = 100
	// DefaultPriority is the priority of a cluster.
	DefaultPriority int32 = 0
	// DefaultImportServices, DefaultImportSlices, DefaultImportEndpoints and
	// DefaultImportNamespaces bound what is imported from one peer.
	DefaultImportServices   int32 = 10000
	DefaultImportSlices     int32 = 20000
	DefaultImportEndpoints  int32 = 100000
	DefaultImportNamespaces int32 = 1000
	// DefaultSecretKey is the entry of a Secret that holds a kubeconfig.
	DefaultSecretKey = "kubeconfig"
)

func addDefaultingFuncs(scheme *runtime.Scheme) error { return RegisterDefaults(scheme) }

// SetDefaults_SecretReference names the usual entry of the Secret.
func SetDefaults_SecretReference(obj *SecretReference) {
	if obj.Key == "" {
		obj.Key = DefaultSecretKey
	}
}

// SetDefaults_ServiceRecord sets what Kubernetes sets for a Service.
func SetDefaults_ServiceRecord(obj *ServiceRecord) {
	if obj.Type == "" {
		obj.Type = ServiceTypeClusterIP
	}
	if obj.SessionAffinity == "" {
		obj.SessionAffinity = corev1.ServiceAffinityNone
	}
}

// SetDefaults_ServicePort sets the protocol that Kubernetes assumes.
func SetDefaults_ServicePort(obj *ServicePort) {
	if obj.Protocol == "" {
		obj.Protocol = corev1.ProtocolTCP
	}
}

// SetDefaults_EndpointPort sets the protocol that Kubernetes assumes.
func SetDefaults_EndpointPort(obj *EndpointPort) {
	if obj.Protocol == "" {
		obj.Protocol = corev1.ProtocolTCP
	}
}
