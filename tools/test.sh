#!/bin/sh
# Runs the tests: tools/test.sh [PYTEST ARGUMENTS…]
#
# The rounds of chaos come first and alone; all others then go over three processes, module by module, each process with
# engines of its own: on two cores, because much of them is waiting. The simulation waits for nobody: it takes what all
# these leave. Arguments that name tests run just these.
set -eu
cd "$(dirname "$0")/.."

for argument in "$@"; do
    if [ -e "${argument%%::*}" ]; then
        exec .venv/bin/pytest "$@"
    fi
done

# Fourteen processes under a thousand calls at once leave nothing for others.
alone=tests/chaos/test_rounds.py
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

empty=0
told=$(mktemp)
nice -n 19 .venv/bin/pytest --timeout=1200 $computing "$@" >"$told" 2>&1 &
beside=$!
# A part that fails ends the others: what this one had said by then is shown, too. A Ctrl-C does not reach what a shell
# has in the background, so that it has to be ended.
leave() {
    if kill $beside 2>/dev/null; then
        wait $beside 2>/dev/null || true
        cat "$told"
    fi
    rm -f "$told"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

run $alone "$@"
run --numprocesses 3 --dist loadscope --no-loadscope-reorder --ignore=$alone --ignore=$computing "$@"
code=0
wait $beside || code=$?
cat "$told"
judge $code
[ "$empty" -lt 3 ] || exit 5
