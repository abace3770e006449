# Everything happens in a virtual environment of its own; nothing else on the machine is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check

.PHONY: demo test check format clean

demo: $(VENV)/.installed
	$(BIN)/reid demo --out demo --overwrite

# One process a core, and one thread for each: they would only take the cores from each other.
test: $(VENV)/.developed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

check: $(VENV)/.developed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.developed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf $(VENV) demo

$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=25.1'
	touch $@

$(VENV)/.installed: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@

$(VENV)/.developed: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --group test --group check
	touch $@
