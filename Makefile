# Everything sets itself up: a virtual environment in .venv with the pinned requirements, the package in it, editable.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := d3llm_trt build runtime tests examples

.PHONY: demo test lint format types clean help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(READY) ## build both tiny engines and answer word problems with them
	$(BIN)/python examples/demo.py

test: $(READY) ## run all tests; those for a GPU are skipped without one
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY) types ## style, format and static types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

# The package is spread over three folders, which mypy must see as one tree.
types: $(READY)
	rm -rf out/tree && mkdir -p out/tree/d3llm_trt
	@ln -s $(abspath $(wildcard d3llm_trt/*) build runtime) out/tree/d3llm_trt/
	cd out/tree && $(abspath $(BIN))/mypy --config-file $(abspath pyproject.toml) --cache-dir ../mypy -p d3llm_trt

format: $(READY) ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean: ## remove everything that is made here
	rm -rf $(VENV) out *.egg-info

$(READY): requirements-test.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; set PYTHON")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
