#!/usr/bin/env bash
# Proves that what is generated and committed is what the sources give: the Go of
# the protobuf files, docs/events.md, and the BPF objects with their bindings.
# Generates in a copy, so that the working tree stays as it is.
#
# Usage: tools/check-generated.sh
# Needs the programs of tools/go.mod in bin/tools (see below), and clang for the
# BPF programs once there are any.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

for tool in buf protoc-gen-go protoc-gen-go-grpc; do
	if [[ ! -x bin/tools/$tool ]]; then
		echo "check-generated: bin/tools/$tool is missing: build it with: GOWORK=off go -C tools build -o ../bin/tools/ tool" >&2
		exit 2
	fi
done
export PATH=$root/bin/tools:$PATH

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
if grep --recursive --quiet --include='*.go' '^//go:generate' "$copy/after/bpf"; then
	find "$copy/after/bpf" \( -name '*_bpfe[lb].o' -o -name '*_bpfe[lb].go' \) -delete
	(cd "$copy/after/bpf" && go generate ./...)
fi

if ! diff --recursive --brief "$copy/before" "$copy/after" >"$copy/diff"; then
	echo "check-generated: these committed files are not what their sources give:" >&2
	sed "s|$copy/||g; s/^/  /" "$copy/diff" >&2
	# Text differences help to see why; those of objects do not.
	(cd "$copy" && diff --recursive --unified=1 before after | grep --invert-match '^Binary files' | head -n 60) >&2 || true
	echo "Generate them again (buf generate in proto, go generate ./... in shared and bpf) and commit." >&2
	exit 1
fi
echo "check-generated: everything generated is current"
