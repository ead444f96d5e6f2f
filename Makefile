# Two commands do all set-up by themselves: `make demo` trains and judges a small model, `make test` runs
# the tests. PYTHON picks the interpreter of the virtual environment (3.11 or newer); RUN and DATA are where
# the demo writes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN ?= runs/demo
DATA ?= runs/data/scenes
# Processes that `make test` starts: one a core.
WORKERS ?= auto
# Where `make gpu` writes.
GPU ?= runs/gpu
# Processes of the demo: two, or one where there is one GPU.
NPROC ?= $(if $(filter 1,$(shell nvidia-smi -L 2>/dev/null | grep -c .)),1,2)

# deepspeed starts a process a listed device; where there is no GPU, LOCAL_SIZE is the number of devices it
# believes in.
DEVICES = LOCAL_SIZE=$(NPROC) CUDA_VISIBLE_DEVICES=$(shell seq -s , 0 $$(($(NPROC) - 1)))

.PHONY: help setup demo test gpu lint format clean

help:
	@echo "make setup   virtual environment with all packages"
	@echo "make demo    scenes, training on $(NPROC) processes, samples, scores, report ($(RUN))"
	@echo "make test    all tests that need no GPU"
	@echo "make gpu     all that one GPU can measure, in 9 minutes (DRY=1: small, on a CPU)"
	@echo "make lint    format and type checks"

setup: $(READY)

# Stamped, so that a second call costs nothing; made anew when the package list changes.
$(READY): setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is " \
		f"needed; {sys.executable} is {sys.version.split()[0]}; set PYTHON=...")'
	@command -v g++ >/dev/null || { echo "error: g++ is needed (Debian: apt-get install g++)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $(READY)

demo: $(READY)
	$(BIN)/python tools/make_scenes.py --output $(DATA)
	$(DEVICES) $(BIN)/deepspeed launch/pretrain_t2i.sh --config configs/demo.yaml \
		parallel.expert_parallel=$(NPROC) run.directory=$(RUN) \
		'data.train=[$(DATA)/train-*.tar]' 'data.validation=[$(DATA)/validation-*.tar]'
	$(BIN)/python -m diffmoe_scale.sample --checkpoint $(RUN) \
		--prompt "a red circle" --prompt "three green triangles" \
		--prompt "a blue square left of a yellow circle" --prompt "a purple triangle and a green square"
	$(BIN)/python -m diffmoe_scale.evaluate --checkpoint $(RUN) --prompts 192
	@echo "report: $(RUN)/report.html"

test: $(READY) lint
	@bash tests/cluster/packages.sh
	$(BIN)/python -m pytest -n $(WORKERS) --no-loadscope-reorder -rs -m "not gpu and not te"

# On a machine without network set PYTHON to one that has the packages: READY= skips the set-up.
gpu: $(READY)
	$(if $(READY),$(BIN)/python,$(PYTHON)) tools/gpu_report.py --output $(GPU) $(if $(DRY),--dry)

lint: $(READY)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy --no-error-summary

format: $(READY)
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

clean:
	rm -rf $(VENV) build *.egg-info
