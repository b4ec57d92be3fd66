# `make demo` and `make test` need Python >= 3.11 and make; everything else they install into .venv.
# What only some tests need has an environment of its own: .venv-parity, .venv-ecosystem.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
# How many tests these targets run at least; none may skip. To be raised when tests are added.
PARITY_TESTS := 62
ECOSYSTEM_TESTS := 28

.PHONY: demo test test-slow test-all fuzz test-parity test-ecosystem lint clean

demo: .venv/installed
	$(BIN)/python run.py --config=configs/demo.py --workdir=$(DEMO) --mode=train
	$(BIN)/python run.py --config=configs/demo.py --workdir=$(DEMO) --mode=predict \
		--config.predict.input=$(DEMO)/slide.h5ad --config.predict.output=$(DEMO)/predicted.h5ad

test: .venv/installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile

# Real tissue (where it is), runs that are killed, whole trainings.
test-slow: .venv/installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow

test-all: .venv/installed-test
	$(BIN)/python -m pytest -m "not fuzz"

# 2,000 damaged files of all kinds that are read.
fuzz: .venv/installed-test
	$(BIN)/python -m pytest -m fuzz

# Our networks against torch and timm.
test-parity: .venv-parity/installed
	.venv-parity/bin/python -m pytest -m parity --all-run=$(PARITY_TESTS)

# What comes out, opened by scanpy and squidpy.
test-ecosystem: .venv-ecosystem/installed
	.venv-ecosystem/bin/python -m pytest -m ecosystem --all-run=$(ECOSYSTEM_TESTS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv .venv-parity .venv-ecosystem $(DEMO)

%/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python >= 3.11 is needed')"
	$(PYTHON) -m venv $*
	$@ -m pip install --quiet --upgrade pip

.venv/installed: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet -e ".[test,slides]"
	touch $@

# timm without its dependencies: of torchvision the tests use nothing (tests/optional.py).
.venv-parity/installed: .venv-parity/bin/python setup.cfg pyproject.toml
	.venv-parity/bin/python -m pip install --quiet -e ".[test,parity]"
	.venv-parity/bin/python -m pip install --quiet --no-deps "timm>=1.0"
	touch $@

.venv-ecosystem/installed: .venv-ecosystem/bin/python setup.cfg pyproject.toml
	.venv-ecosystem/bin/python -m pip install --quiet -e ".[test,ecosystem]"
	touch $@
