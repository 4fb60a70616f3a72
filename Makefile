# Everything a fresh machine needs: `make quickstart` and `make test`. Override with e.g. `make PYTHON=python3.12 install`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow soak test-gpu cluster-test browser-test lint format bench clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## make .venv with the whole pinned stack and the `reste` command

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": use make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	@touch $@

quickstart: install ## prepare the embedded digits, train a binary ResNet-20 on them with two ranks (under 5 minutes)
	$(BIN)/reste prepare digits data/digits
	$(BIN)/reste train configs/quickstart.yaml --nproc 2

test: install ## the tests a change must pass (16 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not slow and not gpu and not cluster and not browser and not soak"

test-slow: install ## longer runs: kills, whole trainings
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not alone and not gpu and not cluster and not browser"
	$(BIN)/python -m pytest -m "slow and alone and not gpu and not cluster and not browser"

test-gpu: install ## needs a CUDA device
	$(BIN)/python -m pytest -m gpu

cluster-test: install ## trainings on a real SLURM: two nodes, started on this machine, and a slow link (installs slurm-wlm, munge, iproute2 as root)
	@PATH="$$PATH:/usr/sbin"; missing=; \
	for program in slurmctld slurmd sbatch munged ip tc; do command -v $$program >/dev/null || missing=yes; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends slurm-wlm munge iproute2; \
	  else echo "programs are missing: as root, apt-get install slurm-wlm munge iproute2"; exit 1; fi; fi
	$(BIN)/python -m pytest -m cluster tests/cluster

browser-test: install ## the report in a headless Chromium without network (installs chromium as root)
	@if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium; \
	  else echo "a browser is missing: as root, apt-get install chromium"; exit 1; fi; fi
	$(BIN)/python -m pytest -m browser tests/browser

soak: install ## a run under forty faults, started again after each, against a quiet one; ten kills; memory of 10,000 steps (about an hour)
	$(BIN)/python -m pytest -m soak -s tests/soak tests/integration/test_resume.py

lint: install ## style, types, formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## rewrite what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## speed and memory as ratios side by side, kept in benchmarks/records/; nothing is asserted
	$(BIN)/reste bench

clean: ## remove the environment and caches; data and runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
