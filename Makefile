# Two commands: `make demo` and `make test`. Each makes the virtual environment if it is not there.
# The README spells both out with plain pip and python.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Exact versions of all packages: those for this Python, if it has a file of its own.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
CONSTRAINTS := $(firstword $(wildcard constraints-$(VERSION).txt) constraints.txt)

.PHONY: demo test test-faults test-fuzz test-ahead lint docs clean

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

# Hostile configs and files, and shapes of convolutions, by the thousand; `make test` looks at a few.
test-fuzz: $(INSTALLED)
	FUZZ=5000 $(BIN)/python -m pytest tests/test_fuzz_config.py tests/test_fuzz_files.py \
		tests/cpu/test_convolution.py

# The training step, compiled for TPUs and GPUs that are not here. It takes an environment of its
# own, since JAX would look for the TPU of an installed libtpu whenever it starts.
test-ahead:
	$(MAKE) VENV=$(VENV)-ahead $(VENV)-ahead/.ahead
	AHEAD=1 $(VENV)-ahead/bin/python -m pytest tests/test_ahead_chips.py -n 0 -rP

lint: $(INSTALLED)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The pages and the API reference as a site, site/index.html.
docs: $(VENV)/.docs
	$(BIN)/mkdocs build

$(INSTALLED): setup.py $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint $(CONSTRAINTS) --editable '.[test,dev,demo]'
	touch $@

$(VENV)/.ahead: $(INSTALLED)
	$(BIN)/pip install --constraint $(CONSTRAINTS) --editable '.[ahead-tpu,ahead-gpu]'
	touch $@

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/pip install --constraint $(CONSTRAINTS) --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info
