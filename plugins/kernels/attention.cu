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

constexpr unsigned kWriters = 256;

// Rows that a thread block writes for one KV head.
__host__ __device__ constexpr unsigned rows_per_block(int head_dim) { return kWriters / (head_dim / 16); }

// A thread takes 8 columns of one row and KV head, and the 8 that stand half a head behind them.
template <typename T>
__global__ void write_kv_kernel(const d3llm_attention_params params) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int head_dim = params.head_dim, half = head_dim / 2, kv_heads = params.num_kv_heads;
  const unsigned chunks = head_dim / 16;
  const int column = threadIdx.x % chunks * 8, head = blockIdx.y;
  const int64_t row = int64_t{blockIdx.x} * rows_per_block(head_dim) + threadIdx.x / chunks;
  if (row >= params.tokens) return;
  // What waits for nothing first: the window of the row is known only after several reads, one after the other.
  const int64_t position = params.positions[row];
  const int64_t stride = static_cast<int64_t>(params.num_heads + 2 * kv_heads) * head_dim;
  const T* key = static_cast<const T*>(params.qkv) + row * stride + (params.num_heads + head) * head_dim + column;
  const T* value = key + kv_heads * head_dim;
  uint4 first = *reinterpret_cast<const uint4*>(key), second = *reinterpret_cast<const uint4*>(key + half);
  const uint4 low = *reinterpret_cast<const uint4*>(value), high = *reinterpret_cast<const uint4*>(value + half);
  const int64_t angle = min(max(position, int64_t{0}), params.max_seq_len - 1) * half + column;
  rotate<T>(first, second, load_angles(params.cos, params.sin, angle));
  const int window = find_window(params, row);
  if (window < 0) return;
  const int64_t slot = params.slots[window];
  if (slot < 0 || slot >= params.num_slots || position < 0 || position >= params.max_seq_len) return;

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
  const unsigned rows = rows_per_block(params.head_dim);
  const dim3 blocks(static_cast<unsigned>((params.tokens + rows - 1) / rows), params.num_kv_heads);
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
