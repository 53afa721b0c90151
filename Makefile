# `make run` and `make test` need only Python 3.11 and make: each sets up what it needs in .venv, once.
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: run test test-all coverage mutation nightly lint format bench bench-page wheel docs clean
.DELETE_ON_ERROR:

run: .venv/run.stamp
	$(BIN)/bam run quickstart

# In layers, and in random order (tests/run.py). One layer: .venv/bin/python -m tests.run core
test: .venv/dev.stamp
	$(BIN)/python -m tests.run

test-all: .venv/dev.stamp
	$(BIN)/python -m tests.run --all

coverage: .venv/dev.stamp
	$(BIN)/python -m tests.run --coverage

# These two take an hour or more and are for the night.
mutation: .venv/dev.stamp
	$(BIN)/python -m tests.mutation

nightly: .venv/dev.stamp
	$(BIN)/python -m tests.nightly

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/dev.stamp
	$(BIN)/python -m tests.benchmarks.all

# The results of `make bench` into docs/performance/, and the page made anew.
bench-page: .venv/dev.stamp
	$(BIN)/python -m tests.benchmarks.page --take .bench

# What is committed, as dist/bam-0.1.0+g<commit>.whl; records of runs with it name that commit. The same commit gives the
# same bytes: git's files alone, with the time of the commit, and rights that no umask changes.
wheel: .venv/run.stamp
	rm -rf build/wheel && mkdir -p build/wheel
	umask 022 && git archive HEAD | tar -x --no-same-permissions -C build/wheel
	printf '[egg_info]\ntag_build = +g%s\n' "$$(git rev-parse HEAD)" > build/wheel/setup.cfg
	umask 022 && SOURCE_DATE_EPOCH="$$(git log -1 --format=%ct)" \
	  $(PIP) wheel --no-deps --no-build-isolation -w dist ./build/wheel

# The documentation as a site, build/docs/index.html. Broken links, and whatever else Sphinx warns of, are errors.
docs: .venv/docs.stamp
	$(BIN)/python docs/tools/write.py --check
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/docs-trees docs build/docs

# The stamps are newer than what they were made from, so a second call installs nothing.
.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing (about two minutes, once)"
	$(PIP) install -c constraints.txt -e .
	@touch $@

.venv/docs.stamp: .venv/run.stamp
	$(PIP) install -c constraints.txt -e ".[docs]"
	@touch $@

.venv/dev.stamp: .venv/run.stamp
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
