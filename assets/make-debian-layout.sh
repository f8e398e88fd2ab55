#!/bin/sh
# make-debian-layout.sh DIR [PACKAGE,...]: an OCI image layout with one layer, a minimal Debian made
# from the package archive that this host is configured for. Needs mmdebstrap; root is not needed.
set -eu

layout=$1
include=${2:-}

suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
blobs=$layout/blobs/sha256
mkdir -p "$blobs"
tar=$layout/layer.tar

set -- --variant=minbase --aptopt='APT::Install-Recommends "false"' "--dpkgopt=path-exclude=/usr/share/man/*" "--dpkgopt=path-exclude=/usr/share/doc/*"
[ -z "$include" ] || set -- "$@" "--include=$include"
# The host's own sources of this suite: what it may reach is known to be there.
grep -hE "^deb .* $suite" /etc/apt/sources.list /etc/apt/sources.list.d/*.list > "$layout/sources.list" 2> /dev/null || true
set -- "$@" "$suite" "$tar"
[ ! -s "$layout/sources.list" ] || set -- "$@" "$layout/sources.list"
for file in /etc/apt/sources.list.d/*.sources; do
    ! grep -qsE "^Suites:.*\b$suite\b" "$file" || set -- "$@" "$file"
done
mmdebstrap --quiet "$@"
rm -f "$layout/sources.list"

# store FILE: moves it to its digest's name among the blobs; prints the digest
store() {
    hex=$(sha256sum "$1" | cut -d' ' -f1)
    mv "$1" "$blobs/$hex"
    echo "sha256:$hex"
}
size() { stat -c %s "$blobs/${1#sha256:}"; }

case $(uname -m) in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
    *) architecture=$(uname -m) ;;
esac
diff_id=sha256:$(sha256sum "$tar" | cut -d' ' -f1)
gzip -1 -n "$tar"
layer=$(store "$tar.gz")
printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["/bin/sh"]},"rootfs":{"type":"layers","diff_ids":["%s"]}}' \
    "$architecture" "$diff_id" > "$layout/config"
config=$(store "$layout/config")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"%s","size":%s}]}' \
    "$config" "$(size "$config")" "$layer" "$(size "$layer")" > "$layout/manifest"
manifest=$(store "$layout/manifest")
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%s","size":%s,"platform":{"architecture":"%s","os":"linux"},"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}' \
    "$manifest" "$(size "$manifest")" "$architecture" > "$layout/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' > "$layout/oci-layout"
