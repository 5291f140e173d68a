#!/usr/bin/env bash
# A Docker engine that answers: the one that is here; else, as root on Debian or Ubuntu, the distribution's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

ENGINE_LOG=${ENGINE_LOG:-/var/log/dockerd.log}
START_SECONDS=60

# Asked as the engine's users here ask, through docker-py.
answers() {
    .venv/bin/python -c 'import docker; docker.from_env(timeout=10).ping()' 2>/dev/null
}

stop_with() {
    echo "$1" >&2
    exit 1
}

wait_for_answer() {
    local deadline=$((SECONDS + START_SECONDS))
    until answers; do
        if ((SECONDS > deadline)); then
            return 1
        fi
        sleep 0.2
    done
}

install_engine() {
    local packages=(docker.io containerd runc iptables)
    # Newer releases keep the docker command apart from the engine.
    if [[ -n $(apt-cache --quiet search --names-only '^docker-cli$' 2>/dev/null) ]]; then
        packages+=(docker-cli)
    fi
    deployments/host/debian_packages.sh "${packages[@]}"
}

start_engine() {
    if [[ -d /run/systemd/system ]]; then
        systemctl start docker
    elif [[ -x /etc/init.d/docker && $(</proc/1/comm) == init ]]; then
        service docker start >&2
    else
        # Nobody here starts services. The engine must not hold our lock for as long as it lives.
        setsid --fork dockerd >>"$ENGINE_LOG" 2>&1 </dev/null {lock}>&-
    fi
}

if answers; then
    exit 0
fi
if [[ -n ${DOCKER_HOST:-} ]]; then
    stop_with "No Docker engine answers at DOCKER_HOST=$DOCKER_HOST: start it, or unset DOCKER_HOST."
fi
if [[ -S /var/run/docker.sock && ! -w /var/run/docker.sock ]]; then
    stop_with "A Docker engine runs here, but not for you: run 'sudo usermod -aG docker $(id -un)', then log in anew."
fi
if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    stop_with "No Docker engine answers: start one ('sudo systemctl start docker'), or install one (https://docs.docker.com/engine/install)."
fi

# One engine a machine: whoever comes second waits, and finds it running.
exec {lock}>/run/dicomflow-docker-engine.lock
flock "$lock"
if answers; then
    exit 0
fi
if ! command -v dockerd >/dev/null || ! command -v docker >/dev/null; then
    install_engine
fi
echo "Starting the Docker engine …" >&2
start_engine
if ! wait_for_answer; then
    tail -n 5 "$ENGINE_LOG" >&2 2>/dev/null || true
    stop_with "The Docker engine does not answer within $START_SECONDS s: see $ENGINE_LOG, or 'journalctl -u docker'."
fi
