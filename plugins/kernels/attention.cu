// The launches of attention: K/V write, and the choice of the kernel that attends.
#include "attention.h"
#include "attention_common.cuh"

namespace d3llm {
namespace {

// The window of a row: the last one that starts at or before it and has rows; -1 for rows behind all windows.
__device__ int find_window(const d3llm_attention_params& params, int64_t row) {
  int low = 0, high = static_cast<int>(params.batch);
  if (row < params.cu_window[0] || row >= params.cu_window[high]) return -1;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (params.cu_window[middle] <= row ? low : high) = middle;
  }
  return low;
}

// A thread takes 8 columns of one row and KV head, and the 8 that stand half a head behind them.
template <typename T>
__global__ void write_kv_kernel(const d3llm_attention_params params) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int head_dim = params.head_dim, half = head_dim / 2, kv_heads = params.num_kv_heads;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int column = index % (half / 8) * 8, head = index / (half / 8) % kv_heads;
  const int64_t row = index / (half / 8) / kv_heads;
  if (row >= params.tokens) return;
  const int window = find_window(params, row);
  if (window < 0) return;
  const int64_t slot = params.slots[window], position = params.positions[row];
  if (slot < 0 || slot >= params.num_slots || position < 0 || position >= params.max_seq_len) return;

  const int64_t stride = static_cast<int64_t>(params.num_heads + 2 * kv_heads) * head_dim;
  const T* key = static_cast<const T*>(params.qkv) + row * stride + (params.num_heads + head) * head_dim + column;
  const T* value = key + kv_heads * head_dim;
  uint4 first = *reinterpret_cast<const uint4*>(key), second = *reinterpret_cast<const uint4*>(key + half);
  const uint4 low = *reinterpret_cast<const uint4*>(value), high = *reinterpret_cast<const uint4*>(value + half);
  rotate<T>(first, second, load_angles(params.cos, params.sin, position * half + column));

  const int64_t plane = params.max_seq_len * head_dim;
  T* keys = static_cast<T*>(params.kv_cache) + (slot * 2 * kv_heads + head) * plane + position * head_dim + column;
  T* values = keys + kv_heads * plane;
  *reinterpret_cast<uint4*>(keys) = first;
  *reinterpret_cast<uint4*>(keys + half) = second;
  *reinterpret_cast<uint4*>(values) = low;
  *reinterpret_cast<uint4*>(values + half) = high;
}

#if defined(D3LLM_HOPPER)
int compute_capability_major() {
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess ? major : 0;
}
#endif

}  // namespace

cudaError_t launch_write_kv(const d3llm_attention_params& params, cudaStream_t stream) {
  constexpr int kWriters = 256;
  const int64_t threads = params.tokens * params.num_kv_heads * (params.head_dim / 16);
  const unsigned blocks = static_cast<unsigned>((threads + kWriters - 1) / kWriters);
  if (params.dtype == D3LLM_FLOAT16) {
    return launch_kernel<write_kv_kernel<__half>>(blocks, kWriters, 0, true, stream, params);
  }
  return launch_kernel<write_kv_kernel<__nv_bfloat16>>(blocks, kWriters, 0, true, stream, params);
}

cudaError_t launch_attend(const d3llm_attention_params& params, bool overlapped, cudaStream_t stream) {
#if defined(D3LLM_HOPPER)
  if (compute_capability_major() == 9 && can_attend_hopper(params)) {
    return launch_attend_hopper(params, overlapped, stream);
  }
#endif
  return launch_attend_portable(params, overlapped, stream);
}

}  // namespace d3llm
