#!/bin/sh
# Runs the tests: tools/test.sh [PYTEST ARGUMENTS…]
#
# The rounds of chaos come first, before all else that has engines; the others then go over three processes, module by
# module, each process with engines of its own: on two cores, because much of them is waiting. The simulation waits for
# nobody: it takes what all these leave. Beside the rounds there are the checks of `make test`, too. Arguments that name
# tests run just these.
set -eu
cd "$(dirname "$0")/.."

for argument in "$@"; do
    if [ -e "${argument%%::*}" ]; then
        exec .venv/bin/pytest "$@"
    fi
done

# Fourteen processes under a thousand calls at once leave nothing for other engines; what only computes has to wait, at
# worst.
rounds=tests/chaos/test_rounds.py
computing=tests/simulation
# The same modules are started as services again and again: they are compiled once, whatever this says.
unset PYTHONDONTWRITEBYTECODE

# Exit code 5 says that nothing was selected, which is no failure while another part has something.
judge() {
    case $1 in
    0) ;;
    5) empty=$((empty + 1)) ;;
    *) exit "$1" ;;
    esac
}

run() {
    code=0
    .venv/bin/pytest "$@" || code=$?
    judge $code
}

# Ends the simulation where another part has failed or a signal came, and shows what it has said by then.
leave() {
    if [ -n "$beside" ]; then
        trap 'kill -KILL $beside 2>/dev/null || true' INT TERM # whoever asks again does not want to wait
        kill "$beside" 2>/dev/null || true
        wait "$beside" || true
        cat "$told"
    fi
    rm -f "$told"
}

empty=0
beside=
told=$(mktemp)
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What a shell has in its background ignores a Ctrl-C; SIGTERM, by which `leave` ends it, is made to be one. For pytest
# then tells of what had failed, and on a SIGTERM it tells nothing.
as_if_by_hand='import signal, sys, pytest
signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.exit(pytest.main())'
nice -n 19 .venv/bin/python -c "$as_if_by_hand" --timeout=1200 $computing "$@" >"$told" 2>&1 &
beside=$!

run $rounds "$@"
run --numprocesses 3 --dist loadscope --no-loadscope-reorder --ignore=$rounds --ignore=$computing "$@"
code=0
wait "$beside" || code=$?
cat "$told"
beside=
judge $code
[ "$empty" -lt 3 ] || exit 5
