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

# Compiles bpf/*.c and generates the Go side of it in pkg/agent/datapath. The objects
# are committed; clang is pinned, so that they are the same on every machine.
#
# Usage: hack/update-bpf.sh [output folder]
#
# MESH_BPF_CPU=v3 makes other instructions of the same sources: programs to upgrade to.

set -o errexit -o nounset -o pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
out="$(realpath "${1:-${root}/pkg/agent/datapath}")"

# bpf2go hides the path of the folder that it compiles from; this hides the rest.
flags=(
	"-mcpu=${MESH_BPF_CPU:-v2}" -std=gnu11 -Wall -Wextra -Werror
	"-ffile-prefix-map=${root}=."
	-idirafter "/usr/include/$(uname -m)-linux-gnu"
)

for program in clang-14 llvm-strip-14; do
	command -v "${program}" >/dev/null || {
		echo "${program} is missing: install the packages clang-14 and llvm-14" >&2
		exit 1
	}
done

generate() {
	local name="$1"
	shift
	go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -go-package datapath -output-dir "${out}" \
		-target bpfel "$@" "${name%_test}" "${root}/bpf/${name}.c" -- "${flags[@]}"
}

cd "${root}/bpf"
export CGO_ENABLED=0
# Layouts come from one object; the others would only repeat them.
generate connect -no-global-types -type vip_key -type service_entry -type backend_entry -type traffic_entry -type sock_entry \
	-type sent_entry -type sent_more_key -type sent_more_entry -type affinity_key -type affinity_entry \
	-type meta_entry -type service_name_entry -type cluster_name_entry -type counter
generate getpeername -no-global-types
generate sendmsg -no-global-types
generate recvmsg -no-global-types
generate sockops -no-global-types
generate stale -no-global-types -type stale_socket
generate noted -no-global-types -type noted_question
# For tests alone.
generate pick_test -no-global-types -output-suffix _test
