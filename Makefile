# `make demo` and `make test` need Python >= 3.11 and make; everything else they install into .venv.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: demo test test-all lint clean

demo: .venv/installed
	$(BIN)/python run.py --config=configs/demo.py --workdir=$(DEMO) --mode=train
	$(BIN)/python run.py --config=configs/demo.py --workdir=$(DEMO) --mode=predict \
		--config.predict.input=$(DEMO)/slide.h5ad --config.predict.output=$(DEMO)/predicted.h5ad

test: .venv/installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile

# Also real tissue (where it is), runs that are killed, whole trainings.
test-all: .venv/installed-test
	$(BIN)/python -m pytest -m ""

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv $(DEMO)

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python >= 3.11 is needed')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet -e ".[test,bench]"
	touch $@
