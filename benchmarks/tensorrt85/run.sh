#!/usr/bin/env bash
# run.sh FOLDER OUTPUT [arguments of benchmarks.tensorrt85.run]: on the GPU machine, with the parts and the tree of
# pack.sh in FOLDER. The machine's python3 must have torch 2.11, whose large libraries are used. OUTPUT is a JSON file.
set -euo pipefail
folder=$(cd "$1" && pwd) output=$(realpath "$2")
shift 2
cd "$folder"
unpack() { LD_LIBRARY_PATH=$PWD/zstd zstd/zstd -dq --long=27 -c "$1" | tar xf -; }
if [ ! -e bundle/.complete ]; then
  cat p[0-9][0-9] | tar xf -
  unpack bundle.tar.zst
  touch bundle/.complete
fi
if [ ! tree/.unpacked -nt tree.tar.zst ]; then
  rm -rf tree
  unpack tree.tar.zst
  touch tree/.unpacked
fi
theirs=$(python3 -c "import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))")
site=$PWD/bundle/py/lib/python3.10/site-packages
mkdir -p "$site/torch/bin"
ln -sf "$theirs"/torch/bin/* "$site/torch/bin/"
for library in libtorch_cuda.so libtorch_cpu.so libtorch_cuda_linalg.so; do
  ln -sf "$theirs/torch/lib/$library" "$site/torch/lib/$library"
done
shared=$(find "$theirs"/nvidia "$theirs"/cusparselt -maxdepth 2 -name lib -printf '%p:' 2> /dev/null || true)
export LD_LIBRARY_PATH=$PWD/bundle/py/lib:$site/tensorrt:$site/torch/lib:$shared
export PYTHONPATH=$PWD/tree PYTHONWARNINGS=ignore D3LLM_TRT_CACHE=$PWD/cache
cd tree
exec "${PROGRAM:-$folder/bundle/py/bin/python3.10}" -m benchmarks.tensorrt85.run --work "$folder/engines" \
  --output "$output" --plugin "$PWD/libd3llm_tensorrt85.so" "$@"
