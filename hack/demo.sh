#!/usr/bin/env bash
# Starts the lab with bare clusters, walks the tutorial, which installs the mesh and removes
# it again, and removes the lab. KEEP=1 leaves the bare clusters up.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bin="$root/_output/bin"

go build -o "$bin/" ./test/e2e/cmd/demo
cleanup() {
	if [ "${KEEP:-}" = 1 ]; then
		echo
		echo "The lab is left up. Go on with:"
		echo "  export KUBECONFIG=$root/_output/lab/kubeconfig PATH=$bin:\$PATH"
		echo "  kubectl --context cluster1 get nodes"
		echo "and remove it with: make lab-down"
	else
		echo "removing the lab"
		"$bin/lab" down
	fi
}
# Start from nothing: what an earlier walk left would be in its way.
"$bin/lab" down >/dev/null
trap cleanup EXIT
"$bin/lab" up --clusters 2 --nodes 2
"$bin/demo" --bin-dir "$bin" --kubeconfig "$root/_output/lab/kubeconfig"
