# Everything sets itself up: a virtual environment in .venv with the pinned requirements, the package in it, editable.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CXX_SOURCES := $(wildcard plugins/*/*.cu plugins/*/*.cuh plugins/*/*.h plugins/*/*.cpp plugins/*/*/*.cu plugins/*/*/*.h plugins/*/*/*.cpp)
SOURCES := d3llm_trt build plugins runtime tests examples benchmarks setup.py

.PHONY: demo test lint format types plugins bindings triton clean help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(READY) ## build both tiny engines and answer word problems with them
	$(BIN)/python examples/demo.py

test: $(READY) ## run all tests; those for a GPU are skipped without one
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY) types ## style, format and static types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

types: $(READY)
	$(BIN)/mypy --cache-dir out/mypy -p d3llm_trt

format: $(READY) ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/clang-format -i $(CXX_SOURCES)

# What the system lacks comes from PyPI: CMake and Ninja, the CUDA compiler (into a folder of its own, since torch's
# packages share files with it), and the headers of TensorRT. ARCHITECTURES="80 90a" compiles for fewer GPUs, ARCHITECTURES=native for those of this machine.
CUDA := nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
  nvidia-cuda-cccl==13.0.85
HEADERS := kernel-lens==2.0.1
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CMAKE := PATH="$(abspath $(BIN)):$$PATH" cmake
empty :=
DEFAULTS := -U D3LLM_CUDA_ARCHITECTURES # CMake would keep those of the last build
plugins: $(READY) ## the CUDA kernels, the TensorRT plugin and its test host, into plugins/lib and out/cmake
	command -v cmake > /dev/null || test -x $(BIN)/cmake || $(PIP) cmake
	command -v ninja > /dev/null || test -x $(BIN)/ninja || $(PIP) ninja
	test -n "$$CUDACXX" -o -x /usr/local/cuda/bin/nvcc -o -d out/cuda || command -v nvcc > /dev/null \
	  || $(PIP) --no-deps --target out/cuda $(CUDA)
	test -n "$$TensorRT_ROOT" -o -d out/tensorrt/kernel_lens || $(PIP) --no-deps --target out/tensorrt $(HEADERS)
	$(CMAKE) -S . -B out/cmake -G Ninja "-DD3LLM_PYTHON=$(abspath $(BIN))/python" \
	  $(if $(ARCHITECTURES),"-DD3LLM_CUDA_ARCHITECTURES=$(subst $(empty) $(empty),;,$(strip $(ARCHITECTURES)))",$(DEFAULTS))
	$(CMAKE) --build out/cmake

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

# What tests know of TensorRT: the Python bindings of full TensorRT, whose libraries are not on PyPI, and the whole lean
# runtime. They are not installed: each is a folder of its own, which one process imports.
BINDINGS := out/tensorrt-bindings
bindings: $(patsubst %,$(BINDINGS)/%/.ready,10.15.1.29 11.0.0.114 11.4.0.106 lean) ## real TensorRT APIs for the tests

$(BINDINGS)/lean/.ready: WHEELS := tensorrt-lean-cu13-libs==11.4.0.106 tensorrt-lean-cu13-bindings==11.4.0.106
$(BINDINGS)/%/.ready: WHEELS = tensorrt-cu13-bindings==$*
$(BINDINGS)/%/.ready: | $(READY)
	rm -rf $(@D)
	$(PIP) --no-deps --target $(@D) $(WHEELS)
	touch $@

clean: ## remove everything that is made here
	rm -rf $(VENV) out plugins/lib *.egg-info

$(READY): requirements-test.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; set PYTHON")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	D3LLM_TRT_PLUGINS=off $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
