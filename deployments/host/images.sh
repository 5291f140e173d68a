#!/usr/bin/env bash
# The images of the examples: pulled where a registry answers; else made here, from Debian's static busybox.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

IMAGES=(busybox hello-world)
PULL_SECONDS=20

missing() {
    local image
    for image in "${IMAGES[@]}"; do
        if ! docker image inspect "$image" >/dev/null 2>&1; then
            echo "$image"
        fi
    done
}

unpack_busybox() {
    local root=$1 applet
    mkdir -p "$root"/{bin,etc,root} "$root/package"
    # Fetched, not installed: Debian's own busybox stays as it is. A fresh machine has no package lists yet.
    (
        cd "$root/package"
        apt-get download busybox-static || { apt-get update && apt-get download busybox-static; }
    ) >/dev/null 2>&1 || return 1
    dpkg-deb --extract "$root"/package/*.deb "$root/package"
    install -m 755 "$(find "$root/package" -type f -name busybox -perm -u+x | head -n 1)" "$root/bin/busybox"
    rm -r "$root/package"
    while read -r applet; do
        [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
    done < <("$root/bin/busybox" --list)
    mkdir -m 1777 "$root/tmp"
    echo "root:x:0:0:root:/root:/bin/sh" >"$root/etc/passwd"
    cat >"$root/etc/greeting" <<'TEXT'

Hello from Docker!
An image was found, a container made from it has run, and what it printed has come back to you.

TEXT
}

make_image() {
    local image=$1 root=$2 command='["sh"]'
    if [[ $image == hello-world ]]; then
        command='["cat", "/etc/greeting"]'
    fi
    tar --create --directory "$root" --owner=0 --group=0 --numeric-owner . |
        docker import --change "ENV PATH=/bin" --change "CMD $command" - "$image:latest" >/dev/null
}

if [[ -z $(missing) ]]; then
    exit 0
fi
if ! command -v docker >/dev/null; then
    echo "The images ${IMAGES[*]} are missing, and so is the docker command that fetches them: install it." >&2
    exit 1
fi

mkdir -p build
exec {lock}>build/images.lock
flock "$lock"

for image in $(missing); do
    echo "Fetching the image $image …" >&2
    # Where one pull finds no registry, the next would wait as long.
    timeout "$PULL_SECONDS" docker pull --quiet "$image" </dev/null >/dev/null 2>&1 || break
done

mapfile -t unreached < <(missing)
if ((${#unreached[@]} == 0)); then
    exit 0
fi
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root" # it becomes the image's /
echo "No registry answers: making ${unreached[*]} here …" >&2
if ! unpack_busybox "$root"; then
    echo "No registry and no package mirror is reached. Load the images from a file: docker load -i IMAGES.tar" \
        "(made elsewhere with: docker save ${unreached[*]} -o IMAGES.tar)" >&2
    exit 1
fi
for image in "${unreached[@]}"; do
    make_image "$image" "$root"
done
