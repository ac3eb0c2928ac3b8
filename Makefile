# rlhf_mini: `make` lists what there is to make. Written for GNU make 3.81 (macOS) and newer.

PYTHON   ?= python3
PIP_ARGS ?=
RUN      ?= default
SEED     ?=
ARGS     ?=

STAGES    := sft rm ppo
OUT       := runs/$(RUN)
INSTALLED := .venv/.installed
PY        := .venv/bin/python

# What a target gets of ARGS: all of it if it stands on the command line, nothing if it is made on the way to another.
args = $(if $(filter $(1),$(MAKECMDGOALS)),$(ARGS))
seed = $(if $(SEED),--seed $(SEED))

# Nothing is fetched and nothing is reported while anything here runs.
export HF_HUB_OFFLINE = 1
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: help $(STAGES) compare evaluate overopt report chat doctor seeds base data bench parity test lint clean FORCE
# One thing at a time even under -j: each stage feeds the next, and torch uses all cores by itself.
.NOTPARALLEL:
# The stages write their checkpoints atomically; make must not delete stage.json when Ctrl-C comes just after.
.PRECIOUS: $(STAGES:%=$(OUT)/%/stage.json)

ifneq ($(words $(RUN)),1)
$(error RUN must be one word, the name of a folder under runs/)
endif

help:
	@echo 'make sft rm ppo  the whole recipe, each stage from the checkpoint before it   2-4 min, 1.0 GB'
	@echo
	@echo '  make sft       supervised fine-tuning of the base model on demonstrations    0.5-1 min, 1 GB'
	@echo '  make rm        reward model: samples responses, has them ranked, learns      0.8-1.5 min, 1 GB'
	@echo '  make ppo       PPO against the reward model                                  0.6-1.2 min, 1 GB'
	@echo '  make compare   base, SFT and PPO side by side, and measured                  0.5 min, 0.9 GB'
	@echo '  make evaluate  the same, with more judges, ratings and probes                1 min, 0.9 GB'
	@echo '  make report    a run as one page to open in a browser, with token microscope 10 s, 0.5 GB'
	@echo '  make chat      a conversation with base, SFT or PPO in the terminal          0.5 GB'
	@echo '  make doctor    what is wrong with a run, stage by stage, and what to try     1 s, 0.1 GB'
	@echo
	@echo '  make overopt   reward and gold, the further PPO and best-of-n go from SFT    15-30 min, 1 GB'
	@echo '  make seeds     the recipe and its evaluation for three seeds: docs/results.md 8-16 min, 1 GB'
	@echo '  make base      rebuild the base model in data/base from nothing              15-40 min, 1.2 GB'
	@echo '  make data      rebuild demonstrations and prompts from data/knowledge        5 s, 0.3 GB'
	@echo '  make bench     PPO beside TRL 1.12.0: speed, memory, share of the possible   5-10 min, 2 GB'
	@echo '  make parity    record what TRL 1.12.0 computes, for the tests; installs it    0.5 min, 0.5 GB'
	@echo '  make test      all tests                                                     3 min, 1.5 GB'
	@echo '  make lint      ruff and mypy                                                 0.5 min, 0.5 GB'
	@echo '  make clean     delete .venv, .trl-1.12 and caches; runs/ and data/ stay'
	@echo
	@echo 'Checkpoints lie in runs/<run>/<stage>. A stage that has its checkpoint is not run again, unless its data or the'
	@echo 'stage before it is newer, the folder is deleted, or ARGS or another SEED is given. Missing stages are made first.'
	@echo '  RUN=name       a run of its own, in runs/name (default: default)'
	@echo '  SEED=1         the seed (default: 0)'
	@echo '  ARGS="..."     options for the targets you name, e.g. make ppo ARGS="--kl_coef 0.2"; list them by ARGS=--help'
	@echo '  PYTHON=...     the Python to install with, 3.11 or newer (default: python3)'
	@echo '  PIP_ARGS=...   options for the one installation. On Linux the usual torch brings 3 GB of CUDA along; without:'
	@echo '                 make sft rm ppo PIP_ARGS=--extra-index-url=https://download.pytorch.org/whl/cpu'

# --- installation: once, and again when one of these two files changes ---
# Editable, since pip cannot install a pyproject's dependencies alone; so edits count at once and notebooks can import
# from any folder. With the dev extra: the few megabytes it adds are cheaper than a second environment to keep.
# The stamp goes first and comes back last, so an installation that failed or was interrupted is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "error: Python 3.11 or newer is needed, and $(PYTHON) is not it: install one, or name one by PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "error: $(PYTHON) lacks its venv module: install it (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@echo 'Installing into .venv, once (a few minutes, most of it torch)'
	@$(PYTHON) -m venv .venv
	$(PY) -m pip install --disable-pip-version-check -e '.[dev]' -c constraints.txt $(PIP_ARGS)
	@touch $@

# --- the stages ---
$(STAGES): %: $(OUT)/%/stage.json
	@$(if $($*_ran),:,echo '$(OUT)/$* is up to date')

$(OUT)/sft/stage.json: data/base/model.safetensors data/demonstrations.jsonl
$(OUT)/rm/stage.json:  $(OUT)/sft/stage.json data/prompts/rm.jsonl
$(OUT)/ppo/stage.json: $(OUT)/rm/stage.json data/prompts/ppo.jsonl data/pretraining.jsonl

# The installation is order-only (after the |): installing again is no reason to train again.
$(STAGES:%=$(OUT)/%/stage.json): $(OUT)/%/stage.json: | $(INSTALLED)
	$(eval $*_ran := yes)
	$(PY) -m stages.$* --run $(RUN) $(seed) $(call args,$*)

# A stage named on the command line runs again when ARGS is given, or a SEED other than its checkpoint's.
NAMED := $(filter $(STAGES),$(MAKECMDGOALS))
ifneq ($(strip $(ARGS)),)
AGAIN := $(NAMED)
else ifneq ($(SEED),)
AGAIN := $(shell for stage in $(NAMED); do grep -qs '^  "seed": $(SEED),' $(OUT)/$$stage/stage.json || echo $$stage; done)
endif
ifneq ($(AGAIN),)
$(AGAIN:%=$(OUT)/%/stage.json): FORCE
endif

compare: $(OUT)/ppo/stage.json | $(INSTALLED)
	$(PY) -m rlhf_mini.evaluation.compare --run $(RUN) $(seed) $(call args,compare)

evaluate: $(OUT)/ppo/stage.json | $(INSTALLED)
	$(PY) -m rlhf_mini.evaluation.evaluate --run $(RUN) $(seed) $(call args,evaluate)

$(OUT)/evaluate.json: $(OUT)/ppo/stage.json | $(INSTALLED)
	$(PY) -m rlhf_mini.evaluation.evaluate --run $(RUN) $(seed)

overopt: $(OUT)/ppo/stage.json | $(INSTALLED)
	$(PY) -m rlhf_mini.evaluation.overopt --run $(RUN) $(seed) $(call args,overopt)

report: $(OUT)/evaluate.json | $(INSTALLED)
	$(PY) -m rlhf_mini.report --run $(RUN) $(call args,report)

chat: $(OUT)/ppo/stage.json | $(INSTALLED)
	$(PY) -m rlhf_mini.chat --run $(RUN) $(seed) $(call args,chat)

# Whatever is there, finished or not: nothing is made first.
doctor: | $(INSTALLED)
	$(PY) -m rlhf_mini.doctor $(OUT) $(call args,doctor)

# The figures of docs/results.md.
seeds: | $(INSTALLED)
	for seed in 0 1 2; do $(MAKE) sft rm ppo RUN=seed$$seed SEED=$$seed || exit 1; done
	$(PY) -m rlhf_mini.evaluation.evaluate --runs seed0,seed1,seed2 --out docs/evaluate.json
	$(PY) -m rlhf_mini.evaluation.results seed0 seed1 seed2

# --- data ---
base: | $(INSTALLED)
	$(PY) -m rlhf_mini.world.base $(seed) $(call args,base)

data: | $(INSTALLED)
	$(PY) -m rlhf_mini.world.build $(call args,data)

# Made only when missing.
data/base/model.safetensors data/demonstrations.jsonl data/pretraining.jsonl data/prompts/rm.jsonl data/prompts/ppo.jsonl:
	@echo 'error: $@ is missing: bring it back by `git checkout -- data`, or make it by `make data` and `make base`'; exit 1

# --- beside TRL 1.12.0, the last release with a PPOTrainer ---
# In a folder of its own that comes first in imports: the project itself uses a newer TRL, and the same of all else.
.trl-1.12/.installed: | $(INSTALLED)
	rm -rf .trl-1.12
	$(PY) -m pip install --disable-pip-version-check --no-deps --target .trl-1.12 trl==1.12.0 $(PIP_ARGS)
	@touch $@

bench: $(OUT)/rm/stage.json .trl-1.12/.installed
	$(PY) -m benchmarks.bench --run $(RUN) $(call args,bench)

parity: .trl-1.12/.installed
	PYTHONPATH=.trl-1.12 $(PY) -m benchmarks.parity $(call args,parity)

# --- development ---
# A file's tests in one process, the files on all cores.
test: | $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile $(call args,test)

lint: | $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m mypy

clean:
	rm -rf .venv .trl-1.12 .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find rlhf_mini stages benchmarks tests -name __pycache__ -prune -exec rm -rf {} +
