#!/usr/bin/env bash
# Renders artifacts/manifests, for those who install with kubectl, from the chart.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CGO_ENABLED=0
go run ./hack/chart manifests artifacts/manifests
