# Every target sets up what it needs: a virtual environment in .venv with the pinned dependencies.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo run test test-kafka check format bench bench-kafka chaos-kafka clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(READY): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $(READY)

demo: $(READY)  ## the whole way on this machine: simulated exchange, embedded broker, service, what arrives in Kafka
	@$(BIN)/python -m sandbox.demo

run: $(READY)  ## the live exchange into the embedded broker
	@$(BIN)/python -m sandbox.demo --live

test: $(READY)  ## all tests that need nothing but the package index
	$(BIN)/python -m pytest

test-kafka: $(READY)  ## the broker tests on Apache Kafka 4.4 (KRaft) and 3.9 (ZooKeeper); needs Java and Maven
	$(BIN)/python -m sandbox.brokers fetch
	$(BIN)/python -m pytest -m kafka --brokers kafka4,kafka3

check: $(READY)  ## lint, format, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## throughput, CPU and memory beside a naive reference, on the embedded broker
	$(BIN)/python -m benchmarks.bench

bench-kafka: $(READY)  ## the same on Apache Kafka 4.4
	$(BIN)/python -m sandbox.brokers fetch
	$(BIN)/python -m benchmarks.bench --broker kafka4

chaos-kafka: $(READY)  ## Kafka fails in random ways for five minutes; what is in it is compared with what was sent
	$(BIN)/python -m sandbox.chaos --seconds 300

clean:  ## remove what the other targets made
	rm -rf .venv build data .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
