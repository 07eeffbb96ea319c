# Each target makes .venv by itself, once, and again when pyproject.toml has changed.
PYTHON ?= python3
export KEEP ARGS

.PHONY: demo test lint sim bench venv
demo: venv
	@scripts/demo
test: venv
	@scripts/test
lint: venv
	@scripts/lint
sim: venv
	@scripts/sim
bench: venv .venv/.bench
	@scripts/bench

# Agents start from compiled modules even where the environment forbids Python to write them.
venv: .venv/.dev
	@.venv/bin/python -m compileall -q ha
.venv/.dev: pyproject.toml
	@scripts/venv $(PYTHON) dev
.venv/.bench: .venv/.dev
	@scripts/venv $(PYTHON) bench
