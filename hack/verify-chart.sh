#!/usr/bin/env bash
# Proves that the chart passes helm lint --strict and renders, with each file of values
# in artifacts/chart/ci, and that the manifests are what it renders.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CGO_ENABLED=0
go run ./hack/chart lint artifacts/chart artifacts/chart/ci/*.yaml
rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT
go run ./hack/chart manifests "$rendered"
diff -Naur artifacts/manifests "$rendered" || {
	echo "artifacts/manifests is not current: run hack/update-manifests.sh and commit what changes" >&2
	exit 1
}
echo "the chart and the manifests are in order"
