# `make up` needs Python 3.11 or newer; `make test` needs Java 17, Maven and Node 20 too, and installs what it may.
.PHONY: up test lint lock format bench bench-readers

# Farthing on this machine: make up ARGS="--port 18080 --data-dir ./elsewhere"
up:
	@tools/setup.sh runtime
	@exec .venv/bin/farthing up $(ARGS)

# Every check and every test; make test ARGS="-k budgets" for some.
test: lint
	@tools/fetch_kafka.sh
	@tools/setup_clients.sh
	@tools/test.sh $(ARGS)

lint:
	@tools/setup.sh dev
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
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
