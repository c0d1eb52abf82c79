# zoofast from a fresh clone: `make demo`, `make test`. Needs Python 3.10 or newer (with venv), make and git.
# The environment is made and filled by tools/env.py, once; `make VENV=path ...` uses one you have.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
GUIDES = --skip-folder-re tutorials
SLOW =

SHELL := /bin/sh
RUN := PATH="$$(cd "$(VENV)" && pwd)/bin:$$PATH"; export PATH;
PY := "$(VENV)/bin/python"
# Two processes test side by side, each on a core of its own: threads that wait for each other's core are slower than none
ONE := OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}"; export OMP_NUM_THREADS;

.DEFAULT_GOAL := help
.PHONY: help env demo lint test test-all docs clean clean-all

help:
	@echo "make demo       simulate a survey, finetune an encoder on it, predict, report (ARGS='--n 400' passes options)"
	@echo "make test       style, notebooks and package agree, notebooks run, tests pass: ten minutes on two cores"
	@echo "make test-all   the same with the slow tests: what CI runs"
	@echo "make lint       style only: ruff"
	@echo "make docs       README.md and the documentation site, in _docs/"
	@echo "make clean      remove build products, caches and zoofast-demo/"
	@echo "make clean-all  the same, and .venv"
	@echo
	@echo "PYTHON=python3.12 chooses the Python that .venv is made with; VENV=path uses another environment."

env:
	@py="$(VENV)/bin/python"; [ -x "$$py" ] || py="$(PYTHON)"; \
	command -v "$$py" >/dev/null 2>&1 || { echo "error: no $$py here: install Python 3.10 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }; \
	"$$py" tools/env.py "$(VENV)"

demo: env
	@$(RUN) $(PY) -m zoofast.cli demo $(ARGS)
	@echo; echo "(the zoofast command is in $(VENV)/bin; to have it in this shell: . $(VENV)/bin/activate)"

lint: env
	@$(RUN) $(PY) -m ruff check zoofast tests tools benchmarks nbs

test: lint
	@$(RUN) $(PY) tools/insync.py
	@$(RUN) $(ONE) t=$$(mktemp -d) && trap 'rm -rf "$$t"' EXIT && CUDA_VISIBLE_DEVICES= TMPDIR="$$t" nbdev-test --n-workers 2 $(GUIDES)
	@$(RUN) $(ONE) $(PY) -m pytest -n 2 --dist loadfile --durations=10 $(SLOW) $(ARGS)

test-all: SLOW = --slow
test-all: GUIDES =
test-all: test

docs: env
	@$(RUN) $(PY) tools/docs.py

clean:
	rm -rf build dist _docs _proc zoofast-demo *.egg-info .pytest_cache .jupyter_cache .quarto
	@find . \( -name .git -o -name '.venv*' -o -name venv \) -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

clean-all: clean
	rm -rf .venv
