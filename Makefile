# The tasks of a developer, and `make demo` for everybody. Plain enough for GNU make 3.81 (macOS).

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
# pip's own configuration decides where packages come from; nothing here sets an index.
PIP = $(BIN)/python -m pip install -c constraints.txt
CODE = compact exporters targets runtime_bench compact_edge tests benchmarks examples docs .ci
# Without these variables, mkdocs-material writes a warning about the future of MkDocs into every log.
MKDOCS = NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs

.PHONY: env demo test test-quick test-devices lint format quality docs clean help

help:
	@echo "make demo    build and check smollm2-135m for the generic target"
	@echo "make test    run the tests, on two cores (WORKERS=3)"
	@echo "make test-quick"
	@echo "             run the tests but the slow ones: before every commit"
	@echo "make test-devices"
	@echo "             compile llama.cpp for aarch64 and run the tests that use it in qemu (10 minutes)"
	@echo "make quality"
	@echo "             compute the tables of docs/quality.md that are not recorded yet (hours; needs COMPACT_EDGE_DATA)"
	@echo "make docs    build the documentation site into build/site"
	@echo "make lint    ruff (check and format), mypy, the documentation site (strict), and actionlint"
	@echo "make format  let ruff rewrite what lint complains of"
	@echo "make env     make the virtual environment in $(VENV)"
	@echo "make clean   remove caches and the virtual environment"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; run: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@command -v c++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || command -v clang++ >/dev/null 2>&1 || \
	  { echo "error: no C++ compiler (c++, g++ or clang++), which llama-cpp-python needs; install one and run make again" >&2; exit 1; }
	@echo "Making $(VENV). llama-cpp-python is compiled from source, which takes some minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e '.[prune,onnx,languages,parquet,eval,plot,demo,dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/compact-edge build smollm2-135m --target gguf --quant Q8_0 --force

# The tests of a module run in one process. Three keep two cores busy, because tests also wait: for devices, links and
# time limits. `make test WORKERS=5` is for four cores.
WORKERS = 3
# Bytecode is written whatever the environment says: the tests start hundreds of processes that import the same modules.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(STAMP)
	$(PYTEST)

# -m here goes before the one of pyproject.toml, which only leaves out the tests of devices.
test-quick: $(STAMP)
	$(PYTEST) -m "not slow and not devices"

# -m here goes before the one of pyproject.toml, which leaves these tests out.
test-devices: $(STAMP)
	$(BIN)/python -m pytest tests/devices -m devices -rs --durations=5

# Every script keeps what it finished, so this can be cut and run again. Checkpoints go into build/ and are removed.
quality: $(STAMP)
	$(BIN)/python -m benchmarks.quality.patterns
	$(BIN)/python -m benchmarks.quality.splits
	$(BIN)/python -m benchmarks.quality.splits --curve
	$(BIN)/python -m benchmarks.quality.calibration_mixes
	$(BIN)/python -m benchmarks.quality.compare_methods --work-dir build/methods
	$(BIN)/python -m benchmarks.quality.recovery --part rate --part budget
	$(BIN)/python -m benchmarks.quality.task_accuracy

docs: $(STAMP)
	$(MKDOCS) build --strict --quiet
	@echo "build/site/index.html"

lint: $(STAMP)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(MKDOCS) build --strict --quiet
	$(BIN)/python .ci/lint_workflows.py $(BIN)/actionlint -shellcheck "$(wildcard $(BIN)/shellcheck)"

format: $(STAMP)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
