#!/usr/bin/env bash
# Starts the lab, installs the mesh in each of its clusters and connects each to
# every other. The arguments go to `lab up`. A second call brings up what is missing.
# LAB_KUBECONFIG says where the kubeconfig of another lab than the usual one is.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export PATH="$root/_output/bin:$PATH"
export KUBECONFIG="${LAB_KUBECONFIG:-$root/_output/lab/kubeconfig}"
namespace=mesh-system
server_name=mesh-apiserver.$namespace.svc
peer_port=32443

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

lab up --kubeconfig "$KUBECONFIG" "$@"
mapfile -t clusters < <(kubectl config get-contexts -o name)

install() {
	local cluster=$1 id=$2
	local k=(kubectl --context "$cluster")
	quiet "${k[@]}" apply -f artifacts/manifests/namespace.yaml
	"${k[@]}" -n $namespace create configmap mesh-config --from-literal=cluster-name="$cluster" --from-literal=cluster-id="$id" \
		--dry-run=client -o yaml | quiet "${k[@]}" apply -f -
	quiet "${k[@]}" apply -k artifacts/lab
}

wait_installed() {
	local k=(kubectl --context "$1")
	quiet "${k[@]}" -n $namespace rollout status --timeout 120s statefulset/mesh-apiserver
	until_true "the API group mesh.io is available in $1" "${k[@]}" wait --for=condition=Available apiservice/v1alpha1.mesh.io --timeout 1s
	quiet "${k[@]}" -n $namespace rollout status --timeout 120s deploy/mesh-controller
	quiet "${k[@]}" -n $namespace rollout status --timeout 120s ds/mesh-agent
}

# connect FROM TO: FROM imports what TO exports.
connect() {
	local from=$1 to=$2 id=$3
	local token ca addresses kubeconfig
	token=$(kubectl --context "$to" -n $namespace create token mesh-peer --duration 8760h)
	ca=$(kubectl --context "$to" -n $namespace get configmap mesh-ca -o 'jsonpath={.data.ca\.crt}' | base64 -w0)
	addresses=$(kubectl --context "$to" get nodes -o 'jsonpath={.items[*].status.addresses[?(@.type=="InternalIP")].address}')
	# An entry for each node of the peer: the importer uses another when one is gone.
	kubeconfig=$(
		printf 'apiVersion: v1\nkind: Config\nusers:\n- name: peer\n  user:\n    token: %s\ncurrent-context: %s\n' "$token" "${addresses%% *}"
		echo clusters:
		for address in $addresses; do
			printf -- '- name: "%s"\n  cluster:\n    server: https://%s:%s\n    tls-server-name: %s\n    certificate-authority-data: %s\n' "$address" "$address" $peer_port $server_name "$ca"
		done
		echo contexts:
		for address in $addresses; do
			printf -- '- name: "%s"\n  context:\n    cluster: "%s"\n    user: peer\n' "$address" "$address"
		done
	)
	# The credentials go through a pipe: an argument could be read by everyone.
	kubectl --context "$from" -n $namespace create secret generic "mesh-peer-$to" --from-file=kubeconfig=/dev/stdin \
		--dry-run=client -o yaml <<<"$kubeconfig" | quiet kubectl --context "$from" apply -f -
	quiet kubectl --context "$from" apply -f - <<-MANIFEST
		apiVersion: mesh.io/v1alpha1
		kind: MeshCluster
		metadata:
		  name: $to
		spec:
		  id: $id
		  kubeconfigSecretRef:
		    name: mesh-peer-$to
	MANIFEST
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
for from in "${clusters[@]}"; do
	id=0
	for to in "${clusters[@]}"; do
		id=$((id + 1))
		[ "$from" = "$to" ] || connect "$from" "$to" "$id"
	done
done
for from in "${clusters[@]}"; do
	for to in "${clusters[@]}"; do
		[ "$from" = "$to" ] || until_true "$from is in sync with $to" \
			kubectl --context "$from" wait --for=condition=Synced "meshcluster/$to" --timeout 1s
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
