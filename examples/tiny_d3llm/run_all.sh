#!/usr/bin/env bash
# Train both families at the same time: run_all.sh train|distill OUT SECONDS [BASE]
#   train    writes OUT/FAMILY.base.safetensors
#   distill  reads BASE/FAMILY.base.safetensors (BASE is OUT if not given), writes OUT/FAMILY.final.safetensors
# Both write OUT/FAMILY.STAGE.json, a quick check on held-out problems. Where there are two GPUs, each gets a family.
# TASK=yardstick trains on chains of steps instead of word problems.
# shellcheck disable=SC2086
set -euo pipefail
stage=$1 out=$2 seconds=$3 base=${4:-$2} python=${PYTHON:-python3}
mkdir -p "$out"
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)

run_family() {
  common="--task ${TASK:-tiny-d3llm} --family $1"
  if [ "$stage" = train ]; then
    "$python" -m examples.tiny_d3llm.train $common --out "$out" --seconds "$seconds" ${TRAIN_FLAGS:-}
    weights=$out/$1.base.safetensors
  else
    "$python" -m examples.tiny_d3llm.distill $common --base "$base" --out "$out" --seconds "$seconds" ${DISTILL_FLAGS:-}
    weights=$out/$1.final.safetensors
  fi
  "$python" -m examples.tiny_d3llm.check $common --weights "$weights" --output "$out/$1.$stage.json" ${CHECK_FLAGS:-}
}

second_gpu=$((gpus > 1 ? 1 : 0))
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} run_family llada & llada=$!
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-$second_gpu} run_family dream & dream=$!
status=0
wait "$llada" || status=$?
wait "$dream" || status=$?
exit "$status"
