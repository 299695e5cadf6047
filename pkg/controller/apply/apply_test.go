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

package apply

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestReplacedOrChanged(t *testing.T) {
	object := func(uid types.UID, generation int64) *metav1.ObjectMeta {
		return &metav1.ObjectMeta{UID: uid, Generation: generation}
	}
	if ReplacedOrChanged(object("a", 1), object("a", 1)) || !ReplacedOrChanged(object("a", 1), object("a", 2)) || !ReplacedOrChanged(object("a", 1), object("b", 1)) {
		t.Error("an object has changed with its generation or its UID")
	}
}
