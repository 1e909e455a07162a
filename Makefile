# make book       build the book              make test       run every check
# make lab        open the notebooks          make notebooks  run every notebook anew and store its outputs
# make weights    train the digits models     make clean      remove what was built (not .venv)
#
# Each target first installs what it needs into .venv; that is done again only when pyproject.toml or constraints.txt
# changes. After it, nothing needs a network.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BUILT  := book/_build/.built
PAGES  := _config.yml _toc.yml $(wildcard book/*.md book/*.bib book/_assets/* book/_assets/vendor/* book/_ext/*.py notebooks/*.ipynb)

# Options for jupyter-book and pytest, for example: make book JB="-W -n --keep-going"
JB     ?=
PYTEST ?=

# One process with two threads each: two torch processes that fight over cores crawl.
export OMP_NUM_THREADS ?= 2
export PYDEVD_DISABLE_FILE_VALIDATION = 1

.PHONY: book test lab notebooks weights clean

book: $(BUILT)
	@echo "The book is built. Open it in a browser: file://$(CURDIR)/book/_build/html/index.html"

test: $(READY)
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=300 $(PYTEST)

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=notebooks

notebooks: $(READY)
	$(BIN)/python scripts/run_notebooks.py

# Trains, ships and measures: an hour or two on two cores with bf16 units, more without. A run that was stopped goes on when the command is given again.
weights: $(READY)
	$(BIN)/pdae pretrain --data digits --out runs/digits-dpm
	$(BIN)/pdae train --dpm runs/digits-dpm/model.safetensors --data digits --out runs/digits-pdae
	$(BIN)/python scripts/ship.py runs/digits-pdae/model.safetensors digits_pdae --dpm runs/digits-dpm/model.safetensors
	$(BIN)/python scripts/evaluate_digits.py

clean:
	rm -rf book/_build build dist pdae_lite.egg-info .pytest_cache .ruff_cache .hypothesis
	find pdae_lite tests scripts notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

$(BUILT): $(READY) $(PAGES)
	$(BIN)/jupyter-book build book/ $(JB)
	@touch $@

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; give it as: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[book,dev]'
	@touch $@
