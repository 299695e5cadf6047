#!/usr/bin/env bash
# Installs the Debian packages that the build, the lab and the tests need, and those that
# are given, where they are missing.
set -euo pipefail

packages=(clang-14 llvm-14 libbpf-dev protobuf-compiler nftables iptables iproute2 procps curl iperf3 "$@")
missing=()
for package in "${packages[@]}"; do
	dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ "${#missing[@]}" = 0 ] && exit
if [ "$(id -u)" != 0 ]; then
	echo "missing packages: ${missing[*]}: run this as root, or install them yourself" >&2
	exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
