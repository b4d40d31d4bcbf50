// How a launcher reports what is wrong: a message kept per thread, and a status.
#pragma once

#include <cuda_runtime_api.h>

#include "d3llm_kernels.h"

namespace d3llm {

// Keeps the printf-style message for d3llm_last_error and returns D3LLM_INVALID_ARGUMENT.
d3llm_status invalid(const char* format, ...) __attribute__((format(printf, 1, 2)));

// D3LLM_SUCCESS, or keeps "launcher: CUDA's message" and returns D3LLM_CUDA_ERROR.
d3llm_status from_cuda(const char* launcher, cudaError_t error);

}  // namespace d3llm
