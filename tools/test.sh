#!/bin/sh
# Runs the tests: tools/test.sh [PYTEST ARGUMENTS…]
#
# Most go over two processes, module by module, each process with engines of its own; those that kill and pause whole
# services under load go one by one after them. Arguments that name tests run just these.
set -eu
cd "$(dirname "$0")/.."

for argument in "$@"; do
    if [ -e "${argument%%::*}" ]; then
        exec .venv/bin/pytest "$@"
    fi
done

# Faust's group and the kills are timed by what else the machine has to do.
alone="tests/integration/test_aggregator_faust.py tests/chaos"
ignored=
for path in $alone; do
    ignored="$ignored --ignore=$path"
done

# Exit code 5 says that nothing was selected, which is no failure while the other half has something.
run() {
    .venv/bin/pytest "$@" && return
    code=$?
    [ "$code" = 5 ] || exit "$code"
    empty=$((empty + 1))
}

empty=0
# The longest modules first.
# shellcheck disable=SC2086
run --numprocesses 2 --dist loadscope --no-loadscope-reorder tests/contract tests/integration tests $ignored "$@"
# shellcheck disable=SC2086
run $alone "$@"
[ "$empty" -lt 2 ] || exit 5
