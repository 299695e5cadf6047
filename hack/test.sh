#!/usr/bin/env bash
# Runs every test. What needs root or the built programs fails where they are missing
# instead of being skipped: a green run means that all of it ran.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
if [ "$(id -u)" != 0 ]; then
	echo "make test needs root: the data path is tested in the kernel" >&2
	exit 1
fi
export MESH_REQUIRE_ROOT=1 MESH_REQUIRE_BINARIES=1 MESH_LAB_TESTS=1 MESH_BIN_DIR="$root/_output/bin"

# The lab and the end-to-end walk use machine-wide names, so they run by themselves.
mapfile -t packages < <(go list ./... | grep -v -e '/test/lab' -e '/test/e2e')
# Never from the cache: it does not know of the kernel.
go test -count 1 -p 2 -timeout 20m "${packages[@]}"
go test -p 1 -count 1 -timeout 20m ./test/lab/... ./test/e2e/...
