#!/usr/bin/env bash
# Pin what pyproject.toml and dev.in ask for. No address gets into the pins: each site has its own index.
# With UPGRADE=1 the newest versions are taken, else those that are pinned already where they still fit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

options=(--quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links
    --custom-compile-command "make requirements")
if [[ -n ${UPGRADE:-} ]]; then
    options+=(--upgrade)
fi
.venv/bin/uv pip compile "${options[@]}" pyproject.toml --output-file requirements/runtime.txt
.venv/bin/uv pip compile "${options[@]}" requirements/dev.in --output-file requirements/dev.txt
