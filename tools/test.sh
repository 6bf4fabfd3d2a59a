#!/bin/sh
# Runs the tests: tools/test.sh [PYTEST ARGUMENTS…]
#
# Those that need the processor to themselves for little (units, properties, contracts, fuzzing) go over two processes;
# those that start, kill and pause engines go one by one after them. Arguments that name tests run just these.
set -eu
cd "$(dirname "$0")/.."

for argument in "$@"; do
    if [ -e "${argument%%::*}" ]; then
        exec .venv/bin/pytest "$@"
    fi
done

# Exit code 5 says that nothing was selected, which is no failure while the other half has something.
run() {
    .venv/bin/pytest "$@" && return
    code=$?
    [ "$code" = 5 ] || exit "$code"
    empty=$((empty + 1))
}

empty=0
run --numprocesses 2 --dist loadgroup tests/unit tests/property tests/contract tests/fuzz "$@"
run tests/integration tests/chaos "$@"
[ "$empty" -lt 2 ] || exit 5
