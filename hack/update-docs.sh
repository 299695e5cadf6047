#!/usr/bin/env bash
# Writes the reference of meshctl's commands from the commands themselves.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# In one piece: a program that does not build must not leave an empty file.
text=$(CGO_ENABLED=0 go run ./hack/docs)
printf '%s\n' "$text" >docs/meshctl.md
