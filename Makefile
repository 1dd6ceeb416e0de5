# Every target keeps to .venv, which `make setup` makes and keeps up to date.

PYTHON ?=
ARGS ?=
python := .venv/bin/python
parallel := --numprocesses=2 --dist=worksteal

export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup demo test mutation faults lint check-api format lock bench-append bench-rebuild bench-live bench-seal bench-orders docs clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv from requirements.lock (PYTHON=... names the interpreter)
	@.ci/setup

demo: setup ## run the example from end to end (SERVE=1: and go on serving it)
	@$(python) examples/demo.py $(if $(SERVE),--serve)

test: setup ## run the tests, two at a time (ARGS=... goes to pytest)
	@.ci/browser
	@$(python) -m pytest $(parallel) $(ARGS)

docs: setup ## build the documentation into docs/_build/html; warnings are errors
	@$(python) -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

mutation: setup ## change the domain and its folds bit by bit: do the tests notice?
	@$(python) -m tests.mutation $(ARGS)

lint: setup ## check style, types, import rules and migrations
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	.venv/bin/lint-imports --no-logo
	.ci/check-migrations

check-api: setup ## ask a running service all that its description allows, on both databases
	@$(python) -m tests.service.describing $(ARGS)

format: setup ## put the code into the one format and fix what can be fixed
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

lock: setup ## renew requirements.lock (ARGS=--upgrade moves every version)
	.ci/lock $(ARGS)

faults: setup ## break everything: is anything lost? (ARGS="--seed N --runs N --short --only X")
	@$(python) -m tests.faults $(ARGS)

bench-append: setup ## measure appends per second
	@$(python) benchmarks/append.py $(ARGS)

bench-rebuild: setup ## measure rebuilding from 1 M and 10 M events (ARGS="--keep DIR --events N")
	@$(python) benchmarks/rebuild.py $(ARGS)

bench-live: setup ## measure how many appends a second the projectors keep up with
	@$(python) benchmarks/live.py $(ARGS)

bench-seal: setup ## measure sealing, and how soon a checkpoint is signed (ARGS="--keep DIR --events N")
	@$(python) benchmarks/seal.py $(ARGS)

bench-orders: setup ## measure the HTTP service under load (needs wrk; ARGS="--with-projectors")
	@$(python) benchmarks/orders.py $(ARGS)

clean: ## remove environments, caches and build results
	rm -rf .venv .venv-uv .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	rm -rf build dist docs/_build docs/reference benchmarks/emmett/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
