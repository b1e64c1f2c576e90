# Osteon: `make demo` shows it, `make test` proves it.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-systems mutants check bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

install: .venv/.installed ## create .venv with everything, versions pinned by constraints.txt

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Osteon needs Python 3.11 or newer; give one: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python's venv is missing: apt-get install python3-venv"; exit 1; }
	@echo "Installing into .venv (about 5 GB with PyTorch; some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install ## start everything embedded, analyse the sample studies, leave the page open (ARGS=--once to exit)
	@$(BIN)/osteon demo $(ARGS)

# Processes that share the tests: most of a test is waiting, so more than there are cores.
PROCESSES ?= auto
PYTEST := $(BIN)/python -m pytest -n $(PROCESSES) --dist loadgroup --durations 10

test: install ## what can break, in minutes: real Postgres, Valkey, S3 server and Chromium, each kind of fault once
	@$(PYTEST) -m 'not slow and not systems' $(ARGS)

test-slow: install ## the rest: all faults, 10,000 hostile inputs, 2,000 studies while parts are killed, trainings, the demo
	@$(PYTEST) -m slow $(ARGS)

test-systems: install ## whole machines: containers, network namespaces, DICOM peers (none yet)
	@$(PYTEST) -m systems $(ARGS) || { code=$$?; [ $$code -eq 5 ] && echo "There are no tests of whole systems yet." || exit $$code; }

mutants: install ## does `make test` find the faults of tests/mutants/faults.py, each put into a copy of the code? (ARGS=NAME)
	@$(BIN)/python -m tests.mutants $(ARGS)

check: install ## ruff (lint, format), mypy strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: install ## measure everything against its goal; writes benchmarks/RESULTS.md (an hour; ARGS=--quick: minutes)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python -m benchmarks all --write benchmarks/RESULTS.md $(ARGS)

clean: ## remove .venv and caches; `osteon down --delete` removes data
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
