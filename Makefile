# rlhf_mini: `make` lists the targets. Works with GNU make 3.81 (macOS) and newer.

PYTHON   ?= python3
PIP_ARGS ?=
RUN      ?= default
SEED     ?=
BUG      ?=
ARGS     ?=
N        ?=
# Not from the environment, where some systems have variables of these names.
LANGUAGE := en
HOST     :=

OUT         := runs/$(RUN)
STAGES      := sft rm ppo
CHECKPOINTS := $(STAGES:%=$(OUT)/%/stage.json)
INSTALLED   := .venv/.installed
PY          := .venv/bin/python
seed        := $(if $(SEED),--seed $(SEED))

# Everything runs offline.
export HF_HUB_OFFLINE = 1
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: help $(STAGES) compare evaluate overopt report chat doctor museum seeds ablations settings base data bench \
    parity scale mutants test test-lessons nightly lint clean lessons lesson check-lesson bands rank class class-train
# One target at a time even under -j: each stage needs the one before it, and torch uses all cores by itself.
.NOTPARALLEL:
# Ctrl-C must not delete stage.json: the stages write their checkpoints atomically.
.PRECIOUS: $(CHECKPOINTS)

ifneq ($(words $(RUN)),1)
$(error RUN must be one word, the name of a folder under runs/)
endif

help:
	@echo 'make sft rm ppo          all three stages, each from the checkpoint before it             4-9 min, 1.2 GB'
	@echo
	@echo '  make sft               supervised fine-tuning of the base model on demonstrations       0.8-2 min, 1 GB'
	@echo '  make rm                reward model, trained on rankings of sampled responses           1.5-3.5 min, 1 GB'
	@echo '  make ppo               PPO against the reward model                                     1.5-3.5 min, 1.1 GB'
	@echo '  make compare           responses of base, SFT and PPO side by side and win rates        0.5 min, 0.9 GB'
	@echo '  make evaluate          the same with more judges, ratings, baselines and probes         2-4 min, 0.9 GB'
	@echo '  make report            an HTML report on a run, in which its models answer you         30 s, 0.8 GB'
	@echo '  make chat              chat with base, SFT or PPO in the terminal                       0.5 GB'
	@echo '  make doctor            check each stage of a run for problems and suggest fixes         1 s, 0.1 GB'
	@echo '  make museum            classic bugs beside the healthy run: BUG=kl_sign                 1-4 min, 1 GB'
	@echo
	@echo '  make lesson N=3        open a lesson in JupyterLab                                      1-15 min, 1.5 GB'
	@echo '  make check-lesson N=3  compare the figures of your run with the bands                   1 s'
	@echo '  make lessons           run all lessons, build offline pages in lessons/built            30-60 min, 1.5 GB'
	@echo '  make rank              rank ten prompts yourself; make rm can learn from it             0.5 GB'
	@echo
	@echo '  make class             phones rank responses, and that trains a policy; HOST=0.0.0.0    0.5-1.2 GB'
	@echo '  make overopt           over-optimisation study: gold score against KL from SFT          45-90 min, 1 GB'
	@echo '  make seeds             train and evaluate five seeds; writes docs/results.md            50-90 min, 1.1 GB'
	@echo '  make bands             run all lessons on these five; writes docs/bands.json, .md       2-5 h, 1.5 GB'
	@echo '  make base              rebuild the base and the judge in data from scratch              30-60 min, 1.2 GB'
	@echo '  make data              rebuild demonstrations and prompts from data/knowledge           5 s, 0.3 GB'
	@echo '  make ablations         retrain the reward model with one thing changed at a time        15-25 min, 1 GB'
	@echo '  make settings          retrain PPO with one option changed at a time, 3 seeds           60-90 min, 1 GB'
	@echo '  make bench             compare speed, memory, time to a gold with those of TRL 1.12.0   25-45 min, 2 GB'
	@echo '  make scale             cost by parameters, length and episodes, on one thread           3-15 min, 3 GB'
	@echo '  make parity            record tensors of TRL 1.12.0 as test data                        0.5 min, 0.5 GB'
	@echo '  make mutants           change the code at random and see whether tests notice           5-10 min, 0.5 GB'
	@echo '  make test              run all tests                                                    4-7 min, 1.5 GB'
	@echo '  make test-lessons      the slow tests: lessons, museum, class and live page             3-6 min, 2 GB'
	@echo '  make nightly           the randomised tests, with many more cases                       25-40 min, 1.5 GB'
	@echo '  make lint              check the code with ruff and mypy                                0.5 min, 0.5 GB'
	@echo '  make clean             delete .venv, .trl-1.12 and caches; keep runs/ and data/'
	@echo
	@echo 'Checkpoints are written to runs/<run>/<stage>. Missing stages are made first. A finished stage runs again only if'
	@echo 'you name it, and its data, its code or the stage before it has changed, or you give ARGS or another SEED.'
	@echo '  RUN=name       name of the run, a folder under runs/ (default: default)'
	@echo '  SEED=1         random seed (default: 0)'
	@echo '  N=3            number of a lesson, 0 to 7; LANGUAGE=ko: its prose in Korean (default: en)'
	@echo '  BUG=name       for make museum: a bug of its list, mystery (picked by SEED), or all'
	@echo '  ARGS="..."     options for the targets you name: make ppo ARGS="--kl_coef 0.2"; ARGS=--help lists them'
	@echo '  PYTHON=...     the Python to install with, 3.11 or newer (default: python3)'
	@echo '  PIP_ARGS=...   options for pip at installation. On Linux, this avoids 3 GB of CUDA libraries:'
	@echo '                 make sft rm ppo PIP_ARGS=--extra-index-url=https://download.pytorch.org/whl/cpu'

# --- installation: once, and again when pyproject.toml or constraints.txt changes ---
# Editable, because pip cannot install only the dependencies of a pyproject.toml. Always with all extras, because one
# environment is simpler than two; except for DeepSpeed, which is of use on several GPUs only.
# The stamp is removed first and written last, so that an interrupted installation is repeated.
$(INSTALLED): pyproject.toml constraints.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "error: $(PYTHON) is not Python 3.11 or newer: install one, or choose one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "error: $(PYTHON) lacks its venv module: install it (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@echo 'Installing into .venv, once (a few minutes, mostly for torch)'
	@$(PYTHON) -m venv .venv
	$(PY) -m pip install --disable-pip-version-check -e '.[dev,lessons,class,lora]' -c constraints.txt $(PIP_ARGS)
	@touch $@

# --- the three stages ---
# A stage that is named is trained unless it is up to date, which goes by content, not by the times of files; or if ARGS
# or another SEED is given.
$(STAGES): | $(INSTALLED)
	@$(PY) -m stages $@ --run $(RUN) $(seed) $(ARGS)

# A stage that is made only because a later one needs it gets no ARGS. All prerequisites stand after the | (order-only):
# what is finished is never made again without being named.
$(CHECKPOINTS): $(OUT)/%/stage.json: | $(INSTALLED)
	@$(PY) -m stages $* --run $(RUN) $(seed)

rm  $(OUT)/rm/stage.json:  | $(OUT)/sft/stage.json
ppo $(OUT)/ppo/stage.json: | $(OUT)/rm/stage.json

# --- what to do with a run ---
compare: | $(OUT)/ppo/stage.json $(INSTALLED)
	$(PY) -m rlhf_mini.evaluation.compare --run $(RUN) $(seed) $(ARGS)

evaluate: | $(OUT)/ppo/stage.json $(INSTALLED)
	$(PY) -m rlhf_mini.evaluation.evaluate --run $(RUN) $(seed) $(ARGS)

$(OUT)/evaluate.json: | $(OUT)/ppo/stage.json $(INSTALLED)
	$(PY) -m rlhf_mini.evaluation.evaluate --run $(RUN) $(seed)

overopt: | $(OUT)/ppo/stage.json $(INSTALLED)
	$(PY) -m rlhf_mini.evaluation.overopt --run $(RUN) $(seed) $(ARGS)

report: | $(OUT)/evaluate.json $(INSTALLED)
	$(PY) -m rlhf_mini.report --run $(RUN) $(ARGS)

chat: | $(OUT)/ppo/stage.json $(INSTALLED)
	$(PY) -m rlhf_mini.chat --run $(RUN) $(seed) $(ARGS)

# Needs no checkpoint: it also examines runs that stopped half-way.
doctor: | $(INSTALLED)
	$(PY) -m rlhf_mini.doctor $(OUT) $(ARGS)

# Without BUG it lists the bugs, which needs no checkpoint. SEED picks the mystery, it is not that of a stage.
museum: | $(if $(BUG),$(OUT)/rm/stage.json) $(INSTALLED)
	@$(PY) -m rlhf_mini.museum $(BUG) --run $(RUN) $(seed) $(ARGS)

seeds: | $(INSTALLED)
	for seed in 0 1 2 3 4; do $(MAKE) sft rm ppo RUN=seed$$seed SEED=$$seed || exit 1; done
	$(PY) -m rlhf_mini.evaluation.evaluate --runs seed0,seed1,seed2,seed3,seed4 --out docs/evaluate.json
	$(PY) -m rlhf_mini.evaluation.results seed0 seed1 seed2 seed3 seed4

ablations: | $(OUT)/sft/stage.json $(INSTALLED)
	$(PY) -m benchmarks.reward --run $(RUN) $(seed) $(ARGS)

settings: | $(INSTALLED)
	$(PY) -m benchmarks.settings $(ARGS)

# --- lessons ---
lessons: | $(OUT)/ppo/stage.json $(INSTALLED)
	$(PY) -m rlhf_mini.classroom pages $(N) --run $(RUN) $(ARGS)

lesson: | $(OUT)/ppo/stage.json $(INSTALLED)
	$(PY) -m rlhf_mini.classroom notebook $(N) --run $(RUN) --language $(LANGUAGE) $(ARGS)

check-lesson: | $(INSTALLED)
	$(PY) -m rlhf_mini.classroom compare $(N) --run $(RUN) $(ARGS)

class: | $(OUT)/ppo/stage.json $(INSTALLED)
	@$(PY) -m rlhf_mini.workshop --run $(RUN) $(if $(HOST),--host $(HOST)) --language $(LANGUAGE) $(ARGS)

class-train: | $(OUT)/ppo/stage.json $(INSTALLED)
	@$(PY) -m rlhf_mini.workshop train --run $(RUN) $(ARGS)

rank: | $(OUT)/sft/stage.json $(INSTALLED)
	@$(PY) -m rlhf_mini.classroom.rank --run $(RUN) $(seed) $(ARGS)

bands: | $(INSTALLED)
	$(PY) -m rlhf_mini.classroom bands $(N) $(ARGS)

# --- data ---
base: | $(INSTALLED)
	$(PY) -m rlhf_mini.world.base $(seed) $(ARGS)

data: | $(INSTALLED)
	$(PY) -m rlhf_mini.world.build $(ARGS)

# --- comparison with TRL 1.12.0, the last release with a PPOTrainer ---
# Installed in a folder of its own, put first on the import path: the project itself uses a newer TRL.
.trl-1.12/.installed: | $(INSTALLED)
	rm -rf .trl-1.12
	$(PY) -m pip install --disable-pip-version-check --no-deps --target .trl-1.12 trl==1.12.0 $(PIP_ARGS)
	@touch $@

bench: .trl-1.12/.installed | $(OUT)/rm/stage.json
	$(PY) -m benchmarks.bench --run $(RUN) $(ARGS)
	$(PY) -m benchmarks.gold --run_dir $(OUT) --out $(OUT)/gold.json

parity: .trl-1.12/.installed
	PYTHONPATH=.trl-1.12 $(PY) -m benchmarks.parity $(ARGS)

# --- cost by size ---
# On one thread, so that sizes are compared and not how well they use several.
scale: | $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.scale $(ARGS)

# --- development ---
# Test files run in parallel, one process a file, so that a file's fixtures are built once. By default the files with the
# fewest tests would come last, one of which takes longest.
test: | $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

# What takes too long for `make test`: every lesson in a kernel of its own and the class's trainings, on a nano run that
# they share; every bug of the museum, on random models; the live page and the class in a browser; bfloat16, and FSDP.
test-lessons: | $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto -m lessons tests/classroom tests/museum tests/workshop tests/report \
	    tests/core tests/stages $(ARGS)

nightly: | $(INSTALLED)
	FUZZ=nightly KILLS=200 OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile tests/test_fuzz.py \
	    tests/core/test_resume.py $(ARGS)

# On one core: each mutant's tests run by themselves, and threads would only wait for each other.
mutants: | $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.mutants $(seed) $(ARGS)

lint: | $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf .venv .trl-1.12 .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find rlhf_mini stages benchmarks tests -name __pycache__ -prune -exec rm -rf {} +
