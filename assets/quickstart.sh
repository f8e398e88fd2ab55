#!/bin/sh
# From a clone to a machine: packages, build, kernel, image, boot, a command in it.
# Needs a Rust toolchain. Runs as an ordinary user; sudo is used for missing packages only.
set -eu

cd "$(dirname "$0")/.."
. assets/host-packages.sh

NAME=${1:-quickstart}
IMAGE=${VMDECK_QUICKSTART_IMAGE:-docker.io/library/debian:12}

say() { printf '\n== %s\n' "$*"; }
now() { date +%s%3N; }
since() { echo "$(($(now) - $1)) ms"; }

if ! command -v cargo > /dev/null 2>&1; then
    echo "no cargo: install a Rust toolchain first (https://rustup.rs), then run this again" >&2
    exit 5
fi

say "1/5 host packages"
install_missing "QEMU runs the machines; a C compiler and cmake build the libraries for SQLite, zlib and zstd" \
    qemu-system-x86_64:qemu-system-x86 cc:gcc c++:g++ make:make cmake:cmake
echo "all there"

say "2/5 build"
start=$(now)
cargo build --release --locked
build_time=$(since "$start")
vmdeck=$PWD/target/release/vmdeck
"$vmdeck" doctor || { echo "doctor found what must be mended first" >&2; exit 5; }

say "3/5 kernel"
start=$(now)
if [ "$("$vmdeck" kernel list --output json | tr -d ' \n')" = "[]" ]; then
    "$vmdeck" kernel pull
else
    echo "there is one already"
fi
kernel_time=$(since "$start")

say "4/5 image"
start=$(now)
if "$vmdeck" image show debian > /dev/null 2>&1; then
    echo "there is one already"
elif "$vmdeck" image pull "$IMAGE" --name debian; then
    :
else
    echo "$IMAGE cannot be pulled here: making a Debian root from this host's own package archive instead"
    install_missing "makes a Debian root file system" mmdebstrap:mmdebstrap
    layout=$(mktemp -d)
    trap 'rm -rf "$layout"' EXIT
    sh assets/make-debian-layout.sh "$layout"
    "$vmdeck" image pull "oci:$layout" --name debian
fi
image_time=$(since "$start")

say "5/5 machine"
if "$vmdeck" vm show "$NAME" > /dev/null 2>&1; then
    echo "deleting the machine $NAME of an earlier run"
    "$vmdeck" vm delete --force "$NAME"
fi
start=$(now)
"$vmdeck" vm run debian --name "$NAME" --no-stdin -- sh -c 'uname -a; cat /etc/os-release'
run_time=$(since "$start")

cat << END

== done
build   $build_time
kernel  $kernel_time
image   $image_time
machine $run_time from nothing to the command's end

The machine goes on running:
  $vmdeck                         the console: look at it live, stop it, delete it
  $vmdeck vm exec $NAME           a shell in it
  $vmdeck vm stop $NAME           stop it
  $vmdeck vm delete $NAME         and delete it
END
