# `make run` and `make test` need only Python 3.11 and make: each sets up what it needs in .venv, once.
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: run test test-all lint format bench bench-page clean
.DELETE_ON_ERROR:

run: .venv/run.stamp
	$(BIN)/bam run quickstart

test: .venv/dev.stamp
	$(BIN)/python -m pytest -m "not long"

test-all: .venv/dev.stamp
	$(BIN)/python -m pytest

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

# The stamps are newer than what they were made from, so a second call installs nothing.
.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing (about two minutes, once)"
	$(PIP) install -c constraints.txt -e .
	@touch $@

.venv/dev.stamp: .venv/run.stamp
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
