#!/usr/bin/env bash
# Build an engine, write a model repository, and serve it: serve.sh CHECKPOINT [OUT]
# Needs d3llm-trt in the Python environment of Triton's Python backend, and tritonserver on the PATH.
set -euo pipefail
checkpoint=$1 out=${2:-out/triton}
d3llm-trt build "$checkpoint" --output "$out/engine" --overwrite
rm -rf "$out/repository/d3llm"
d3llm-trt triton "$out/engine" --output "$out/repository"
exec tritonserver --model-repository "$out/repository"
