# Each target sets up what it needs in .venv; a second call re-installs nothing.
#
#   make demo       the bundled digits study, in process: influences on disk and a look at them
#   make ui         Dagster UI on http://127.0.0.1:$(PORT), history kept in .dagster
#   make test       all tests, doctests, the README's example; but for those of the next
#   make simulated  tests that want a CUDA device, on one that is made of the processor
#   make check      lint, format, types, tests
#   make newest     tests of what needs no torch, under the newest Python found beside this one
#   make bench      every stage beside bare products and copies, and how it grows; the table of docs/benchmarks.md
#   make gpu        on a machine with a CUDA device: its tests, copies beside products, every stage; ten minutes
#   make bench-ratios  speed of single pieces, as ratios within one run that are held to bounds
#   make bench-peers  the same work by other libraries, each in an environment of its own below .peers
#   make campaign   the long numerical validation
#   make shapes     numeric tests with the shapes of all annotations checked
#   make fidelity   each method against exact solves and refits; the tables of docs/methods.md
#   make suspects   what finds flipped labels; the table of docs/validation.md
#   make settings   docs/settings.md, from the settings themselves
#   make architecture  docs/architecture.md, from the imports
#   make commands   docs/commands.md, from the commands themselves
#   make docs       the documentation as a site, in site/
#   make audit      known vulnerabilities of the installed dependencies; asks a service
#   make pictures   docs/pictures, of the explorer on digits; minutes, needs chromium
#   make bad-input  what comes of bad input: asked anew, and docs/bad-input.md
#   make clean      remove results, history, caches and .venv
#
# PYTHON=…       the interpreter to build .venv with (3.11 or newer)
# TESTERS=…      processes of make test (two more than cores)
# PIP_OPTIONS=…  passed to pip install, for example an index with CPU builds of torch

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PORT ?= 3000

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile $(PIP_OPTIONS)

export DAGSTER_HOME := $(CURDIR)/.dagster
export DAGSTER_DISABLE_TELEMETRY := 1
# What is imported is compiled once, and not by every process anew (see PIP).
unexport PYTHONDONTWRITEBYTECODE
# Idle threads give their core back instead of spinning: on a busy machine ten times as fast.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
comma := ,
.PHONY: help demo ui test simulated lint check newest bench gpu bench-ratios bench-peers campaign shapes fidelity suspects settings architecture commands docs audit pictures bad-input clean

help:
	@sed -n 's/^#   //p' Makefile

# Modules are compiled when they are first imported: most never are, and all take a minute.
# torch first: its version decides the size of the download, and it brings setuptools, with
# which the project then builds without a second, isolated environment.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); try make PYTHON=…" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), once, with the versions of constraints.txt …"
	@$(PIP) --constraint constraints.txt torch setuptools
	@$(PIP) --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

$(DAGSTER_HOME)/dagster.yaml: dagster.yaml
	@mkdir -p $(@D) && cp $< $@

$(DAGSTER_HOME)/workspace.yaml: workspace.yaml
	@mkdir -p $(@D) && sed 's|working_directory: .*|working_directory: $(CURDIR)|' $< > $@

demo: $(READY) $(DAGSTER_HOME)/dagster.yaml
	$(BIN)/influence-dag materialize assets/digits --show

# In the folder of its history: Dagster warns of a dagster.yaml elsewhere, where it starts. The warnings
# that are left out are of Dagster's own code.
ui: export PYTHONWARNINGS := ignore:Function `dev_command`,ignore:Parameter `execution_type`
ui: $(READY) $(DAGSTER_HOME)/dagster.yaml $(DAGSTER_HOME)/workspace.yaml
	cd $(DAGSTER_HOME) && $(CURDIR)/$(BIN)/dagster dev --host 127.0.0.1 --port $(PORT)

# A process for each core, each with one thread: the tests' networks are too small to share. And two
# more, for the fifth of their time in which some wait for a server, a browser or another process.
# In the order of tests/conftest.py, in which the longest files are not at the end.
TESTERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2)
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder \
	  --ignore tests/simulated_cuda -p no:benchmark

simulated: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/simulated_cuda

check: $(READY) lint test

newest: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python .ci/newest.py

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/table.py --write $(BENCH)

gpu: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gpu.py $(BENCH)

bench-ratios: $(READY)
	$(BIN)/python -m pytest benchmarks

bench-peers: $(READY)
	$(BIN)/python benchmarks/peers --write

campaign: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m campaign

# The tests of the numeric rooms with the shapes of all their annotations checked.
SHAPES = curvature,gradients,influence,losses,objective,solvers,validation
shapes: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile -o addopts="" \
	  -m "not campaign" tests/curvature tests/solvers tests/losses tests/validation \
	  tests/test_gradients.py tests/test_influence.py tests/test_functional.py tests/test_fast_paths.py \
	  --jaxtyping-packages=influence_dag.$(subst $(comma),$(comma)influence_dag.,$(SHAPES)),shapes.checked

# The figures are of one thread.
fidelity: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fidelity.py

suspects: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/wrong_labels.py

settings: $(READY)
	$(BIN)/python -m influence_dag.study.reference > docs/settings.md

architecture: $(READY)
	PYTHONPATH=tests $(BIN)/python -m rooms

commands: $(READY)
	$(BIN)/python -m influence_dag.cli.reference > docs/commands.md

docs: $(READY)
	$(BIN)/zensical build --clean --strict

audit: $(READY)
	$(BIN)/python .ci/audit.py $(SERVICE)

pictures: $(READY)
	PICTURES=docs/pictures OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/e2e/test_explorer.py -m campaign

bad-input: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m bad_input

clean:
	rm -rf $(VENV) .venv-newest .peers site .cache .dagster data/store build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
