#!/bin/sh
# make-devbox-layout.sh DIR: an OCI image layout of four layers and about 1.5 GB, from Debian packages:
# a minimal root; compilers and tools; Python and Node trees of many small files; a layer of
# whiteouts, overwritten programs and a folder that becomes a link. Root, umoci and mmdebstrap.
set -eu

layout=$1
[ "$(id -u)" -eq 0 ] || { echo "needs root: packages are installed in a chroot" >&2; exit 5; }
work=$(mktemp -d)
cleanup() {
    umount "$work/bundle/rootfs/proc" 2> /dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
root=$work/bundle/rootfs

umoci init --layout "$layout"
umoci new --image "$layout:latest"
umoci unpack --image "$layout:latest" "$work/bundle"
repack() {
    umount "$root/proc" 2> /dev/null || true
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    umoci repack --refresh-bundle --image "$layout:latest" "$work/bundle"
}
install() {
    mount -t proc proc "$root/proc"
    : > "$root/etc/apt/sources.list"
    cp -r /etc/apt/sources.list.d /etc/apt/apt.conf.d "$root/etc/apt/" 2> /dev/null || true
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/" 2> /dev/null || true
    chroot "$root" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install -y -qq --no-install-recommends "$@" > /dev/null
}

mmdebstrap --quiet --variant=minbase "$suite" "$work/base.tar"
tar -C "$root" --numeric-owner --xattrs -xpf "$work/base.tar"
repack
install gcc g++ golang-go nodejs gdb cmake vim git clang llvm ca-certificates
repack
install npm python3-pip python3-numpy python3-scipy python3-sympy python3-sklearn python3-django
repack
# The top layer hides much and replaces some.
rm -rf "$root/usr/share/doc" "$root/usr/share/locale" "$root/usr/lib/python3/dist-packages/sympy"
find "$root/usr/share/nodejs" -maxdepth 1 -mindepth 1 -type d | sort | head -n 200 | xargs rm -rf
cp "$root/usr/bin/gdb" "$root/usr/bin/gdb.new" && mv "$root/usr/bin/gdb.new" "$root/usr/bin/gdb"
rm -rf "$root/usr/share/vim/vim90/doc" && ln -s tutor "$root/usr/share/vim/vim90/doc"
setcap cap_net_raw+ep "$root/usr/bin/gdb"
repack
du -sh "$layout" >&2
