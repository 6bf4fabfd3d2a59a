#!/bin/sh
# Runs the tests: tools/test.sh [PYTEST ARGUMENTS…]
#
# They go over two processes, module by module, each process with engines of its own; the rounds of chaos come alone
# after them. Arguments that name tests run just these.
set -eu
cd "$(dirname "$0")/.."

for argument in "$@"; do
    if [ -e "${argument%%::*}" ]; then
        exec .venv/bin/pytest "$@"
    fi
done

# Fourteen processes under a thousand calls at once leave nothing for others.
alone=tests/chaos/test_rounds.py
# The longest modules, so that the last to end is a short one.
first="tests/simulation/test_seeds.py tests/chaos/test_kills.py tests/integration/test_aggregator_faust.py
    tests/property/test_hot_state_walk.py tests/contract"

# Exit code 5 says that nothing was selected, which is no failure while the other half has something.
run() {
    .venv/bin/pytest "$@" && return
    code=$?
    [ "$code" = 5 ] || exit "$code"
    empty=$((empty + 1))
}

empty=0
# shellcheck disable=SC2086
run --numprocesses 2 --dist loadscope --no-loadscope-reorder $first tests/integration tests --ignore=$alone "$@"
run $alone "$@"
[ "$empty" -lt 2 ] || exit 5
