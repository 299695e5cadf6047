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
	"k8s.io/apimachinery/pkg/util/sets"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

// secretResources have credentials in their requests or answers.
var secretResources = sets.New("peertokens", "joinrequests")

// withoutSecrets is an audit policy that never asks for the content of what holds
// credentials, whatever else it asks for: that they were used is told, and by whom.
type withoutSecrets struct{ audit.PolicyRuleEvaluator }

func (w withoutSecrets) EvaluatePolicyRule(attributes authorizer.Attributes) audit.RequestAuditConfig {
	config := w.PolicyRuleEvaluator.EvaluatePolicyRule(attributes)
	if attributes.GetAPIGroup() == v1alpha1.GroupName && secretResources.Has(attributes.GetResource()) &&
		auditinternal.LevelMetadata.Less(config.Level) {
		config.Level = auditinternal.LevelMetadata
	}
	return config
}
