# Two commands do everything: `make demo` and `make test`. Each first installs what it needs into .venv.
PYTHON ?= python3.11
PORT ?= 8000
BIN := .venv/bin

.PHONY: setup demo test test-fast test-slow check bench

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# mypy checks export/torch_plan.py against its types, which a machine without a GPU has too. The extra torch-tensorrt
	# installs it with TensorRT, to run.
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt --no-deps torch-tensorrt
	touch $@

demo: setup
	$(BIN)/tureen demo --port $(PORT)

test: setup
	$(BIN)/pytest -m "not slow and not gpu"

test-fast: setup
	$(BIN)/pytest -m fast

test-slow: setup
	$(BIN)/pytest -m slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The figures of docs/benchmarks.md, section "What `make bench` prints", in its order: hours. Other pages name their commands.
bench: setup
	$(BIN)/python -m benchmarks.digits
	$(BIN)/tureen demo --no-serve
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.engines
	$(BIN)/python -m benchmarks.precisions tureen-demo/run-*
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.propagation
