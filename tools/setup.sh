#!/bin/sh
# Makes .venv and installs pinned packages into it. A second run with nothing changed is instant.
#
#   tools/setup.sh tools      the installer only
#   tools/setup.sh runtime    what `farthing up` needs
#   tools/setup.sh dev        and what the tests need
#
# PYTHON names the interpreter to use, if not the first fitting one on PATH. It talks on standard error only, because
# the standard output of `make up ARGS=--json` belongs to Farthing.
set -eu
exec 1>&2
cd "$(dirname "$0")/.."

fail() {
    echo "farthing: $*"
    exit 1
}

find_python() {
    no_venv=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            python=$candidate
            return
        fi
        no_venv=$candidate
    done
    [ -z "$no_venv" ] || fail "$no_venv can't make virtual environments; install its venv module (on Debian and Ubuntu:" \
        "apt-get install python3-venv), then run this again."
    fail "no Python 3.11 or newer found${PYTHON:+ as $PYTHON}; install one, or name it: make up PYTHON=/path/to/python3"
}

make_venv() {
    # A removed interpreter or a moved folder leaves an environment whose scripts can't run.
    if .venv/bin/python -c 'import pip' 2>/dev/null && [ "$(cat .venv/.place 2>/dev/null)" = "$PWD" ]; then
        return
    fi
    find_python
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
    echo "$PWD" >.venv/.place
}

# Runs a step unless it was run with the same files before: step NAME FILES… -- COMMAND…
step() {
    name=$1
    shift
    files=
    while [ "$1" != -- ]; do
        files="$files $1"
        shift
    done
    shift
    stamp=.venv/.$name
    # shellcheck disable=SC2086
    sum=$(cat $files | cksum)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sum" ]; then
        return
    fi
    "$@"
    echo "$sum" >"$stamp"
}

install_tools() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r tools/setup.lock
}

# The system's certificates first, for networks that have their own; uv's own where the system has none.
uv_install() {
    .venv/bin/uv --system-certs pip install --quiet --python .venv/bin/python "$@" 2>/dev/null ||
        .venv/bin/uv pip install --quiet --python .venv/bin/python "$@"
}

install_packages() {
    echo "Installing $(grep -c '==' "$1") pinned packages"
    uv_install --require-hashes --no-deps --compile-bytecode -r "$1"
}

install_project() {
    uv_install --no-deps --no-build-isolation --editable .
}

kind=${1:?"usage: tools/setup.sh tools|runtime|dev"}
make_venv
step tools tools/setup.lock -- install_tools
case $kind in
tools) ;;
runtime) step runtime requirements.lock -- install_packages requirements.lock ;;
dev) step dev requirements-dev.lock -- install_packages requirements-dev.lock ;;
*) fail "there is no set-up called $kind; there are tools, runtime and dev" ;;
esac
[ "$kind" = tools ] || step project pyproject.toml -- install_project
