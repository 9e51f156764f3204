# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv first.
# Another interpreter: make PYTHON=python3.12 ...

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
WORKDIR ?= runs/demo
# What make installs computes on the CPU; where libtpu is, too, JAX would look for a TPU, and tell.
export JAX_PLATFORMS ?= cpu
# Without bytecode every process compiles JAX and TensorFlow from their sources: 25 CPU seconds each.
unexport PYTHONDONTWRITEBYTECODE

# The newest JAX needs a newer Python than the oldest that is supported. Where pyenv's shims are in the
# path, they find no version that is not selected; this selects it.
PYTHON_NEWEST ?= env PYENV_VERSION=3.13 python3.13
VENV_NEWEST := .venv-newest
# What stands directly on JAX, Flax, optax and orbax.
TESTS_NEWEST := $(addprefix tests/,$(addsuffix _test.py,\
  checkpoint devices inner_loss losses meta_gradients models optimizers overlap reference))

.PHONY: help demo test test-all test-tpu test-newest test-with-newest lint docs docs-links clean

help:
	@echo "make demo      set up .venv, correct a table's labels, and compare methods (a minute, after installation)"
	@echo "make test      set up .venv and run the tests that prove the most (six minutes of CPU time)"
	@echo "make test-all  all tests"
	@echo "make test-tpu  of these, what compiles for a TPU (5 minutes; no TPU needed)"
	@echo "make test-newest  of these, the core, on Python 3.13 with the newest JAX"
	@echo "make lint      ruff and mypy"
	@echo "make docs      build the site into docs/_build/html"
	@echo "make docs-links  look up the site's links to other sites (needs a network)"
	@echo "make clean     remove environments and caches; runs/ stays"

demo: $(VENV)/installed
	@echo "1. A table with doubtful labels, as you may have one"
	@rm -rf $(WORKDIR)/tumours.csv $(WORKDIR)/tumours.mlc
	$(BIN)/python examples/doubtful_table.py $(WORKDIR)
	$(BIN)/mlc-jax correct $(WORKDIR)/tumours.csv
	@echo "The truth is known here:"
	$(BIN)/python examples/doubtful_table.py $(WORKDIR)
	@echo
	@echo "2. The paper's method beside two others: scikit-learn's 1,797 digits, 4 in 10 labels wrong, 50"
	@echo "   checked, 5 seeds. cross_entropy learns from all labels as given, clean_only from the 50"
	@echo "   checked ones, mlc from both. \"test acc.\": percent of 360 other digits right at the end;"
	@echo "   \"best\" has looked at them. \"labels right\": percent of the doubtful ones."
	$(BIN)/python -m experiments.noise_sweep --config=configs/digits.py \
	  --methods=cross_entropy,clean_only,mlc --seeds=5 --workdir=$(WORKDIR)
	@echo "Next: open $(WORKDIR)/tumours.mlc/report.html. Your own labels: docs/start.md"

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(VENV)/installed-test-all
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-tpu: $(VENV)/installed-test-all
	$(BIN)/python -m pytest -n 2 tests/tpu_test.py

test-newest:
	@if $(PYTHON_NEWEST) -c '' 2>/dev/null; then \
	  $(MAKE) --no-print-directory VENV=$(VENV_NEWEST) PYTHON="$(PYTHON_NEWEST)" test-with-newest; \
	else echo "make test-newest: no Python 3.13 here; nothing was tested"; fi

test-with-newest: $(VENV)/installed-test
	$(BIN)/python -c 'import jax, sys; print("Python", sys.version.split()[0], "jax", jax.__version__)'
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(TESTS_NEWEST)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

docs-links: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -b linkcheck -q docs docs/_build/links

clean:
	rm -rf $(VENV) $(VENV_NEWEST) docs/_build .pytest_cache .ruff_cache .mypy_cache *.egg-info

# Bytecode is not compiled for what is never imported: it would take longer than the demo.
$(VENV)/installed: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$($(PYTHON) --version) is too old: Python 3.11 or later, make PYTHON=... "; exit 1; }
	@echo "Installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --no-compile -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@echo "Installing the test tools ..."
	@$(PIP_INSTALL) --no-compile -e '.[test]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	@echo "Installing Sphinx ..."
	@$(PIP_INSTALL) --no-compile -e '.[docs]'
	@touch $@

$(VENV)/installed-test-all: $(VENV)/installed-test
	@echo "Installing the TPU's compiler, a bucket and PyTorch ..."
	@$(PIP_INSTALL) --no-compile -e '.[test-all]'
	@touch $@
