# Osteon: `make demo` shows it, `make test` proves it.
PYTHON ?= python3
BIN := .venv/bin
UV = VIRTUAL_ENV=.venv $(BIN)/uv
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Python keeps what it compiled, whatever the surroundings say: tests start hundreds of processes, which would compile all anew.
export PYTHONDONTWRITEBYTECODE =
.DEFAULT_GOAL := help
.PHONY: help install demo dev hooks test test-slow test-systems compose-test mutants coverage check frontend docs bench bench-quick lock sbom audit clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

install: .venv/.installed ## create .venv with everything, versions and hashes of constraints.txt

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Osteon needs Python 3.11 or newer; give one: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python's venv is missing: apt-get install python3-venv"; exit 1; }
	@echo "Installing into .venv (about 7 GB with PyTorch; some minutes the first time)"
	@awk '/^[^ ]/ {ours = /^uv==/} ours' constraints.txt > .venv/uv.txt
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement .venv/uv.txt
	@$(UV) pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install ## start everything embedded, analyse the sample studies, leave the page open (ARGS=--once to exit)
	@$(BIN)/osteon demo $(ARGS)

dev: install ## start everything embedded; a part starts again when its code or its pages change
	@$(BIN)/osteon up --reload

hooks: install ## run ruff, mypy and a search for secrets before each commit (.pre-commit-config.yaml)
	@$(BIN)/pre-commit install

# Processes that share the tests: five for two cores, for many tests wait for something, and 3 GB of memory for each.
PROCESSES ?= $(shell $(PYTHON) -c 'import os; memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"); \
  print(max(1, min(os.cpu_count() * 5 // 2, memory // 3_000_000_000)))')
PYTEST := $(BIN)/python -m pytest -n $(PROCESSES) --durations 10

test: install ## what can break, in minutes: real Postgres, Valkey, S3 server and Chromium, each kind of fault once
	@$(PYTEST) -m 'not slow and not systems' $(ARGS)

test-slow: install ## the rest: all faults, 10,000 hostile inputs, 2,000 studies while parts are killed, trainings, the demo
	@$(PYTEST) -m slow $(ARGS)

test-systems: install ## whole machines: containers, network namespaces, DICOM peers; as root
	@$(BIN)/python -m pytest -n 0 --durations 10 -m systems tests/systems $(ARGS) || { code=$$?; [ $$code -eq 5 ] && echo "There are no tests of whole systems yet." || exit $$code; }

# root makes an engine and images of Debian's packages where Docker is not at hand; ARGS='--store minio' tries one store
compose-test: install ## docker-compose.yml started for real: each container killed once, the engine restarted, nothing lost
	@$(BIN)/python -m tests.systems.compose $(ARGS)

mutants: install ## does `make test` find the faults of tests/mutants/faults.py, each put into a copy of the code? (ARGS=NAME)
	@$(BIN)/python -m tests.mutants $(ARGS)

coverage: install ## branch coverage by the quick suite, as a table and in htmlcov/ (ARGS='-m ""' for all suites)
	@$(BIN)/python -m coverage erase
	@$(PYTEST) -m 'not slow and not systems' --cov --cov-report=term --cov-report=html $(ARGS)

check: install ## ruff (lint, format), mypy strict, import-linter, docstrings, ARCHITECTURE.md, zizmor; with Node.js, or CI=true, make frontend
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m tests.docstrings
	@$(BIN)/python -m pytest --quiet --no-header -p no:xdist tests/unit/test_architecture.py
	@$(BIN)/zizmor --offline --no-progress --quiet .github
	@if [ "$$CI" = true ] || command -v npm >/dev/null; then $(MAKE) --no-print-directory frontend; \
	  else echo "The pages' scripts were not checked: install Node.js 18.18 or newer, then make frontend"; fi

frontend: node_modules/.installed ## the pages' scripts: types (tsc), eslint, unit tests (node --test); needs Node.js
	@npm run --silent types
	@npm run --silent lint
	@node --test --test-reporter=spec tests/frontend/*.test.js >node_modules/.tests 2>&1 || { cat node_modules/.tests; exit 1; }

node_modules/.installed: package.json package-lock.json
	@command -v npm >/dev/null || { echo "Node.js is missing: apt-get install nodejs npm, or https://nodejs.org"; exit 1; }
	@npm ci --loglevel=error --no-progress --ignore-scripts
	@touch $@

docs: install ## build the documentation as a site in docs/_build/html; every warning is an error
	@$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html is written"

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
	rm -rf .venv node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis htmlcov .coverage*
