#!/bin/sh
# Installs the vendors' official clients, which the contract tests drive, from the pinned files in tests/clients:
# two Python environments and one of Node, under .tools/clients. A second run with nothing changed is instant.
set -eu
cd "$(dirname "$0")/.."

source=tests/clients
target=.tools/clients

fail() {
    echo "$*" >&2
    exit 1
}

# Makes an environment unless it was made from the same files and still runs: step ENVIRONMENT FILES… -- COMMAND…
# COMMAND --check says whether it runs: an interpreter may have been removed since.
step() {
    place=$target/$1
    shift
    sum=
    while [ "$1" != -- ]; do
        sum="$sum $(cksum <"$1")"
        shift
    done
    shift
    if [ "$(cat "$place/.stamp" 2>/dev/null)" = "$sum" ] && "$@" --check; then
        return
    fi
    rm -rf "$place"
    mkdir -p "$place"
    "$@" # may end the run: without a stamp, the next one begins anew
    echo "$sum" >"$place/.stamp"
}

# python_packages NAME [--check]
python_packages() {
    python=$target/python-$1/bin/python
    if [ "${2:-}" = --check ]; then
        "$python" -c '' 2>/dev/null
        return
    fi
    echo "Installing $(grep -c '==' "$source/requirements-$1.lock") pinned packages for the Python clients ($1)"
    .venv/bin/uv venv --quiet --clear --python .venv/bin/python "$target/python-$1"
    set -- pip install --quiet --python "$python" --require-hashes --no-deps --compile-bytecode \
        --requirement "$source/requirements-$1.lock"
    # The system's certificates first, for networks that have their own; uv's own where the system has none.
    .venv/bin/uv --system-certs "$@" 2>/dev/null || .venv/bin/uv "$@"
}

has_node() {
    command -v npm >/dev/null 2>&1 && node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null
}

# node_packages [--check]
node_packages() {
    if [ "${1:-}" = --check ]; then
        has_node
        return
    fi
    if ! has_node && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "Installing Node and npm, which the Node clients need."
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null || true
    fi
    has_node || fail "The contract tests drive Node clients, which need Node 20 or later and npm: install both, so that" \
        "'node' and 'npm' are on the PATH."
    echo "Installing $(grep -c '"node_modules/' $source/package-lock.json) pinned packages for the Node clients"
    cp $source/package.json $source/package-lock.json $target/node
    # No package's own script runs: one of them would copy Claude Code's program, which is found where it is.
    (cd $target/node && npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error >/dev/null)
    ln -s "../../../$source/node" $target/node/drivers
}

tools/setup.sh tools
for kind in sdks frameworks; do
    step python-$kind $source/requirements-$kind.lock -- python_packages $kind
done
step node $source/package.json $source/package-lock.json -- node_packages
