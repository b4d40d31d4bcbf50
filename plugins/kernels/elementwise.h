// Launches of the fused elementwise kernels; arguments were checked by the C API.
#pragma once

#include <cuda_runtime_api.h>

#include "d3llm_kernels.h"

namespace d3llm {

constexpr int64_t kMostHidden = 16384;  // of a row of rms_norm, which stays in the registers of one thread block

cudaError_t launch_rms_norm(const d3llm_rms_norm_params& params, cudaStream_t stream);

cudaError_t launch_silu_mul(const d3llm_silu_mul_params& params, cudaStream_t stream);

}  // namespace d3llm
