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

package agent

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// The test of the real node has the other half: there it succeeds.
func TestCanaryFailsWhereNothingIsBalanced(t *testing.T) {
	err := connectCanary()
	if err == nil || !strings.Contains(err.Error(), "over IPv4 was not balanced") || !strings.Contains(err.Error(), "over an IPv4-mapped address was not balanced") {
		t.Errorf("without programs: %v", err)
	}
}

func TestUntaint(t *testing.T) {
	taint := func(key string) corev1.Taint { return corev1.Taint{Key: key} }
	for want, taints := range map[string][]corev1.Taint{
		`null`: {taint("other")},
		`[{"op":"test","path":"/spec/taints/1/key","value":"ours"},{"op":"remove","path":"/spec/taints/1"}]`: {taint("other"), taint("ours"), taint("last")},
		`[{"op":"test","path":"/spec/taints/1/key","value":"ours"},{"op":"remove","path":"/spec/taints/1"},` +
			`{"op":"test","path":"/spec/taints/0/key","value":"ours"},{"op":"remove","path":"/spec/taints/0"}]`: {taint("ours"), taint("ours")},
	} {
		if got := string(untaint(taints, "ours")); got != want {
			t.Errorf("%v: %s, want %s", taints, got, want)
		}
	}
}
