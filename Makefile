# Two commands: `make demo` and `make test`. Each makes the virtual environment if it is not there.
# The README spells both out with plain pip and python.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-faults test-fuzz lint clean

# FixMatch and CReST+, for as many steps in all, on 5000 digits of MNIST that come with a package.
# `make demo DATA=mnist` takes all of MNIST, which TFDS downloads.
DATA ?= mnist_5k
DEMO := experiments/mnist_lt.py:data=$(DATA)
RUNS := runs/demo/$(DATA)
demo: $(INSTALLED)
	$(BIN)/python -m crest_jax.main --config=$(DEMO),rebalance=none --workdir=$(RUNS)/fixmatch
	$(BIN)/python -m crest_jax.main --config=$(DEMO),rebalance=crest_plus --workdir=$(RUNS)/crest_plus
	@printf "\nFixMatch (none) and CReST+ (crest_plus) after as many steps in all, in %%:\n\n"
	@$(BIN)/python -m crest_jax.report.comparison --rarest=3 $(RUNS)/fixmatch $(RUNS)/crest_plus
	@printf "\nBoth on a page, with pictures: "
	@$(BIN)/python -m crest_jax.report --workdir=$(RUNS)/fixmatch --workdir=$(RUNS)/crest_plus \
		--output=$(RUNS)/report.html

test: $(INSTALLED)
	$(BIN)/python -m pytest

# A hundred runs killed at random moments, among others, and every file of one damaged.
test-faults: $(INSTALLED)
	FAULTS=long $(BIN)/python -m pytest tests/faults --dist load

# Hostile configs and files by the thousand; `make test` looks at a few of each.
test-fuzz: $(INSTALLED)
	FUZZ=5000 $(BIN)/python -m pytest tests/test_fuzz_config.py tests/test_fuzz_files.py

lint: $(INSTALLED)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint constraints.txt --editable '.[test,dev,demo]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
