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

// +k8s:deepcopy-gen=package
// +k8s:openapi-gen=true
// +k8s:conversion-gen=mesh.io/clustermesh/pkg/apis/mesh
// +k8s:defaulter-gen=TypeMeta
// +k8s:validation-gen=TypesWithField=TypeMeta
// +k8s:openapi-model-package=io.mesh.clustermesh.pkg.apis.mesh.v1alpha1
// +k8s:protobuf-gen=package
// +groupName=mesh.io

// Package v1alpha1 is version v1alpha1 of the API group mesh.io: Services that
// several Kubernetes clusters offer as one.
package v1alpha1
