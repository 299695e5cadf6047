#!/usr/bin/env bash
# Builds the programs for each platform, and packs them as OCI archives with their bills
# of materials in _output/images. The same commit gives the same bytes.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CGO_ENABLED=0 GOOS=linux
version=${VERSION:-$(git describe --tags --always --dirty)}
commit=$(git rev-parse HEAD)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
out=_output/images
mkdir -p "$out"
binaries=$(mktemp -d)
trap 'rm -rf "$binaries"' EXIT
for arch in amd64 arm64; do
	mkdir "$binaries/linux-$arch"
	GOARCH=$arch go build -trimpath -buildvcs=false -ldflags "-s -w -X mesh.io/clustermesh/pkg/version.version=$version" \
		-o "$binaries/linux-$arch/" ./cmd/...
done
go run ./hack/images -version "$version" -revision "$commit" "$binaries" "$out"
ls -l "$out"
