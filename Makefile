# Every target makes the environment that it needs first. Nothing but Python 3.11+ and the package registries is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PIP := $(PIP_INSTALL) --constraint constraints.txt
# HASHED=1, as in CI: no archive of what tests and checks need but those of hashes.txt; torch is excepted.
HASHED ?=
LOCK := --no-deps --require-hashes --requirement hashes.txt
# A stamp says that the packages of one kind are there. Each kind adds packages to the one environment, so a larger
# kind's recipe touches the stamps of those that it holds.
USER := $(VENV)/.installed-user
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed
PEERS := $(VENV)/.installed-peers
PINS := pyproject.toml constraints.txt
# without the notice about its successor
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-dev demo demo-vision test test-fast test-slow test-cluster check docs fmt protos bench soak clean

help:
	@echo "make demo   train three tasks on real text, serve them, swap one under load (seven minutes)"
	@echo "make demo-vision  the same with questions about pictures, and a page of the answers"
	@echo "make test   all test suites: fast, slow, and on Ray clusters of this machine"
	@echo "make check  format, lint, types, layer contracts, freshness of protos and tables, the documentation, known vulnerabilities"
	@echo "make docs   build the documentation as a site into build/site, and check its links"
	@echo "make fmt    format the code          make protos  generate protos/"
	@echo "make bench  measure everything, beside PEFT and CTranslate2 (three quarters of an hour)"
	@echo "make soak   change a server's registry a thousand times, check every answer; TLS, tokens, killed callers (half an hour)"
	@echo "make setup  the sidecast command, to train and serve       make setup-dev  what tests and checks need too"

setup: $(USER)
setup-dev: $(DEV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# | : the interpreter has to exist, its age says nothing
$(USER): $(PINS) | $(BIN)/python
	@echo "installing Sidecast into $(VENV) (a few minutes the first time)"
	$(PIP) torch
	$(PIP) --editable '.[serve,train]'
	@touch $@

$(DEMO): $(PINS) | $(BIN)/python
	@echo "installing Sidecast and what the demo needs into $(VENV) (a few minutes the first time)"
	$(PIP) torch
	$(PIP) --editable '.[demo]'
	@touch $(USER) $@

$(DEV): $(PINS) | $(BIN)/python
	@echo "installing Sidecast and what tests and checks need into $(VENV) (several minutes the first time)"
	$(if $(HASHED),$(PIP_INSTALL) $(LOCK))
	$(PIP) torch
	$(PIP) $(if $(HASHED),--no-index --no-build-isolation) --editable '.[dev]'
	$(BIN)/python tests/deploy/tools.py
	$(BIN)/python tests/serving/console/chromium.py
	@touch $(USER) $(DEMO) $@

demo: $(DEMO)
	$(BIN)/python -m demo

demo-vision: $(DEMO)
	$(BIN)/python -m demo vision

# Runs all suites, even where one fails, and ends with a line for each.
test: $(DEV)
	$(BIN)/python -m tests.run_suites

test-fast: $(DEV)
	$(BIN)/python -m pytest -m "not slow and not cluster" -n 2 --dist worksteal

test-slow: $(DEV)
	$(BIN)/python -m pytest -m "slow and not cluster" -n 2 --dist worksteal

test-cluster: $(DEV)
	$(BIN)/python -m pytest -m cluster

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/python protos/generate.py --check
	$(BIN)/python docs/generate_metrics.py --check
	$(BIN)/python deploy/grafana/generate.py --check
	$(BIN)/python -m tests.audit
	$(MKDOCS) build --quiet

# Pages, links and anchors are checked: a warning is an error (`strict` in mkdocs.yml).
docs: $(DEV)
	$(MKDOCS) build --quiet
	@echo "the site is build/site: open build/site/index.html; search works from a server: python -m http.server --directory build/site"

fmt: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(DEV)
	$(BIN)/python protos/generate.py

bench: $(PEERS)
	$(BIN)/python -m benchmarks.bench_all --save; failed=$$?; $(BIN)/python -m benchmarks.harness.table --write; exit $$failed

soak: $(DEV)
	$(BIN)/python -m benchmarks.soak.bench_soak --secured --dtype float32 --seconds 60 --save

$(PEERS): $(DEV)
	@echo "installing what the server is compared with: PEFT, CTranslate2"
	$(PIP) --editable '.[dev,bench]'
	@touch $@

clean:
	rm -rf $(VENV) demo-run demo-vision-run guard-run build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
