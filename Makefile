# make demo   a sealed question to a sealed model, as separate processes on this machine
# make test   everything that CI runs: lint, types, layers, unit, property, vectors, contracts, scenarios
# make bench  sealed against plain, interleaved pairs in one run
# Each does its own set-up, and is quick the second time.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
QUESTION ?=
PYTEST_ARGS ?=

.PHONY: demo test lint unit bench test-browser train clean help

help:
	@sed -n '1,4s/^# //p' Makefile

$(VENV)/.demo-ready: pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh demo

$(VENV)/.test-ready: pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh test

demo: $(VENV)/.demo-ready
	@$(BIN)/python examples/sealed_question.py $(if $(QUESTION),--question "$(QUESTION)")

lint: $(VENV)/.test-ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

unit: $(VENV)/.test-ready
	@$(BIN)/pytest tests/unit $(PYTEST_ARGS)

test: lint
	@$(BIN)/pytest $(PYTEST_ARGS)

bench: $(VENV)/.test-ready
	@$(BIN)/python benchmarks/sealed_vs_plain.py

train: $(VENV)/.test-ready
	@$(BIN)/python scripts/train_demo_model.py

clean:
	rm -rf $(VENV) build .demo
