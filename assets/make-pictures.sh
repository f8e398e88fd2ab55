#!/bin/sh
# Makes the pictures of README from the real console: a registry on this host, a kernel of this host's
# package archive, machines that boot; tmux is the terminal whose screen is drawn.
#
#   sh assets/make-pictures.sh [VMDECK]
#
# VMDECK is the program (target/debug/vmdeck by default). Needs tmux, docker-registry, skopeo, umoci,
# busybox, and a kernel: an existing data directory's may be given by VMDECK_PICTURES_KERNEL (a .deb).
set -eu

cd "$(dirname "$0")/.."
program=$(realpath "${1:-target/debug/vmdeck}") # built already
cargo build -q -p vmdeck-ui --example picture
picture=$PWD/target/debug/examples/picture
pictures=$PWD/assets/pictures
mkdir -p "$pictures"
columns=150
rows=42
work=$(mktemp -d "${TMPDIR:-/tmp}/vmdeck-pictures.XXXXXX")
# A home of its own: nothing of this host's user is used, and none of its paths is on the pictures.
export HOME="$work"
unset XDG_DATA_HOME XDG_CONFIG_HOME
export VMDECK_DATA_DIR="$work/.local/share/vmdeck"
registry=

clean() {
    tmux -S "$work/tmux" kill-server 2> /dev/null || true
    for name in $("$program" vm list --output json 2> /dev/null | sed -n 's/^ *"name": "\([^"]*\)".*/\1/p'); do
        "$program" vm delete --force "$name" > /dev/null 2>&1 || true
    done
    if [ -n "$registry" ]; then kill "$registry" 2> /dev/null || true; fi
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

# A port that is free now.
port=$(awk 'BEGIN { srand(); print 20000 + int(rand() * 20000) }')
cat > "$work/registry.yml" << END
version: 0.1
log:
  level: error
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: $work/registry
http:
  addr: 127.0.0.1:$port
END
docker-registry serve "$work/registry.yml" > /dev/null 2>&1 &
registry=$!

# An image of busybox and as many layers of so many MiB that do not compress.
image() {
    name=$1
    shift
    layout=$work/layouts/$(echo "$name" | tr '/:' '--')
    mkdir -p "$work/layouts" "$work/files"
    umoci init --layout "$layout"
    umoci new --image "$layout:latest"
    mkdir -p "$work/root/bin"
    cp "$(command -v busybox)" "$work/root/bin/busybox"
    for applet in sh ls cat uname echo sleep mount id; do ln -sf busybox "$work/root/bin/$applet"; done
    umoci insert --rootless --image "$layout:latest" "$work/root/bin" /bin
    umoci config --image "$layout:latest" --config.cmd /bin/sh --config.env PATH=/bin
    number=0
    for size in "$@"; do
        number=$((number + 1))
        head -c "${size}M" /dev/urandom > "$work/files/part"
        umoci insert --rootless --image "$layout:latest" "$work/files/part" "/usr/share/part-$number"
    done
    skopeo copy --quiet --insecure-policy --dest-tls-verify=false "oci:$layout:latest" \
        "docker://127.0.0.1:$port/$name"
}
image library/debian:12 10
image team/api:2.4 60 80 30
image library/node:22 50 20 70 10
image library/postgres:17 90 40

if [ -n "${VMDECK_PICTURES_KERNEL:-}" ]; then
    "$program" kernel import --deb "$VMDECK_PICTURES_KERNEL" > /dev/null
else
    "$program" kernel pull apt:linux-image-cloud-amd64 > /dev/null
fi
"$program" image pull "127.0.0.1:$port/library/debian:12" > /dev/null
head -c 64M /dev/zero > "$work/golden.ext4"
mke2fs -q -t ext4 "$work/golden.ext4"
"$program" image register golden --rootfs "$work/golden.ext4" > /dev/null
for name in web worker; do
    "$program" vm create --image debian "$name" --memory 256 > /dev/null
done
"$program" vm create --image debian db --cpus 1 --memory 384 --port 0:5432 > /dev/null
"$program" vm start web > /dev/null

screen() { tmux -S "$work/tmux" capture-pane -p; }
keys() { tmux -S "$work/tmux" send-keys "$@"; }
# Waits until the screen has a text.
seen() {
    tries=0
    until screen | grep -qF -- "$1"; do
        tries=$((tries + 1))
        if [ "$tries" -gt 1200 ]; then
            echo "not seen: $1" >&2
            screen >&2
            exit 1
        fi
        sleep 0.1
    done
}
# Draws the screen as it is; this run's home is called so.
take() {
    tmux -S "$work/tmux" capture-pane -e -p -N | "$picture" "$columns" "$rows" |
        sed "s|$work|~|g" > "$pictures/$1.svg"
    echo "$pictures/$1.svg"
}

tmux -S "$work/tmux" -f /dev/null new-session -d -x "$columns" -y "$rows" \
    "HOME='$HOME' VMDECK_DATA_DIR='$VMDECK_DATA_DIR' LANG=C.UTF-8 TERM=xterm-256color '$program' --theme dark"
seen running
sleep 3

# A boot, half way.
keys / db Enter r
seen kernel
sleep 0.8
take boot
seen "db is ready"
for _ in 1 2 3; do
    keys Escape
    sleep 0.3
done

# The main view, with two machines that run.
sleep 4
take main

# Three pulls at once.
keys 2
for name in team/api:2.4 library/node:22 library/postgres:17; do
    keys p
    seen "Pull an image"
    keys "127.0.0.1:$port/$name" Enter
done
keys 4
sleep 0.5
take pulls
for name in api node postgres; do seen "$name is there"; done

# A promotion by keys.
keys 2 / golden Enter P
seen "Promote golden"
sleep 4.5
take promote
keys base Enter
seen "vmdeck's own now"
keys Escape

# A machine's console.
keys 1 g g c
sleep 3
take console
keys C-]
keys q
