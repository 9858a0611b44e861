# `make release` bakes the reference product; `make test` checks everything. Both set up what they need.
SHELL := /bin/bash
PRODUCT ?= income
PYTHON := .venv/bin/python
QUICKLY := -m "not gpu and not slow"
RELEASING := $(addprefix tests/integration/,deploy project provenance release training)
export ORT_DISABLE_TELEMETRY := 1
unexport PYTHONDONTWRITEBYTECODE# without bytecode every process compiles all of mlops again

.PHONY: help release test test-releases test-rest test-long check format system setup lock soak-serving clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## / — /'

release: setup  ## Bake PRODUCT (default: income): data, sweep, export, gate, register, image, probe
	.venv/bin/mlops release $(PRODUCT)

test: system setup  ## All checks and tests
	@$(MAKE) --no-print-directory --jobs 3 check test-releases test-rest

test-releases:  # whole releases and sweeps: half of the time
	$(PYTHON) -m pytest $(QUICKLY) $(RELEASING)

test-rest:
	$(PYTHON) -m pytest $(QUICKLY) $(addprefix --ignore ,$(RELEASING))

test-long: system setup check  ## The same tests with larger counts
	MLOPS_TEST_SCALE=20 $(PYTHON) -m pytest -m "not gpu" --timeout=3600

check: setup  ## Lint, types, layers, sizes
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	$(PYTHON) -m pytest -p no:randomly tests/unit/test_sizes.py

format: setup  ## Let ruff rewrite what it can
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

system:  ## Install Debian packages, when this user may; `mlops doctor` names what is missing
	@scripts/system.sh --if-allowed

setup:
	@scripts/setup.sh

lock: setup  ## Write requirements.lock from pyproject.toml
	scripts/lock.sh

bench-%: setup  ## bench-release, bench-circle, bench-budgets, bench-sweeps, bench-data, bench-gate, bench-serving
	$(PYTHON) benchmarks/bench_$*.py

soak-serving: setup  ## The serving image at half load for 30 minutes: no error, memory flat
	$(PYTHON) benchmarks/bench_serving.py --soak-only --soak 1800

clean:  ## Remove the environment; the project's state in .mlops/ stays
	rm -rf .venv
