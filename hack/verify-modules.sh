#!/usr/bin/env bash
# Proves that every go.mod and go.sum is tidy.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
status=0
for dir in . hack/tools hack/tools/coredns; do
	(cd "$dir" && go mod tidy -diff >/dev/null) || {
		echo "$dir/go.mod is not tidy: run go mod tidy there" >&2
		status=1
	}
done
[ "$status" = 0 ] && echo "modules are tidy"
exit "$status"
