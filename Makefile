# What can be made here; `make` alone lists it.
#   make study PROFILE=debug            another profile (a file of notebooks/profiles)
#   make study ARGS="-p seed 1"         more arguments for `chexstudy run`
#   make budgets BUDGETS=0.05,0.2       other shares of the pairs
#   make test  PYTHON=python3.12        which Python creates .venv

PROFILE ?= demo
ARGS ?=
JOBS ?= 2
BUDGETS ?= 0.1,0.227,0.5
# The first Python of a supported version; a wrong one set by hand is refused in one sentence.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && exit; done; echo python3)
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NOTEBOOKS := notebooks

.DEFAULT_GOAL := help
.PHONY: help study cohorts upstream curators budgets regimes adapt tasks ssl figures test browser lint lab sync git-filter hooks lock clean

help: ## List what can be made
	@echo "make TARGET [PROFILE=$(PROFILE)]; .venv is created from requirements.lock if it is missing"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s  %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

study: $(STAMP) ## Run the street, notebooks 1 to 6: cohort, curation, pretraining, evaluation, figures
	@$(BIN)/chexstudy run 01 02 03 04 05 06 --profile $(PROFILE) $(ARGS)

# Nothing is downloaded: the data sets are those of the adapters' tests, in their owners' layouts, with drawn images.
LAYOUTS := runs/cohorts/radiographs
cohorts: $(STAMP) ## Run notebooks 1 to 6 (debug) on 17 public data sets as one cohort, from a few drawn images of each
	@$(BIN)/python tests/official_layouts.py $(LAYOUTS)
	@$(BIN)/chexstudy run 01 02 03 04 05 06 --profile debug --study cohorts \
		-p source joint -p data_root $(LAYOUTS)/cohort.yaml $(ARGS)

curators: $(STAMP) ## Run notebooks 7 and 8 on a finished study: ablate the curator, compare every method
	@$(BIN)/chexstudy run 07 08 --profile $(PROFILE) $(ARGS)

adapt: $(STAMP) ## Run notebooks 9 to 11 on a finished study: heads on its encoders, what they see, labels to buy
	@$(BIN)/chexstudy run 09 10 11 --profile $(PROFILE) $(ARGS)

tasks: $(STAMP) ## Run notebooks 14 and 15 on a finished study: segment anatomy, write reports
	@$(BIN)/chexstudy run 14 15 --profile $(PROFILE) $(ARGS)

ssl: $(STAMP) ## Run notebook 13 on a finished study: pretrain on images alone, curated against random against all
	@$(BIN)/chexstudy run 13 --profile $(PROFILE) $(ARGS)

budgets: $(STAMP) ## Run notebook 12 on a finished study at the shares BUDGETS: performance against compute and data
	@$(BIN)/chexstudy run 12 --profile $(PROFILE) -p budgets $(BUDGETS) $(ARGS)

# Questions whose cells the phase diagram shows; what is measured is kept, and a stopped run goes on where it was.
REGIMES := gain wrong size large start
regimes: $(STAMP) ## Measure when curation pays, the cells of the phase diagram at 3 pools, and run notebook 16 on them
	@$(BIN)/chexstudy regimes $(REGIMES) --method filtered_budgeted_half --seeds 3 --workers $(JOBS) --estimate
	@$(BIN)/chexstudy regimes $(REGIMES) --method filtered_budgeted_half --seeds 3 --workers $(JOBS)
	@$(BIN)/chexstudy run 16 --profile $(PROFILE) -p questions $(shell echo $(REGIMES) | tr ' ' ,) \
		-p methods filtered_budgeted_half -p pools 3 $(ARGS)

# QUICK=1: a smaller run of the same recipe, written to runs/upstream/quick, not in place of the committed encoders.
upstream: $(STAMP) ## Make the pretrained encoders anew that studies start from (QUICK=1: in minutes)
	@$(BIN)/chexstudy upstream $(if $(QUICK),--quick --out runs/upstream/quick) $(ARGS)

figures: $(STAMP) ## Draw the figures of a finished study again and copy them to figures/
	@$(BIN)/chexstudy figures --study $(PROFILE) --copy-to figures

# One thread a worker: two workers of one thread each outrun two that fight for both cores.
test: $(STAMP) lint ## Check style and run the tests (without those marked slow, cuda or browser)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not cuda and not browser"

browser: $(STAMP) ## Run every notebook in JupyterLab in headless Chromium and look at it (tests marked browser)
	@$(BIN)/python -c "import playwright" 2>/dev/null || \
		$(BIN)/python -m pip install -qq --disable-pip-version-check "playwright>=1.50"
	@$(BIN)/python -m pytest -m browser tests/test_browser.py $(ARGS)

lint: $(STAMP) ## Check style and layout with ruff
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "some files are not laid out: run '$(BIN)/ruff format .'" >&2; exit 1; }

# JupyterLab takes the .py half's cells: what was edited elsewhere in an .ipynb half goes there by `make sync`.
# CHEXSTUDY_CWD: relative paths in a notebook's parameters are taken from the checkout, as on the command line.
lab: $(STAMP) git-filter ## Open the notebooks in JupyterLab; .py and .ipynb halves open as notebooks
	@CHEXSTUDY_CWD="$(CURDIR)" JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" \
		$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/$(NOTEBOOKS) $(ARGS)

# --sync takes the newer half of a pair and keeps the cells' identity; --to ipynb would not. The source is written last:
# it has the last word, and who opens it is not told that its pair is newer.
sync: $(STAMP) git-filter ## Make both halves of every notebook equal, without outputs
	@$(BIN)/jupytext --quiet --set-kernel python3 --sync $(NOTEBOOKS)/*.py
	@$(BIN)/$(STRIP) $(NOTEBOOKS)/*.ipynb
	@touch $(NOTEBOOKS)/*.py

# What is run in JupyterLab stays in the file and out of git, which sees every notebook without outputs (.gitattributes).
STRIP := nbstripout --extra-keys "metadata.language_info metadata.jupytext"
git-filter: ## Keep outputs of notebooks out of git; lab, sync and hooks do it too
	@! git rev-parse --git-dir >/dev/null 2>&1 || { git config filter.notebook.clean '$(BIN)/$(STRIP)' && \
		git config filter.notebook.smudge cat && git config filter.notebook.required true; }

hooks: $(STAMP) git-filter ## Run ruff and the notebook pairing at every git commit
	@$(BIN)/pre-commit install

# torch stands alone at the end and its CUDA packages are left out: they come with a CUDA build of torch, pinned by it.
TORCH := 2.13.0
lock: ## Resolve requirements.lock anew from pyproject.toml (needs uv)
	@command -v uv >/dev/null || { echo "'make lock' needs uv: see https://docs.astral.sh/uv" >&2; exit 1; }
	@printf 'torch==$(TORCH)\nnumpy<2.5\n' > .lock-constraints
	@uv pip compile pyproject.toml --extra cpu --extra dev --universal --python-version 3.11 --upgrade \
		--constraint .lock-constraints --no-annotate --no-header --quiet --output-file .lock-resolved
	@{ echo "# Exact versions for Python 3.11 and 3.12, from pyproject.toml by 'make lock'."; \
		echo "# torch brings its own CUDA packages, exactly pinned by its wheel, where the CUDA build is installed."; \
		grep -vE '^(nvidia-|cuda-|triton|torch=)' .lock-resolved; \
		echo "torch==$(TORCH)"; } > requirements.lock
	@rm -f .lock-constraints .lock-resolved

clean: ## Remove caches and build leftovers; studies under runs/ and .venv stay
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache runs/.cache
	@find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c '$(SUPPORTED)' || { \
		echo "chexstudy needs Python 3.11 or 3.12, not $$($(PYTHON) --version 2>&1): run make with PYTHON=python3.12." >&2; exit 1; }
	@echo "Installing requirements.lock into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
