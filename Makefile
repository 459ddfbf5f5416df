# `make help` lists the targets. Everything is done in .venv; a target sets up what it needs.

VENV := .venv
# Tests that run side by side: they mostly wait for processes, so more than two for each core.
LANES ?= 5
# CI looks again, alone, at what failed among all the others.
FAILED ?= exit
BIN := $(VENV)/bin
# They walk the same lines of loop/ thousands of times. That it is covered is shown by its other tests, without the walks.
EXPLORERS := tests/loop/test_explorer.py tests/loop/test_random_explorer.py
COVERING := $(filter-out $(EXPLORERS),$(wildcard tests/loop/test_*.py))
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11
PYTHON ?= $(shell for p in $(CANDIDATES); do "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
COMPILE := $(BIN)/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --custom-compile-command 'make lock'
LOCKS_OF_PEERS := bench/peers/requirements
COMPILE_PEERS := $(CURDIR)/$(BIN)/uv pip compile --quiet --no-config --generate-hashes --custom-compile-command 'make lock-peers' $(UPGRADE)
LOCKS := runtime dev examples local-model
runtime := pyproject.toml
dev := pyproject.toml --group dev --extra cedar
examples := --group examples --constraint requirements/dev.txt
local-model := --group local-model

.DEFAULT_GOAL := help
.PHONY: help setup examples demo demo-local-model test check coverage bench bench-peers bench-size drill lock lock-peers schema clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | expand -t 20

setup: $(VENV)/.dev  ## Make .venv with the locked packages

examples: setup $(VENV)/.examples  ## Install the SDKs that the examples use

demo: setup  ## An agent on real data; its worker is killed in the middle and the run goes on
	@$(BIN)/python -m demo.run

demo-local-model: setup $(VENV)/.local-model  ## One tool call by a small real model, offline
	@$(BIN)/python -m demo.local_model

test: setup examples coverage  ## Run all tests; those of loop/ must cover all of it
	@$(BIN)/python -m pytest --numprocesses $(LANES) --dist loadfile $(COVERING:%=--ignore %) || $(FAILED) $$?

check: setup  ## Format, lint, types, layout, fresh locks
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layout.py tests/test_locks.py

coverage: setup  ## The tests of loop/ but its explorers, and that they cover every branch of it
	@$(BIN)/python -m pytest --numprocesses $(LANES) --dist loadfile --cov=sojourn.loop --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=100 $(COVERING)

bench-size: setup  ## Measure what a million finished runs cost, and their end (a quarter of an hour; 8 GiB of disk)
	@$(BIN)/python -m bench.size $(BENCH)

bench: setup  ## Measure, and print each figure beside its target (BENCH=--json for a machine, --small to see that it works)
	@$(BIN)/python -m bench $(BENCH)

bench-peers: setup  ## The same agent on other products, each in .venv-peers/NAME (PEERS=dbos,aegra for some)
	@$(BIN)/python -m bench.peers $(PEERS)

drill: setup  ## Kill real processes at random points, at full size
	@SOJOURN_DRILL=full $(BIN)/python -m pytest -m drill tests/drill tests/loop

lock: setup  ## Resolve the dependencies anew (UPGRADE=--upgrade for newer versions)
	@$(foreach lock,$(LOCKS),$(COMPILE) $(UPGRADE) $($(lock)) -o requirements/$(lock).txt >/dev/null || exit 1;)

lock-peers: setup  ## Pin what the other products' venvs hold
	@cd $(LOCKS_OF_PEERS) && for name in dbos temporal agno aegra; do $(COMPILE_PEERS) --universal --python-version 3.11 $$name.in -o $$name.txt >/dev/null || exit 1; done
	@cd $(LOCKS_OF_PEERS) && $(COMPILE_PEERS) --no-deps --python-version 3.12 aegra-alone.in -o aegra-alone.txt >/dev/null

schema: setup  ## Write docs/continuation-v1.schema.json from the types
	@$(BIN)/python -m scripts.continuation_schema

clean:  ## Remove what the other targets made
	rm -rf $(VENV) .venv-peers build dist .mypy_cache .pytest_cache .ruff_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.dev: requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo 'Sojourn needs Python 3.11 or newer, and none of $(CANDIDATES) is. Install one, or say which: make PYTHON=/path/to/python setup'; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo 'The venv module is missing. On Debian and Ubuntu: apt install python3-venv'; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(PIP) install --require-hashes -r requirements/dev.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.examples: requirements/examples.txt $(VENV)/.dev
	$(PIP) install --require-hashes -r requirements/examples.txt
	@touch $@

$(VENV)/.local-model: requirements/local-model.txt $(VENV)/.dev
	$(PIP) install --require-hashes -r requirements/local-model.txt
	@touch $@
