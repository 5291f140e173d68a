#!/usr/bin/env bash
# A browser, for the tests that use Prefect's UI as a person does. Whatever Chromium there is serves.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

for browser in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$browser" >/dev/null; then
        exit 0
    fi
done
# Without fonts every letter of a page is an empty box.
exec ./debian_packages.sh chromium fonts-dejavu-core
