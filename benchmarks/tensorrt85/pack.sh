#!/usr/bin/env bash
# [PART=bytes] pack.sh FOLDER [tree]: all that a GPU machine without a network needs beside its own torch 2.11, in parts
# p00, p01, ...: Python 3.10, torch's Python side, TensorRT 8.5.3.1 and cuBLAS 11; and in tree.tar.zst this tree and its
# compiled libraries. With `tree` only the latter is made again.
#
# Run it in the root of the tree, after `make plugins` and
#   cmake --build out/cmake --target d3llm_tensorrt85
# Needs a Python 3.10 (PY310 names its prefix; pyenv's is found), g++, zstd, unzip and 6 GB of disk. What it makes on
# the way stays in FOLDER/work. ARCHITECTURE (90) is the only one whose GPU code is kept.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) tree=$PWD
out=$(mkdir -p "$1" && cd "$1" && pwd)
work=$out/work
mkdir -p "$work"
cd "$work"

fetch() { python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.10 -d wheels "$@"; }
compress() { zstd -T0 -12 --long=27 -q -f "$@"; }

# This tree, with the libraries that git ignores.
rm -rf tree
mkdir -p tree/plugins/lib
git -C "$tree" archive HEAD | tar xf - -C tree
cp "${LIBRARIES:-$tree/plugins/lib}"/*.so tree/plugins/lib/
cp "${PLUGIN:-$tree/out/cmake/libd3llm_tensorrt85.so}" tree/
tar cf - tree | compress -o "$out/tree.tar.zst"
if [ "${2:-}" = tree ]; then exit; fi

if [ ! -e wheels/.complete ]; then
  fetch tensorrt==8.5.3.1 nvidia-cublas-cu11==11.11.3.6 torch==2.11.0 numpy==1.26.4 safetensors tokenizers click \
    filelock rich pyyaml pygments markdown-it-py mdurl typing_extensions sympy networkx==3.4.2 jinja2 fsspec mpmath markupsafe \
    pytest iniconfig packaging pluggy exceptiongroup tomli
  touch wheels/.complete
fi

py310=${PY310:-$(ls -d "$HOME"/.pyenv/versions/3.10.*/ | head -1)}

# Python, with torch's small files: its large libraries are those of the machine's own torch.
rm -rf bundle trt
mkdir -p bundle trt
cp -r "$py310" bundle/py
site=bundle/py/lib/python3.10/site-packages
rm -rf bundle/py/lib/python3.10/{test,idlelib,tkinter,ensurepip,lib2to3} bundle/py/lib/python3.10/config-3.10* \
  bundle/py/{share,include} "${site:?}"/*
unzip -qo wheels/tensorrt-*.whl -d trt
unzip -qo wheels/nvidia_cublas*.whl -d trt
unzip -qo wheels/torch-*.whl -d "$site" -x torch/lib/libtorch_cuda.so torch/lib/libtorch_cpu.so \
  torch/lib/libtorch_cuda_linalg.so 'torch/include/*' 'torch/bin/*' 'torch/share/*'
for wheel in wheels/*.whl; do
  case $wheel in *tensorrt* | *cublas* | */torch-*) ;; *) unzip -qo "$wheel" -d "$site" ;; esac
done

# TensorRT. Its own plugins would need cuDNN 8; a library of that name with one function is enough to load the rest.
library=$site/tensorrt
mkdir -p "$library"
cp trt/tensorrt/{__init__.py,tensorrt.so,libnvonnxparser.so.8,libnvparsers.so.8} "$library/"
echo 'extern "C" bool initLibNvInferPlugins(void*, const char*) { return true; }' |
  g++ -shared -fPIC -x c++ - -o "$library/libnvinfer_plugin.so.8" -Wl,-soname,libnvinfer_plugin.so.8
large="trt/tensorrt/libnvinfer.so.8 trt/nvidia/cublas/lib/libcublas.so.11 trt/nvidia/cublas/lib/libcublasLt.so.11"
python3 "$here/prune.py" "${ARCHITECTURE:-90}" $large
# The builder's kernels stay whole: it compares their checksum.
mv $large trt/tensorrt/libnvinfer_builder_resource.so.8.5.3 "$library/"

tar cf - bundle | compress -o bundle.tar.zst
mkdir -p zstd
cp "$(command -v zstd)" zstd/
ldd zstd/zstd | awk '/liblz4|libzstd|liblzma|libz\.so/ {print $3}' | xargs -I{} cp -L {} zstd/
rm -f "$out"/p[0-9][0-9]
tar cf - zstd bundle.tar.zst | split -b "${PART:-38000000}" -d -a 2 - "$out/p"
ls -l "$out"/p[0-9][0-9] "$out/tree.tar.zst"
