#!/usr/bin/env bash
# Puts etcd and kube-apiserver, which the tests of portti run, into a directory,
# unless they are there: from the cache of the offline cluster tool when that is
# beside this repository, else by setup-envtest of controller-runtime, which
# fetches them. Without a network it leaves the directory empty, and says so.
set -euo pipefail
to=$1
tool=$(dirname "$0")/../../shared/cluster/cluster

if [ -x "$to/etcd" ] && [ -x "$to/kube-apiserver" ]; then exit; fi
mkdir -p "$to"
if [ ! -x "$tool" ]; then
	echo "kube-assets: fetching etcd and kube-apiserver; or set KUBEBUILDER_ASSETS to a directory that has them" >&2
	if ! assets=$(go run sigs.k8s.io/controller-runtime/tools/setup-envtest@release-0.22 use 1.34 --bin-dir "$to/envtest" --print path); then
		echo "kube-assets: LEFT OUT: the tests that need a real API server, as etcd and kube-apiserver cannot be fetched" >&2
		exit
	fi
	ln -sf "$assets/etcd" "$assets/kube-apiserver" "$to/"
	exit
fi
"$tool" build >&2
cache=$("$tool" env | sed -n 's|^export PATH=\(.*\)/bin:.*|\1|p')
for program in etcd kube-apiserver; do
	image=$cache/images/$program.tar
	# The program is in one of the image's layers.
	for layer in $(tar -tf "$image" | grep 'layer\.tar$'); do
		if tar -xOf "$image" "$layer" | tar -xf - -C "$to" --strip-components=3 "usr/local/bin/$program" 2>/dev/null; then break; fi
	done
	[ -x "$to/$program" ] || { echo "kube-assets: $image has no $program" >&2; exit 1; }
done
