# Sourced by quickstart.sh and test.sh: installs Debian packages that are missing.

# install_missing WHY COMMAND:PACKAGE...   a package is missing when its command is
install_missing() {
    why=$1
    shift
    missing=
    for pair in "$@"; do
        command=${pair%%:*}
        # Tools of the system administrator lie outside an ordinary user's PATH.
        PATH="$PATH:/usr/sbin:/sbin" command -v "$command" > /dev/null 2>&1 || missing="$missing ${pair#*:}"
    done
    [ -n "$missing" ] || return 0
    if ! command -v apt-get > /dev/null 2>&1; then
        echo "missing:$missing ($why). This host has no apt-get: install them by its own means, then run this again." >&2
        return 1
    fi
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo > /dev/null 2>&1; then
            echo "missing:$missing ($why). As root: apt-get install$missing" >&2
            return 1
        fi
        as_root=sudo
        echo "sudo is asked for once, to install packages; nothing else runs as root." >&2
    fi
    echo "installing$missing: $why" >&2
    $as_root apt-get update -qq >&2 || return 1
    # shellcheck disable=SC2086  # a list of words
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing > /dev/null
}
