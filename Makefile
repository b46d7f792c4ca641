# Every target makes the environment first. Nothing but Python 3.11+ and the package registries is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := $(VENV)/.installed-peers

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-slow test-cluster check fmt protos bench soak clean

help:
	@echo "make demo   train three tasks on real text, serve them, swap one under load (ten minutes)"
	@echo "make test   all test suites: fast, slow, and on Ray clusters of this machine"
	@echo "make check  format, lint, types, layer contracts, freshness of protos and tables"
	@echo "make fmt    format the code          make protos  generate protos/"
	@echo "make bench  measure everything, beside PEFT and CTranslate2 (three quarters of an hour)"
	@echo "make soak   change a server's registry a thousand times, check every answer (a quarter of an hour)"
	@echo "make setup  the environment alone"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned packages into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python -m demo

# Runs all suites, even where one fails, and ends with a line for each.
test: $(INSTALLED)
	$(BIN)/python -m tests.run_suites

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not cluster" -n 2 --dist worksteal

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow and not cluster" -n 2 --dist worksteal

test-cluster: $(INSTALLED)
	$(BIN)/python -m pytest -m cluster

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/python protos/generate.py --check
	$(BIN)/python docs/generate_metrics.py --check

fmt: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(INSTALLED)
	$(BIN)/python protos/generate.py

bench: $(PEERS)
	$(BIN)/python -m benchmarks.bench_all --save; failed=$$?; $(BIN)/python -m benchmarks.harness.table --write; exit $$failed

soak: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench_soak --save

$(PEERS): $(INSTALLED)
	@echo "installing what the server is compared with: PEFT, CTranslate2"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bench]'
	@touch $@

clean:
	rm -rf $(VENV) demo-run build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
