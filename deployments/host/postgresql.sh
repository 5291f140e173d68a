#!/usr/bin/env bash
# The distribution's PostgreSQL, beside which the embedded one is measured. Prints the folder of its programs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

newest() {
    find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort --version-sort | tail -n 1
}

if [[ -z $(newest) ]]; then
    ./debian_packages.sh postgresql >&2
fi
newest
