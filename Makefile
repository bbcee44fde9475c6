# Each target first installs its requirements into .venv. `make demo` serves an example, and installs no PyTorch;
# `make train-demo` trains a model first; `make test` runs the tests, and `make test-end-to-end` the commands of the pages.
PYTHON ?= python3.11
PORT ?= 8000
BIN := .venv/bin

.PHONY: setup demo train-demo test test-end-to-end test-fast test-slow check docs wheel completions bench

INSTALL := $(BIN)/pip install --disable-pip-version-check -c constraints.txt

# Three stamps of one environment: each step installs what the earlier ones have not.
setup: .venv/installed

$(BIN)/pip:
	$(PYTHON) -m venv .venv

.venv/serving: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e ".[serve,openvino]"
	touch $@

.venv/training: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e ".[demo]"
	touch .venv/serving $@

.venv/installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e ".[dev]"
	# mypy checks export/torch_plan.py against the types of torch-tensorrt, also without a GPU. To run it, install the
	# extra torch-tensorrt, which includes TensorRT.
	$(INSTALL) --no-deps torch-tensorrt
	touch .venv/serving .venv/training $@

demo: .venv/serving
	$(BIN)/tureen demo --port $(PORT)

train-demo: .venv/training
	$(BIN)/tureen demo --train digits --port $(PORT)

# One process more than there are CPUs, because tests wait for servers; four at most.
PARALLEL = -n $(shell $(PYTHON) -c "import os; print(min(4, 1 + (os.cpu_count() or 1)))") --dist loadfile --no-loadscope-reorder

test: setup
	$(BIN)/pytest $(PARALLEL) -m "not end_to_end and not slow and not gpu"

# The commands of every page, the wheel, the demo, the notebooks, browsers and clusters.
test-end-to-end: setup
	$(BIN)/pytest $(PARALLEL) -m "end_to_end and not slow and not gpu"

test-fast: setup
	$(BIN)/pytest $(PARALLEL) -m fast

test-slow: setup
	$(BIN)/pytest -m slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/build_site.py

# Writes the site of the documentation. To read it with its search: `python -m http.server -d site`.
docs: setup
	rm -rf site
	$(BIN)/python docs/build_site.py site

# Builds the wheel into dist/, and tests it with each supported version of Python that is installed.
wheel: setup
	$(BIN)/python -m build --wheel --no-isolation
	$(BIN)/pytest tests/end_to_end/test_wheel.py

# Writes the completion scripts of `tureen completion` from the options of all commands.
completions: setup
	$(BIN)/python -m tests.completion_scripts

# Prints the figures of docs/benchmarks.md, section "What `make bench` prints", in its order. Takes hours.
bench: setup
	$(BIN)/python -m benchmarks.digits --models "two tokens" "one token" --attack autoattack
	$(BIN)/tureen demo --train digits --no-serve
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.engines
	$(BIN)/python -m benchmarks.precisions tureen-demo/run-*
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.propagation
	$(BIN)/python -m benchmarks.add_tokens
	$(BIN)/python -m benchmarks.many_tokens
