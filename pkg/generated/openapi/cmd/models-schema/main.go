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

// Command models-schema prints the group's OpenAPI v2 definitions. Code generation
// reads them to build the apply configurations.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"mesh.io/clustermesh/pkg/generated/openapi"
)

func main() {
	if err := print(); err != nil {
		fmt.Fprintln(os.Stderr, "printing the OpenAPI definitions:", err)
		os.Exit(1)
	}
}

func print() error {
	definitions := openapi.GetOpenAPIDefinitions(func(name string) spec.Ref {
		return spec.MustCreateRef("#/definitions/" + name)
	})
	schemas := make(map[string]spec.Schema, len(definitions))
	for name, definition := range definitions {
		// The type converter wants the v2 form where a definition has both.
		if v2, ok := definition.Schema.Extensions[common.ExtensionV2Schema]; ok {
			if schema, ok := v2.(spec.Schema); ok {
				schemas[name] = schema
				continue
			}
		}
		schemas[name] = definition.Schema
	}
	return json.NewEncoder(os.Stdout).Encode(spec.Swagger{SwaggerProps: spec.SwaggerProps{
		Swagger:     "2.0",
		Definitions: schemas,
		Info:        &spec.Info{InfoProps: spec.InfoProps{Title: "mesh.io", Version: "v1alpha1"}},
		Paths:       &spec.Paths{},
	}})
}
