#!/usr/bin/env bash

# Copyright The clustermesh Authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

# Breaks the order in which the data path's maps are written, in one way after the
# other, and proves that the tests notice each: those of TestBrokenOrdersAreNoticed in
# pkg/agent/datapath/breakage_test.go. The checkout stays as it is: the changed sources
# are for the compilers alone. Needs root, and clang-14 for what is changed in bpf/.
#
# Usage: hack/break-update-order.sh [part of a breakage's name]

set -o errexit -o nounset -o pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "${root}"
if [ "$(id -u)" != 0 ]; then
	echo "this needs root: the data path is tested in the kernel" >&2
	exit 1
fi
export CGO_ENABLED=0 MESH_REQUIRE_ROOT=1 MESH_TEST_BREAKAGES=1
go test -count 1 -v -timeout 60m -run "^TestBrokenOrdersAreNoticed\$/${1:-}" ./pkg/agent/datapath
