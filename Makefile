# The commands for people and CI. `make run` and `make test` set up the environment automatically.

PYTHONS := 3.11 3.12 3.13
VERSION_OF = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# the first that runs, not only exists: version managers put a program on PATH for each version that they know
PYTHON ?= $(firstword $(foreach one,$(PYTHONS),$(if $(call VERSION_OF,python$(one)),python$(one))) python3)
BIN := .venv/bin
READY := .venv/.ready
# Each package has to have a hash of the lock. For a mirror that builds packages itself: make setup HASHES=--no-verify-hashes
HASHES ?= --require-hashes
FIND_LINKS := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS))
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python $(FIND_LINKS)
TORCH = $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/torch.lock
RECIPE ?= digits
WORKERS ?= 3
MARKERS := not exhaustive
# What `headrace run` and `headrace up` make again in .headrace; docs/operations.md lists the rest, which has to be kept.
MADE_AGAIN := cache compressed data_docs dvc dvc.lock encoded gateway great_expectations incoming locks login logs processes \
  released replicas reproductions run simulations snapshot sockets supervisor tracking.done validation

.PHONY: run test test-all setup check unit reference lock recipes bench bench-gate audit clean help

run: $(READY)  ## release a model (RECIPE=digits), from its data to a running endpoint
	@$(BIN)/headrace run $(RECIPE)

test: check unit  ## all checks, and all tests except the exhaustive ones

test-all: MARKERS :=
test-all: export HEADRACE_KILL_SEED ?= $(shell od -An -N4 -tx4 /dev/urandom | tr -d ' ')
test-all: check unit  ## all checks and tests, also every recipe and every point at which a flow can be killed (hours)

setup: $(READY)  ## create .venv with the packages in requirements.lock (PYTHON=python3.12: by default the first of 3.11, 3.12, 3.13)

$(READY): requirements.lock requirements-cuda.lock requirements-uv.lock pyproject.toml Makefile
	@$(if $(filter $(call VERSION_OF,$(PYTHON)),$(PYTHONS)),,echo "Headrace needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $(or $(call VERSION_OF,$(PYTHON)),not there). \
	Install one (Debian, Ubuntu: apt install python3.12 python3.12-venv; Fedora: dnf install python3.12; others: uv python install 3.12), \
	or name one: make PYTHON=/path/to/python3.12" >&2; exit 1)
	@echo "setting up .venv (about a minute with warm caches)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@# torch by pip: uv refuses a CPU build (2.13.0+cpu) for the version of the lock; a build in PIP_FIND_LINKS is preferred
	@sed -n '/^torch==/,/[^\\]$$/p' requirements.lock >.venv/torch.lock
	@sed '/^torch==/,/[^\\]$$/d' requirements.lock >.venv/others.lock
	@$(if $(PIP_FIND_LINKS),$(TORCH) --no-index 2>/dev/null ||) $(TORCH)
	@# compile bytecode once: without it the first import of all packages takes 16 seconds longer
	@$(INSTALL) --compile-bytecode $(HASHES) --no-deps -r .venv/others.lock
	@# torch's default build on Linux is the one with CUDA; a CPU build needs none of its packages
	@grep -qs '^cuda: .* = None' .venv/lib/python3.*/site-packages/torch/version.py || $(INSTALL) $(HASHES) --no-deps -r requirements-cuda.lock
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@# create migrated databases, which each new project copies
	@$(BIN)/python -m headrace.services.make_templates
	@touch $@

check: $(READY)  ## ruff, mypy --strict, and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(READY)  ## run the tests (PYTEST_ARGS="-k gate": some of them; WORKERS=0: in one process)
	@# the workers share the cores: one thread each, so that training does not slow other tests down; and with bytecode,
	@# without which each of the hundreds of processes that tests start compiles all modules again
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "$(MARKERS)" $(PYTEST_ARGS)

reference: $(READY)  ## write docs/reference/ from the docstrings of recipe and settings
	$(BIN)/python -m headrace.recipe.reference

lock: $(READY)  ## resolve the lock files again, with the hashes of all packages
	cat requirements.lock requirements-cuda.lock >.venv/resolved.lock  # versions stay where they still fit
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-header --no-annotate --generate-hashes --quiet --output-file .venv/resolved.lock
	$(BIN)/python deploy/lock.py .venv/resolved.lock

recipes: $(READY)  ## train all recipes in full (NAMES="digits cora": some of them); writes the results to README.md
	$(BIN)/python -m benchmarks.recipes $(NAMES)

bench: $(READY)  ## measure a release, its steps, the image and the replicas; writes docs/benchmarks/release.md
	$(BIN)/python -m benchmarks.release

bench-gate: $(READY)  ## measure the gate's false-promotion rate and power; writes docs/benchmarks/gate.md
	$(BIN)/python -m benchmarks.gate

audit: $(READY)  ## check pinned packages, of the serving image too, for known vulnerabilities in a public database
	$(BIN)/uv tool run --quiet pip-audit==2.10.1 --strict --disable-pip --no-deps --progress-spinner off \
	  -r requirements.lock -r requirements-cuda.lock -r deploy/serving/requirements-serving.txt

clean:  ## stop everything and remove what can be made again (keeps data, models, journal, keys, usage, feedback, batches)
	-@[ -x $(BIN)/headrace ] && $(BIN)/headrace down
	rm -rf .venv artifacts $(addprefix .headrace/,$(MADE_AGAIN))

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
