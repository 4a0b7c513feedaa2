# Thin: each target is a line or two. `make` prepares everything and says what to do next.
SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup run demo test test-long check bench clean
.DEFAULT_GOAL := setup

setup: $(STAMP)
	@$(BIN)/python -m agent.nats_server
	@echo "Ready. Next: make run, make demo, make test"

$(STAMP): pyproject.toml constraints.txt tools/setup.sh
	@VENV=$(VENV) sh tools/setup.sh
	@touch $@

run: setup
	@$(BIN)/resource-agent up

demo: setup
	@$(BIN)/resource-agent demo

test: setup
	@$(BIN)/pytest -q -n 4 -m "not long and not gpu"

test-long: setup
	@$(BIN)/pytest -q -m "long" --timeout 900
	@$(BIN)/python tools/second_server.py

check: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy .

bench: setup
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	@$(BIN)/python -m benchmarks $(if $(DATA),--data $(DATA))

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
