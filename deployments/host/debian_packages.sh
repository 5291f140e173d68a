#!/usr/bin/env bash
# Install Debian or Ubuntu packages; where that is not ours to do, say the line that does it.
#   debian_packages.sh PACKAGE…
set -euo pipefail

if ! command -v apt-get >/dev/null; then
    echo "Please install ${*@Q} (names as in Debian), then run this again." >&2
    exit 1
fi
if [[ $EUID -ne 0 ]]; then
    echo "Please run: sudo apt-get install -y --no-install-recommends $*" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "Installing $* …" >&2
# The lists of a fresh machine are empty, those of an old one name versions that are gone.
if ! "${install[@]}" "$@" </dev/null >"$log" 2>&1; then
    if ! { apt-get update -o DPkg::Lock::Timeout=300 && "${install[@]}" "$@"; } </dev/null >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        echo "Could not install $*: see above, then run: apt-get install -y --no-install-recommends $*" >&2
        exit 1
    fi
fi
