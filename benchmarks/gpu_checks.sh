#!/usr/bin/env bash
# Everything that needs a GPU, in one go: gpu_checks.sh OUT [tests|sanitizer|kernels|steps|capture|accuracy|traffic|triton ...]
#   tests      all tests marked gpu, and the plugin's host program with enqueue
#   sanitizer  compute-sanitizer's memcheck and racecheck over every kernel
#   kernels    kernels against torch                      -> OUT/kernels.json
#   steps      whole steps of the published shapes        -> OUT/steps.json
#   capture    the default CUDA graphs                    -> OUT/capture.json
#   accuracy   500 problems in bfloat16 and FP8           -> OUT/tiny_d3llm_gpu*.json
#   traffic    ten minutes of random requests             -> OUT/traffic.json
#   triton     Triton beside LLM.generate (make triton)   -> OUT/triton_gpu.json
# The libraries must have been built (make plugins, or CMake into plugins/lib with its host program in out/cmake).
set -euo pipefail
out=$1 python=${PYTHON:-python3} host=${HOST_PROGRAM:-out/cmake/d3llm_plugin_host}
shift
mkdir -p "$out"
plugin=plugins/lib/libd3llm_tensorrt.so
# A few sizes of every kernel: the sanitizer is slow.
few="tests/plugins/test_commit.py::test_unknown_and_repeated_slots_on_a_gpu tests/plugins/test_kernels_gpu.py::test_rows_that_are_not_aligned
  tests/plugins/test_sampling_gpu.py::test_limits_of_rows_anywhere_in_memory[3]
  tests/plugins/test_kernels_gpu.py::test_select_of_odd_rows tests/runtime/test_graphs_gpu.py::test_kernels_equal_the_tensor_code_for_one_request
  tests/plugins/test_kernels_gpu.py::test_silu_mul[100-torch.bfloat16] tests/plugins/test_kernels_gpu.py::test_rms_norm_with_and_without_a_sum[100-torch.bfloat16]
  tests/plugins/test_kernels_gpu.py::test_attention_gives_fp8[128-torch.bfloat16]
  tests/plugins/test_kernels_gpu.py::test_attention_of_ragged_batches[7-128-torch.bfloat16]"

run_tests() {
  "$python" -m pytest -q -m gpu tests
  "$host" "$plugin" --gpu
}

run_sanitizer() {
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$host" "$plugin" --gpu
    # shellcheck disable=SC2086
    compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 9 \
      "$python" -m pytest -q -m gpu -p no:cacheprovider $few
  done
}

run_kernels() { "$python" benchmarks/kernels.py --output "$out/kernels.json"; }

run_steps() { "$python" benchmarks/steps.py --output "$out/steps.json"; }

run_capture() { "$python" benchmarks/capture.py --output "$out/capture.json"; }

run_accuracy() {
  local evaluate="$python -m examples.tiny_d3llm.evaluate"
  $evaluate --output "$out/tiny_d3llm_gpu.json"
  $evaluate --output "$out/tiny_d3llm_gpu_eager.json" --cuda-graphs off
  $evaluate --output "$out/tiny_d3llm_gpu_fp8.json" --quantization fp8
}

run_traffic() { "$python" benchmarks/traffic.py --device cuda --seconds 600 --batch-size 16 --output "$out/traffic.json"; }

run_triton() { "$python" benchmarks/triton_gpu.py --output "$out/triton_gpu.json"; }

for part in "${@:-tests}"; do "run_$part"; done
