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

package trace

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// restless are the kinds that come and go by themselves.
var restless = []string{"events", "leases", "componentstatuses"}

// takeAPI adds every kind that the API has, and every object of each.
func (p Picture) takeAPI(ctx context.Context, config *rest.Config) error {
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return err
	}
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	// What was found is good even if a group's server does not answer.
	lists, err := client.ServerPreferredResources()
	if failed, ok := discovery.GroupDiscoveryFailedErrorGroups(err); ok {
		for group := range failed {
			p["API group "+group.String()] = "does not answer"
		}
	} else if err != nil {
		return err
	}
	for _, list := range lists {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return err
		}
		for _, kind := range list.APIResources {
			resource := version.WithResource(kind.Name)
			p["kind "+resource.GroupResource().String()] = ""
			if !slices.Contains(kind.Verbs, "list") || slices.Contains(restless, kind.Name) {
				continue
			}
			found, err := objects.Resource(resource).List(ctx, metav1.ListOptions{})
			if errors.IsNotFound(err) || errors.IsMethodNotSupported(err) || errors.IsServiceUnavailable(err) {
				p["kind "+resource.GroupResource().String()] = "cannot be listed"
				continue
			}
			if err != nil {
				return fmt.Errorf("listing %s: %w", resource.GroupResource(), err)
			}
			for i := range found.Items {
				if err := p.addObject(resource.GroupResource(), &found.Items[i]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// addObject adds an object without what the system writes into it all the time. Its UID
// stays: an object that was made anew is not the one that was there.
func (p Picture) addObject(kind schema.GroupResource, o *unstructured.Unstructured) error {
	name := kind.String() + " " + o.GetName()
	if o.GetNamespace() != "" {
		name = kind.String() + " " + o.GetNamespace() + "/" + o.GetName()
	}
	unstructured.RemoveNestedField(o.Object, "status")
	for _, field := range []string{"resourceVersion", "managedFields", "generation"} {
		unstructured.RemoveNestedField(o.Object, "metadata", field)
	}
	content, err := json.Marshal(o.Object)
	if err != nil {
		return fmt.Errorf("writing down %s: %w", name, err)
	}
	p[name] = string(content)
	return nil
}
