// Launches of the attention kernels; arguments were checked by the C API.
#pragma once

#include <cuda_runtime_api.h>

#include "d3llm_kernels.h"

namespace d3llm {

cudaError_t launch_write_kv(const d3llm_attention_params& params, cudaStream_t stream);

// `overlapped`: the launch before on this stream was launch_write_kv, and this one may start before that has ended.
cudaError_t launch_attend(const d3llm_attention_params& params, bool overlapped, cudaStream_t stream);

cudaError_t launch_attend_portable(const d3llm_attention_params& params, bool overlapped, cudaStream_t stream);

// For head_dim 64 and 128, and sizes that fit 32-bit numbers; compiled where D3LLM_HOPPER is defined.
bool can_attend_hopper(const d3llm_attention_params& params);
cudaError_t launch_attend_hopper(const d3llm_attention_params& params, bool overlapped, cudaStream_t stream);

}  // namespace d3llm
