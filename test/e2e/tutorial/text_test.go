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

package tutorial

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	got := parse("# T\n```\nnot here\n```\n## 1. One\ntext\n```\na \\\n  b\nc\n```\nmore\n```\n$ d \\\n    e\nanswer\n$ f\nanswer\n```\n## Not numbered\n```\nx\n```\n## 2. Two\n")
	want := map[int]section{
		1: {title: "One", blocks: []string{"a \\\n  b\nc\n", "d \\\n    e\nf\n"}},
		2: {title: "Two"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(section{})); diff != "" {
		t.Error(diff)
	}
}
