#!/usr/bin/env bash
# Proves that what is generated and committed is what the sources give: the Go of
# the protobuf files, docs/events.md, and the BPF objects with their bindings.
# Generates in a copy, so that the working tree stays as it is.
#
# Usage: tools/check-generated.sh
# Needs the programs of tools/go.mod in bin/tools and, for the BPF programs, the
# compiler that the go:generate lines in bpf/ name: another one gives other bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

for tool in bpf2go buf protoc-gen-go protoc-gen-go-grpc; do
	if [[ ! -x bin/tools/$tool ]]; then
		echo "check-generated: bin/tools/$tool is missing: build it with: GOWORK=off go -C tools build -o ../bin/tools/ tool" >&2
		exit 2
	fi
done
export PATH=$root/bin/tools:$PATH
if ! command -v clang-16 >/dev/null || ! command -v llvm-strip-16 >/dev/null ||
	! clang-16 -target bpf -fsyntax-only -include bpf/bpf_core_read.h -x c /dev/null 2>/dev/null; then
	echo "check-generated: the BPF compiler or its headers are missing: apt-get install clang-16 llvm-16 libbpf-dev" >&2
	exit 2
fi

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir "$copy/before"
# What git tracks or would track, as it is on disk now: a file that is changed
# and not committed yet is checked too.
git ls-files -z --cached --others --exclude-standard |
	while IFS= read -r -d '' file; do
		# A deleted file is listed until the deletion is staged.
		if [[ -e $file ]]; then printf '%s\0' "$file"; fi
	done |
	tar --create --null --files-from=- | tar --extract --directory="$copy/before"
cp -r "$copy/before" "$copy/after"

# Away with what will be made again: a file whose source is gone must not stay.
find "$copy/after/proto" -name '*.pb.go' -delete
rm -f "$copy/after/docs/events.md"
(cd "$copy/after/proto" && buf generate)
(cd "$copy/after/shared" && go generate ./...)
find "$copy/after/bpf" \( -name '*_bpfe[lb].o' -o -name '*_bpfe[lb].go' \) -delete
(cd "$copy/after/bpf" && go generate ./...)

if ! diff --recursive --brief "$copy/before" "$copy/after" >"$copy/diff"; then
	echo "check-generated: these committed files are not what their sources give:" >&2
	sed "s|$copy/||g; s/^/  /" "$copy/diff" >&2
	# Text differences help to see why; those of objects do not.
	(cd "$copy" && diff --recursive --unified=1 before after | grep --invert-match '^Binary files' | head -n 60) >&2 || true
	echo "Generate them again (buf generate in proto, go generate ./... in shared and bpf) and commit." >&2
	echo "The BPF compiler here is $(clang-16 --version | head -n 1)." >&2
	exit 1
fi
echo "check-generated: everything generated is current"
