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
	"context"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/admission"
	admissionmetrics "k8s.io/apiserver/pkg/admission/metrics"
	"k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle"
	validatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	mutatingwebhook "k8s.io/apiserver/pkg/admission/plugin/webhook/mutating"
	validatingwebhook "k8s.io/apiserver/pkg/admission/plugin/webhook/validating"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

// webhookResources are what people write. A webhook on the controller's objects
// would put somebody else's program into the way of every endpoint change.
var webhookResources = sets.New(v1alpha1.Resource("globalservices"), v1alpha1.Resource("meshclusters"))

func applyAdmission(config *genericapiserver.RecommendedConfig, client kubernetes.Interface) error {
	dynamicClient, err := dynamic.NewForConfig(config.ClientConfig)
	if err != nil {
		return err
	}
	plugins := admission.NewPlugins()
	lifecycle.Register(plugins)
	validatingpolicy.Register(plugins)
	mutatingwebhook.Register(plugins)
	validatingwebhook.Register(plugins)
	options := &genericoptions.AdmissionOptions{
		RecommendedPluginOrder: []string{lifecycle.PluginName, mutatingwebhook.PluginName, validatingpolicy.PluginName, validatingwebhook.PluginName},
		DefaultOffPlugins:      sets.New[string](),
		Plugins:                plugins,
		Decorators: admission.Decorators{
			admission.DecoratorFunc(limitWebhooks),
			admission.DecoratorFunc(admissionmetrics.WithControllerMetrics),
		},
	}
	return options.ApplyTo(&config.Config, config.SharedInformerFactory, client, dynamicClient, utilfeature.DefaultFeatureGate, config.EffectiveVersion)
}

func limitWebhooks(plugin admission.Interface, name string) admission.Interface {
	switch name {
	case mutatingwebhook.PluginName, validatingwebhook.PluginName:
		return limited{Interface: plugin, resources: webhookResources}
	}
	return plugin
}

// limited asks a plugin about some resources only.
type limited struct {
	admission.Interface
	resources sets.Set[schema.GroupResource]
}

func (l limited) Admit(ctx context.Context, attributes admission.Attributes, objects admission.ObjectInterfaces) error {
	if plugin, ok := l.Interface.(admission.MutationInterface); ok && l.resources.Has(attributes.GetResource().GroupResource()) {
		return plugin.Admit(ctx, attributes, objects)
	}
	return nil
}

func (l limited) Validate(ctx context.Context, attributes admission.Attributes, objects admission.ObjectInterfaces) error {
	if plugin, ok := l.Interface.(admission.ValidationInterface); ok && l.resources.Has(attributes.GetResource().GroupResource()) {
		return plugin.Validate(ctx, attributes, objects)
	}
	return nil
}
