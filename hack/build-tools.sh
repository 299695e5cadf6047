#!/usr/bin/env bash
# Builds the programs that the lab, the tests and the linter run into _output/bin,
# each from the version that its go.mod pins. A program that is there already and
# was built from the same go.mod is left alone.
#
#   hack/build-tools.sh          what the lab and the tests need
#   hack/build-tools.sh lint     golangci-lint
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin="$root/_output/bin"
mkdir -p "$bin"
export CGO_ENABLED=0 GOBIN=

# build MODULE_DIR OUTPUT PACKAGE [LDFLAGS]
build() {
	local dir="$root/$1" output="$bin/$2" package=$3 ldflags=${4:-} stamp
	stamp="$bin/.$2.stamp"
	local want
	want=$(cat "$dir/go.mod" "$dir/go.sum" | sha256sum; echo "$package $ldflags")
	if [ -x "$output" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
		return
	fi
	local start=$SECONDS
	printf 'building %s ... ' "$2"
	(cd "$dir" && go build -o "$output.new" -ldflags "$ldflags" "$package")
	mv "$output.new" "$output"
	printf '%s' "$want" >"$stamp"
	echo "done in $((SECONDS - start)) s"
}

if [ "${1:-}" = lint ]; then
	build hack/tools/lint golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	exit
fi

version=$(cd "$root/hack/tools" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
minor=${minor%%.*}
# Without these the programs call themselves v0.0.0 and refuse to talk to each other.
stamp="-X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$minor -X k8s.io/client-go/pkg/version.gitVersion=$version"

for program in kube-apiserver kubectl kube-controller-manager kube-scheduler kubelet kube-proxy; do
	build hack/tools "$program" "k8s.io/kubernetes/cmd/$program" "$stamp"
done
build hack/tools etcd go.etcd.io/etcd/server/v3
build hack/tools/coredns coredns .
