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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"

	"mesh.io/clustermesh/pkg/apis/mesh/install"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

var (
	// scheme knows the types that the server serves.
	scheme = newScheme()
	// codecs read and write them.
	codecs = serializer.NewCodecFactory(scheme)
)

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	install.Install(s)
	// What every API server answers with belongs to no group: options of requests,
	// statuses, discovery documents.
	core := schema.GroupVersion{Version: "v1"}
	metav1.AddToGroupVersion(s, core)
	s.AddUnversionedTypes(core,
		&metav1.Status{},
		&metav1.APIVersions{},
		&metav1.APIGroupList{},
		&metav1.APIGroup{},
		&metav1.APIResourceList{},
	)
	return s
}

// storageCodec writes protobuf, as the newest version of the API, and reads whatever
// has been written.
func storageCodec() runtime.Codec {
	info, ok := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !ok {
		panic("apiserver: the serializers lack protobuf")
	}
	return runtime.NewCodec(
		codecs.EncoderForVersion(info.Serializer, v1alpha1.SchemeGroupVersion),
		codecs.DecoderToVersion(codecs.UniversalDeserializer(), runtime.InternalGroupVersioner),
	)
}
