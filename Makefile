# make book       build the book              make test       run every check
# make lab        open the notebooks          make notebooks  run every notebook anew and store its outputs
# make weights    train every model anew      make results    measure every stored result anew
# make clean      remove what was built (not .venv)
#
# Each target first installs what it needs into .venv; that is done again only when pyproject.toml or constraints.txt
# changes. After it, nothing needs a network.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BUILT  := book/_build/.built
PAGES  := _config.yml _toc.yml $(wildcard book/*.md book/*.html book/*.bib book/_assets/* book/_assets/vendor/* book/_ext/*.py notebooks/*.ipynb pdae_lite/*.py pdae_lite/*/*.py pdae_lite/assets/live/*)

# Options for jupyter-book and pytest, for example: make book JB="-W -n --keep-going"
JB     ?=
PYTEST ?=

# One process with two threads each: two torch processes that fight over cores crawl.
export OMP_NUM_THREADS ?= 2
export PYDEVD_DISABLE_FILE_VALIDATION = 1

.PHONY: book test lab notebooks weights results clean

book: $(BUILT)
	@echo "The book is built. Open it in a browser: file://$(CURDIR)/book/_build/html/index.html"

test: $(READY)
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=300 $(PYTEST)

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=notebooks

notebooks: $(READY)
	$(BIN)/python scripts/pages/run_notebooks.py

# Every model of the package, trained, put into it and measured, one after the other: hours on two cores with bf16 units, more
# without. A run that was stopped goes on when the command is given again; one that is complete costs nothing.
# make weights DEVICE=gpu takes the presets for one GPU (digits_gpu, …) in place of those for a CPU.
RUNS   ?= runs
DEVICE ?= cpu
SUFFIX := $(if $(filter gpu,$(DEVICE)),_gpu)

# $(call made,DATA,KIND): the file that a run leaves. model: a command of pdae that trains it. ship: put it into the package.
# card, drawn: measure it and write its card, for autoencoders and for models that draw new images.
made  = $(RUNS)/$(1)$(SUFFIX)-$(2)/model.safetensors
model = $(BIN)/pdae $(3) --data $(1) --preset $(1)$(SUFFIX) --out $(RUNS)/$(1)$(SUFFIX)-$(2)
ship  = $(BIN)/python scripts/assets/ship.py $(call made,$(1),$(2)) $(1)_$(2)
history = --history $(RUNS)/$(1)$(SUFFIX)-$(2)/history.json
card  = $(BIN)/python scripts/assets/evaluate.py $(1) $(2) $(call history,$(1),$(2))
drawn = $(BIN)/python scripts/assets/evaluate_generators.py $(1) $(2) $(call history,$(1),$(2))

# $(call both,DATA): the DPM, the PDAE on it in the paper's form (what ships, so far), a Diff-AE, and a latent DPM behind each.
define both
	$(call model,$(1),dpm,pretrain)
	$(call model,$(1),pdae,train --dpm $(call made,$(1),dpm) --set form=paper --set precondition=v)
	$(call ship,$(1),pdae) --dpm $(call made,$(1),dpm)
	$(call card,$(1),pdae) --dpm-history $(RUNS)/$(1)$(SUFFIX)-dpm/history.json
	$(call model,$(1),diffae,train --method diffae)
	$(call ship,$(1),diffae)
	$(call card,$(1),diffae)
	$(call model,$(1),latent,latent --model $(call made,$(1),pdae))
	$(call ship,$(1),latent) --int8
	$(call drawn,$(1),latent)
	$(call model,$(1),diffae_latent,latent --model $(call made,$(1),diffae))
	$(call ship,$(1),diffae_latent) --int8
	$(call drawn,$(1),diffae_latent)
endef

weights: $(READY)
	$(call both,digits)
	$(BIN)/python scripts/results/along.py --work $(dir $(call made,digits,difference))
	$(call ship,digits,difference) --shipped-dpm digits --int8
	$(call card,digits,difference)
	$(call model,digits,classifier,train --method classifier --set unet.base_channels=32 --set train.steps=1200 --set train.lr=2e-3 --set train.warmup=100 --set train.decay=0.8 --set train.weight_decay=0.01)
	$(call ship,digits,classifier)
	$(BIN)/python scripts/assets/evaluate_classifier.py
	$(call model,digits,class,train --labels --dpm digits --set train.steps=2000)
	$(call ship,digits,class) --shipped-dpm digits --int8
	$(call drawn,digits,class)
	$(call model,digits,cond_dpm,pretrain --labels --set unet.base_channels=32 --set train.steps=700)
	$(call ship,digits,cond_dpm) --int8
	$(call drawn,digits,cond_dpm)
	$(call both,peeps)
	$(BIN)/python scripts/results/training_efficiency.py --images 25600

# Every stored result of the book, measured anew: hours on a CPU. A command that was stopped goes on where it was when it is given
# again, and one that is complete costs seconds; any of them can be run alone (make -n results lists them).
MEASURED := pdae_lite/assets
results: $(READY)
	$(BIN)/python scripts/results/trials.py
	$(BIN)/python scripts/results/training_efficiency.py --images 25600
	$(BIN)/python scripts/results/critical_stage.py
	$(BIN)/python scripts/results/counterfactuals.py --count 24 --bf16
	$(BIN)/python scripts/results/truncation.py
	$(BIN)/pdae train --labels --dpm digits --data digits --preset digits --set train.steps=500 --out $(RUNS)/digits-class-500
	$(BIN)/python scripts/results/truncation.py --file $(RUNS)/digits-class-500/model.safetensors --count 1000 --guided 0 --checked 0 \
		--work $(RUNS)/truncation_short --out $(MEASURED)/truncation_short.json
	$(BIN)/python scripts/results/pixel_probe.py
	$(BIN)/python scripts/results/contest.py --out $(RUNS)/contest
	$(BIN)/python scripts/results/any_dpm.py --runs $(RUNS)/any_dpm
	$(BIN)/pdae evaluate --table 1 --model digits --count 100 --batch-size 20 --json $(MEASURED)/table_1_digits.json
	$(BIN)/pdae evaluate --table 1 --model peeps --count 100 --batch-size 20 --json $(MEASURED)/table_1_peeps.json
	$(BIN)/pdae evaluate --table 2 --model peeps --steps 2,5,10,20,50,100 --dtype bf16 --samples 1000 --json $(MEASURED)/table_2_peeps.json
	$(BIN)/pdae evaluate --table 2 --model digits --steps 2,5,10,20,50,100 --dtype bf16 --samples 1000 --json $(MEASURED)/table_2_digits.json
	$(BIN)/pdae evaluate --table 3 --model peeps --dtype bf16 --json $(MEASURED)/few_shot.json
	$(BIN)/python benchmarks/sampling.py --data digits --more
	$(BIN)/python benchmarks/sampling.py --data peeps --more
	$(BIN)/python benchmarks/options.py
	$(BIN)/python scripts/pages/results_page.py

clean:
	rm -rf book/_build build dist pdae_lite.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find pdae_lite tests scripts notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

$(BUILT): $(READY) $(PAGES)
	$(BIN)/jupyter-book build book/ $(JB)
	@touch $@

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; give it as: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[book,dev]'
	@touch $@
