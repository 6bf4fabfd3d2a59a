# `make up` needs Python 3.11 or newer; `make test` needs Java 17, Maven and Node 20 too, and installs what it may.
.PHONY: up test suite engines bytecode style types imports explore soak lint lock format bench bench-readers

# Farthing on this machine: make up ARGS="--port 18080 --data-dir ./elsewhere"
up:
	@tools/setup.sh runtime
	@exec .venv/bin/farthing up $(ARGS)

# Every check and every test; make test ARGS="-k budgets" for some. Checks go beside the first tests, which wait a lot.
test:
	@tools/setup.sh dev
	@$(MAKE) --no-print-directory --jobs=5 style types imports bytecode suite

suite: engines
	@tools/test.sh $(ARGS)

engines:
	@tools/fetch_kafka.sh
	@tools/setup_clients.sh

# The properties on examples that no run had before, over and over; what fails prints how to have it again: make explore ROUNDS=20
explore:
	@tools/setup.sh dev
	@for round in $$(seq $(or $(ROUNDS),5)); do \
		.venv/bin/pytest -q tests/property tests/unit/test_codec.py --hypothesis-profile=explore $(ARGS) || exit; done

# The three rigs for an hour or two, and their report in bench/results/soak.md: make soak STEPS=1000 SEEDS=1000 ROUNDS=5
# SEEDS are those of the main kind; of each other one there are a tenth as many.
soak:
	@tools/setup.sh dev
	@tools/fetch_kafka.sh
	@.venv/bin/python -m tests.chaos.soak --steps $(or $(STEPS),1000000) --seeds $(or $(SEEDS),100000) \
		--rounds $(or $(ROUNDS),200) --report $(or $(REPORT),bench/results/soak.md) $(ARGS)

# Compiles the tests, most likely before three processes do so at once, for the rounds of chaos take longer than this.
# What is wrong with them, the run will say.
bytecode:
	@env -u PYTHONDONTWRITEBYTECODE .venv/bin/pytest --collect-only -qq >/dev/null 2>&1 || true

lint:
	@tools/setup.sh dev
	@$(MAKE) --no-print-directory --jobs=2 style types imports

style:
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check

types:
	@.venv/bin/mypy

imports:
	@.venv/bin/lint-imports

format:
	@tools/setup.sh dev
	@.venv/bin/ruff check --fix
	@.venv/bin/ruff format

# The gateway's requests a second and added latency, beside a direct call and a bare proxy: make bench ARGS=--help
bench:
	@tools/setup.sh dev
	@.venv/bin/python -m bench.gateway $(ARGS)

# What metering costs for each kind of answer, beside parsing it alone: make bench-readers ARGS="--only openai"
bench-readers:
	@tools/setup.sh dev
	@.venv/bin/python -m bench.readers $(ARGS)

# Pins every package anew, at its latest version that fits.
lock:
	@tools/setup.sh tools
	@tools/lock.sh
