VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
WORKERS ?= auto
PYTEST_ARGS ?= -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lowest lint format wheel binary docs clean install install-dev

demo: $(VENV)/.installed
	$(BIN)/vlatool demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Unit tests of the core, and the contract of storage, with the lowest versions that pyproject.toml
# admits.
CORE := storage config jobs media transforms report conventions recordings datasets checkpoints cli
lowest:
	$(PYTHON) -m venv build/lowest
	$(PYTHON) -m tests.lowest gcs azure > build/lowest/constraints.txt
	build/lowest/bin/python -m pip install --quiet --constraint build/lowest/constraints.txt --editable '.[hdf5,zarr,mcap,gcs,azure]' \
	  pytest pytest-timeout pytest-xdist hypothesis 'moto[s3]' flask flask-cors cryptography webdataset
	build/lowest/bin/python -m pytest $(PYTEST_ARGS) $(CORE:%=tests/unit/%) \
	  tests/integration/test_remote_contract.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check src tests benchmarks binary docs examples
	$(BIN)/ruff check src tests benchmarks binary docs examples
	$(BIN)/pyright

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix src tests benchmarks binary docs examples
	$(BIN)/ruff format src tests benchmarks binary docs examples

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m build --wheel --no-isolation

# The packages of the light core in the file are those of the environment.
binary: $(VENV)/.installed-dev
	$(BIN)/python -m binary.build

docs: $(VENV)/.installed-dev
	$(BIN)/python -m docs.site

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vlatool needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo 'Installing vlatool with all extras but ray into $(VENV): a minute or more, 2 GB'
	$(BIN)/python -m pip install --quiet --constraint tests/constraints.txt --editable '.[train,hub,tensorboard,wandb,gcs,azure,serve,sim,pusht,hdf5,zarr,mcap]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo 'Installing vlatool, torch and what the tests need into $(VENV): minutes, 3 GB'
	$(BIN)/python -m pip install --quiet --constraint tests/constraints.txt --editable '.[train,dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist demo site .pytest_cache .ruff_cache
