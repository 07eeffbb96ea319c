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

venv: .venv/.dev
.venv/.dev: pyproject.toml
	@scripts/venv $(PYTHON) dev
.venv/.bench: .venv/.dev
	@scripts/venv $(PYTHON) bench
