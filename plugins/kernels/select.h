// Launches select, one thread block per row of logits; arguments were checked by the C API.
#pragma once

#include <cuda_runtime_api.h>

#include "d3llm_kernels.h"

namespace d3llm {

cudaError_t launch_select(const d3llm_select_params& params, cudaStream_t stream);

}  // namespace d3llm
