# Osteon: `make demo` shows it, `make test` proves it.
PYTHON ?= python3
BIN := .venv/bin
UV = VIRTUAL_ENV=.venv $(BIN)/uv
export PIP_DISABLE_PIP_VERSION_CHECK = 1
.DEFAULT_GOAL := help
.PHONY: help install demo dev hooks test test-slow test-systems mutants coverage check bench bench-quick lock sbom audit clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

install: .venv/.installed ## create .venv with everything, versions and hashes of constraints.txt

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Osteon needs Python 3.11 or newer; give one: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python's venv is missing: apt-get install python3-venv"; exit 1; }
	@echo "Installing into .venv (about 7 GB with PyTorch; some minutes the first time)"
	@awk '/^[^ ]/ {ours = /^uv==/} ours' constraints.txt > .venv/uv.txt
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement .venv/uv.txt
	@$(UV) pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install ## start everything embedded, analyse the sample studies, leave the page open (ARGS=--once to exit)
	@$(BIN)/osteon demo $(ARGS)

dev: install ## start everything embedded; a part starts again when its code or its pages change
	@$(BIN)/osteon up --reload

hooks: install ## run ruff, mypy and a search for secrets before each commit (.pre-commit-config.yaml)
	@$(BIN)/pre-commit install

# Processes that share the tests: half again as many as cores, for many tests wait for something.
PROCESSES ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count() * 3 // 2)')
PYTEST := $(BIN)/python -m pytest -n $(PROCESSES) --durations 10

test: install ## what can break, in minutes: real Postgres, Valkey, S3 server and Chromium, each kind of fault once
	@$(PYTEST) -m 'not slow and not systems' $(ARGS)

test-slow: install ## the rest: all faults, 10,000 hostile inputs, 2,000 studies while parts are killed, trainings, the demo
	@$(PYTEST) -m slow $(ARGS)

test-systems: install ## whole machines: containers, network namespaces, DICOM peers (none yet)
	@$(BIN)/python -m pytest -n 0 --durations 10 -m systems tests/systems $(ARGS) || { code=$$?; [ $$code -eq 5 ] && echo "There are no tests of whole systems yet." || exit $$code; }

mutants: install ## does `make test` find the faults of tests/mutants/faults.py, each put into a copy of the code? (ARGS=NAME)
	@$(BIN)/python -m tests.mutants $(ARGS)

coverage: install ## branch coverage by the quick suite, as a table and in htmlcov/ (ARGS='-m ""' for all suites)
	@$(BIN)/python -m coverage erase
	@$(PYTEST) -m 'not slow and not systems' --cov --cov-report=term --cov-report=html $(ARGS)

check: install ## ruff (lint, format), mypy strict, import-linter, zizmor (the forge's workflows)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/zizmor --offline --no-progress --quiet .github

bench: install ## measure everything against its goal; writes benchmarks/RESULTS.md (an hour)
	@$(UV) pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python -m benchmarks all --write benchmarks/RESULTS.md $(ARGS)

bench-quick: install ## every benchmark small, what is uncertain again, one table; fails where a goal is certainly missed
	@$(UV) pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python -m benchmarks all --check $(ARGS)

# ARGS=--upgrade takes the newest of all, ARGS='--upgrade-package NAME' of one
lock: install ## write constraints.txt from pyproject.toml: all extras, Linux and macOS; what is locked stays where it may
	@$(UV) pip compile pyproject.toml --all-extras --universal --generate-hashes --no-header --no-annotate --quiet \
	  --output-file constraints.txt $(ARGS)

sbom: install ## write bom.json, a CycloneDX list of all that .venv holds
	@$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file bom.json $(BIN)/python
	@$(BIN)/python -c 'import json, shared; bom = json.load(open("bom.json")); \
	  bom["metadata"]["component"]["version"] = shared.__version__; json.dump(bom, open("bom.json", "w"), indent=1)'
	@echo "bom.json is written"

audit: install ## ask OSV for known vulnerabilities of the locked packages (.ci/audit: exit code 1 some, 3 no network)
	@.ci/audit $(ARGS)

clean: ## remove .venv and caches; `osteon down --delete` removes data
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis htmlcov .coverage*
