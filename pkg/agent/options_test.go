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
	"errors"
	"strings"
	"testing"

	"k8s.io/klog/v2/ktesting"

	"mesh.io/clustermesh/pkg/agent/datapath"
)

// What was done about sockets is logged each time, what cannot be done once.
func TestSweepsAreLogged(t *testing.T) {
	logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true), ktesting.Verbosity(2)))
	log := logSweeps(logger)
	refused := errors.New("refused")
	for _, sweep := range []datapath.StaleSweep{
		{},
		{Found: 2, Destroyed: 2},
		{Found: 1, Failed: 1, Err: refused},
		{Found: 3, Destroyed: 2, Failed: 1, Err: refused},
		{Found: 1, Failed: 1, Err: errors.New("something else")},
	} {
		log(sweep)
	}
	text := logger.GetSink().(ktesting.Underlier).GetBuffer().String()
	for part, times := range map[string]int{"Destroyed UDP sockets": 2, "may stay connected": 2, `"refused"`: 1, `"something else"`: 1} {
		if n := strings.Count(text, part); n != times {
			t.Errorf("%s is logged %d times, want %d:\n%s", part, n, times, text)
		}
	}
	if lines := strings.Count(text, "\n"); lines != 4 {
		t.Errorf("there are %d lines, want 4:\n%s", lines, text)
	}
}
