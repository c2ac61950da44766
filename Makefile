# Every target creates .venv if needed. Python 3.11 or newer, its pip and make are all that must be installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The package and its command line, which is all that the demo needs.
DEMO_READY := $(VENV)/.demo-ready
# Packages that only the benchmark needs.
BENCH_READY := $(VENV)/.bench-ready
# MLflow's server, which tests start. It has eighty dependencies, so it gets a separate environment.
MLFLOW_VENV := .venv-mlflow
MLFLOW_READY := $(MLFLOW_VENV)/.ready
# What a user gets who installs the wheel with the extra pytest; made anew each time.
KIT_VENV := .venv-kit

# Do not check for newer versions of the tools.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# ASYNC127 rejects httpx in favour of a fork, but users pass httpx clients (OTLPExporter's client=). ASYNC9xx, also off
# by default in flake8, require a checkpoint on every path through every async function, including tests and private
# ones; where the library promises one, tests assert it.
ASYNC_DISABLED := ASYNC127,ASYNC9
# Functions that are started with nursery.start and call task_status.started().
ASYNC_STARTABLE := _supervise,_supervise_work,watch

INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: help demo test test-all test-long test-kit test-matrix about-test about-test-all cancel-everywhere kill-everywhere simulate simulate-herd state-machine small-worlds soak planted-faults bench check size docs format clean

help:
	@echo "make demo    an agent program is cancelled while its server fails, and one with a spool is killed: nothing is lost"
	@echo "make test    all tests except the long ones, in about four minutes; ARGS=... is passed to pytest"
	@echo "make test-all   all tests, with branch coverage"
	@echo "make test-long   the long tests only"
	@echo "make test-kit   the page about testing and its example, from the built wheel in a fresh environment"
	@echo "make test-matrix   make test on every installed CPython from 3.11 on, in .venv-3.12 and so on"
	@echo "make cancel-everywhere   small programs with a cancel after each step, through the whole HTTP path, and with a spool"
	@echo "make kill-everywhere KILLS=1000   programs with a spool are killed at random moments and started again"
	@echo "make simulate SEEDS=100000   seeded runs of the whole system on the mock clock; SEED=... replays one"
	@echo "make simulate-herd CLIENTS=10000   a model of many clients whose server fails and comes back; SVG=... draws it"
	@echo "make state-machine SEQUENCES=200   random sequences of rules against a model; SEED=... repeats them"
	@echo "make small-worlds   the scheduler alone, in every order of events in small worlds"
	@echo "make soak MINUTES=10   real clock, real sockets, all kinds of faults: memory, tasks, sockets and live locations must not grow"
	@echo "make planted-faults   list the faults to plant; FAULT='...' plants one and shows which machine finds it"
	@echo "make bench   CPU time, event loop, memory and more, compared with OpenTelemetry and MLflow; QUICK=1 only checks for lost spans"
	@echo "make check   formatting, lint, types, documentation"
	@echo "make size    lines of code by part of the package, each with its budget"
	@echo "make docs    the documentation as HTML, in docs/_build/html"
	@echo "make format  format with ruff and apply its fixes"
	@echo "make clean   remove all files that make created"

$(DEMO_READY): pyproject.toml constraints.txt
	@echo "creating $(VENV), with a Python environment (once, and again when pyproject.toml or constraints.txt changes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	@echo "installing trio-spanbatch and its command line: trio, httpx, attrs, protobuf, click, rich and what they need,"
	@echo "about 20 packages, a few seconds"
	@$(INSTALL) --editable '.[cli]'
	@touch $@

$(READY): $(DEMO_READY)
	@echo "installing what the tests and checks need: pytest, hypothesis, mypy, ruff, sphinx, OpenTelemetry's SDK,"
	@echo "databricks-sdk and what they need, about 100 packages: a minute or two"
	@$(INSTALL) --editable '.[cli,databricks,opentelemetry]' --group dev
	@touch $@

$(BENCH_READY): $(READY)
	@echo "adding the benchmark's packages to $(VENV) (once)"
	@$(INSTALL) --group bench
	@touch $@

$(MLFLOW_READY): constraints-mlflow.txt
	@echo "creating $(MLFLOW_VENV) (once, and again when constraints-mlflow.txt changes)"
	@test -x $(MLFLOW_VENV)/bin/python || $(PYTHON) -m venv $(MLFLOW_VENV)
	@$(MLFLOW_VENV)/bin/python -m pip install --quiet --upgrade --constraint $< pip
	@$(MLFLOW_VENV)/bin/python -m pip install --quiet --constraint $< mlflow
	@touch $@

demo: $(DEMO_READY)
	@$(BIN)/trio-spanbatch demo

about-test:
	@echo "make test: about 7,300 tests in one process for each core, in about four minutes on two idle cores; tests that start"
	@echo "programs and servers, other long tests, and more examples for property tests are in make test-all"

about-test-all:
	@test -e $(MLFLOW_READY) || echo "first: installing MLflow's server in $(MLFLOW_VENV), about 80 packages: a minute or two"
	@echo "make test-all: all tests, about 7,700, with branch coverage, in one process for each core; about twenty minutes on"
	@echo "two idle cores"

test: about-test $(READY)
	$(PYTEST) -m "not long" $(ARGS)

test-all: about-test-all $(READY) $(MLFLOW_READY)
	$(PYTEST) --cov --cov-report=term-missing $(ARGS)

test-long: $(READY) $(MLFLOW_READY)
	$(PYTEST) -m long $(ARGS)

test-kit: $(DEMO_READY)
	@echo "building the wheel, and installing it with its extra pytest in $(KIT_VENV)"
	@rm -rf $(KIT_VENV)
	@$(BIN)/python -m venv --without-pip $(KIT_VENV)
	@$(BIN)/python -m pip wheel --quiet --no-deps --build-constraint constraints.txt --wheel-dir $(KIT_VENV)/wheel .
	@$(BIN)/python -m pip --python $(KIT_VENV)/bin/python install --quiet --constraint constraints.txt \
		"$$(echo $(KIT_VENV)/wheel/*.whl)[pytest]"
	@$(KIT_VENV)/bin/python tests/support/testing_page.py

test-matrix:
	@$(PYTHON) -m tests.support.matrix "$(MAKE)" "$(ARGS)"

cancel-everywhere: $(READY)
	@$(BIN)/python -m tests.cancellation --http $(ARGS)
	@$(BIN)/python -m tests.cancellation --spool $(ARGS)

KILLS ?= 1000
kill-everywhere: $(READY)
	@$(BIN)/python -m tests.spool.kill_everywhere --kills $(KILLS) $(ARGS)

# Run SEEDS fresh seeds on all cores, or replay one SEED with a trace of its events.
SEEDS ?= 2000
simulate: $(READY)
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(ARGS)

simulate-herd: $(READY)
	@$(BIN)/python -m tests.herd --clients $(or $(CLIENTS),10000) $(if $(SVG),--svg $(SVG)) $(ARGS)

state-machine: $(READY)
	@$(BIN)/python -m tests.state_machine --sequences $(or $(SEQUENCES),200) $(if $(SEED),--seed $(SEED)) $(ARGS)

small-worlds: $(READY)
	@$(BIN)/python -m tests.small_worlds $(ARGS)

planted-faults: $(READY)
	@$(BIN)/python -m tests.planted_faults $(if $(FAULT),"$(FAULT)")

soak: $(READY)
	@$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),10) $(ARGS)

# Run all cases in full and write docs/benchmarks.md; QUICK=1 runs one small round, CASES="encoding memory" only those.
bench: $(BENCH_READY)
	@$(BIN)/python -m bench $(if $(QUICK),--quick,$(if $(CASES),,--docs docs)) $(CASES)

check: $(READY) size
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/flake8-async --disable $(ASYNC_DISABLED) --startable-in-context-manager $(ASYNC_STARTABLE) \
		$$(find trio_spanbatch tests bench docs -name '*.py')
	$(BIN)/mypy
	$(BIN)/mypy tests
	$(BIN)/mypy --no-explicit-package-bases docs/examples
	$(BIN)/mypy --package bench
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright --verifytypes trio_spanbatch --ignoreexternal
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs docs/_build/html

size: $(READY)
	@$(BIN)/python -m tests.support.size

docs: $(READY)
	$(BIN)/sphinx-build --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-3.* $(MLFLOW_VENV) $(KIT_VENV) docs/_build build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
