#!/bin/sh
# Installs what the tests need on a fresh Debian and runs all of them: format, lints, unit tests,
# end-to-end tests with a real registry and real machines. Needs a Rust toolchain.
set -eu

cd "$(dirname "$0")/.."
. assets/host-packages.sh

install_missing "a C compiler and cmake build the libraries for SQLite, zlib and zstd" \
    cc:gcc c++:g++ make:make cmake:cmake
install_missing "the tests boot machines, run a registry, and compare with other tools" \
    qemu-system-x86_64:qemu-system-x86 docker-registry:docker-registry skopeo:skopeo umoci:umoci \
    mmdebstrap:mmdebstrap busybox:busybox-static e2fsck:e2fsprogs qemu-img:qemu-utils xz:xz-utils zstd:zstd \
    ssh:openssh-client setfattr:attr setcap:libcap2-bin setfacl:acl depmod:kmod cpio:cpio tmux:tmux ps:procps \
    openssl:openssl nft:nftables ip:iproute2 setpriv:util-linux htpasswd:apache2-utils dpkg-deb:dpkg

echo "== format"
cargo fmt --all --check
echo "== lints"
cargo clippy --workspace --all-targets --locked -- -D warnings
echo "== shell scripts"
for script in assets/*.sh; do sh -n "$script"; done
echo "== tests"
# Everything the tests make lies here; machines of a test that was killed are ended by it too.
TMPDIR=$(mktemp -d /tmp/vmdeck-test.XXXXXX)
export TMPDIR
chmod 755 "$TMPDIR"
clean() {
    for process in /proc/[0-9]*; do
        case $(readlink "$process/cwd" 2> /dev/null) in
            "$TMPDIR"/*) kill -9 "${process#/proc/}" 2> /dev/null || true ;;
        esac
    done
    rm -rf "$TMPDIR"
}
trap clean EXIT
trap 'exit 130' INT TERM
cargo test --workspace --locked --no-fail-fast -- --test-threads "${VMDECK_TEST_THREADS:-2}"
