# `make demo` and `make test` are all that a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.demo-installed

DOCS := .venv-docs
TOOLS := .venv-release
CLEAN := .venv-clean

# A virtual environment, unless it is there, by a Python that will do.
define MAKE_VENV
$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] < (3, 14) else \
	"torchsnow needs Python 3.11 to 3.13; name one: make PYTHON=python3.13")'
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
endef

.PHONY: demo test test-slow test-integration browser coverage lint check docs release audit

# Of torch, pip installs a build for CUDA. TORCH_INDEX is the address of an index with builds for the CPU alone.
define INSTALL_TORCH
$(if $(TORCH_INDEX),$(BIN)/python -m pip install -q --index-url $(TORCH_INDEX) torch torchvision)
endef

$(STAMP): pyproject.toml
	$(call MAKE_VENV,$(VENV))
	$(INSTALL_TORCH)
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@ $(DEMO_STAMP)

$(DEMO_STAMP): pyproject.toml
	$(call MAKE_VENV,$(VENV))
	$(INSTALL_TORCH)
	$(BIN)/python -m pip install -q -e '.[demo]'
	touch $@

demo: $(DEMO_STAMP)
	$(BIN)/torchsnow demo --out demo-output

# One thread each: tiny networks, and what the tests start, are slower on two that wait for each other.
test test-slow test-integration coverage: export OMP_NUM_THREADS = 1
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m slow

# ONNX Runtime Web, next to the page that uses it; without npm, that page is not tested.
browser:
	-cd examples/browser && npm install --silent

# With what others wrote, each started by the tests and ended with them: Ray, an S3 server, MLflow, TensorBoard, a browser.
test-integration: $(STAMP) browser
	$(BIN)/python -m pip install -q -e '.[integration]'
	$(BIN)/python -m pytest -m integration
	$(BIN)/python -m pytest tests/workflows/test_loggers.py

# Lines and branches that no test runs.
coverage: $(STAMP)
	$(BIN)/python -m pytest -n 2 --cov --cov-report term-missing:skip-covered

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

$(DOCS)/.installed: pyproject.toml
	$(call MAKE_VENV,$(DOCS))
	$(DOCS)/bin/python -m pip install -q $$($(DOCS)/bin/python -c 'import tomllib; \
	    print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@

# Into site/; a link that leads nowhere is an error.
docs: $(DOCS)/.installed
	$(DOCS)/bin/mkdocs build --clean

# Into dist/: what is built is checked, and its wheel must work in an environment of its own.
release:
	rm -rf dist $(CLEAN)
	$(call MAKE_VENV,$(TOOLS))
	$(TOOLS)/bin/python -m pip install -q build twine
	$(TOOLS)/bin/python -m build --outdir dist .
	$(TOOLS)/bin/python -m twine check --strict dist/*
	$(call MAKE_VENV,$(CLEAN))
	$(CLEAN)/bin/python -m pip install -q dist/*.whl
	cd $(CLEAN) && bin/torchsnow --version && bin/python -c 'import torchsnow as ts; print(ts.Hub, ts.load_source)'
	rm -rf $(CLEAN)

# Known faults of what is installed; needs the internet.
audit: $(STAMP)
	$(BIN)/python -m pip install -q pip-audit
	$(BIN)/pip-audit --skip-editable
