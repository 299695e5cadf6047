#!/usr/bin/env bash
# Measures, prints a table and writes _output/bench.json. The arguments go to the program:
# `hack/bench.sh --help` lists them. docs/benchmark.md says what the figures mean.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export CGO_ENABLED=0
bin="$root/_output/bin"
mkdir -p "$bin" _output/bench/bpf
go build -o "$bin/" ./test/bench/cmd/bench
go test -c -o "$bin/datapath.test" ./pkg/agent/datapath

# The agent to upgrade to: the same, but every program in the kernel is another one. Its
# objects are compiled to newer instructions.
MESH_BPF_CPU=v3 hack/update-bpf.sh _output/bench/bpf >/dev/null
{
	printf '{"Replace":{'
	comma=
	for object in _output/bench/bpf/*_bpfel.o; do
		printf '%s"%s/pkg/agent/datapath/%s":"%s/%s"' "$comma" "$root" "$(basename "$object")" "$root" "$object"
		comma=,
	done
	printf '}}'
} >_output/bench/overlay.json
go build -overlay _output/bench/overlay.json -o "$bin/mesh-agent-next" ./cmd/mesh-agent

exec "$bin/bench" --root "$root" --bin-dir "$bin" --output "$root/_output/bench.json" "$@"
