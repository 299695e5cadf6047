#!/usr/bin/env bash
# Proves that what is generated is current: regenerates it in a copy of the checkout
# and compares.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

cd "$root"
# What git knows, and what it doesn't yet but will: not what it ignores.
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
	[ -e "$file" ] && printf '%s\0' "$file"
done | tar --null -cf - -T - | tar -xf - -C "$copy"

"$copy/hack/update-codegen.sh" >"$copy/update.log" 2>&1 || { cat "$copy/update.log" >&2; exit 1; }
"$copy/hack/update-bpf.sh" >"$copy/update.log" 2>&1 || { cat "$copy/update.log" >&2; exit 1; }
"$copy/hack/update-docs.sh" >"$copy/update.log" 2>&1 || { cat "$copy/update.log" >&2; exit 1; }
"$copy/hack/update-manifests.sh" >"$copy/update.log" 2>&1 || { cat "$copy/update.log" >&2; exit 1; }
rm -rf "$copy/_output" "$copy/update.log"

if ! diff -Naur -x _output -x .git "$root" "$copy"; then
	echo "generated files are not current: run make generate and commit what changes" >&2
	exit 1
fi
echo "generated files are current"
