#!/usr/bin/env bash
# The tools that make file systems, for the tests of what a power cut leaves.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

for tool in mkfs.ext2 mkfs.ext4 mkfs.xfs mkfs.btrfs; do
    if ! PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null; then
        exec ./debian_packages.sh e2fsprogs xfsprogs btrfs-progs
    fi
done
