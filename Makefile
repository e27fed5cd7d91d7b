# Every target sets up what it needs: a virtual environment in .venv with the pinned dependencies.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEV := .venv/.ready-dev
WORKERS := 5  # test processes at a time; they wait more than they work
KAFKA_WORKERS := 2  # the same with Apache Kafka, which works
SECONDS := 1800
RATE := 20000
BROKER := embedded  # or kafka4, kafka3
SEED := 7
PACE := 20000,40000,60000,80000
IMAGE := localhost/binance-ingestion:latest

unexport PYTHONDONTWRITEBYTECODE  # or each of many hundred processes compiles every module anew

.PHONY: help demo run test test-20 test-kafka check audit format bench bench-quick bench-spool bench-kafka bench-resume bench-shards bench-shards-paced bench-page profile soak chaos-kafka chaos-exchange chaos image test-image test-stack test-monitoring picture clean

help:  ## what there is
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# What the service and the sandbox need, and nothing else.
$(READY): requirements.txt requirements-sandbox.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-sandbox.txt
	@touch $(READY)

# The rest, which is much larger: tests, checks, benchmarks.
$(DEV): $(READY) requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $(DEV)

demo: $(READY)  ## the whole way on this machine: simulated exchange, embedded broker, service, what arrives in Kafka
	@$(BIN)/python -m sandbox.demo

run: $(READY)  ## the live exchange into the embedded broker
	@$(BIN)/python -m sandbox.demo --live

test: $(DEV)  ## all tests that need nothing but the package index
	$(BIN)/python -m pytest -n $(WORKERS)

test-20: $(DEV)  ## the same twenty times over, the closing line of each run; ends at the first that fails
	@mkdir -p build
	@for run in $$(seq 20); do \
		$(BIN)/python -m pytest -n $(WORKERS) > build/test-20.log 2>&1 || { cat build/test-20.log; exit 1; }; \
		echo "$$run: $$(tail -n 1 build/test-20.log)"; \
	done

test-kafka: $(DEV)  ## the broker tests on Apache Kafka 4.4 (KRaft) and 3.9 (ZooKeeper); needs Java and Maven
	$(BIN)/python -m sandbox.brokers fetch
	$(BIN)/python -m pytest -n $(KAFKA_WORKERS) -m kafka --brokers kafka4,kafka3

check: $(DEV)  ## lint, format, types, import layers, known vulnerabilities where their data can be reached
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m sandbox.audit

audit: $(DEV)  ## known vulnerabilities of the dependencies, where their data can be reached
	$(BIN)/python -m sandbox.audit

format: $(DEV)  ## put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DEV)  ## throughput, CPU, latency and memory beside a naive reference and cryptofeed, on the embedded broker
	$(BIN)/python -m benchmarks.bench

bench-quick: $(DEV)  ## the same in 100 s: for a look, not for figures
	$(BIN)/python -m benchmarks.bench --quick

bench-resume: $(DEV)  ## how long a start takes that finds 500 symbols' places in a tail of 100,000 records
	$(BIN)/python -W ignore::DeprecationWarning -m benchmarks.resume

bench-spool: $(DEV)  ## what the spool costs while Kafka is healthy: with and without it, in pairs
	$(BIN)/python -m benchmarks.spool_cost

bench-kafka: $(DEV)  ## the same on Apache Kafka 4.4
	$(BIN)/python -m sandbox.brokers fetch
	$(BIN)/python -m benchmarks.bench --broker kafka4

chaos-kafka: $(DEV)  ## Kafka fails in random ways for five minutes; what is in it is compared with what was sent: make chaos-kafka BROKER=kafka4 SEED=7
	$(if $(filter-out embedded,$(BROKER)),$(BIN)/python -m sandbox.brokers fetch)
	$(BIN)/python -m sandbox.chaos --seconds 300 --broker $(BROKER) --seed $(SEED)

chaos-exchange: $(DEV)  ## the exchange fails in every way in a random order, some 15 minutes; the service runs on, is stopped, is killed: make chaos-exchange BROKER=kafka4 SEED=7
	$(if $(filter-out embedded,$(BROKER)),$(BIN)/python -m sandbox.brokers fetch)
	$(BIN)/python -m sandbox.chaos_exchange --broker $(BROKER) --seed $(SEED)

chaos: $(DEV)  ## the same with Kafka failing at the same time
	$(if $(filter-out embedded,$(BROKER)),$(BIN)/python -m sandbox.brokers fetch)
	$(BIN)/python -m sandbox.chaos_exchange --kafka --broker $(BROKER) --seed $(SEED)

bench-shards: $(DEV)  ## one process, then two shards, on one broker: throughput of each, every record verified
	$(BIN)/python -m benchmarks.shards

bench-shards-paced: $(DEV)  ## what an added process brings while cores are idle: make bench-shards-paced PACE=10000,25000
	$(BIN)/python -m benchmarks.shards --paced $(PACE) --processes 3

bench-page: $(DEV)  ## put what was measured last into BENCHMARKS.md
	$(BIN)/python -m benchmarks.markdown

profile: $(DEV)  ## where the time goes, by function, of the running service under load
	$(BIN)/python -m benchmarks.hotspots

soak: $(DEV)  ## memory and latency over time: make soak SECONDS=1800 RATE=20000
	$(BIN)/python -m benchmarks.soak --seconds $(SECONDS) --rate $(RATE)

image: $(DEV)  ## build the container image with buildah; needs Linux, root, buildah, debootstrap
	$(BIN)/python -m sandbox.image --tag $(IMAGE)

test-image: image  ## run the image: health, delivery, signals, read-only root
	CONTAINER_IMAGE=$(IMAGE) $(BIN)/python -m pytest tests/test_container.py

test-stack: image  ## the compose stacks as processes, kustomize; needs Java, Maven, Go, ncat, prometheus too
	$(BIN)/python -m sandbox.brokers fetch
	CONTAINER_IMAGE=$(IMAGE) STACK_TESTS=1 $(BIN)/python -m pytest tests/test_compose.py tests/test_kubernetes.py

test-monitoring: $(DEV)  ## dashboard, alerts, catalogue on a real Prometheus (Debian's package prometheus)
	$(BIN)/python -m pytest tests/test_observability.py

picture: $(DEV)  ## docs/monitoring.svg from a running service: make picture URL=http://127.0.0.1:8000
	$(BIN)/python -m sandbox.picture --url $(or $(URL),http://127.0.0.1:8000)

clean:  ## remove what the other targets made; data/spool, which may hold what Kafka does not have yet, stays
	rm -rf .venv build data/demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
