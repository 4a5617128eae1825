# Two commands: `make demo` and `make test`. Each makes the virtual environment if it is not there.
# The README spells both out with plain pip and python.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-faults test-fuzz lint clean

demo: $(INSTALLED)
	$(BIN)/python -m crest_jax.main --config=experiments/digits_lt.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

# A hundred runs killed at random moments, among others, and every file of one damaged.
test-faults: $(INSTALLED)
	FAULTS=long $(BIN)/python -m pytest tests/faults --dist load

# Hostile configs and files by the thousand; `make test` looks at a few of each.
test-fuzz: $(INSTALLED)
	FUZZ=5000 $(BIN)/python -m pytest tests/test_fuzz_config.py tests/test_fuzz_files.py

lint: $(INSTALLED)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint constraints.txt --editable '.[test,dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
