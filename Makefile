# Osteon: `make demo` shows it, `make test` proves it.
PYTHON ?= python3
BIN := .venv/bin
UV = VIRTUAL_ENV=.venv $(BIN)/uv
export PIP_DISABLE_PIP_VERSION_CHECK = 1
.DEFAULT_GOAL := help
.PHONY: help install demo test check bench lock sbom audit clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

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

test: install ## run all tests against real Postgres, Valkey, S3 and Chromium
	@$(BIN)/python -m pytest $(ARGS)

check: install ## ruff (lint, format), mypy strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: install ## measure everything against its goal; writes benchmarks/RESULTS.md (an hour; ARGS=--quick: minutes)
	@$(UV) pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python -m benchmarks all --write benchmarks/RESULTS.md $(ARGS)

# versions that are locked stay unless pyproject.toml refuses them; ARGS=--upgrade takes the newest, ARGS='--upgrade-package NAME' one
lock: install ## write constraints.txt anew from pyproject.toml: all extras, Python 3.11 to 3.14, Linux and macOS
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
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
