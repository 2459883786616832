# make demo   a sealed question to a sealed model, as separate processes on this machine
# make federated-demo   three hospitals train one model, as separate processes on this machine: minutes
# make test   everything that CI runs: lint, types, layers, unit, property, vectors, contracts, scenarios
# make test-browser   other people's packages in a real Chromium ask our gateway; slow lane, not part of make test
# make bench  the scoreboard: every figure of docs/benchmarks/, written by the run; SECTION=figure6 one section, QUICK=1 a short pass
# make bench-federated   what protection costs a federated round: MINUTES=12 of it, and the next time what is left; TURNS=1 fewer turns
# make fuzz   the properties and parsers with many more examples (EXAMPLES=5000), bounded to half an hour
# Each does its own set-up, and is quick the second time.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
QUESTION ?=
EXAMPLES ?= 5000
PYTEST_ARGS ?=
# Each file's tests in one process, as many processes as there are cores.
# In the order of files: whole ways come before what takes seconds.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder
# Threads that spin at a barrier take the processor from those of the other test processes that they wait for.
unit test: export OMP_WAIT_POLICY := passive
# A virtual environment does not survive being moved or copied: then it is set up again.
MOVED := $(shell [ "$$(cat $(VENV)/.made-at 2>/dev/null)" = "$$(pwd -P)" ] || echo moved)

.PHONY: moved demo federated-demo test test-browser lint unit bench bench-federated fuzz train clean help

help:
	@sed -n '1,8s/^# //p' Makefile

$(VENV)/.demo-ready: pyproject.toml constraints.txt scripts/setup.sh $(MOVED)
	@scripts/setup.sh demo

$(VENV)/.test-ready: pyproject.toml constraints.txt scripts/setup.sh $(MOVED)
	@scripts/setup.sh test

$(VENV)/.browser-ready: pyproject.toml constraints.txt scripts/setup.sh $(MOVED)
	@scripts/setup.sh browser

# By the environment and not expanded: a question may hold quotes, dollars and backticks.
demo: export DEMO_QUESTION := $(value QUESTION)
demo: $(VENV)/.demo-ready
	@$(BIN)/python examples/sealed_question.py $${DEMO_QUESTION:+--question "$$DEMO_QUESTION"}

federated-demo: $(VENV)/.test-ready
	@$(BIN)/python examples/federated_hospitals.py $(if $(SENTENCES),--sentences $(SENTENCES)) $(if $(ROUNDS),--rounds $(ROUNDS))

lint: $(VENV)/.test-ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

unit: $(VENV)/.test-ready
	@$(BIN)/pytest tests/unit $(PARALLEL) $(PYTEST_ARGS)

test: lint
	@$(BIN)/pytest $(PARALLEL) $(PYTEST_ARGS)

test-browser: $(VENV)/.browser-ready
	@$(BIN)/pytest tests/browser -m browser $(PYTEST_ARGS)

bench: $(VENV)/.test-ready
	@$(BIN)/python -m benchmarks.scoreboard $(SECTION) $(if $(QUICK),--quick) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(MODELS),--models $(MODELS))

bench-federated: $(VENV)/.test-ready
	@$(BIN)/python -m benchmarks.scoreboard federated_cost $(if $(QUICK),--quick) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(TURNS),--rounds $(TURNS))

fuzz: $(VENV)/.test-ready
	@CLOISTER_EXAMPLES=$(EXAMPLES) timeout 1800 $(BIN)/pytest tests/property tests/unit tests/vectors --timeout 1800 -m "not npm" $(PYTEST_ARGS)

train: $(VENV)/.test-ready
	@$(BIN)/python scripts/train_demo_model.py train

clean:
	rm -rf $(VENV) build .demo
