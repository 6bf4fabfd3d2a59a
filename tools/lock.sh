#!/bin/sh
# Pins every package with its hashes: what `make up` runs, what `make test` adds, and what the set-up itself needs.
# The same version everywhere, so that all three can share one virtual environment.
set -eu
cd "$(dirname "$0")/.."

compile() {
    .venv/bin/uv --system-certs pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-annotate --no-header --no-emit-index-url --no-emit-find-links "$@"
}

compile --upgrade pyproject.toml --extra embedded --output-file requirements.lock
compile --upgrade pyproject.toml --extra dev --constraints requirements.lock --output-file requirements-dev.lock
compile --upgrade tools/setup.in --constraints requirements-dev.lock --output-file tools/setup.lock
tools/lock_clients.sh
