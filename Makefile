# `make` lists what there is. Everything runs in .venv, made from requirements.lock.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-changefeed test fuzz lint kafka kafka-stop relay projection lock proto fixtures bench chaos faults helm operator-test clean preflight redis-memory

BIN := .venv/bin
# By content, so that neither a fresh checkout nor `touch` installs anything anew.
INSTALLED := .venv/installed-$(shell cat requirements.lock pyproject.toml | cksum | tr ' ' '-')
# What the benchmark compares with: other versions of the same packages, so a venv of its own.
BENCH_INSTALLED := bench/.venv/installed-$(shell cksum < bench/requirements.txt | tr ' ' '-')
KAFKA_PORT ?= 9092
KAFKA_DIR := var/kafka-$(KAFKA_PORT)

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## A real Redis dump through Kafka into Parquet and ClickHouse, from nothing
	$(BIN)/millstream demo

demo-changefeed: $(INSTALLED)  ## Postgres outbox to a projection, staged products to a change feed, from nothing
	$(BIN)/millstream demo-changefeed

test: lint  ## Lint and all tests, against a real broker (a part of them: make test TESTS=tests/unit)
	$(BIN)/pytest $(or $(TESTS),-n 3 --dist loadfile)

fuzz: $(INSTALLED)  ## The properties that Hypothesis tests, with new random examples (make fuzz TESTS=tests/unit/tables)
	$(BIN)/pytest $(TESTS) -n 2 --timeout 3600 --durations 10 -m 'hypothesis and not faults and not kubernetes' --hypothesis-profile fuzz

lint: $(INSTALLED)  ## ruff, mypy and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

kafka: $(INSTALLED)  ## Leave a development broker running (KAFKA_PORT=9092)
	@$(BIN)/python -m millstream.broker start --data-dir $(KAFKA_DIR) --port $(KAFKA_PORT)

kafka-stop: $(INSTALLED)  ## Stop it
	@$(BIN)/python -m millstream.broker stop --data-dir $(KAFKA_DIR)

relay: $(INSTALLED)  ## Run the outbox relay on MILLSTREAM_POSTGRES_URL (docs/changefeeds.md)
	$(BIN)/millstream migrate
	$(BIN)/millstream outbox relay

projection: $(INSTALLED)  ## Run a worker with the projection of videos and its web view, on the same
	MILLSTREAM_STREAMS=streams.projection,streams.videos MILLSTREAM_APP_ID=$${MILLSTREAM_APP_ID:-catalog-reader} \
		$(BIN)/faust -A streams worker

lock: $(INSTALLED)  ## Resolve requirements.lock anew from pyproject.toml, the images' and the benchmark's
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --generate-hashes --no-emit-index-url --no-annotate --no-header --all-extras \
		pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --generate-hashes --no-emit-index-url --no-annotate --no-header \
		-c requirements.lock --extra otel pyproject.toml -o deploy/image/requirements.lock
	echo 'kopf lightkube' | tr ' ' '\n' | $(BIN)/uv pip compile --generate-hashes --no-emit-index-url \
		--no-annotate --no-header -c requirements.lock - -o deploy/operator/requirements.lock
	grep -oE '^(setuptools)==[^ ]+' requirements.lock | $(BIN)/uv pip compile --generate-hashes --no-emit-index-url \
		--no-annotate --no-header - -o deploy/image/build.lock
	{ cat bench/requirements.in; grep -oE '^(msgspec|numpy|pyarrow)==[^ ]+' requirements.lock; } | \
		$(BIN)/uv pip compile --generate-hashes --no-emit-index-url --no-annotate --no-header - -o bench/requirements.txt

dashboards: $(INSTALLED)  ## Generate deploy/grafana/dashboards from the metric declarations
	$(BIN)/python -m tools.dashboards

dashboards-check: $(INSTALLED)  ## Check them against Grafana's own types (npm, tsc --strict)
	$(BIN)/python -m tools.dashboards.schema var/dashboards

observability: $(INSTALLED)  ## The services of docker-compose.yml as processes, a real Prometheus, every query and alert
	$(BIN)/pytest tests/integration/deploy/test_demo.py

image-check: $(INSTALLED)  ## Build the image and run the demo in containers, with buildah and podman (as root; docs/compose.md)
	sh tools/image-check.sh var/image

proto: $(INSTALLED)  ## Generate code from schemas/events/*.proto, and put what was added on record
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. schemas/events/video.proto
	$(BIN)/python -m tests.unit.events.contract

fixtures: $(INSTALLED)  ## Make the RDB test files anew with real Redis servers (they are committed)
	$(BIN)/python tests/fixtures/rdb/make.py

bench: $(INSTALLED) $(BENCH_INSTALLED)  ## Speed, latency and memory, beside others (BENCH="--rounds 1 --only json"; docs/benchmarks.md)
	$(BIN)/python -m bench $(BENCH)

redis-memory: $(INSTALLED)  ## Peak memory of dumps off a Redis, by their size (docs/redis-sources.md)
	$(BIN)/python -m bench.redis_source $(REDIS_MEMORY)

chaos: $(INSTALLED)  ## Attack real workers at random and check what came out (CHAOS_MINUTES=10 CHAOS_SEED=n CHAOS_ROUND=n; docs/proof.md)
	$(BIN)/python -m tests.chaos.run

faults: $(INSTALLED)  ## Attack what workers stand on, brokers, networks, sinks, at length; as root (FAULTS=tests/faults/broker; docs/proof.md)
	CHAOS_RECORD=1 $(BIN)/pytest -m "faults or not faults" $(or $(FAULTS),-n 2 --dist loadfile tests/faults)

model: $(INSTALLED)  ## The protocol simulated under every order of events, for STEPS=100000 steps (SEED=n; docs/proof.md)
	STEPS=$(STEPS) SEED=$(SEED) $(BIN)/python -W error -m tests.model.run

helm: $(INSTALLED)  ## Lint the Helm chart, render deploy/manifests, check both against the schemas of Kubernetes (takes Go, or helm)
	$(BIN)/python -m tests.kube.tools helm kubeconform schemas
	$(BIN)/python -m tests.kube.render
	$(BIN)/pytest -m kubernetes tests/kube/test_helm.py

operator-test: $(INSTALLED)  ## The operator against a real API server, built from source (takes Go, etcd, kubectl; 20 minutes at first)
	$(BIN)/python -m tests.kube.tools cluster
	$(BIN)/pytest -m kubernetes tests/kube/test_operator.py

clean:  ## Remove what was made here, the development broker's data included; .venv stays
	@if [ -x $(BIN)/python ]; then for d in var/kafka-*; do \
		if [ -d "$$d" ]; then $(BIN)/python -m millstream.broker stop --data-dir "$$d"; fi; done; fi
	rm -rf var out demo-out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

preflight:
	@sh tools/preflight.sh >/dev/null

# pip checks the hash of everything it installs, build tools included: setuptools is in the lock.
$(INSTALLED): | preflight
	test -x $(BIN)/python || "$$(sh tools/preflight.sh)" -m venv .venv
	rm -f .venv/installed-*
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(BENCH_INSTALLED): | preflight
	test -x bench/.venv/bin/python || "$$(sh tools/preflight.sh)" -m venv bench/.venv
	rm -f bench/.venv/installed-*
	bench/.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r bench/requirements.txt
	touch $@
