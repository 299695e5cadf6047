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

// Package fuzzer fills the hub types with random values that a version can hold.
package fuzzer

import (
	runtimeserializer "k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/randfill"

	corev1 "k8s.io/api/core/v1"

	"mesh.io/clustermesh/pkg/apis/mesh"
)

// Funcs fill what has a default with something, because an empty value does not
// survive being read.
func Funcs(runtimeserializer.CodecFactory) []any {
	return []any{
		func(ref *mesh.SecretReference, fill randfill.Continue) {
			fill.FillNoCustom(ref)
			if ref.Key == "" {
				ref.Key = "key"
			}
		},
		func(record *mesh.ServiceRecord, fill randfill.Continue) {
			fill.FillNoCustom(record)
			if record.Type == "" {
				record.Type = mesh.ServiceTypeHeadless
			}
			if record.SessionAffinity == "" {
				record.SessionAffinity = corev1.ServiceAffinityClientIP
			}
		},
		func(port *mesh.ServicePort, fill randfill.Continue) {
			fill.FillNoCustom(port)
			if port.Protocol == "" {
				port.Protocol = corev1.ProtocolUDP
			}
		},
		func(port *mesh.EndpointPort, fill randfill.Continue) {
			fill.FillNoCustom(port)
			if port.Protocol == "" {
				port.Protocol = corev1.ProtocolUDP
			}
		},
	}
}
