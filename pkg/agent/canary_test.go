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
)

// The test of the real node has the other half: there it succeeds.
func TestCanaryFailsWhereNothingIsBalanced(t *testing.T) {
	err := connectCanary()
	if err == nil || !strings.Contains(err.Error(), "over IPv4 was not balanced") || !strings.Contains(err.Error(), "over an IPv4-mapped address was not balanced") {
		t.Errorf("without programs: %v", err)
	}
}
