# The commands for people and CI. `make run` and `make test` set up the environment automatically.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV_VERSION := 0.9.30
BIN := .venv/bin
READY := .venv/.ready
FIND_LINKS := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS))
RECIPE ?= digits
WORKERS ?= 3
MARKERS := not exhaustive

.PHONY: run test test-all setup check unit reference lock recipes bench bench-gate audit clean help

run: $(READY)  ## release a model (RECIPE=digits), from its data to a running endpoint
	@$(BIN)/headrace run $(RECIPE)

test: check unit  ## all checks, and all tests except the exhaustive ones

test-all: MARKERS :=
test-all: check unit  ## all checks and tests, also every recipe and every point at which a release can be killed (twice as long)

setup: $(READY)  ## create .venv with the packages in requirements.lock

$(READY): requirements.lock pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit("Headrace needs Python 3.11; this is " + sys.version.split()[0] + ". Name one: make PYTHON=/path/to/python3.11") if sys.version_info[:2] != (3, 11) else None'
	@echo "setting up .venv (about a minute with warm caches)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@# compile bytecode once: without it the first import of all packages takes 16 seconds longer
	@$(BIN)/uv pip install --quiet --python $(BIN)/python $(FIND_LINKS) --compile-bytecode -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@# create migrated databases, which each new project copies
	@$(BIN)/python -m headrace.services.make_templates
	@touch $@

check: $(READY)  ## ruff, mypy --strict, and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(READY)  ## run the tests (PYTEST_ARGS="-k gate": some of them; WORKERS=0: in one process)
	@# the workers share the cores: one thread each, so that training does not slow other tests down
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "$(MARKERS)" $(PYTEST_ARGS)

reference: $(READY)  ## write docs/reference/ from the docstrings of recipe and settings
	$(BIN)/python -m headrace.recipe.reference

lock: $(READY)  ## resolve requirements.lock again
	$(BIN)/uv pip compile pyproject.toml --extra dev $(FIND_LINKS) --no-header --no-annotate --quiet --output-file requirements.lock
	sed -i 's/^\(torch==[0-9.]*\).*/\1/' requirements.lock  # the suffix of a CPU build would exclude other machines

recipes: $(READY)  ## train all recipes in full (NAMES="digits cora": some of them); writes the results to README.md
	$(BIN)/python -m benchmarks.recipes $(NAMES)

bench: $(READY)  ## measure a release, its steps, the image and the replicas; writes docs/benchmarks/release.md
	$(BIN)/python -m benchmarks.release

bench-gate: $(READY)  ## measure the gate's false-promotion rate and power; writes docs/benchmarks/gate.md
	$(BIN)/python -m benchmarks.gate

audit: $(READY)  ## check pinned packages, of the serving image too, for known vulnerabilities in a public database
	$(BIN)/uv tool run --quiet pip-audit==2.10.1 --strict --disable-pip --no-deps --progress-spinner off \
	  -r requirements.lock -r deploy/serving/requirements-serving.txt

clean:  ## stop everything and remove what can be rebuilt (keeps data, models and the journal)
	-@[ -x $(BIN)/headrace ] && $(BIN)/headrace down
	rm -rf .venv .headrace artifacts

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
