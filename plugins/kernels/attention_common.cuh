// What both attention kernels share: which rows a thread block takes, its queries, the online softmax, its outputs.
//
// Fragments: a thread holds rows lane / 4 and lane / 4 + 8 of its warp's 16. Scores and outputs have 4 values for every
// 8 columns (two neighbouring columns of the first row, two of the second); A fragments have 4 registers for every 16
// columns. Ampere's mma and Hopper's wgmma agree on both.
#pragma once

#include <cuda_runtime.h>

#include "attention_tile.cuh"
#include "d3llm_kernels.h"
#include "fp8.cuh"
#include "launch.cuh"
#include "numeric.cuh"

namespace d3llm {

constexpr unsigned kAllLanes = 0xffffffff;

// Scores to powers of two: log2(e) / sqrt(head_dim).
template <int kHeadDim>
constexpr float kSoftmaxScale = 1.4426950408889634f / (kHeadDim == 128  ? 11.313708498984760f
                                                       : kHeadDim == 64 ? 8.0f
                                                                        : 5.656854249492381f);

// Up to 128 query rows of one window, or of the rows behind the last window, whose kv_length is 0.
struct QueryTile {
  int first_row, end_row;
  int64_t slot;
  int kv_length;
};

__device__ __forceinline__ int inclusive_sum(int value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(kAllLanes, value, distance);
    if (threadIdx.x % 32 >= distance) value += other;
  }
  return value;
}

// Up to 32 neighbouring windows of the batch, one in each lane of a warp. The rows behind the last window count as one
// more that attends to nothing.
struct WindowGroup {
  int64_t slot;
  int start, end, kv_length;
  int tiles, tiles_through;  // of this window, and of this and those before in the group
  int tiles_in_group;
};

// The group that starts with window `base`; `params.batch` and what follows is behind the last window.
__device__ __forceinline__ WindowGroup load_windows(const d3llm_attention_params& params, int base) {
  const int batch = static_cast<int>(params.batch), tokens = static_cast<int>(params.tokens);
  const int window = base + threadIdx.x % 32;
  const bool exists = window < batch;
  const int64_t wanted = exists ? params.kv_lengths[window] : 0;
  WindowGroup group;
  group.slot = exists ? params.slots[window] : 0;
  group.start = window <= batch ? static_cast<int>(params.cu_window[window]) : tokens;
  group.end = exists ? static_cast<int>(params.cu_window[window + 1]) : tokens;
  const bool known = group.slot >= 0 && group.slot < params.num_slots;
  group.kv_length = known ? static_cast<int>(min(max(wanted, int64_t{0}), params.max_seq_len)) : 0;
  group.tiles = group.end > group.start ? (group.end - group.start + kQueryRows - 1) / kQueryRows : 0;
  group.tiles_through = inclusive_sum(group.tiles);
  group.tiles_in_group = __shfl_sync(kAllLanes, group.tiles_through, 31);
  return group;
}

// Of all windows; `first` is the group of window 0.
__device__ __forceinline__ int count_tiles(const d3llm_attention_params& params, const WindowGroup& first) {
  int count = first.tiles_in_group;
  for (int base = 32; base <= params.batch; base += 32) count += load_windows(params, base).tiles_in_group;
  return count;
}

// All warps find the same tile: the `index`-th, counting the tiles of every window one after the other; empty if there
// are not so many. `first` is the group of window 0.
__device__ __forceinline__ QueryTile find_tile(const d3llm_attention_params& params, const WindowGroup& first,
                                               int index) {
  WindowGroup group = first;
  for (int base = 32; index >= group.tiles_in_group && base <= params.batch; base += 32) {
    index -= group.tiles_in_group;
    group = load_windows(params, base);
  }
  const unsigned behind = __ballot_sync(kAllLanes, index < group.tiles_through);
  if (behind == 0) return {0, 0, 0, 0};
  const int owner = __ffs(behind) - 1;
  const int inside = index - __shfl_sync(kAllLanes, group.tiles_through - group.tiles, owner);
  const int top = __shfl_sync(kAllLanes, group.start, owner) + inside * kQueryRows;
  const int end = min(__shfl_sync(kAllLanes, group.end, owner), static_cast<int>(params.tokens));
  return {top, min(end, top + kQueryRows), __shfl_sync(kAllLanes, group.slot, owner),
          __shfl_sync(kAllLanes, group.kv_length, owner)};
}

// This thread's part of a tile's query rows, not rotated yet, and the angles to rotate them by. The first kQueryThreads
// threads take part, every warpgroup with the 64 rows that it multiplies.
template <int kHeadDim>
struct QueryRows {
  static constexpr int kPairs = kHeadDim / 16;
  static constexpr int kRowsPerStep = 128 / kPairs, kSteps = 64 / kRowsPerStep;

  static __device__ __forceinline__ int row(int step) {
    return threadIdx.x / 128 * 64 + threadIdx.x % 128 / kPairs + step * kRowsPerStep;
  }
  uint4 first[kSteps], second[kSteps];
  Angles angles[kSteps];
};

template <typename T, int kHeadDim>
__device__ __forceinline__ QueryRows<kHeadDim> read_queries(const d3llm_attention_params& params, const QueryTile& tile,
                                                            int head) {
  using Rows = QueryRows<kHeadDim>;
  const int64_t stride = static_cast<int64_t>(params.num_heads + 2 * params.num_kv_heads) * kHeadDim;
  const int column = threadIdx.x % Rows::kPairs * 8;
  int64_t positions[Rows::kSteps];
  Rows rows;
  // The loads that wait for no other first, so that all rows wait together.
#pragma unroll
  for (int step = 0; step < Rows::kSteps; ++step) {
    // Rows behind the end repeat the last one: nobody reads their outputs.
    const int row = min(tile.first_row + Rows::row(step), tile.end_row - 1);
    const T* source = static_cast<const T*>(params.qkv) + row * stride + head * kHeadDim + column;
    rows.first[step] = *reinterpret_cast<const uint4*>(source);
    rows.second[step] = *reinterpret_cast<const uint4*>(source + kHeadDim / 2);
    positions[step] = params.positions[row];
  }
#pragma unroll
  for (int step = 0; step < Rows::kSteps; ++step) {
    const int64_t position = min(max(positions[step], int64_t{0}), params.max_seq_len - 1);
    rows.angles[step] = load_angles(params.cos, params.sin, position * (kHeadDim / 2) + column);
  }
  return rows;
}

// Rotated, into shared memory in the layout of a tile.
template <typename T, int kHeadDim>
__device__ __forceinline__ void stage_queries(uint32_t staging, QueryRows<kHeadDim>& rows) {
  using Layout = TileLayout<kHeadDim, kQueryRows>;
  using Rows = QueryRows<kHeadDim>;
  const int chunk = threadIdx.x % Rows::kPairs;
#pragma unroll
  for (int step = 0; step < Rows::kSteps; ++step) {
    rotate<T>(rows.first[step], rows.second[step], rows.angles[step]);
    store_shared(staging + Layout::offset(Rows::row(step), chunk), rows.first[step]);
    store_shared(staging + Layout::offset(Rows::row(step), chunk + Rows::kPairs), rows.second[step]);
  }
}

// Running maximum and sum of a thread's two rows; the sum is the thread's own share until the end.
struct Softmax {
  float highest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
};

__device__ __forceinline__ float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Scores become exponentials relative to the new maximum; returns by how much older ones shrink.
template <int kScores>
__device__ __forceinline__ float2 update_softmax(Softmax& softmax, float (&scores)[kScores], float scale) {
  float shrink[2];
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    float highest = softmax.highest[part];
#pragma unroll
    for (int block = 0; block < kScores / 4; ++block) {
      highest = fmaxf(highest, fmaxf(scores[block * 4 + part * 2], scores[block * 4 + part * 2 + 1]));
    }
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 2));
    shrink[part] = exp2_fast((softmax.highest[part] - highest) * scale);
    softmax.highest[part] = highest;
    const float offset = highest * scale;
    float sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int block = 0; block < kScores / 4; ++block) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        float& score = scores[block * 4 + part * 2 + column];
        score = exp2_fast(fmaf(score, scale, -offset));
        sums[column] += score;
      }
    }
    softmax.sum[part] = softmax.sum[part] * shrink[part] + (sums[0] + sums[1]);
  }
  return {shrink[0], shrink[1]};
}

// Keys behind the end get no weight.
template <int kScores>
__device__ __forceinline__ void hide_keys(float (&scores)[kScores], int present) {
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int index = 0; index < kScores; ++index) {
    if (index / 4 * 8 + column + index % 2 >= present) scores[index] = -INFINITY;
  }
}

// Score fragments as A fragments.
template <typename T, int kScores>
__device__ __forceinline__ void pack_probabilities(uint32_t (&probabilities)[kScores / 8][4],
                                                   const float (&scores)[kScores]) {
#pragma unroll
  for (int pair = 0; pair < kScores / 2; ++pair) {
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

// 8 values that lie in one register each two, as FP8.
template <typename T>
__device__ __forceinline__ uint2 to_fp8(const uint4& values, const Unit& unit) {
  const float2 a = unpack<T>(values.x), b = unpack<T>(values.y), c = unpack<T>(values.z), d = unpack<T>(values.w);
  return {unit.pair(a.x, a.y) | static_cast<uint32_t>(unit.pair(b.x, b.y)) << 16,
          unit.pair(c.x, c.y) | static_cast<uint32_t>(unit.pair(d.x, d.y)) << 16};
}

// Each warp its own 16 rows, through shared memory so that whole rows are written. kFp8 says that out_scale may be set:
// attention in half precision takes 3 to 6 % longer in a kernel that can do both.
template <typename T, int kHeadDim, bool kFp8>
__device__ __forceinline__ void store_outputs(uint32_t staging, const d3llm_attention_params& params,
                                              const QueryTile& tile, int head, const float (&outputs)[kHeadDim / 2]) {
  using Layout = TileLayout<kHeadDim, kQueryRows>;
  constexpr int kChunks = kHeadDim / 8;
  const int lane = threadIdx.x % 32, top = threadIdx.x / 32 * 16;
#pragma unroll
  for (int pair = 0; pair < kHeadDim / 4; ++pair) {
    const uint32_t place = Layout::offset(top + lane / 4 + pair % 2 * 8, pair / 2) + lane % 4 * 4;
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(staging + place),
                 "r"(pack<T>(outputs[pair * 2], outputs[pair * 2 + 1]))
                 : "memory");
  }
  const Unit unit(params.out_scale);  // behind the outputs, whose registers it takes
  __syncwarp();
#pragma unroll
  for (int step = 0; step < 16 * kChunks / 32; ++step) {
    const int index = lane + step * 32, row = top + index / kChunks, chunk = index % kChunks;
    if (tile.first_row + row >= tile.end_row) continue;
    const int64_t first = static_cast<int64_t>(tile.first_row + row) * params.num_heads + head;
    const int64_t place = first * kHeadDim + chunk * 8;
    const uint4 values = load_shared(staging + Layout::offset(row, chunk));
    if (kFp8 && unit.exists) {
      *reinterpret_cast<uint2*>(static_cast<uint8_t*>(params.out) + place) = to_fp8<T>(values, unit);
    } else {
      *reinterpret_cast<uint4*>(static_cast<T*>(params.out) + place) = values;
    }
  }
}

// At most: every window may end in a tile of its own, and so may the rows behind the last one.
inline int64_t most_tiles(const d3llm_attention_params& params) {
  return params.tokens / kQueryRows + params.batch + 1;
}

}  // namespace d3llm
