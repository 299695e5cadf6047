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

package datapath

// fault is called between any two writes that the kernel or the next process can see,
// with the name of the one that comes next, and from the wait for lookups. Only tests
// of this package set it, to die there or to look around: the order of the writes is
// the promise of this package. Unset it costs a comparison.
var fault func(next string)

func reach(next string) {
	if fault != nil {
		fault(next)
	}
}
