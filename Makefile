# Two commands do everything: `make demo` and `make test`. Each first installs what it needs into .venv.
PYTHON ?= python3.11
PORT ?= 8000
BIN := .venv/bin

.PHONY: setup demo test test-slow check bench

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# For its types alone: what calls it is checked against them. To import it takes a GPU and TensorRT.
	$(BIN)/pip install --disable-pip-version-check --no-deps torch-tensorrt==2.13.0
	touch $@

demo: setup
	$(BIN)/tureen demo --port $(PORT)

test: setup
	$(BIN)/pytest -m "not slow and not gpu"

test-slow: setup
	$(BIN)/pytest -m slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks.digits
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.engines
	$(BIN)/python -m benchmarks.precisions tureen-demo/run-*
