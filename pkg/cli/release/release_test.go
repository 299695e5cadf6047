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

package release

import (
	"reflect"
	"testing"
	"time"

	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/release/common"
	releasev1 "helm.sh/helm/v4/pkg/release/v1"
)

func TestNext(t *testing.T) {
	c, err := Chart("v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	newer, err := Chart("v1.2.4")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	values := map[string]any{"cluster": map[string]any{"id": 1}}
	record := func(status common.Status, age time.Duration) *Release {
		return &Release{Chart: c, Config: map[string]any{"cluster": map[string]any{"id": float64(1)}}, Info: &releasev1.Info{Status: status, LastDeployed: now.Add(-age)}}
	}
	old := record(common.StatusDeployed, time.Hour)
	old.Chart = newer
	other := record(common.StatusDeployed, time.Hour)
	other.Config = map[string]any{}
	for name, c := range map[string]struct {
		last *Release
		want Step
	}{
		"nothing is there":             {nil, StepInstall},
		"the same":                     {record(common.StatusDeployed, time.Hour), StepNothing},
		"another version":              {old, StepUpgrade},
		"other values":                 {other, StepUpgrade},
		"the last one failed":          {record(common.StatusFailed, time.Hour), StepUpgrade},
		"somebody is at work":          {record(common.StatusPendingInstall, time.Second), StepWait},
		"somebody was killed at it":    {record(common.StatusPendingUpgrade, time.Minute), StepRecover},
		"an uninstall was killed":      {record(common.StatusUninstalling, time.Minute), StepLeave},
		"uninstalled with its history": {record(common.StatusUninstalled, time.Minute), StepInstall},
	} {
		if got := Next(now, c.last, mustChart(t), values); got != c.want {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
}

func mustChart(t *testing.T) (c *chartv2.Chart) {
	t.Helper()
	c, err := Chart("v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestValuesAndChanges(t *testing.T) {
	values, err := Values(nil, nil, []string{"a.b=1", "c=x"})
	if err != nil {
		t.Fatal(err)
	}
	got := Changes(map[string]any{"c": "y", "d": true}, values)
	want := []string{`- change c from "y" to "x"`, `- leave d to the chart`, `- set a.b to 1`}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
