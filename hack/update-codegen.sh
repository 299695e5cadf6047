#!/usr/bin/env bash
# Regenerates everything that is derived from the API types: deep copies, defaults,
# conversions, validations, protobuf, OpenAPI and clients.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

command -v protoc >/dev/null || {
	echo "protoc is missing: install the package protobuf-compiler" >&2
	exit 1
}

# The generators are built from the versions in go.mod, into a folder of the checkout.
export GOBIN="$root/_output/tools" CGO_ENABLED=0
export PATH="$GOBIN:$PATH"
# module_dir MODULE: where its source is. A module that nothing has needed yet is not
# there until it is downloaded.
module_dir() { go mod download "$1" && go list -m -f '{{.Dir}}' "$1"; }
codegen=$(module_dir k8s.io/code-generator)
header="$root/hack/boilerplate.go.txt"
module=mesh.io/clustermesh
api=pkg/apis/mesh/v1alpha1

# Protobuf first: the other generators read the types it tags.
generate_protobuf() {
	go install k8s.io/code-generator/cmd/go-to-protobuf k8s.io/code-generator/cmd/go-to-protobuf/protoc-gen-gogo golang.org/x/tools/cmd/goimports
	# protoc finds imports by import path: a tree of links gives each module its place.
	local tree
	tree=$(mktemp -d)
	link() { mkdir -p "$tree/$(dirname "$1")" && ln -s "$2" "$tree/$1"; }
	link k8s.io/api "$(module_dir k8s.io/api)"
	link k8s.io/apimachinery "$(module_dir k8s.io/apimachinery)"
	local gogo
	gogo=$(go mod download -json github.com/gogo/protobuf@v1.3.2 | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
	link github.com/gogo/protobuf "$gogo"
	# It brings protobuf's own definitions, which are in another package than protoc.
	link google/protobuf "$gogo/protobuf/google/protobuf"
	link "$module" "$root"
	local ready="-k8s.io/apimachinery/pkg/apis/meta/v1,-k8s.io/apimachinery/pkg/runtime,-k8s.io/apimachinery/pkg/runtime/schema,-k8s.io/apimachinery/pkg/util/intstr,-k8s.io/apimachinery/pkg/api/resource,-k8s.io/api/core/v1,-k8s.io/api/discovery/v1"
	echo "Generating protobuf code"
	go-to-protobuf --go-header-file "$header" --packages "$module/$api" \
		--apimachinery-packages "$ready" --proto-import "$tree" --output-dir "$tree"
	rm -rf "$tree"
}

# shellcheck disable=SC1091
source "$codegen/kube_codegen.sh"

generate_protobuf

# validation-gen 0.37 cannot resolve metav1's own validators outside Kubernetes
# (kubernetes/kubernetes#141765). With metav1 out of this list it accepts the fields
# that are marked opaque and asks nothing of their types.
readonly_packages=("${KUBE_CODEGEN_READONLY_PKGS[@]}")
KUBE_CODEGEN_READONLY_PKGS=(time)
kube::codegen::gen_helpers --boilerplate "$header" \
	--lint-rules known-tags-only,require-explicit-disablement pkg/apis
KUBE_CODEGEN_READONLY_PKGS=("${readonly_packages[@]}")

report=(--report-filename hack/openapi-violations.list)
[ "${UPDATE_VIOLATIONS:-}" = true ] && report+=(--update-report)
kube::codegen::gen_openapi --boilerplate "$header" \
	--output-dir pkg/generated/openapi --output-pkg "$module/pkg/generated/openapi" \
	--output-model-name-file zz_generated.model_name.go "${report[@]}" pkg/apis

# A file, not a pipe: it is read more than once, and the second time a pipe is empty.
schema=$(mktemp)
trap 'rm -f "$schema"' EXIT
go run ./pkg/generated/openapi/cmd/models-schema >"$schema"
kube::codegen::gen_client --boilerplate "$header" --with-watch --with-applyconfig \
	--applyconfig-openapi-schema "$schema" \
	--output-dir pkg/generated --output-pkg "$module/pkg/generated" --prefers-protobuf pkg/apis
