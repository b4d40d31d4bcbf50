# Everything sets itself up: a virtual environment in .venv with the pinned requirements, the package in it, editable.
# DEMO stands for what the demo needs, READY for what tests and style checks need on top of it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.demo
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --disable-pip-version-check
# On Linux PyPI's torch is the build for CUDA. Where there is no NVIDIA GPU the one for the CPU comes from torch's own
# index; TORCH_INDEX= takes torch from wherever pip is set up to look.
CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_INDEX ?= $(shell test "$$(uname)" != Linux || command -v nvidia-smi > /dev/null || echo $(CPU_INDEX))
CPU_SIZE := for the CPU, 0.2 GB
ANY_SIZE := 2.7 GB where it is the build for CUDA
CXX_SOURCES := $(wildcard plugins/*/*.cu plugins/*/*.cuh plugins/*/*.h plugins/*/*.cpp plugins/*/*/*.cu plugins/*/*/*.h plugins/*/*/*.cpp)
SOURCES := d3llm_trt build plugins runtime tests examples benchmarks setup.py

.PHONY: demo test lint format types plugins bindings triton clean help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(DEMO) ## build both tiny engines and answer word problems with them
	@echo "== Building engines from the two tiny checkpoints, and asking each three questions"
	$(BIN)/python examples/demo.py
	@echo "== Watch one being answered: $(BIN)/d3llm-trt generate --watch out/demo/tiny-d3llm-llada \\"
	@echo '     "Tom is 7 years old. Anna is 3 times as old as Tom. How old will Anna be in 12 years?"'

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
# packages share files with it), and the headers of TensorRT. ARCHITECTURES="80 90a" compiles for fewer GPUs,
# ARCHITECTURES=native for those of this machine.
CUDA := nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
  nvidia-cuda-cccl==13.0.85
HEADERS := kernel-lens==2.0.1
CMAKE := PATH="$(abspath $(BIN)):$$PATH" cmake
empty :=
ARCHITECTURES ?= all
plugins: $(DEMO) ## the CUDA kernels, the TensorRT plugin and its test host, into plugins/lib and out/cmake
	command -v cmake > /dev/null || test -x $(BIN)/cmake || $(PIP) cmake
	command -v ninja > /dev/null || test -x $(BIN)/ninja || $(PIP) ninja
	test -n "$$CUDACXX" -o -x /usr/local/cuda/bin/nvcc -o -d out/cuda || command -v nvcc > /dev/null \
	  || $(PIP) --no-deps --target out/cuda $(CUDA)
	test -n "$$TensorRT_ROOT" -o -d out/tensorrt/kernel_lens || $(PIP) --no-deps --target out/tensorrt $(HEADERS)
	$(CMAKE) -S . -B out/cmake -G Ninja "-DD3LLM_PYTHON=$(abspath $(BIN))/python" \
	  "-DD3LLM_CUDA_ARCHITECTURES=$(subst $(empty) $(empty),;,$(strip $(ARCHITECTURES)))"
	$(CMAKE) --build out/cmake

# The server comes from a wheel. Its Python backend garbles strings with numpy 2, so it gets an environment of its own,
# with an older numpy before everything that is in .venv.
TRITON := out/tritonserver
triton: $(TRITON)/.ready ## a real Triton Inference Server for the tests

$(TRITON)/.ready: $(READY)
	$(PYTHON) -m venv $(TRITON)/venv
	$(TRITON)/venv/bin/python -m pip install --disable-pip-version-check --no-deps numpy==1.26.4
	$(PIP) --no-deps --target $(TRITON) nvidia-pytriton==0.7.0
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

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; set PYTHON")'
	$(PYTHON) -m venv $(VENV)

$(DEMO): requirements-demo.txt pyproject.toml | $(BIN)/python
	@echo "== Setting up $(VENV). To download: torch ($(if $(TORCH_INDEX),$(CPU_SIZE),$(ANY_SIZE))), small packages (40 MB)"
	$(PIP) --no-deps $(addprefix --extra-index-url ,$(TORCH_INDEX)) --constraint requirements-demo.txt torch
	$(PIP) --requirement requirements-demo.txt
	D3LLM_TRT_PLUGINS=off $(PIP) --no-deps --editable .
	touch $@

$(READY): $(DEMO) requirements-test.txt
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tests need Python 3.11: make clean, set PYTHON")'
	@echo "== Setting up $(VENV) for tests and style checks. To download: 190 MB, half of it TensorRT for RTX"
	$(PIP) --requirement requirements-test.txt
	touch $@
