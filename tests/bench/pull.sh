#!/bin/bash
# pull.sh VMDECK LAYOUT [RUNS]: how long a pull takes, beside its peers and its floor, in one run:
# a registry on loopback, everything on tmpfs, medians. Root (the peers need it), docker-registry,
# skopeo, umoci, mke2fs, curl, igzip.
#
#   floor    every layer at once: curl | igzip -dc > /dev/null. No digest, nothing written.
#   vmdeck   image pull: digests verified, bootable ext4 written, as an ordinary user would.
#   shell    curl, sha256sum, igzip | tar x per layer (whiteouts ignored), mke2fs -d.
#   umoci    skopeo copy, umoci unpack, mke2fs -d.
set -euo pipefail

vmdeck=$(realpath "$1")
layout=$(realpath "$2")
runs=${3:-5}
work=$(mktemp -d /dev/shm/vmdeck-bench.XXXXXX)
registry=
cleanup() {
    [ -z "$registry" ] || kill "$registry" 2> /dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat > "$work/registry.yml" << END
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: "127.0.0.1:$port"}
END
docker-registry serve "$work/registry.yml" > /dev/null 2>&1 &
registry=$!
for _ in $(seq 100); do curl -sf "http://127.0.0.1:$port/v2/" > /dev/null && break; sleep 0.1; done
skopeo copy --quiet --insecure-policy --dest-tls-verify=false "oci:$layout:latest" "docker://127.0.0.1:$port/bench:latest"

manifest=$(curl -sf -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://127.0.0.1:$port/v2/bench/manifests/latest")
mapfile -t layers < <(python3 -c 'import json, sys; [print(l["digest"]) for l in json.load(sys.stdin)["layers"]]' <<< "$manifest")
url() { echo "http://127.0.0.1:$port/v2/bench/blobs/$1"; }

floor() {
    local layer pids=()
    for layer in "${layers[@]}"; do
        (curl -sf "$(url "$layer")" | igzip -dc > /dev/null) &
        pids+=($!)
    done
    wait "${pids[@]}"
}
vmdeck_pull() {
    VMDECK_DATA_DIR=$work/data "$vmdeck" --quiet image pull "127.0.0.1:$port/bench:latest" --name bench > /dev/null
}
to_ext4() { # DIR
    local size
    size=$(du -s --block-size=1M "$1" | cut -f1)
    mke2fs -q -t ext4 -b 4096 -d "$1" "$work/out.ext4" "$((size * 5 / 4 + 512))M" > /dev/null
}
shell() {
    mkdir "$work/root"
    local layer
    for layer in "${layers[@]}"; do
        curl -sf "$(url "$layer")" | tee >(sha256sum > /dev/null) | igzip -dc \
            | tar -x -p --numeric-owner --xattrs --xattrs-include='*' -C "$work/root" 2> /dev/null || true
    done
    to_ext4 "$work/root"
}
umoci_pull() {
    skopeo copy --quiet --insecure-policy --src-tls-verify=false "docker://127.0.0.1:$port/bench:latest" "oci:$work/oci:latest"
    umoci unpack --image "$work/oci:latest" "$work/bundle" > /dev/null 2>&1
    to_ext4 "$work/bundle/rootfs"
}
forget() { rm -rf "$work/data" "$work/root" "$work/out.ext4" "$work/oci" "$work/bundle"; }

median() { sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }
measure() { # FUNCTION
    local begun
    for _ in $(seq "$runs"); do
        forget
        begun=$(date +%s%N)
        "$1"
        echo $((($(date +%s%N) - begun) / 1000000))
    done | median
}

floor; forget
f=$(measure floor)
v=$(measure vmdeck_pull)
allocated=$(du -s --block-size=1K "$work"/data/images/*/rootfs.ext4 | cut -f1)
s=$(measure shell)
u=$(measure umoci_pull)
forget
printf '%-8s %8s %10s\n' what ms vmdeck
for row in "floor $f" "vmdeck $v" "shell $s" "umoci $u"; do
    set -- $row
    printf '%-8s %8s %9sx\n' "$1" "$2" "$(awk -v a="$2" -v b="$v" 'BEGIN {printf "%.2f", a / b}')"
done
echo "layers ${#layers[@]}, image $((allocated / 1024)) MiB allocated; vmdeck is $(awk -v a="$v" -v b="$f" 'BEGIN {printf "%.2f", a / b}') times the floor"
