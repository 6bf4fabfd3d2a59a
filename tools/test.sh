#!/bin/sh
# Runs the tests: tools/test.sh [PYTEST ARGUMENTS…]
#
# Those that share nothing and kill nothing go over two processes, each with engines of its own; those that start, kill
# and pause whole services go one by one after them. Arguments that name tests run just these.
set -eu
cd "$(dirname "$0")/.."

for argument in "$@"; do
    if [ -e "${argument%%::*}" ]; then
        exec .venv/bin/pytest "$@"
    fi
done

# The longest first.
apart="tests/contract tests/unit tests/property tests/fuzz tests/integration/hot_state"
for name in control_api control_prices gateway_fallback gateway_wire jobs_anthropic jobs_openai jobs_port ledger_api; do
    apart="$apart tests/integration/test_$name.py"
done
ignored=
for path in $apart; do
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
# shellcheck disable=SC2086
run --numprocesses 2 --dist loadscope --no-loadscope-reorder $apart "$@"
# shellcheck disable=SC2086
run tests/integration tests/chaos $ignored "$@"
[ "$empty" -lt 2 ] || exit 5
