# Everything happens in .venv of this checkout, with the python3 of the machine; nothing here needs root.
# Another Python: make PYTHON=python3.13 ...

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check --quiet install
SOURCES := cri_shim rootfs tests packaging
PROTOS  := $(patsubst protos/%,%,$(wildcard protos/cri_shim/pb/*.proto protos/cri_shim/pb/*/*.proto))

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format conformance durability fuzz mutants bench proto deb clean

help: ## Show this list
	@echo "cri-shim: the image service that kubelet talks to"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## /{ printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.stamp-run ## Install cri-shim into .venv (the other targets do it themselves)

demo: $(VENV)/.stamp-run ## Pull a sample image through the real socket, without root, registry or Kubernetes
	@$(PY) -m cri_shim demo

test: $(VENV)/.stamp-test ## Run the tests
	@$(PY) -m pytest

lint: $(VENV)/.stamp-dev ## Check form and types: ruff, mypy --strict
	@$(PY) -m ruff check $(SOURCES)
	@$(PY) -m ruff format --check $(SOURCES)
	@$(PY) -m mypy

format: $(VENV)/.stamp-dev ## Bring the sources into form
	@$(PY) -m ruff check --fix $(SOURCES)
	@$(PY) -m ruff format $(SOURCES)

conformance: $(VENV)/.stamp-test ## Run the real clients, registries and runtimes; nothing may be skipped
	@CRI_SHIM_REQUIRE_ALL=1 PYTHON=$(CURDIR)/$(PY) tests/real/conformance

FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.stamp-fuzz ## Fuzz every parser for a minute each (FUZZ_SECONDS=..., FUZZ="header pax" for some)
	@$(PY) -m tests.fuzz.run $(FUZZ_SECONDS) $(FUZZ)
	@CRI_SHIM_FUZZ_EXAMPLES=$$((50 * $(FUZZ_SECONDS))) $(PY) -m pytest tests/rootfs/test_model.py

mutants: $(VENV)/.stamp-test ## Take one security check away at a time and see that a test fails
	@$(PY) -m tests.mutants.run $(MUTANTS)

durability: $(VENV)/.stamp-test ## Kill and cut the power at every step, on every filesystem, and 500 times at random (as root)
	@CRI_SHIM_REQUIRE_ALL=1 CRI_SHIM_ALL_CUTS=1 CRI_SHIM_KILLS=500 CRI_SHIM_BLOB_MIB=1024 CRI_SHIM_EXAMPLES=100 \
	  $(PY) -m pytest -s tests/real/test_kills.py tests/real/test_kills_at_random.py tests/real/test_faults.py \
	  tests/images/test_machine.py

bench: $(VENV)/.stamp-test ## Measure (WHAT=critest: beside containerd, WHAT=crowd: a thousand calls)
	@set -e; for what in $(or $(WHAT),pull unpack); do PYTHON=$(CURDIR)/$(PY) tests/bench/run $$what; done

deb: $(VENV)/.stamp-run ## Build the Debian package, for nodes with this Python, into dist/
	@PYTHON=$(CURDIR)/$(PY) packaging/deb dist

# The generator is older than every runtime we allow: code made by a newer one would not load on an older runtime.
proto: $(VENV)/.stamp-dev ## Make cri_shim/pb anew from protos/
	@$(PY) -m grpc_tools.protoc -I protos --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

clean: ## Remove .venv and what the tools leave behind
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "cri-shim needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.13 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "Python's venv module is missing. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# One stamp for each set of packages: a second run has nothing to install.
$(VENV)/.stamp-run: pyproject.toml | $(VENV)/bin/python
	@echo "installing cri-shim into $(VENV)"
	@$(PIP) --editable .
	@$(PY) -m compileall -q cri_shim rootfs
	@touch $@

$(VENV)/.stamp-test $(VENV)/.stamp-dev $(VENV)/.stamp-fuzz: $(VENV)/.stamp-%: pyproject.toml | $(VENV)/bin/python
	@echo "installing cri-shim and its $* packages into $(VENV)"
	@$(PIP) --editable '.[$*]'
	@touch $@ $(VENV)/.stamp-run
