#!/usr/bin/env bash
# Runs the tests of the data path on other kernels than this machine's: each is booted in
# a virtual machine that ends with its tests. Needs qemu and, to be quick, /dev/kvm; not root.
#
# Usage: hack/test-kernel.sh [KERNEL...]
#
# A KERNEL is a Debian suite, whose cloud kernel is downloaded; or a file: a Debian
# package of a kernel, or a bzImage. By default those of bullseye (5.10), bookworm (6.1) and
# trixie (6.12). Nothing is installed or left behind.
#
#   MESH_KERNEL_RUN      only tests that match this regular expression
#   MESH_KERNEL_TIMEOUT  seconds that a kernel may take (1800)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
export CGO_ENABLED=0
# Packages with tests that ask the kernel of them.
packages=(./pkg/agent/datapath)
# Those that need the compilers, or take long and ask nothing of the kernel that others do not.
skip='^(TestBrokenOrdersAreNoticed|TestKilledAtEveryStep.*)$'
# What a node has loaded by the time that an agent runs, or loads when that asks for it.
modules='udp_diag|tcp_diag|inet_diag|veth|dummy|nf_tables|nfnetlink|libcrc32c|crc32c_generic'
# How much of a soak is enough to see a kernel that does not keep the promise.
updates=${MESH_SOAK_UPDATES:-5000}
timeout=${MESH_KERNEL_TIMEOUT:-1800}
[ $# -gt 0 ] || set -- bullseye bookworm trixie

missing=()
for program in qemu-system-x86_64 cpio dpkg-deb xz; do
	command -v "$program" >/dev/null || missing+=("$program")
done
if [ "${#missing[@]}" -gt 0 ]; then
	echo "missing: ${missing[*]} (Debian: apt-get install --no-install-recommends qemu-system-x86 cpio xz-utils)" >&2
	exit 1
fi

work=$(mktemp -d)
machine=
trap '[ -z "$machine" ] || kill "$machine" 2>/dev/null || true; rm -rf "$work"' EXIT

# download SUITE puts the package of the suite's kernel into the folder that it prints.
download() {
	local apt=$work/apt-$1 keys=/usr/share/keyrings/debian-archive-keyring.gpg
	mkdir -p "$apt"/{lists/partial,archives/partial,package}
	chmod -R a+rX "$work"
	cat >"$apt/sources.list" <<-END
		deb [signed-by=$keys] http://deb.debian.org/debian $1 main
		deb [signed-by=$keys] http://deb.debian.org/debian-security $1-security main
	END
	# Nothing of this machine's lists is read or written.
	local options=(-qq -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$apt/lists"
		-o "Dir::Cache=$apt" -o APT::Sandbox::User=root -o Acquire::Languages=none)
	apt-get "${options[@]}" update
	local package
	package=$(apt-cache "${options[@]}" depends linux-image-cloud-amd64 | awk '/Depends:/ {print $2; exit}')
	(cd "$apt/package" && apt-get "${options[@]}" download "$package")
	echo "$apt/package"
}

# prepare KERNEL unpacks what it names: vmlinuz and modules/ in a folder, which it prints.
prepare() {
	local file=$1 folder
	if [ ! -e "$1" ]; then
		file=$(echo "$(download "$1")"/*.deb)
	fi
	folder=$(mktemp -d -p "$work")
	mkdir "$folder/modules"
	if [[ $file == *.deb ]]; then
		dpkg-deb -x "$file" "$folder/package"
		cp "$folder"/package/boot/vmlinuz-* "$folder/vmlinuz"
		find "$folder/package" -type f -regextype posix-extended -regex ".*/($modules)\.ko(\.xz)?" -exec cp -t "$folder/modules" {} +
		rm -rf "$folder/package"
		find "$folder/modules" -name '*.xz' -exec xz -d {} +
	else
		cp "$file" "$folder/vmlinuz"
	fi
	echo "$folder"
}

# The first program, the tests and what they read, as they are in the checkout.
mkdir -p "$work/root"
go build -o "$work/root/init" ./test/kernel/init
mkdir -p "$work/root/usr/bin"
ln -s /init "$work/root/usr/bin/sleep"
for package in "${packages[@]}"; do
	mkdir -p "$work/root/$package"
	go test -c -o "$work/root/$package/test" "$package"
	[ ! -d "$package/testdata" ] || cp -r "$package/testdata" "$work/root/$package/"
	printf '%s\t./test\t-test.v\t-test.timeout=%ss\t-test.skip=%s\t-test.run=%s\n' "/${package#./}" "$timeout" "$skip" "${MESH_KERNEL_RUN:-}"
done >"$work/root/commands"
cp -r bpf "$work/root/"

# boot FOLDER ACCELERATOR boots the kernel, and shows what it prints until it ends or
# does not begin. It leaves its exit code in $code.
boot() {
	local folder=$1 start=300
	[ "$2" != kvm ] || start=15
	: >"$folder/console"
	# With one processor, every wait for lookups would take a second.
	timeout -k 10 "$timeout" qemu-system-x86_64 -accel "$2" -cpu max -smp 2 -m 1536 -nodefaults -display none -no-reboot \
		-serial "file:$folder/console" -kernel "$folder/vmlinuz" -initrd "$folder/initrd" \
		-append "console=ttyS0 quiet panic=-1 MESH_REQUIRE_ROOT=1 MESH_SOAK_UPDATES=$updates MESH_SOAK_CONNECTS=20000" 2>"$folder/errors" &
	machine=$!
	while [ "$SECONDS" -lt "$start" ] && kill -0 "$machine" 2>/dev/null && ! grep -q '^kernel ' "$folder/console"; do
		sleep 0.2
	done
	if grep -q '^kernel ' "$folder/console"; then
		tail -n +1 -f --pid "$machine" "$folder/console" || true
	else
		kill "$machine" 2>/dev/null || true
	fi
	code=0
	wait "$machine" || code=$?
	machine=
}

# run FOLDER reports how the tests have ended on the kernel.
run() {
	local folder=$1 code
	cp -r "$work/root" "$folder/root"
	mv "$folder/modules" "$folder/root/modules"
	(cd "$folder/root" && find . | cpio --quiet -o -H newc | gzip -1 >"$folder/initrd")
	rm -r "$folder/root"
	if [ -w /dev/kvm ]; then
		SECONDS=0
		boot "$folder" kvm
	fi
	if ! grep -qs '^kernel ' "$folder/console"; then
		echo "without /dev/kvm, or with one that does not boot this kernel: it is emulated, which is slow"
		SECONDS=0
		boot "$folder" tcg,thread=multi
	fi
	if ! grep -q '^kernel ' "$folder/console"; then
		tail -n 40 "$folder/console" # it did not get as far as the tests
	fi
	if [ "$code" != 0 ]; then
		cat "$folder/errors"
		echo "the virtual machine ended with $code (124: not within $timeout s)"
	fi
	echo "took $SECONDS s"
	grep -q '^mesh-kernel-test: passed' "$folder/console"
}

failed=()
for kernel in "$@"; do
	echo "=== $kernel"
	folder=$(prepare "$kernel")
	run "$folder" || failed+=("$kernel")
	rm -rf "$folder"
done
if [ "${#failed[@]}" -gt 0 ]; then
	echo "failed on: ${failed[*]}" >&2
	exit 1
fi
echo "passed on: $*"
