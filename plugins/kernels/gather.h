// Launch of the gather kernel; arguments were checked by the C API.
#pragma once

#include <cuda_runtime_api.h>

#include "d3llm_kernels.h"

namespace d3llm {

cudaError_t launch_gather(const d3llm_gather_params& params, cudaStream_t stream);

}  // namespace d3llm
