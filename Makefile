# make book       build the book              make test       run every check
# make lab        open the notebooks          make notebooks  run every notebook anew and store its outputs
# make weights    train every model anew      make clean      remove what was built (not .venv)
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

# Every model of the package, trained, put into it and measured, one after the other: hours on two cores with bf16 units, more
# without. A run that was stopped goes on when the command is given again; one that is complete costs nothing.
# make weights DEVICE=gpu takes the presets for one GPU (digits_gpu, …) in place of those for a CPU.
RUNS   ?= runs
DEVICE ?= cpu
SUFFIX := $(if $(filter gpu,$(DEVICE)),_gpu)

# $(call KIND,DATA) is one model. made: where it is trained; model: train it by a command of pdae; ship: put it into the package.
made   = $(RUNS)/$(1)$(SUFFIX)-$(2)/model.safetensors
model  = $(BIN)/pdae $(3) --data $(1) --preset $(1)$(SUFFIX) --out $(RUNS)/$(1)$(SUFFIX)-$(2)
ship   = $(BIN)/python scripts/ship.py $(call made,$(1),$(2)) $(1)_$(2)
dpm    = $(call model,$(1),dpm,pretrain)
pdae   = $(call model,$(1),pdae,train --dpm $(call made,$(1),dpm)) && $(call ship,$(1),pdae) --dpm $(call made,$(1),dpm)
diffae = $(call model,$(1),diffae,train --method diffae) && $(call ship,$(1),diffae)
latent = $(call model,$(1),latent,latent --model $(call made,$(1),pdae)) && $(call ship,$(1),latent)
history = $(2) $(RUNS)/$(1)$(SUFFIX)-$(3)/history.json
card   = $(BIN)/python scripts/evaluate.py $(1) $(2) $(call history,$(1),--history,$(2))
classifier = $(call model,$(1),classifier,train --method classifier) && $(call ship,$(1),classifier)

weights: $(READY)
	$(call dpm,digits)
	$(call pdae,digits)
	$(call card,digits,pdae) $(call history,digits,--dpm-history,dpm)
	$(call dpm,peeps)
	$(call pdae,peeps)
	$(call card,peeps,pdae) $(call history,peeps,--dpm-history,dpm)

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
