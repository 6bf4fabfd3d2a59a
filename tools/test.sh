#!/bin/sh
# Runs the tests: tools/test.sh [PYTEST ARGUMENTS…]
#
# They go over three processes, module by module, each process with engines of its own: on two cores, because much of
# them is waiting. The rounds of chaos come alone before them. Arguments that name tests run just these.
set -eu
cd "$(dirname "$0")/.."

for argument in "$@"; do
    if [ -e "${argument%%::*}" ]; then
        exec .venv/bin/pytest "$@"
    fi
done

# Fourteen processes under a thousand calls at once leave nothing for others.
alone=tests/chaos/test_rounds.py
# The same modules are started as services again and again: they are compiled once, whatever this says.
unset PYTHONDONTWRITEBYTECODE

# Exit code 5 says that nothing was selected, which is no failure while the other half has something.
run() {
    .venv/bin/pytest "$@" && return
    code=$?
    [ "$code" = 5 ] || exit "$code"
    empty=$((empty + 1))
}

empty=0
run $alone "$@"
run --numprocesses 3 --dist loadscope --no-loadscope-reorder --ignore=$alone "$@"
[ "$empty" -lt 2 ] || exit 5
