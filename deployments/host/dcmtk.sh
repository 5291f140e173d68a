#!/usr/bin/env bash
# DCMTK's command-line tools, which the demonstration and the tests talk to.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

for tool in dcmdump dcmodify echoscu storescp storescu; do
    if ! command -v "$tool" >/dev/null; then
        exec ./debian_packages.sh dcmtk
    fi
done
