# Each target first installs its requirements into .venv. `make demo` runs the demo, `make test` the default tests.
PYTHON ?= python3.11
PORT ?= 8000
BIN := .venv/bin

.PHONY: setup demo test test-fast test-slow check bench

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# mypy checks export/torch_plan.py against the types of torch-tensorrt, also without a GPU. To run it, install the
	# extra torch-tensorrt, which includes TensorRT.
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt --no-deps torch-tensorrt
	touch $@

demo: setup
	$(BIN)/tureen demo --port $(PORT)

# A process for each CPU, four at most.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: setup
	$(BIN)/pytest $(PARALLEL) -m "not slow and not gpu"

test-fast: setup
	$(BIN)/pytest $(PARALLEL) -m fast

test-slow: setup
	$(BIN)/pytest -m slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Prints the figures of docs/benchmarks.md, section "What `make bench` prints", in its order. Takes hours.
bench: setup
	$(BIN)/python -m benchmarks.digits --models "two tokens" "one token" --attack autoattack
	$(BIN)/tureen demo --no-serve
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.engines
	$(BIN)/python -m benchmarks.precisions tureen-demo/run-*
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.propagation
