#!/usr/bin/env bash
# Measures what exists so far and writes _output/bench.json.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
go build -o _output/bin/ ./test/bench/cmd/bench
exec _output/bin/bench --root "$root" --bin-dir "$root/_output/bin" --output "$root/_output/bench.json" "$@"
