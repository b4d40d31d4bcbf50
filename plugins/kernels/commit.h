// Launches the bookkeeping after select, one thread block per entry of the batch. Arguments are checked by the caller.
#pragma once

#include <cuda_runtime_api.h>

#include "d3llm_kernels.h"

namespace d3llm {

cudaError_t launch_commit(const d3llm_commit_params& params, cudaStream_t stream);

}  // namespace d3llm
