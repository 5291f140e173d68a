#!/usr/bin/env bash
# Orthanc, which receiving is compared with. It is not left running.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if command -v Orthanc >/dev/null; then
    exit 0
fi
./debian_packages.sh orthanc
# Debian starts what it installs, where there is an init that can; the benchmark starts its own.
if command -v systemctl >/dev/null && systemctl is-active --quiet orthanc 2>/dev/null; then
    systemctl disable --now --quiet orthanc
fi
