# Everything sets itself up: a virtual environment in .venv with the pinned requirements, the package in it, editable.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := d3llm_trt build runtime tests examples benchmarks

.PHONY: demo test lint format types triton clean help

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

# The server comes from a wheel. Its Python backend garbles strings with numpy 2, so it gets an environment of its own,
# with an older numpy before everything that is in .venv.
TRITON := out/tritonserver
triton: $(TRITON)/.ready ## a real Triton Inference Server for the tests

$(TRITON)/.ready: $(READY)
	$(PYTHON) -m venv $(TRITON)/venv
	$(TRITON)/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps numpy==1.26.4
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(TRITON) nvidia-pytriton==0.7.0
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(' + repr(sysconfig.get_path('purelib')) + ')')" \
	  > $$(ls -d $(TRITON)/venv/lib/python3*/site-packages)/project.pth
	touch $@

clean: ## remove everything that is made here
	rm -rf $(VENV) out *.egg-info

$(READY): requirements-test.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; set PYTHON")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
