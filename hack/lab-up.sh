#!/usr/bin/env bash
# Starts the lab, installs the mesh in each of its clusters and connects each to
# every other. The arguments go to `lab up`. A second call brings up what is missing.
# MESH_LAB_STATE_DIR, MESH_LAB_PORT and MESH_LAB_KUBECONFIG make it another lab than the
# default one.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export PATH="$root/_output/bin:$PATH"
export KUBECONFIG="${MESH_LAB_KUBECONFIG:-$root/_output/lab/kubeconfig}"

say() { printf '%5d s  %s\n' "$SECONDS" "$*"; }
quiet() {
	local out
	out=$("$@" 2>&1) || {
		echo "$out" >&2
		echo "failed: $*" >&2
		return 1
	}
}

lab up --state-dir "${MESH_LAB_STATE_DIR:-/run/mesh-lab}" --port "${MESH_LAB_PORT:-17441}" --kubeconfig "$KUBECONFIG" "$@"
mapfile -t clusters < <(kubectl config get-contexts -o name)

id=0
for cluster in "${clusters[@]}"; do
	id=$((id + 1))
	say "installing the mesh in $cluster"
	quiet meshctl install --context "$cluster" --cluster-name "$cluster" --cluster-id $id
done
say "connecting the clusters"
for ((i = 0; i < ${#clusters[@]}; i++)); do
	for ((j = i + 1; j < ${#clusters[@]}; j++)); do
		quiet meshctl connect --context "${clusters[i]}" --destination-context "${clusters[j]}"
	done
done
say "the mesh is up: ${clusters[*]}"
cat <<NEXT

Use it from any shell:
  export KUBECONFIG=$KUBECONFIG PATH=$root/_output/bin:\$PATH
  meshctl status --contexts $(IFS=, && echo "${clusters[*]}")
  kubectl --context ${clusters[0]} get globalservices -A
The tutorial is docs/tutorial.md. To remove everything: make lab-down
NEXT
