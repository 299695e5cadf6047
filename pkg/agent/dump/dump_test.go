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

package dump

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseReadyz(t *testing.T) {
	got := ParseReadyz("[+]local-services ok\n[-]mesh-api: not in sync yet: refused\n[+]left-to-kube-proxy ok: song/a (IPv6: no)\n")
	want := Agent{Checks: []Check{
		{Name: "local-services", OK: true},
		{Name: "mesh-api", Message: "not in sync yet: refused"},
		{Name: "left-to-kube-proxy", OK: true, Message: "song/a (IPv6: no)"},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !ParseReadyz("[+]table ok\n").Ready {
		t.Error("an agent without a problem is not ready")
	}
}
