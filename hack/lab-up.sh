#!/usr/bin/env bash
# Starts the lab, installs the mesh in each of its clusters and connects each to
# every other. The arguments go to `lab up`. A second call brings up what is missing.
# MESH_LAB_STATE_DIR, MESH_LAB_PORT and MESH_LAB_KUBECONFIG make it another lab than the
# default one.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export PATH="$root/_output/bin:$PATH"
export KUBECONFIG="${MESH_LAB_KUBECONFIG:-$root/_output/lab/kubeconfig}" CGO_ENABLED=0
state_dir=${MESH_LAB_STATE_DIR:-/run/mesh-lab}
namespace=mesh-system

say() { printf '%5d s  %s\n' "$SECONDS" "$*"; }
quiet() {
	local out
	out=$("$@" 2>&1) || {
		echo "$out" >&2
		echo "failed: $*" >&2
		return 1
	}
}
# until_true WHAT COMMAND...: repeats a command for up to two minutes.
until_true() {
	local what=$1 end=$((SECONDS + 120)) out
	shift
	until out=$("$@" 2>&1); do
		if [ "$SECONDS" -ge "$end" ]; then
			echo "$out" >&2
			echo "not within two minutes: $what" >&2
			return 1
		fi
		sleep 0.2
	done
}

go build -o "$root/_output/tools/chart" ./hack/chart
lab up --state-dir "$state_dir" --port "${MESH_LAB_PORT:-17441}" --kubeconfig "$KUBECONFIG" "$@"
mapfile -t clusters < <(kubectl config get-contexts -o name)

install() {
	local cluster=$1 id=$2
	_output/tools/chart render -f artifacts/lab/values.yaml -s "cluster.name=$cluster" -s "cluster.id=$id" |
		quiet kubectl --context "$cluster" apply -f -
}

wait_installed() {
	local k=(kubectl --context "$1")
	quiet "${k[@]}" -n $namespace rollout status --timeout 120s statefulset/mesh-apiserver
	until_true "the API group mesh.io is available in $1" "${k[@]}" wait --for=condition=Available apiservice/v1alpha1.mesh.io --timeout 1s
	quiet "${k[@]}" -n $namespace rollout status --timeout 120s deploy/mesh-controller
	quiet "${k[@]}" -n $namespace rollout status --timeout 120s ds/mesh-agent
}

say "installing the mesh in ${clusters[*]}"
id=0
for cluster in "${clusters[@]}"; do
	install "$cluster" $((++id))
done
say "waiting for its programs"
for cluster in "${clusters[@]}"; do
	wait_installed "$cluster"
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
  kubectl --context ${clusters[0]} get meshclusters
  kubectl --context ${clusters[0]} get globalservices -A
The tutorial is in README.md. To remove everything: make lab-down
NEXT
