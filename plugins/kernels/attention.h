// Launches of the attention kernels; arguments were checked by the C API.
#pragma once

#include <cuda_runtime_api.h>

#include "d3llm_kernels.h"

namespace d3llm {

cudaError_t launch_write_kv(const d3llm_attention_params& params, cudaStream_t stream);

// `overlapped`: the launch before on this stream was launch_write_kv, and this one may start before that has ended.
cudaError_t launch_attend(const d3llm_attention_params& params, bool overlapped, cudaStream_t stream);

}  // namespace d3llm
