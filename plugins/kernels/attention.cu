// Attention of packed windows over a KV cache, without a causal mask: K/V write, then one pass over the keys.
//
// A thread block takes 64 query rows of one head and walks over tiles of 64 keys with an online softmax
// (FlashAttention-2, arXiv 2307.08691). The product with the values of one tile runs beside the softmax of the next
// (FlashAttention-3, arXiv 2407.08608).
#include "attention.h"

#include "attention_mma.cuh"
#include "attention_tile.cuh"
#include "numeric.cuh"

namespace d3llm {
namespace {

constexpr unsigned kAllLanes = 0xffffffff;

// 64 query rows of one window, or of the rows behind the last window, whose kv_length is 0.
struct QueryTile {
  int first_row, end_row;
  int64_t slot;
  int kv_length;
};

// All warps find the same tile: the `index`-th, counting the tiles of every window one after the other.
__device__ QueryTile find_tile(const d3llm_attention_params& params, int index) {
  const int lane = threadIdx.x % 32, batch = static_cast<int>(params.batch), tokens = static_cast<int>(params.tokens);
  for (int base = 0; base <= batch; base += 32) {
    const int window = base + lane;
    const int start = window <= batch ? static_cast<int>(params.cu_window[window]) : tokens;
    const int end = window < batch ? static_cast<int>(params.cu_window[window + 1]) : tokens;
    const int tiles = end > start ? (end - start + kTileRows - 1) / kTileRows : 0;
    int before = tiles;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(kAllLanes, before, distance);
      if (lane >= distance) before += other;
    }
    const int total = __shfl_sync(kAllLanes, before, 31);
    if (index < total) {
      const int owner = __ffs(__ballot_sync(kAllLanes, index < before)) - 1;
      const int inside = index - __shfl_sync(kAllLanes, before - tiles, owner);
      const int first = __shfl_sync(kAllLanes, start, owner) + inside * kTileRows;
      const int last = min(__shfl_sync(kAllLanes, end, owner), min(first + kTileRows, tokens));
      const bool padding = base + owner == batch;
      const int64_t slot = padding ? 0 : params.slots[base + owner];
      const int64_t length = padding || slot < 0 || slot >= params.num_slots ? 0 : params.kv_lengths[base + owner];
      return {first, last, slot, static_cast<int>(min(max(length, int64_t{0}), params.max_seq_len))};
    }
    index -= total;
  }
  return {0, 0, 0, 0};
}

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

__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// A thread takes 8 columns of one row and KV head, and the 8 that stand half a head behind them.
template <typename T>
__global__ void write_kv_kernel(const d3llm_attention_params params) {
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
  const float2* cosine = reinterpret_cast<const float2*>(params.cos + position * half + column);
  const float2* sine = reinterpret_cast<const float2*>(params.sin + position * half + column);
  rotate<T>(first.x, second.x, cosine[0], sine[0]);
  rotate<T>(first.y, second.y, cosine[1], sine[1]);
  rotate<T>(first.z, second.z, cosine[2], sine[2]);
  rotate<T>(first.w, second.w, cosine[3], sine[3]);

  const int64_t plane = params.max_seq_len * head_dim;
  T* keys = static_cast<T*>(params.kv_cache) + (slot * 2 * kv_heads + head) * plane + position * head_dim + column;
  T* values = keys + kv_heads * plane;
  *reinterpret_cast<uint4*>(keys) = first;
  *reinterpret_cast<uint4*>(keys + half) = second;
  *reinterpret_cast<uint4*>(values) = low;
  *reinterpret_cast<uint4*>(values + half) = high;
}

// The rotated A fragments of this thread's two rows.
template <typename T, int kHeadDim>
__device__ __forceinline__ void load_queries(uint32_t (&queries)[kHeadDim / 16][4], const d3llm_attention_params& params,
                                             const QueryTile& tile, int head) {
  constexpr int kDepth = kHeadDim / 16, kHalf = kHeadDim / 2;
  const int lane = threadIdx.x % 32;
  const int64_t stride = static_cast<int64_t>(params.num_heads + 2 * params.num_kv_heads) * kHeadDim;
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const int row = tile.first_row + threadIdx.x / 32 * 16 + lane / 4 + part * 8;
    const bool present = row < tile.end_row;
    const int64_t position = present ? min(max(params.positions[row], int64_t{0}), params.max_seq_len - 1) : 0;
    const T* source = static_cast<const T*>(params.qkv) + (present ? row : 0) * stride + head * kHeadDim;
#pragma unroll
    for (int depth = 0; depth < kDepth / 2; ++depth) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int column = depth * 16 + side * 8 + lane % 4 * 2;
        const int64_t angle = position * kHalf + column;
        uint32_t first = present ? *reinterpret_cast<const uint32_t*>(source + column) : 0;
        uint32_t second = present ? *reinterpret_cast<const uint32_t*>(source + column + kHalf) : 0;
        rotate<T>(first, second, *reinterpret_cast<const float2*>(params.cos + angle),
                  *reinterpret_cast<const float2*>(params.sin + angle));
        queries[depth][side * 2 + part] = first;
        queries[depth + kDepth / 2][side * 2 + part] = second;
      }
    }
  }
}

// Running maximum and sum of a thread's two rows; the sum is the thread's own share until the end.
struct Softmax {
  float highest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
};

// Scores become exponentials relative to the new maximum; returns by how much older ones shrink.
__device__ __forceinline__ float2 update_softmax(Softmax& softmax, float (&scores)[kScoreValues], float scale) {
  float shrink[2];
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    float highest = softmax.highest[part];
#pragma unroll
    for (int block = 0; block < kTileRows / 8; ++block) {
      highest = fmaxf(highest, fmaxf(scores[block * 4 + part * 2], scores[block * 4 + part * 2 + 1]));
    }
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 2));
    shrink[part] = exp2f((softmax.highest[part] - highest) * scale);
    softmax.highest[part] = highest;
    const float offset = highest * scale;
    float sum = 0.0f;
#pragma unroll
    for (int block = 0; block < kTileRows / 8; ++block) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        float& score = scores[block * 4 + part * 2 + column];
        score = exp2f(fmaf(score, scale, -offset));
        sum += score;
      }
    }
    softmax.sum[part] = softmax.sum[part] * shrink[part] + sum;
  }
  return {shrink[0], shrink[1]};
}

// Keys behind the end get no weight.
__device__ __forceinline__ void hide_keys(float (&scores)[kScoreValues], int present) {
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int block = 0; block < kTileRows / 8; ++block) {
#pragma unroll
    for (int value = 0; value < 4; ++value) {
      if (block * 8 + column + value % 2 >= present) scores[block * 4 + value] = -INFINITY;
    }
  }
}

// Score fragments as A fragments.
template <typename T>
__device__ __forceinline__ void pack_probabilities(uint32_t (&probabilities)[4][4], const float (&scores)[kScoreValues]) {
#pragma unroll
  for (int pair = 0; pair < kScoreValues / 2; ++pair) {
    probabilities[pair / 4][pair % 4] = pack<T>(scores[pair * 2], scores[pair * 2 + 1]);
  }
}

template <int kValues>
__device__ __forceinline__ void scale_rows(float (&outputs)[kValues], float2 factor) {
#pragma unroll
  for (int index = 0; index < kValues; ++index) outputs[index] *= index % 4 < 2 ? factor.x : factor.y;
}

__device__ __forceinline__ float inverse_of_total(float sum) {
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  sum += __shfl_xor_sync(kAllLanes, sum, 2);
  return sum == 0.0f ? 0.0f : 1.0f / sum;
}

template <typename T, int kHeadDim>
__device__ __forceinline__ void store_outputs(const d3llm_attention_params& params, const QueryTile& tile, int head,
                                              const float (&outputs)[kHeadDim / 2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const int row = tile.first_row + threadIdx.x / 32 * 16 + lane / 4 + part * 8;
    if (row >= tile.end_row) continue;
    T* target = static_cast<T*>(params.out) + (static_cast<int64_t>(row) * params.num_heads + head) * kHeadDim + lane % 4 * 2;
#pragma unroll
    for (int block = 0; block < kHeadDim / 8; ++block) {
      const float* values = &outputs[block * 4 + part * 2];
      *reinterpret_cast<uint32_t*>(target + block * 8) = pack<T>(values[0], values[1]);
    }
  }
}

// Two buffers of keys and two of values in shared memory, filled one step ahead.
template <typename T, int kHeadDim>
struct Tiles {
  const T *keys, *values;
  uint32_t buffers;
  int length;

  __device__ __forceinline__ uint32_t keys_at(int tile) const {
    return buffers + tile % 2 * TileLayout<kHeadDim>::kBytes;
  }
  __device__ __forceinline__ uint32_t values_at(int tile) const {
    return buffers + (2 + tile % 2) * TileLayout<kHeadDim>::kBytes;
  }
  __device__ __forceinline__ int count() const { return (length + kTileRows - 1) / kTileRows; }
  __device__ __forceinline__ void load_keys(int tile) const {
    if (tile < count()) load_tile<T, kHeadDim>(keys_at(tile), keys, tile * kTileRows, length);
  }
  __device__ __forceinline__ void load_values(int tile) const {
    load_tile<T, kHeadDim>(values_at(tile), values, tile * kTileRows, length);
  }
};

template <typename T, int kHeadDim>
__device__ __forceinline__ void attend_to(const Tiles<T, kHeadDim>& tiles, const uint32_t (&queries)[kHeadDim / 16][4],
                                          float (&outputs)[kHeadDim / 2], Softmax& softmax) {
  using Product = Mma<T, kHeadDim>;
  const float scale = 1.4426950408889634f * rsqrtf(static_cast<float>(kHeadDim));
  const int count = tiles.count();
  float scores[kScoreValues];
  uint32_t probabilities[4][4];

  tiles.load_keys(0);
  finish_copies();
  tiles.load_keys(1);
  tiles.load_values(0);
  Product::issue_scores(scores, queries, tiles.keys_at(0));
  Product::template wait<0>();
  if (count == 1) hide_keys(scores, tiles.length);
  update_softmax(softmax, scores, scale);
  pack_probabilities<T>(probabilities, scores);

  for (int tile = 1; tile < count; ++tile) {
    finish_copies();
    tiles.load_keys(tile + 1);
    tiles.load_values(tile);
    Product::issue_scores(scores, queries, tiles.keys_at(tile));
    Product::issue_outputs(outputs, probabilities, tiles.values_at(tile - 1));
    Product::template wait<1>();
    if (tile == count - 1) hide_keys(scores, tiles.length - tile * kTileRows);
    const float2 shrink = update_softmax(softmax, scores, scale);
    Product::template wait<0>();
    scale_rows(outputs, shrink);
    pack_probabilities<T>(probabilities, scores);
  }
  finish_copies();
  Product::issue_outputs(outputs, probabilities, tiles.values_at(count - 1));
  Product::template wait<0>();
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 2) attend_kernel(const d3llm_attention_params params) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const int head = blockIdx.y;
  const QueryTile tile = find_tile(params, blockIdx.x);
  if (tile.first_row >= tile.end_row) return;
  uint32_t queries[kHeadDim / 16][4];
  load_queries<T, kHeadDim>(queries, params, tile, head);
  wait_for_previous_kernel();

  float outputs[kHeadDim / 2] = {};
  Softmax softmax;
  if (tile.kv_length > 0) {
    const int kv_heads = params.num_kv_heads, kv_head = head / (params.num_heads / kv_heads);
    const int64_t plane = params.max_seq_len * kHeadDim;
    const T* keys = static_cast<const T*>(params.kv_cache) + (tile.slot * 2 * kv_heads + kv_head) * plane;
    attend_to<T, kHeadDim>({keys, keys + kv_heads * plane, shared_address(shared), tile.kv_length}, queries, outputs, softmax);
  }
  scale_rows(outputs, {inverse_of_total(softmax.sum[0]), inverse_of_total(softmax.sum[1])});
  store_outputs<T, kHeadDim>(params, tile, head, outputs);
}

// Programmatic dependent launch exists since SM90.
bool can_overlap() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9;
}

template <typename T, int kHeadDim>
cudaError_t launch_attend_as(const d3llm_attention_params& params, bool overlapped, cudaStream_t stream) {
  const auto kernel = attend_kernel<T, kHeadDim>;
  constexpr int kShared = 4 * TileLayout<kHeadDim>::kBytes;
  if (auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared)) return error;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  // Every window may end in a tile of its own, and so may the rows behind the last one.
  config.gridDim = dim3(static_cast<unsigned>(params.tokens / kTileRows + params.batch + 1), params.num_heads);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlapped && can_overlap() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params);
}

template <typename T>
cudaError_t launch_attend_for(const d3llm_attention_params& params, bool overlapped, cudaStream_t stream) {
  switch (params.head_dim) {
    case 32: return launch_attend_as<T, 32>(params, overlapped, stream);
    case 64: return launch_attend_as<T, 64>(params, overlapped, stream);
    default: return launch_attend_as<T, 128>(params, overlapped, stream);
  }
}

}  // namespace

cudaError_t launch_write_kv(const d3llm_attention_params& params, cudaStream_t stream) {
  constexpr int kWriters = 256;
  const int64_t threads = params.tokens * params.num_kv_heads * (params.head_dim / 16);
  const unsigned blocks = static_cast<unsigned>((threads + kWriters - 1) / kWriters);
  if (params.dtype == D3LLM_FLOAT16) {
    write_kv_kernel<__half><<<blocks, kWriters, 0, stream>>>(params);
  } else {
    write_kv_kernel<__nv_bfloat16><<<blocks, kWriters, 0, stream>>>(params);
  }
  return cudaGetLastError();
}

cudaError_t launch_attend(const d3llm_attention_params& params, bool overlapped, cudaStream_t stream) {
  if (params.dtype == D3LLM_FLOAT16) return launch_attend_for<__half>(params, overlapped, stream);
  return launch_attend_for<__nv_bfloat16>(params, overlapped, stream);
}

}  // namespace d3llm
