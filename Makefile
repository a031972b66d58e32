# Every target makes the environment it needs: `make demo` on a fresh machine is enough.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := build/demo
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test check bench devices cpus samples clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/run.stamp ## Compile the digits classifier, check the bundle, say where the report is
	$(BIN)/edgeq compile samples/digits/digits.onnx --target ort-cpu \
		--calibration samples/digits/calibration.npz \
		--evaluation samples/digits/evaluation.npz --metric top1 -o $(DEMO) --force
	$(BIN)/edgeq check $(DEMO) --taps --evaluation samples/digits/evaluation.npz --metric top1
	@echo "The report: $(CURDIR)/$(DEMO)/report.html"

test: $(VENV)/test.stamp ## Run all tests; PYTEST="-k name" passes options on
	$(BIN)/python -m pytest $(PYTEST)

check: $(VENV)/dev.stamp ## Lint, check the format, the types and the layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layering.py

bench: $(VENV)/test.stamp ## Measure accuracy and speed on the models of ../shared/zoo
	$(BIN)/python -m benchmarks.accuracy --keep build/bench
	$(BIN)/python -m benchmarks.deployed --bundles build/bench

devices: $(VENV)/test.stamp ## Compare every model of ../shared/zoo on every device, on emulators
	$(BIN)/python -m benchmarks.devices --bundles build/bench

cpus: $(VENV)/test.stamp ## Check bundles of ../shared/zoo on emulated CPUs, x86 and Arm, with ONNX Runtime
	$(BIN)/python -m benchmarks.cpus --bundles build/cpu-bundles

samples: $(VENV)/test.stamp ## Train the digits classifier anew
	$(BIN)/python samples/digits/train.py

clean: ## Remove the environment and everything made
	rm -rf $(VENV) build

# One environment, filled in stages: what a user needs, what tests need, what linters need.
# A stamp is older than pyproject.toml or constraints.txt when they changed: installed again then.
STALE := pyproject.toml constraints.txt Makefile

$(VENV)/run.stamp: $(STALE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) setuptools
	$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(PIP) --no-build-isolation -e '.[torch,transformers,diffusers,tvm,wasm,cluster,test]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) --no-build-isolation -e '.[test,dev]'
	@touch $@
