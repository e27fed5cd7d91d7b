# Every target sets up what it needs: a virtual environment in .venv with the pinned dependencies.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
WORKERS := 5  # test processes at a time; they wait more than they work
KAFKA_WORKERS := 2  # the same with Apache Kafka, which works
SECONDS := 1800
RATE := 20000
BROKER := embedded  # or kafka4, kafka3
SEED := 7
PACE := 10000,25000,40000,60000
IMAGE := localhost/binance-ingestion:latest

unexport PYTHONDONTWRITEBYTECODE  # or each of many hundred processes compiles every module anew

.PHONY: help demo run test test-kafka check audit format bench bench-quick bench-spool bench-kafka bench-resume bench-shards bench-shards-paced bench-page profile soak chaos-kafka chaos-exchange chaos image test-image test-stack test-monitoring picture clean

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
	$(BIN)/python -m pytest -n $(WORKERS)

test-kafka: $(READY)  ## the broker tests on Apache Kafka 4.4 (KRaft) and 3.9 (ZooKeeper); needs Java and Maven
	$(BIN)/python -m sandbox.brokers fetch
	$(BIN)/python -m pytest -n $(KAFKA_WORKERS) -m kafka --brokers kafka4,kafka3

check: $(READY)  ## lint, format, types, import layers, known vulnerabilities where their data can be reached
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m sandbox.audit

audit: $(READY)  ## known vulnerabilities of the dependencies, where their data can be reached
	$(BIN)/python -m sandbox.audit

format: $(READY)  ## put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## throughput, CPU, latency and memory beside a naive reference and cryptofeed, on the embedded broker
	$(BIN)/python -m benchmarks.bench

bench-quick: $(READY)  ## the same in 100 s: for a look, not for figures
	$(BIN)/python -m benchmarks.bench --quick

bench-resume: $(READY)  ## how long a start takes that finds 500 symbols' places in a tail of 100,000 records
	$(BIN)/python -W ignore::DeprecationWarning -m benchmarks.resume

bench-spool: $(READY)  ## what the spool costs while Kafka is healthy: with and without it, in pairs
	$(BIN)/python -m benchmarks.spool_cost

bench-kafka: $(READY)  ## the same on Apache Kafka 4.4
	$(BIN)/python -m sandbox.brokers fetch
	$(BIN)/python -m benchmarks.bench --broker kafka4

chaos-kafka: $(READY)  ## Kafka fails in random ways for five minutes; what is in it is compared with what was sent: make chaos-kafka BROKER=kafka4 SEED=7
	$(if $(filter-out embedded,$(BROKER)),$(BIN)/python -m sandbox.brokers fetch)
	$(BIN)/python -m sandbox.chaos --seconds 300 --broker $(BROKER) --seed $(SEED)

chaos-exchange: $(READY)  ## the exchange fails in every way in a random order, some 15 minutes; the service runs on, is stopped, is killed: make chaos-exchange BROKER=kafka4 SEED=7
	$(if $(filter-out embedded,$(BROKER)),$(BIN)/python -m sandbox.brokers fetch)
	$(BIN)/python -m sandbox.chaos_exchange --broker $(BROKER) --seed $(SEED)

chaos: $(READY)  ## the same with Kafka failing at the same time
	$(if $(filter-out embedded,$(BROKER)),$(BIN)/python -m sandbox.brokers fetch)
	$(BIN)/python -m sandbox.chaos_exchange --kafka --broker $(BROKER) --seed $(SEED)

bench-shards: $(READY)  ## one process, then two shards, on one broker: throughput of each, every record verified
	$(BIN)/python -m benchmarks.shards

bench-shards-paced: $(READY)  ## what an added process brings while cores are idle: make bench-shards-paced PACE=10000,25000
	$(BIN)/python -m benchmarks.shards --paced $(PACE) --processes 3

bench-page: $(READY)  ## put what was measured last into BENCHMARKS.md
	$(BIN)/python -m benchmarks.markdown

profile: $(READY)  ## where the time goes, by function, of the running service under load
	$(BIN)/python -m benchmarks.hotspots

soak: $(READY)  ## memory and latency over time: make soak SECONDS=1800 RATE=20000
	$(BIN)/python -m benchmarks.soak --seconds $(SECONDS) --rate $(RATE)

image: $(READY)  ## build the container image with buildah; needs Linux, root, buildah, debootstrap
	$(BIN)/python -m sandbox.image --tag $(IMAGE)

test-image: image  ## run the image: health, delivery, signals, read-only root
	CONTAINER_IMAGE=$(IMAGE) $(BIN)/python -m pytest tests/test_container.py

test-stack: image  ## the compose stacks as processes, kustomize; needs Java, Maven, Go, ncat, prometheus too
	$(BIN)/python -m sandbox.brokers fetch
	CONTAINER_IMAGE=$(IMAGE) STACK_TESTS=1 $(BIN)/python -m pytest tests/test_compose.py tests/test_kubernetes.py

test-monitoring: $(READY)  ## dashboard, alerts, catalogue on a real Prometheus (Debian's package prometheus)
	$(BIN)/python -m pytest tests/test_observability.py

picture: $(READY)  ## docs/monitoring.svg from a running service: make picture URL=http://127.0.0.1:8000
	$(BIN)/python -m sandbox.picture --url $(or $(URL),http://127.0.0.1:8000)

clean:  ## remove what the other targets made
	rm -rf .venv build data .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
