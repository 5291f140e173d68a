#!/usr/bin/env bash
# The virtual environment .venv, with the pinned packages and this project in it. Does nothing where that is so already.
# PYTHON names another interpreter than the first of 3.11 or newer that is found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

pins=(requirements/runtime.txt requirements/dev.txt)
stamp=.venv/.made-from
wanted=$(sha256sum "${pins[@]}" pyproject.toml deployments/host/python_environment.sh)

# Two people may ask at the same time. The lock lies beside .venv, which may be made anew.
mkdir -p build
exec {lock}>build/python_environment.lock
flock "$lock"

if [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && .venv/bin/python -c "" 2>/dev/null; then
    exit 0
fi

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13 python3.14; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.11 or newer is found: install one, or name it: make PYTHON=/path/to/python3.11 …" >&2
    return 1
}

make_environment() {
    local python
    python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        # Debian keeps these two apart from Python itself.
        deployments/host/debian_packages.sh "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    fi
    "$python" -m venv --clear .venv
}

rm -f "$stamp"
if ! new_enough .venv/bin/python; then
    make_environment
fi
echo "Installing the pinned packages into .venv …" >&2
uv_pin=$(grep -E '^uv==' requirements/dev.txt)
if [[ $(.venv/bin/uv --version 2>/dev/null) != "uv ${uv_pin#uv==}"* ]]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$uv_pin"
fi
export VIRTUAL_ENV=$PWD/.venv
# Compiled once here: where PYTHONDONTWRITEBYTECODE is set, every start of Prefect would compile itself anew, for 10 s.
.venv/bin/uv pip sync --quiet --compile-bytecode "${pins[@]}"
.venv/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
.venv/bin/python -m compileall -q dicom_gateway flows_engine deployments
echo "$wanted" >"$stamp"
